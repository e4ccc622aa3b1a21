//! Removal of a tree by descriptors: links are removed and never followed, and no other file system is entered.

use super::{is_entry, open_dir};
use crate::{
    error::{Error, Result},
    operations::Operation,
};
use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{AtFlags, Dir, FileType, renameat, unlinkat},
    io::Errno,
};
use std::ffi::{CStr, CString};

/// Levels that are entered. A deeper directory is moved to the top of the tree first, so that a tree of any depth
/// needs few descriptors.
const DEEPEST: usize = 32;

/// Removes the directory `name` of `holder` and everything in it. A missing one is no error.
///
/// # Errors
/// An entry cannot be removed, or is on another file system; or the operation is to end. What was removed is gone.
pub(crate) fn remove_tree(holder: BorrowedFd<'_>, name: &str, operation: &Operation) -> Result<()> {
    let failed = |verb| move |e: Errno| Error::file(verb, name, e);
    let top = match open_dir(holder, name.as_bytes()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::file("open", name, e)),
    };
    let mut walk = Walk { top: top.as_fd(), moved: 0, removed: 0, again: false, operation };
    loop {
        let before = (walk.moved, walk.removed);
        walk.again = false;
        walk.empty(top.as_fd(), 0).map_err(|e| match e {
            Failure::System(verb, e) => failed(verb)(e),
            Failure::Ended(e) => e,
        })?;
        // A round moves directories to the top, or finds entries that the listing before did not have. One that did
        // nothing is the last, also where something is left.
        if (walk.moved == before.0 && !walk.again) || before == (walk.moved, walk.removed) {
            break;
        }
    }
    match unlinkat(holder, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(failed("remove")(e)),
    }
}

enum Failure {
    System(&'static str, Errno),
    Ended(Error),
}

struct Walk<'a> {
    top: BorrowedFd<'a>,
    /// Directories moved to the top so far; also part of their names.
    moved: u64,
    /// Entries removed so far.
    removed: u64,
    /// Whether something was left that the next round removes.
    again: bool,
    operation: &'a Operation,
}

impl Walk<'_> {
    fn empty(&mut self, dir: BorrowedFd<'_>, depth: usize) -> Result<(), Failure> {
        let list = |e| Failure::System("list", e);
        let mut dirs: Vec<CString> = Vec::new();
        for entry in Dir::read_from(dir).map_err(list)? {
            let entry = entry.map_err(list)?;
            let name = entry.file_name();
            if !is_entry(name) {
                continue;
            }
            if entry.file_type() == FileType::Directory || !self.unlinked(dir, name)? {
                dirs.push(name.to_owned());
            }
        }
        for name in dirs {
            self.remove_dir(dir, &name, depth)?;
        }
        Ok(())
    }

    /// Removes a file, a link or the like; false for a directory.
    fn unlinked(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<bool, Failure> {
        self.operation.progress(1, 0).map_err(Failure::Ended)?;
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) => {
                self.removed += 1;
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(true),
            Err(Errno::ISDIR | Errno::PERM) => Ok(false),
            Err(e) => Err(Failure::System("remove an entry of", e)),
        }
    }

    fn remove_dir(&mut self, dir: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Failure> {
        if depth >= DEEPEST {
            self.moved += 1;
            let new = format!(".removed-{}", self.moved);
            return match renameat(dir, name, self.top, &new) {
                // An older try left one of that name: the next round removes it.
                Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
                Err(e) => Err(Failure::System("move a directory of", e)),
            };
        }
        match open_dir(dir, name.to_bytes()) {
            Ok(child) => self.empty(child.as_fd(), depth + 1)?,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(Failure::System("open a directory of", e)),
        }
        self.operation.progress(1, 0).map_err(Failure::Ended)?;
        match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.removed += 1;
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            // A part of it was not listed, or waits for an older one at the top.
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                self.again = true;
                Ok(())
            }
            Err(e) => Err(Failure::System("remove a directory of", e)),
        }
    }
}
