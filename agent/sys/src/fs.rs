//! Files: atomic writes, reads with a size limit, and opens that stay below a directory.

pub use crate::copy::copy_dir;
use crate::{Error, Result};
pub use rustix::fs::{Mode, OFlags};
use rustix::{
    fs::{FileType, ResolveFlags, fstat, mkdirat, openat2},
    io::Errno,
    process::umask,
    thread::{UnshareFlags, unshare_unsafe},
};
use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// Replaces the file at `path` by a file with these bytes and that mode (regardless of the umask), by rename:
/// a reader sees the old or the new file, never a part. The write survives the end of this process but not a
/// crash of the machine: use it for files on a tmpfs and files that can be made again.
///
/// # Errors
/// The directory is missing or cannot be written; no temporary file is left.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    replace(path, bytes, mode, false)
}

/// The same as [`write_atomic`] for a file that cannot be made again: after a crash of the machine the old or the new one is
/// there, and once the call has returned the new one.
///
/// # Errors
/// As of [`write_atomic`]; or the disk fails.
pub fn write_atomic_synced(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    replace(path, bytes, mode, true)
}

fn replace(path: &Path, bytes: &[u8], mode: u32, synced: bool) -> Result<()> {
    let tmp = temporary_beside(path)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        if synced {
            file.sync_all()?;
        }
        std::fs::rename(&tmp, path)?;
        match path.parent().filter(|_| synced) {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    })();
    written.map_err(|source| {
        // The first failure is reported; a temporary file that stays is removed by [`remove_unfinished`].
        let _leftover = std::fs::remove_file(&tmp);
        Error::Write { path: path.into(), source }
    })
}

/// Makes the directory `name` in the open directory `dir` with these permission bits from its first moment, whatever the
/// umask. The bits `setuid` and `setgid` are not mkdir(2)'s: they are the caller's to set, or come from the parent.
///
/// # Errors
/// As mkdirat(2).
pub fn make_dir_at(dir: impl AsFd, name: &OsStr, mode: u32) -> io::Result<()> {
    let dir = dir.as_fd();
    // A umask is the process's. A thread of its own may have another one, and ends with it.
    let made = crate::ns::on_thread("make a directory", || {
        // SAFETY: the flag unshares the umask and the working directory alone; this thread ends right after.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        umask(Mode::empty());
        mkdirat(dir, name, Mode::from_raw_mode(mode))
    });
    Ok(made.map_err(io::Error::other)??)
}

