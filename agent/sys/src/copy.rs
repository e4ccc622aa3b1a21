//! Copies a directory with all attributes of its files: content, owner, mode, times, links, extended
//! attributes.
//!
//! The copy never leaves the two directories: entries are opened by descriptor below them, and links are
//! copied but never followed. A mount below the source is an error. Paths in the source may be as long as the
//! kernel allows (4096 bytes), at any depth.

use crate::{Error, Result, fs::open_how};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
        chmodat, chownat, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat,
        mknodat, openat, readlinkat, statat, symlinkat, utimensat,
    },
    io::Errno,
};
use std::{
    collections::HashMap,
    ffi::{CStr, OsStr},
    fs::File,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Limit of the kernel for a list of extended attributes and for a value (`XATTR_LIST_MAX`,
/// `XATTR_SIZE_MAX`).
const LONGEST_ATTRIBUTE: usize = 64 << 10;

/// Makes the empty directory `to` a copy of the directory `from`, with the attributes of `from` itself.
/// Extended attributes are copied, except for SELinux's labels, overlayfs' own, and those that the target's
/// file system does not support. Devices, FIFOs and sockets become new ones of the same kind. Holes are
/// filled.
///
/// # Errors
/// [`Error::Copy`] with the entry, relative to `from`. Entries copied before stay.
pub fn copy_dir(from: impl AsFd, to: impl AsFd) -> Result<()> {
    let mut copy = Copy {
        from: from.as_fd(),
        to: to.as_fd(),
        linked: HashMap::new(),
        names: vec![0; LONGEST_ATTRIBUTE],
        value: vec![0; LONGEST_ATTRIBUTE],
    };
    let mut dirs = vec![PathBuf::new()];
    let mut next = 0;
    while let Some(dir) = dirs.get(next).cloned() {
        copy.entries(&dir, &mut dirs).map_err(|(path, source)| Error::Copy { path, source })?;
        next += 1;
    }
    // Attributes of directories come last and bottom-up, because each new entry changes its directory's time.
    for dir in dirs.iter().rev() {
        copy.end_of_dir(dir).map_err(|source| Error::Copy { path: dir.clone(), source })?;
    }
    Ok(())
}

struct Copy<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    /// Copied path of each file with several hard links, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
    names: Vec<u8>,
    value: Vec<u8>,
}

fn open_dir(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    open_how(root, path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty(), resolve).map_err(|e| match e {
        Error::Open { source, .. } => source,
        other => io::Error::other(other),
    })
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    // Nanoseconds are below a billion, and seconds have the kernel's own width.
    let time = |seconds: i64, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or_default(),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

impl Copy<'_> {
    /// Copies the entries of a directory. Its subdirectories are made empty and added to `dirs`; a later call
    /// fills them.
    fn entries(&mut self, dir: &Path, dirs: &mut Vec<PathBuf>) -> Result<(), (PathBuf, io::Error)> {
        let of_dir = |e: io::Error| (dir.to_owned(), e);
        let (from, to) = (open_dir(self.from, dir).map_err(of_dir)?, open_dir(self.to, dir).map_err(of_dir)?);
        for entry in Dir::read_from(&from).map_err(|e| of_dir(e.into()))? {
            let entry = entry.map_err(|e| of_dir(e.into()))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = dir.join(OsStr::from_bytes(name.to_bytes()));
            let is_dir = self.entry(&from, &to, name, &path).map_err(|e| (path.clone(), e))?;
            if is_dir {
                dirs.push(path);
            }
        }
        Ok(())
    }

    /// Copies one entry. Returns true for a directory, which is made empty and accessible to root only.
    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, path: &Path) -> io::Result<bool> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            mkdirat(to, name, Mode::RWXU)?;
            return Ok(true);
        }
        let identity = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&identity) {
                linkat(self.to, first, to, name, AtFlags::empty())?;
                return Ok(false);
            }
            self.linked.insert(identity, path.to_owned());
        }
        if kind == FileType::RegularFile {
            self.file(from, to, name)?;
            return Ok(false);
        }
        let (uid, gid) = owner(&stat);
        if kind == FileType::Symlink {
            symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
            chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        } else {
            mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
            chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            // The entry was just made in a directory where no other process writes, so it is no link.
            chmodat(to, name, mode(&stat), AtFlags::empty())?;
        }
        utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(false)
    }

    fn file(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr) -> io::Result<()> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let mut source = File::from(openat(from, name, flags | OFlags::RDONLY, Mode::empty())?);
        let make = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut target = File::from(openat(to, name, make, Mode::RUSR | Mode::WUSR)?);
        io::copy(&mut source, &mut target)?;
        self.attributes(source.as_fd(), target.as_fd())
    }

    fn end_of_dir(&mut self, dir: &Path) -> io::Result<()> {
        let (from, to) = (open_dir(self.from, dir)?, open_dir(self.to, dir)?);
        self.attributes(from.as_fd(), to.as_fd())
    }

    /// Sets owner, mode, extended attributes and times of an open file or directory. The order matters: a
    /// change of owner clears setuid and file capabilities, and a write changes the time.
    fn attributes(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        let stat = fstat(from)?;
        let (uid, gid) = owner(&stat);
        fchown(to, uid, gid)?;
        fchmod(to, mode(&stat))?;
        self.extended(from, to)?;
        futimens(to, &times(&stat))?;
        Ok(())
    }

    fn extended(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        let length = match flistxattr(from, self.names.as_mut_slice()) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let names = self.names.get(..length).unwrap_or_default();
        for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let not_ours = [&b"security.selinux"[..], b"trusted.overlay.", b"user.overlay."];
            if not_ours.iter().any(|own| name.starts_with(own)) {
                continue;
            }
            let length = match fgetxattr(from, name, self.value.as_mut_slice()) {
                Ok(length) => length,
                // The kernel lists an attribute whose value this process may not see.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
                Err(e) => return Err(e.into()),
            };
            let value = self.value.get(..length).unwrap_or_default();
            match fsetxattr(to, name, value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
