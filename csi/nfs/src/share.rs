//! A mounted share, worked on by descriptors alone: no path is resolved from the node's root, no link is followed, and
//! no other file system below the share is entered.
//!
//! The driver's own directory on the share (mode 0700) has
//! - `volumes` and `snapshots`: a record of each, see [`records`];
//! - `snapshots/KEY.data`: the data of a snapshot, whole from the moment that it has this name;
//! - `copies/KEY-RANDOM`: a copy that is not whole yet. What a killed driver left there is removed by the next try;
//! - `removed/KEY-RANDOM`: data that is being removed.

pub(crate) mod records;
mod remove;

pub(crate) use remove::remove_tree;

use crate::{
    error::{Error, Result},
    handle::Key,
    location::{OWN_DIR, SubDir},
    operations::Operation,
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, mkdirat, openat2, renameat, statat},
    io::Errno,
};
use std::{
    ffi::CStr,
    hash::{BuildHasher, Hasher, RandomState},
};

/// The root of a mounted share.
#[derive(Debug)]
pub(crate) struct Share {
    root: OwnedFd,
}

/// Opens a directory below another one; the empty path is that one itself.
///
/// # Errors
/// Of openat2(2): a part is missing, is a link, or lies on another file system.
pub(crate) fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    // The kernel asks for a repetition where a directory moved meanwhile.
    for _ in 0..16 {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Whether a name in a listing names an entry of that directory. The kernel refuses what a hostile server has else, and this
/// driver does not rely on it: no name leads to another directory.
pub(crate) fn is_entry(name: &CStr) -> bool {
    let bytes = name.to_bytes();
    !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.contains(&b'/')
}

/// A name that nobody uses yet.
fn unused(key: &Key) -> String {
    format!("{}-{:016x}", key.as_str(), RandomState::new().build_hasher().finish())
}

impl Share {
    /// Takes a mounted share.
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    /// The root of the share.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a volume's directory; `None` where there is none.
    pub(crate) fn open(&self, dir: &SubDir) -> Result<Option<OwnedFd>> {
        self.open_path(dir.as_str())
    }

    fn open_path(&self, path: &str) -> Result<Option<OwnedFd>> {
        match open_dir(self.root(), path.as_bytes()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::file("open", path, e)),
        }
    }

    fn must_open(&self, path: &str) -> Result<OwnedFd> {
        self.open_path(path)?.ok_or_else(|| Error::file("open", path, Errno::NOENT))
    }

    /// Makes the driver's own directories.
    pub(crate) fn make_own_dirs(&self) -> Result<()> {
        for dir in ["", "/volumes", "/snapshots", "/copies", "/removed"] {
            let path = format!("{OWN_DIR}{dir}");
            match mkdirat(&self.root, &path, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(Error::file("make", path, e)),
            }
        }
        Ok(())
    }

    /// Makes a directory and those that hold it. Returns it, and whether it is new.
    pub(crate) fn make(&self, path: &str) -> Result<(OwnedFd, bool)> {
        let (mut at, mut new) = (self.must_open("")?, false);
        for part in path.split('/').filter(|p| !p.is_empty()) {
            let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
            new = match mkdirat(&at, part, mode) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(e) => return Err(Error::file("make", path, e)),
            };
            at = open_dir(at.as_fd(), part.as_bytes()).map_err(|e| Error::file("open", path, e))?;
        }
        Ok((at, new))
    }

    /// Begins a copy: a new empty directory, and its name for [`Share::place`]. What earlier tries for the same key
    /// left is removed first.
    pub(crate) fn begin_copy(&self, key: &Key, operation: &Operation) -> Result<(OwnedFd, String)> {
        self.remove_leftovers("copies", key, operation)?;
        let path = format!("{OWN_DIR}/copies/{}", unused(key));
        mkdirat(&self.root, &path, Mode::RWXU).map_err(|e| Error::file("make", &path, e))?;
        Ok((self.must_open(&path)?, path))
    }

    /// Gives a whole copy its place, where nothing may be but an empty directory.
    pub(crate) fn place(&self, copy: &str, to: &str) -> Result<()> {
        let (parent, name) = to.rsplit_once('/').unwrap_or(("", to));
        let (dir, _) = self.make(parent)?;
        renameat(&self.root, copy, &dir, name).map_err(|e| Error::file("place the copy at", to, e))?;
        sync(dir.as_fd(), parent)
    }

    /// Path of a snapshot's data.
    pub(crate) fn data_path(key: &Key) -> String {
        format!("{OWN_DIR}/snapshots/{}.data", key.as_str())
    }

    /// Opens a snapshot's data; `None` where there is none.
    pub(crate) fn open_data(&self, key: &Key) -> Result<Option<OwnedFd>> {
        self.open_path(&Self::data_path(key))
    }

    /// Removes a tree: it is gone from its place at once and is emptied afterwards. The path is gone already in a
    /// repetition, which then goes on where the first one stopped.
    pub(crate) fn remove(&self, path: &str, key: &Key, operation: &Operation) -> Result<()> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if let Some(dir) = self.open_path(parent)? {
            let removed = format!("{OWN_DIR}/removed/{}", unused(key));
            match renameat(&dir, name, &self.root, &removed) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(Error::file("remove", path, e)),
            }
        }
        self.remove_leftovers("removed", key, operation)
    }

    /// Removes what lies in a directory of the driver's own for this key.
    pub(crate) fn remove_leftovers(&self, from: &str, key: &Key, operation: &Operation) -> Result<()> {
        let path = format!("{OWN_DIR}/{from}");
        let Some(dir) = self.open_path(&path)? else { return Ok(()) };
        for name in names(dir.as_fd(), &path)? {
            if name.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with('-')) {
                operation.step(format!("removing {path}/{name}"));
                remove_tree(dir.as_fd(), &name, operation)?;
            }
        }
        Ok(())
    }

    /// Renames a directory so that `archived-` stands before its name. Returns the new path; `None` where there is no
    /// such directory.
    pub(crate) fn archive(&self, dir: &SubDir, key: &Key) -> Result<Option<String>> {
        let (parent, name) = dir.split();
        let Some(holder) = self.open_path(parent)? else { return Ok(None) };
        let mut new = format!("archived-{name}");
        match statat(&holder, &new, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            // An older one of that name stays as it is.
            Ok(_) => new = format!("{new}-{}", unused(key)),
            Err(e) => return Err(Error::file("look at", new, e)),
        }
        match renameat(&holder, name, &holder, &new) {
            Ok(()) => sync(holder.as_fd(), parent).map(|()| Some(new)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::file("archive", dir.as_str(), e)),
        }
    }
}

/// Names in a directory that are UTF-8, sorted. The driver's own files have no others.
fn names(dir: BorrowedFd<'_>, path: &str) -> Result<Vec<String>> {
    let failed = |e: Errno| Error::file("list", path, e);
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if is_entry(entry.file_name())
            && let Ok(name) = entry.file_name().to_str()
        {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Has the server store a directory. A server that cannot is no reason to fail: NFS changes directories at once.
fn sync(dir: BorrowedFd<'_>, path: &str) -> Result<()> {
    match rustix::fs::fsync(dir) {
        Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(Error::file("store", path, e)),
    }
}

#[cfg(test)]
mod tests;