/// Removes a file; a missing file is no error.
///
/// # Errors
/// The file could not be removed.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the temporary files that [`write_atomic`] left in a directory because its process was killed:
/// files of processes that no longer run, and of an earlier process with this process's id. Call it before
/// this process writes there.
///
/// # Errors
/// The directory cannot be listed, or a temporary file cannot be removed.
pub fn remove_unfinished(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let Some(writer) = entry.file_name().to_str().and_then(temporary_writer) else { continue };
        let runs = writer != std::process::id() && Path::new("/proc").join(writer.to_string()).exists();
        if !runs && entry.file_type()?.is_file() {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// Id of the process that made a temporary file, parsed from the name given by [`temporary_beside`].
fn temporary_writer(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit('.');
    let (_counter, process) = (parts.next()?.parse::<u64>().ok()?, parts.next()?.parse().ok()?);
    parts.next().map(|_name| process)
}

/// An unused name in the same directory: a dot, the file's name, this process's id, a counter.
fn temporary_beside(path: &Path) -> Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(Error::Write {
            path: path.into(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "path names no file"),
        });
    };
    let mut tmp = std::ffi::OsString::from(".");
    tmp.push(name);
    tmp.push(format!(".{}.{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(tmp))
}

/// Reads a whole file of at most `max` bytes. Only a regular file is read, see [`open_regular`].
///
/// # Errors
/// The file cannot be opened or read, or [`Error::TooLong`].
pub fn read_limited(path: &Path, max: usize) -> Result<Vec<u8>> {
    let file = open_regular(path).map_err(|source| Error::Open { path: path.into(), source })?;
    read_file_limited(file, path, max)
}

/// Opens a regular file for reading; links are followed. Whatever else lies at the path is looked at and not opened: a FIFO
/// would hold up its reader until somebody writes, and some devices act when they are opened.
///
/// # Errors
/// The file is missing or cannot be opened, or it is no regular file (`InvalidInput`).
pub fn open_regular(path: &Path) -> io::Result<File> {
    reopen_regular(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?, OFlags::RDONLY)
}

/// Opens the file of a descriptor that only names it (`O_PATH`), if it is a regular one; see [`open_regular`].
///
/// # Errors
/// As of [`open_regular`].
pub fn reopen_regular(named: impl AsFd, flags: OFlags) -> io::Result<File> {
    if FileType::from_raw_mode(fstat(&named)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    // This path names that very file, whatever lies at its own path by now.
    let path = format!("/proc/self/fd/{}", named.as_fd().as_raw_fd());
    Ok(File::from(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?))
}

/// Reads a whole open file of at most `max` bytes; `path` only names the file in errors.
///
/// # Errors
/// The file cannot be read, or [`Error::TooLong`].
pub fn read_file_limited(file: File, path: &Path, max: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(|source| Error::Read { path: path.into(), source })?;
    if bytes.len() > max {
        return Err(Error::TooLong { path: path.into(), max });
    }
    Ok(bytes)
}

/// Reads a file as [`read_limited`], as text.
///
/// # Errors
/// As [`read_limited`], or the file is not UTF-8.
pub fn read_to_string_limited(path: &Path, max: usize) -> Result<String> {
    String::from_utf8(read_limited(path, max)?)
        .map_err(|e| Error::Malformed { path: path.into(), reason: format!("is not UTF-8: {e}") })
}

/// Whether the kernel confirms that no process has this file open for writing. `file` must be open read-only.
/// `false` where a process has, and where the kernel gives no answer: a file of another owner without
/// `CAP_LEASE`, or a file system without leases.
///
/// The answer comes from a read lease (fcntl(2), `F_SETLEASE`), which is released at once: a writer that
/// opens the file meanwhile waits for microseconds.
pub fn nobody_writes(file: impl AsFd) -> bool {
    /// `F_SETSIG` of fcntl(2), which libc does not define.
    const SET_SIGNAL: libc::c_int = 10;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: plain integers on a descriptor that is open for the call. The kernel sends the chosen signal
    // when a writer opens the file meanwhile. That signal is ignored by default; the default lease signal
    // would end the process.
    unsafe {
        libc::fcntl(fd, SET_SIGNAL, libc::SIGURG) == 0
            && libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) == 0
            // A failed release means that there is no lease; closing the descriptor releases a lease in any
            // case.
            && libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) == 0
    }
}

/// Opens `rel` below the directory `dir`: no component, `..`, link or magic link leads out of `dir`. Links
/// that stay inside are followed ([`OFlags::NOFOLLOW`] prevents that for the last component). A new file gets
/// mode 0644 less the umask.
///
/// # Errors
/// The file is missing, leads outside (`EXDEV`), or cannot be opened.
pub fn open_beneath(dir: impl AsFd, rel: &Path, flags: OFlags) -> Result<OwnedFd> {
    let mode = if flags.contains(OFlags::CREATE) || flags.contains(OFlags::TMPFILE) {
        Mode::from_raw_mode(0o644)
    } else {
        Mode::empty()
    };
    open_how(dir, rel, flags, mode, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
}

/// Opens the file that `path` names for a process whose root directory is `dir`. Links are followed; absolute
/// links and `..` resolve against that root and never lead out of it (`RESOLVE_IN_ROOT`). Magic links are
/// refused.
///
/// # Errors
/// The file is missing or cannot be opened.
pub fn open_in_root(dir: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    open_how(dir, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Calls `openat2` with a bounded number of tries: the kernel returns `EAGAIN` where a rename raced with
/// `..`.
pub(crate) fn open_how(
    dir: impl AsFd,
    rel: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    let mut tries = 0;
    loop {
        match openat2(dir.as_fd(), rel, flags | OFlags::CLOEXEC, mode, resolve) {
            Ok(fd) => return Ok(fd),
            Err(Errno::AGAIN | Errno::INTR) if tries < 128 => tries += 1,
            Err(e) => return Err(Error::Open { path: rel.into(), source: e.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn replaces_whole_files_with_exact_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"one", 0o640).unwrap();
        let first = std::fs::metadata(&path).unwrap();
        write_atomic(&path, b"two", 0o666).unwrap();
        let second = std::fs::metadata(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!((first.mode() & 0o7777, second.mode() & 0o7777), (0o640, 0o666));
        assert_ne!(first.ino(), second.ino());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_has_its_mode_whatever_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let here = File::open(dir.path()).unwrap();
        let made_by_mkdir = dir.path().join("plain");
        std::fs::create_dir(&made_by_mkdir).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_ne!(mode(&made_by_mkdir), 0o777, "this process has no umask to be tested with");
        for wanted in [0o777, 0o1777, 0o700, 0o2] {
            let name = format!("{wanted:o}");
            make_dir_at(&here, name.as_ref(), wanted).unwrap();
            assert_eq!(mode(&dir.path().join(&name)), wanted);
        }
        let again = make_dir_at(&here, "777".as_ref(), 0o700).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let last = dir.path().join("last");
        std::fs::create_dir(&last).unwrap();
        assert_eq!(mode(&last), mode(&made_by_mkdir), "the umask of this process has changed");
    }

    #[test]
    fn only_temporary_files_of_dead_writers_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let own = temporary_beside(&dir.path().join("a.json")).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let dead = format!(".b.json.{}.7.tmp", child.id());
        let kept = [".c.json.1.7.tmp", "d.json", ".e.tmp", ".f.1.tmp", "g.json.4194304.1.tmp", ".h.x.1.tmp"];
        for name in kept.iter().copied().chain([own.file_name().unwrap().to_str().unwrap(), &dead]) {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        remove_unfinished(dir.path()).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut kept = kept.map(str::to_owned);
        kept.sort();
        assert_eq!(left, kept);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("d");
        std::fs::create_dir(&target).unwrap();
        std::fs::write(target.join("x"), "").unwrap();
        assert!(matches!(write_atomic(&target, b"x", 0o600), Err(Error::Write { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_atomic(Path::new("/"), b"x", 0o600).is_err());
        assert!(write_atomic(&dir.path().join("none/x"), b"x", 0o600).is_err());
    }

    #[test]
    fn reads_up_to_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_limited(&path, 5).unwrap(), b"12345");
        assert!(matches!(read_limited(&path, 4), Err(Error::TooLong { max: 4, .. })));
        std::fs::write(&path, [0xff]).unwrap();
        assert!(matches!(read_to_string_limited(&path, 9), Err(Error::Malformed { .. })));
        // A file without a length in its attributes.
        assert!(read_to_string_limited(Path::new("/proc/self/stat"), 4096).unwrap().len() > 10);
    }

    #[test]
    fn only_regular_files_are_read_and_a_fifo_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        symlink(at("file"), at("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        symlink(at("fifo"), at("link-to-fifo")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert_eq!(read_limited(&at("link"), 9).unwrap(), b"text");
        let others = ["fifo", "link-to-fifo", "socket", "."].map(at);
        for other in
            others.iter().map(PathBuf::as_path).chain([Path::new("/dev/zero"), Path::new("/dev/null")])
        {
            let refused = read_limited(other, 100);
            let no_file = |e: &io::Error| e.kind() == io::ErrorKind::InvalidInput;
            assert!(matches!(&refused, Err(Error::Open { source, .. }) if no_file(source)), "{other:?}");
        }
    }

    #[test]
    fn a_writer_is_seen_until_it_closes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(!nobody_writes(&reader));
        drop(writer);
        for _ in 0..2 {
            assert!(nobody_writes(&reader));
            // A lease that still existed would block this open.
            OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        }
        assert!(!nobody_writes(File::open("/dev/null").unwrap()), "no leases there");
    }

    #[test]
    fn beneath_means_beneath() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/in"), "in").unwrap();
        std::fs::write(dir.path().join("out"), "out").unwrap();
        symlink("sub/in", root.join("inner")).unwrap();
        symlink("../out", root.join("outer")).unwrap();
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        let fd = File::open(&root).unwrap();
        let open = |rel: &str| open_beneath(&fd, Path::new(rel), OFlags::RDONLY);
        for good in ["sub/in", "inner", "sub/../sub/in"] {
            let mut text = String::new();
            File::from(open(good).unwrap()).read_to_string(&mut text).unwrap();
            assert_eq!(text, "in", "{good}");
        }
        for bad in ["outer", "absolute", "magic/etc", "../out", "sub/../../out", "/etc/passwd", "none"] {
            assert!(open(bad).is_err(), "{bad}");
        }
        open_beneath(&fd, Path::new("sub/new"), OFlags::CREATE | OFlags::WRONLY).unwrap();
        assert!(root.join("sub/new").exists());
    }
}
