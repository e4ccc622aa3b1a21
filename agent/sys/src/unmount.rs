//! Unmounts in processes of their own. The last unmount of a file system of a server stores what is unwritten, and waits
//! for that without end where the server is away; no signal ends the wait. A thread of the agent in it would keep a killed
//! agent from ending, and with it its lock and its sockets from the next agent.
//!
//! The process is cloned without the caller's descriptors and makes only system calls on values prepared before: no
//! allocation, no lock, no unwinding.

use crate::{
    Error, Result, fs,
    mount::unmount,
    process::{self, PidFd},
};
use rustix::{
    fd::AsFd,
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
    process::{WaitId, WaitIdOptions, waitid},
};
use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

/// Opens the directory that holds `rel` below the open directory `dir`, links refused. `None` where a part of the path is
/// missing or a link: nothing of the caller's is mounted there.
fn holder(dir: impl AsFd, rel: &Path) -> Result<Option<std::os::fd::OwnedFd>> {
    let failed = |source| Error::Unmount { path: rel.into(), source };
    let holder = rel.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match fs::open_how(dir, holder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Error::Open { source, .. }) => match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV) => Ok(None),
            _ => Err(failed(source)),
        },
        Err(e) => Err(e),
    }
}

/// Unmounts, as [`unmount`] does, what is mounted at `rel` below the open directory `dir` (`O_PATH` is enough). Mounts on
/// the way are entered and links are not: whoever exchanges names below `dir` meanwhile has nothing outside unmounted.
/// `Ok(false)` also where a part of `rel` is a link.
///
/// # Errors
/// As [`unmount`].
pub fn unmount_beneath(dir: impl AsFd, rel: &Path) -> Result<bool> {
    let name = name_of(rel)?;
    let Some(fd) = holder(dir, rel)? else { return Ok(false) };
    // The path of the open directory is the directory itself, so only the last name is looked up.
    unmount(&Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string()).join(name))
}

fn name_of(rel: &Path) -> Result<&std::ffi::OsStr> {
    let none = || Error::Unmount { path: rel.into(), source: io::ErrorKind::InvalidInput.into() };
    rel.file_name().ok_or_else(none)
}

/// An unmount that a process of its own does.
#[derive(Debug)]
pub struct Unmounting {
    process: PidFd,
    path: PathBuf,
}

/// Begins an unmount as [`unmount_beneath`] in a process of its own. `Ok(None)` where a part of `rel` is missing or a link.
///
/// # Errors
/// The kernel refuses a process, or a directory cannot be opened.
pub fn begin_unmount_beneath(dir: impl AsFd, rel: &Path) -> Result<Option<Unmounting>> {
    let failed = |source| Error::Unmount { path: rel.into(), source };
    let name = CString::new(name_of(rel)?.as_bytes()).map_err(|e| failed(e.into()))?;
    let Some(fd) = holder(dir, rel)? else { return Ok(None) };
    // SAFETY: without CLONE_VM and without a stack the call equals fork. The new process has one thread and only makes
    // system calls, until it ends.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(libc::SIGCHLD), 0, 0, 0, 0) };
    match pid {
        0 => in_child(fd.as_raw_fd(), &name),
        -1 => Err(failed(io::Error::last_os_error())),
        pid => {
            let pid = u32::try_from(pid).map_err(|e| failed(io::Error::other(e)))?;
            let process = PidFd::open(pid)?.ok_or_else(|| process::no_child(pid))?;
            Ok(Some(Unmounting { process, path: rel.into() }))
        }
    }
}

/// The whole life of the process; its exit code is the kernel's error number.
fn in_child(holder: RawFd, name: &CStr) -> ! {
    // SAFETY: the name outlives the calls, and no other pointers are taken. The descriptors are this process's own copies;
    // they are closed first, because the process may outlive the caller.
    unsafe {
        let code = if libc::fchdir(holder) < 0
            || libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) < 0
            || libc::umount2(name.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) < 0
        {
            *libc::__errno_location()
        } else {
            0
        };
        libc::_exit(code)
    }
}

impl Unmounting {
    /// Waits for the end of the unmount, at most for `patience`. `Ok(None)` where it has not ended; the file system may be
    /// out of sight already. Otherwise as [`unmount`].
    ///
    /// # Errors
    /// As [`unmount`].
    pub fn wait(&self, patience: Duration) -> Result<Option<bool>> {
        if !self.process.poll_exited(patience)? {
            return Ok(None);
        }
        let failed = |e: Errno| Error::Unmount { path: self.path.clone(), source: e.into() };
        let ended = waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED).map_err(failed)?;
        match ended.and_then(|status| status.exit_status()) {
            Some(0) => Ok(Some(true)),
            Some(libc::EINVAL | libc::ENOENT) => Ok(Some(false)),
            Some(errno) => Err(failed(Errno::from_raw_os_error(errno))),
            // A signal ended it before its work.
            None => Err(failed(Errno::INTR)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{is_mount_point, tmpfs};
    use std::{fs::File, os::unix::fs::symlink};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A directory that has nothing mounted below it once the test has ended.
    struct Dir(tempfile::TempDir);

    impl Drop for Dir {
        fn drop(&mut self) {
            for mount in crate::mount::mounts_below(self.0.path()).unwrap_or_default().iter().rev() {
                unmount(&mount.mount_point).ok();
            }
        }
    }

    #[test]
    fn a_process_of_its_own_unmounts_and_follows_no_link() {
        let dir = Dir(tempfile::tempdir().unwrap());
        let path = dir.0.path();
        for name in ["a/b", "other"] {
            std::fs::create_dir_all(path.join(name)).unwrap();
            tmpfs(&path.join(name), None, 0o755).unwrap();
        }
        symlink("../other", path.join("a/link")).unwrap();
        symlink("a", path.join("way")).unwrap();
        let root = File::open(path).unwrap();
        let done = |rel: &str| {
            begin_unmount_beneath(&root, Path::new(rel)).map(|begun| begun.map(|u| u.wait(PATIENCE).unwrap()))
        };
        assert_eq!(done("a/link").unwrap(), Some(Some(false)), "a link is no mount");
        assert_eq!(done("way/b").unwrap(), None, "a link leads nowhere");
        assert_eq!(done("a/missing").unwrap(), Some(Some(false)));
        assert!(done("..").is_err());
        assert!(is_mount_point(&path.join("other")).unwrap() && is_mount_point(&path.join("a/b")).unwrap());
        assert_eq!(done("a/b").unwrap(), Some(Some(true)));
        assert_eq!(done("a/b").unwrap(), Some(Some(false)));
        assert!(!is_mount_point(&path.join("a/b")).unwrap());
        assert!(is_mount_point(&path.join("other")).unwrap());
    }

    #[test]
    fn the_process_has_none_of_the_callers_descriptors() {
        let dir = Dir(tempfile::tempdir().unwrap());
        let (reader, writer) = std::io::pipe().unwrap();
        let root = File::open(dir.0.path()).unwrap();
        let begun = begin_unmount_beneath(&root, Path::new("nothing")).unwrap().unwrap();
        drop(writer);
        // The end of the file comes only once nobody has the other end.
        assert_eq!(std::io::read_to_string(reader).unwrap(), "");
        assert_eq!(begun.wait(PATIENCE).unwrap(), Some(false));
    }
}
