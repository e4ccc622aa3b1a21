//! Pinned namespaces, which live without a process in them: made on a short-lived thread and pinned as files
//! by bind mounts.
//!
//! Pinning is the last step, so a directory in which all kinds are pinned holds completely set up namespaces.

use crate::{
    Error, Result,
    mount::{BindOpts, bind, unmount},
};
use rustix::{
    fd::AsFd,
    fs::{CWD, Mode, OFlags, openat, statfs},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};
use std::{
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    thread,
};

/// Kind of a namespace; its pin has the name of the file in `/proc/<pid>/ns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NsKind {
    /// Network namespace: interfaces, routes, sockets.
    Net,
    /// IPC namespace: System V and POSIX message queues, shared memory, semaphores.
    Ipc,
    /// UTS namespace: the host name.
    Uts,
    /// PID namespace: process ids. Only a process in it can make it, so [`crate::pause::start`] makes and
    /// pins it.
    Pid,
}

impl NsKind {
    /// Every kind.
    pub const ALL: [NsKind; 4] = [NsKind::Net, NsKind::Ipc, NsKind::Uts, NsKind::Pid];

    /// File name of the pin.
    pub fn file_name(self) -> &'static str {
        match self {
            NsKind::Net => "net",
            NsKind::Ipc => "ipc",
            NsKind::Uts => "uts",
            NsKind::Pid => "pid",
        }
    }

    fn flag(self) -> UnshareFlags {
        match self {
            NsKind::Net => UnshareFlags::NEWNET,
            NsKind::Ipc => UnshareFlags::NEWIPC,
            NsKind::Uts => UnshareFlags::NEWUTS,
            NsKind::Pid => UnshareFlags::NEWPID,
        }
    }
}

/// Makes new namespaces of these kinds and pins them as `dir/net`, `dir/ipc`, `dir/uts`. A new network
/// namespace has `lo` up; a new UTS namespace gets the host name; the sysctls (names as in sysctl(8)) are
/// written inside. Where all kinds are pinned already the call changes nothing. Where only some are pinned,
/// those were never used; the call unpins them and makes all.
///
/// # Errors
/// The kernel refuses, a sysctl belongs to none of the new namespaces, or `kinds` contains [`NsKind::Pid`].
/// The namespaces made so far are unpinned.
pub fn create_pinned(
    dir: &Path,
    kinds: &[NsKind],
    hostname: Option<&str>,
    sysctls: &[(String, String)],
) -> Result<()> {
    let failed = |what| move |source| Error::Namespace { what, path: dir.into(), source };
    if kinds.contains(&NsKind::Pid) {
        let source =
            io::Error::new(io::ErrorKind::Unsupported, "only a process in it can make a PID namespace");
        return Err(failed("make a PID namespace")(source));
    }
    let sysctls = sysctls.iter().map(|(name, value)| Ok((sysctl_path(name, kinds)?, name, value)));
    let sysctls = sysctls.collect::<Result<Vec<_>>>()?;
    let mut pinned = 0;
    for kind in kinds {
        pinned += usize::from(is_pinned(dir, *kind)?);
    }
    if pinned == kinds.len() && dir.is_dir() {
        return Ok(());
    }
    unpin(dir)?;
    std::fs::create_dir_all(dir).map_err(failed("make the directory"))?;
    let made = on_thread("make namespaces", || {
        let flags = kinds.iter().fold(UnshareFlags::empty(), |flags, kind| flags | kind.flag());
        // SAFETY: none of the flags unshares the descriptor table; this thread ends right after.
        unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|e| failed("unshare")(e.into()))?;
        if kinds.contains(&NsKind::Net) {
            loopback_up().map_err(failed("set lo up"))?;
        }
        if let Some(name) = hostname.filter(|_| kinds.contains(&NsKind::Uts)) {
            nix::unistd::sethostname(name).map_err(|e| failed("set the host name")(e.into()))?;
        }
        for (path, name, value) in &sysctls {
            std::fs::write(path, value).map_err(|source| Error::SysctlWrite {
                name: (*name).clone(),
                value: (*value).clone(),
                source,
            })?;
        }
        for kind in kinds {
            pin(Path::new("/proc/thread-self/ns"), dir, *kind)?;
        }
        Ok(())
    })
    .and_then(|inner| inner);
    if let Err(e) = made {
        // The first failure is reported; the next call finds and unpins the rest.
        let _undone = unpin(dir);
        return Err(e);
    }
    Ok(())
}

/// Pins a namespace from a `ns` directory of /proc as `dir/<kind>`.
pub(crate) fn pin(ns: &Path, dir: &Path, kind: NsKind) -> Result<()> {
    let file = dir.join(kind.file_name());
    std::fs::write(&file, b"").map_err(|source| Error::Write { path: file.clone(), source })?;
    bind(&ns.join(kind.file_name()), &file, BindOpts::default())
}

