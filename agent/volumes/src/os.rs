//! System calls that `berth-sys` does not have, by descriptor for paths that containers can write.

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
    mount::MountFlags,
    path::Arg,
};
use std::{
    ffi::{CStr, CString, OsStr},
    fs::File,
    io,
    os::unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    path::Path,
};

/// Flags to open a directory, but not a link to one.
const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a directory; a symbolic link in the last place is refused.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, DIR, Mode::empty())?)
}

/// Opens a directory directly in another; a symbolic link is refused.
pub(crate) fn open_dir_at(dir: impl AsFd, name: impl Arg) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, DIR, Mode::empty())?)
}

/// Opens a regular file, or makes it. What else lies at the path is neither opened nor followed.
pub(crate) fn open_or_make(path: &Path, flags: OFlags, mode: u32) -> io::Result<File> {
    let name = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, name, Mode::empty()) {
        Ok(found) => berth_sys::fs::reopen_regular(found, flags),
        Err(Errno::NOENT) => {
            let make = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(File::from(rustix::fs::open(path, make, Mode::from_raw_mode(mode))?))
        }
        Err(e) => Err(e.into()),
    }
}

/// Creates the directory and its missing parents. Only for paths that no container can write.
pub(crate) fn make_dirs(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Sets the permission bits of an open directory or file, whatever the umask.
pub(crate) fn set_mode(fd: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?)
}

/// Sets the owner and the group; `None` leaves it.
pub(crate) fn set_owner(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    let (uid, gid) = (uid.map(rustix::fs::Uid::from_raw), gid.map(rustix::fs::Gid::from_raw));
    Ok(rustix::fs::fchown(fd, uid, gid)?)
}

/// Sets the group of an open directory or file, if one is given; the owner stays.
pub(crate) fn set_group(fd: impl AsFd, gid: Option<u32>) -> io::Result<()> {
    match gid {
        Some(gid) => Ok(rustix::fs::fchown(fd, None, Some(rustix::fs::Gid::from_raw(gid)))?),
        None => Ok(()),
    }
}

/// Mounts a tmpfs with options as in `mount -o`. One call: it is mounted with all its options or not at all.
pub(crate) fn mount_tmpfs(name: &str, target: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    let data = CString::new(options)?;
    Ok(rustix::mount::mount(name, target, "tmpfs", flags, data.as_c_str())?)
}

/// As [`mount_tmpfs`]; what lies in it is kept out of swap where the kernel can do that.
pub(crate) fn mount_swapless_tmpfs(target: &Path, options: &str) -> io::Result<()> {
    match mount_tmpfs("tmpfs", target, MountFlags::empty(), &format!("{options},noswap")) {
        // Kernels before 6.4 do not know the option.
        Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            mount_tmpfs("tmpfs", target, MountFlags::empty(), options)
        }
        other => other,
    }
}

/// Mounts a file system of huge pages with options as in `mount -o`.
pub(crate) fn mount_huge_pages(target: &Path, options: &str) -> io::Result<()> {
    let data = CString::new(options)?;
    Ok(rustix::mount::mount("hugetlbfs", target, "hugetlbfs", MountFlags::empty(), data.as_c_str())?)
}

/// The names in an open directory, without `.` and `..`.
pub(crate) fn entries(dir: impl AsFd) -> io::Result<Vec<CString>> {
    let mut out = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            out.push(name.to_owned());
        }
    }
    Ok(out)
}

/// Removes the entry `name` of the directory `dir`, which is open as `fd`, with all below it. A link is
/// removed and not followed. A mount below is an error, a missing entry is not.
pub(crate) fn remove_entry(fd: impl AsFd, dir: &Path, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(fd, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            berth_sys::mount::remove_tree_no_xdev(&dir.join(OsStr::from_bytes(name.to_bytes())))
                .map_err(io::Error::other)
        }
        Err(e) => Err(e.into()),
    }
}

/// Converts an error of `berth-sys`, with its text and cause kept.
pub(crate) fn sys<T>(result: berth_sys::Result<T>) -> io::Result<T> {
    result.map_err(io::Error::other)
}
