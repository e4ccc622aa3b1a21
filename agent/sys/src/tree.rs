//! Deletes a directory tree without ever leaving it: by descriptors, never through a link, never into another
//! mount.

use crate::{Error, Result, fs::open_how, mount};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, renameat, unlinkat},
    io::Errno,
};
use std::{
    ffi::CStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Descriptors held open at once. Deeper directories are moved up to the root first, as a tree can be deeper
/// than any limit.
const MAX_DEPTH: usize = 48;

/// Deletes the directory `dir` and everything in it. Links are deleted, never followed; `dir` itself must not
/// be a link. A missing `dir` is no error.
///
/// # Errors
/// [`Error::MountBelow`] where `dir` or a directory in it is a mount point: then no file is deleted. Where
/// the mount appears during the deletion, no file of the mount is deleted. [`Error::Remove`] where the kernel
/// refuses; entries deleted before are gone.
pub fn remove_tree_no_xdev(dir: &Path) -> Result<()> {
    if let Some(found) = mount::mounts_below(dir)?.into_iter().next() {
        return Err(Error::MountBelow { path: dir.into(), mount: found.mount_point });
    }
    remove_unmounted_tree(dir)
}

/// As [`remove_tree_no_xdev`], for a caller that has seen just now that `dir` holds no mount point: the mounts are not
/// listed again. Where there is one all the same, no file of the mount is deleted.
///
/// # Errors
/// As [`remove_tree_no_xdev`].
pub fn remove_unmounted_tree(dir: &Path) -> Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = match openat(CWD, dir, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::Open { path: dir.into(), source: e.into() }),
    };
    let mut walk = Walk { root: &root, path: dir, moved: 0 };
    // Each pass deletes all entries except the directories that it moved up, so the depth shrinks by at least
    // MAX_DEPTH.
    loop {
        let before = walk.moved;
        walk.empty(root.as_fd(), &mut dir.to_path_buf(), 0)?;
        if walk.moved == before {
            break;
        }
    }
    drop(root);
    match unlinkat(CWD, dir, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::Remove { path: dir.into(), source: e.into() }),
    }
}

struct Walk<'a> {
    root: &'a OwnedFd,
    path: &'a Path,
    /// Number of directories moved to the root so far; also part of their names.
    moved: u64,
}

impl Walk<'_> {
    /// Deletes the entries of `dir`, which is `depth` levels below the root and has the path `path` in
    /// messages.
    fn empty(&mut self, dir: BorrowedFd<'_>, path: &mut PathBuf, depth: usize) -> Result<()> {
        let read = |path: &Path, e: Errno| Error::Read { path: path.into(), source: e.into() };
        let mut entries = Vec::new();
        for entry in Dir::read_from(dir).map_err(|e| read(path, e))? {
            let entry = entry.map_err(|e| read(path, e))?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                entries.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        for (name, kind) in entries {
            path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
            self.remove(dir, &name, kind, path, depth)?;
            path.pop();
        }
        Ok(())
    }

    fn remove(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        kind: FileType,
        path: &mut PathBuf,
        depth: usize,
    ) -> Result<()> {
        if kind != FileType::Directory {
            match unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::ISDIR) => {}
                Err(e) => return Err(self.refused(path, e)),
            }
        }
        if depth >= MAX_DEPTH {
            let top = format!(".berth-remove-{}-{}", std::process::id(), self.moved);
            self.moved += 1;
            return renameat(dir, name, self.root, top).map_err(|e| self.refused(path, e));
        }
        match self.enter(dir, name, path)? {
            Some(child) => self.empty(child.as_fd(), path, depth + 1)?,
            None => return Ok(()),
        }
        match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // Directories moved up from here leave this one empty too, so the entry that fails the removal is
            // new.
            Err(e) => Err(self.refused(path, e)),
        }
    }

    fn enter(&self, dir: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<Option<OwnedFd>> {
        let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        match open_how(dir, name, OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(Error::Open { source, .. }) => match source.raw_os_error() {
                Some(libc::ENOENT) => Ok(None),
                Some(libc::EXDEV) => Err(self.mount_at(path)),
                _ => Err(Error::Open { path: path.into(), source }),
            },
            Err(e) => Err(e),
        }
    }

    fn refused(&self, path: &Path, e: Errno) -> Error {
        match e {
            // The kernel does not unlink or move a mount point.
            Errno::BUSY | Errno::XDEV => self.mount_at(path),
            e => Error::Remove { path: path.into(), source: e.into() },
        }
    }

    fn mount_at(&self, path: &Path) -> Error {
        Error::MountBelow { path: self.path.into(), mount: path.into() }
    }
}