/// Removes the pins in `dir`, their files and `dir` itself. A namespace with processes in it lives until they
/// end. Missing pins are no error. Files of other names stay, and `dir` with them.
///
/// # Errors
/// The kernel refuses.
pub fn unpin(dir: &Path) -> Result<()> {
    for kind in NsKind::ALL {
        unpin_one(dir, kind)?;
    }
    match std::fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        Err(source) => Err(Error::Remove { path: dir.into(), source }),
    }
}

/// Removes one pin and its file; a missing pin is no error.
pub(crate) fn unpin_one(dir: &Path, kind: NsKind) -> Result<()> {
    let file = dir.join(kind.file_name());
    // Several pins may be mounted on one another after a crash between two tries; each needs one unmount.
    for _ in 0..64 {
        if !unmount(&file)? {
            break;
        }
    }
    crate::fs::remove_if_there(&file).map_err(|source| Error::Remove { path: file, source })
}

/// Whether `dir/<kind>` is a pinned namespace; a plain file is none.
///
/// # Errors
/// The kernel refuses to read the file's attributes.
pub fn is_pinned(dir: &Path, kind: NsKind) -> Result<bool> {
    let file = dir.join(kind.file_name());
    match statfs(&file) {
        Ok(fs) => Ok(i128::from(fs.f_type) == i128::from(libc::NSFS_MAGIC)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(e) => Err(Error::Read { path: file, source: e.into() }),
    }
}

/// Runs `f` on a thread of its own inside the network namespace pinned at `path`. Sockets that `f` opens
/// belong to that namespace permanently, whichever thread uses them later.
///
/// # Errors
/// `path` is no network namespace or the kernel refuses a new thread; `f` has not run then. A panic of `f`
/// continues in the caller.
pub fn in_net_ns<T: Send>(path: &Path, f: impl FnOnce() -> T + Send) -> Result<T> {
    let ns = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::Open { path: path.into(), source: e.into() })?;
    on_thread("enter a network namespace", || {
        move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| {
            Error::Namespace { what: "enter the network namespace", path: path.into(), source: e.into() }
        })?;
        Ok(f())
    })
    .and_then(|inner| inner)
}

/// Runs `f` for each of these pinned network namespaces, in it, one after the other on one thread of its own. A
/// path that is no network namespace, because the pod has ended meanwhile, is passed over.
///
/// # Errors
/// The kernel refuses a new thread. A panic of `f` continues in the caller.
pub fn in_each_net_ns<P: AsRef<Path> + Sync>(paths: &[P], mut f: impl FnMut(usize) + Send) -> Result<()> {
    on_thread("enter network namespaces", || {
        for (n, path) in paths.iter().enumerate() {
            let Ok(ns) = openat(CWD, path.as_ref(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
                continue;
            };
            if move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network)).is_ok() {
                f(n);
            }
        }
    })
}

/// Runs `f` on a new thread. The thread ends with `f`, and with it the membership in the namespaces that `f`
/// entered.
pub(crate) fn on_thread<T: Send>(what: &'static str, f: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let handle = thread::Builder::new()
            .name("berth-ns".into())
            .spawn_scoped(scope, f)
            .map_err(|source| Error::Thread { what, source })?;
        match handle.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Sets `lo` up in the calling thread's network namespace.
fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives through the call.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The file of a sysctl that belongs to one of these namespaces. Separators are those of sysctl(8): where the
/// first separator in the name is a dot, dots separate and slashes stand for dots; otherwise the other way
/// round.
fn sysctl_path(name: &str, kinds: &[NsKind]) -> Result<PathBuf> {
    let refuse = |reason| Error::Sysctl { name: name.to_owned(), reason };
    let slashed: String = match name.find(['.', '/']) {
        Some(at) if name.as_bytes().get(at) == Some(&b'.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        Some(_) => name.to_owned(),
        None => return Err(refuse("a name has at least two parts")),
    };
    if slashed.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(refuse("a part of the name is empty or dots only"));
    }
    let kind = if slashed.starts_with("net/") {
        NsKind::Net
    } else if slashed.starts_with("fs/mqueue/")
        || slashed == "kernel/sem"
        || ["kernel/shm", "kernel/msg"].iter().any(|prefix| slashed.starts_with(prefix))
    {
        NsKind::Ipc
    } else if slashed == "kernel/domainname" {
        NsKind::Uts
    } else {
        return Err(refuse("it belongs to no namespace of a pod"));
    };
    if !kinds.contains(&kind) {
        return Err(refuse("the pod has no namespace of its own for it"));
    }
    Ok(Path::new("/proc/sys").join(slashed))
}
