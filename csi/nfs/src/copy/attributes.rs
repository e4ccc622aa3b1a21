//! Owner, mode, times and extended attributes.

use super::{Copied, system};
use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{
        AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown, fgetxattr,
        flistxattr, fsetxattr, fstat, futimens, statat, utimensat,
    },
    io::Errno,
};
use std::ffi::CStr;

/// Longest list of names, and longest value, of the kernel.
const LONGEST: usize = 64 << 10;

/// Mode without the kind.
pub(super) fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanos: u64| Timespec {
        tv_sec: seconds,
        // Nanoseconds are below a billion.
        tv_nsec: i64::try_from(nanos).unwrap_or_default(),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Sets the times of an entry, of a link its own.
pub(super) fn times_at(dir: impl AsFd, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
    utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets the owner of an entry, of a link its own, where it is another.
pub(super) fn owner_at(dir: impl AsFd, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
    let made = statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)?;
    if (made.st_uid, made.st_gid) == (stat.st_uid, stat.st_gid) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets owner, mode, extended attributes and times of an open file or directory. The order matters: a change of owner
/// clears setuid, and every change changes a time. An owner that the server refuses to set (`root_squash`) is an
/// error: the copy would belong to somebody else.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> Copied<()> {
    let made = fstat(to).map_err(system("look at the copy of"))?;
    // Each change is a request to the server, so what is right already is left.
    let mut is_mode = made.st_mode & 0o7777 == stat.st_mode & 0o7777;
    if (made.st_uid, made.st_gid) != (stat.st_uid, stat.st_gid) {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        fchown(to, Some(uid), Some(gid))
            .map_err(system("give an owner (does the server export with no_root_squash?) to the copy of"))?;
        // The kernel clears setuid.
        is_mode = false;
    }
    if !is_mode {
        fchmod(to, mode(stat)).map_err(system("set the mode of the copy of"))?;
    }
    extended(from, to)?;
    futimens(to, &times(stat)).map_err(system("set the times of the copy of"))
}

/// Copies extended attributes: the users' own always, those of the system where the server takes them.
fn extended(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Copied<()> {
    let mut names = vec![0; LONGEST];
    let length = match flistxattr(from, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(e) => return Err(system("list the attributes of")(e)),
    };
    let mut there = vec![0; LONGEST];
    for name in names.get(..length).unwrap_or_default().split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let of_users = name.starts_with(b"user.");
        if !of_users && !name.starts_with(b"system.") && name != b"security.capability" {
            continue;
        }
        let mut value = vec![0; LONGEST];
        let length = match fgetxattr(from, name, value.as_mut_slice()) {
            Ok(length) => length,
            // Removed meanwhile, or not for this process.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            Err(e) => return Err(system("read an attribute of")(e)),
        };
        let value = value.get(..length).unwrap_or_default();
        // An access list that says no more than the mode is there already.
        if !of_users && fgetxattr(to, name, there.as_mut_slice()).is_ok_and(|l| there.get(..l) == Some(value))
        {
            continue;
        }
        match fsetxattr(to, name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            // An access list that the server computes from the mode.
            Err(_) if !of_users => {}
            Err(e) => return Err(system("set an attribute of the copy of")(e)),
        }
    }
    Ok(())
}
