//! Copies a tree with all that a pod can see of it: content with its holes, owners, modes, times, links, hard links,
//! extended attributes.
//!
//! Entries are opened by descriptor below the two roots; links are copied and never followed. FIFOs, sockets and
//! devices are made anew and never opened. What vanishes while it is copied is left out, as the pod removed it. Another
//! file system below the source is an error.
//!
//! The copy is on the server's disk when [`copy_tree`] returns.

mod attributes;
mod content;

use crate::{
    error::{Error, Result},
    operations::Operation,
    share::{is_entry, open_dir},
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, chmodat, fstat, linkat, mkdirat, mknodat, openat, readlinkat,
        statat, symlinkat, syncfs,
    },
    io::Errno,
};
use std::{collections::HashMap, ffi::CStr};

/// Most files with several names that are remembered; the rest become files of their own.
const MOST_HARD_LINKS: usize = 1 << 20;

/// Longest path that the kernel takes.
const LONGEST_PATH: usize = 4095;

/// A directory to be filled, or one whose entries are all there.
enum Step {
    Enter(Vec<u8>),
    Leave(Vec<u8>),
}

/// Copies what is in `from`, and its own attributes, to the empty directory `to`.
///
/// # Errors
/// The entry that cannot be copied; or the operation is to end. What was copied stays.
pub(crate) fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, operation: &Operation) -> Result<()> {
    let failed = |path: &[u8]| {
        let path = String::from_utf8_lossy(path).into_owned();
        move |failure: Failure| match failure {
            Failure::System(verb, e) => Error::file(verb, if path.is_empty() { ".".into() } else { path }, e),
            Failure::Ended(e) => e,
        }
    };
    let mut copy = Copy { from, to, linked: HashMap::new(), operation };
    let mut steps = vec![Step::Enter(Vec::new())];
    while let Some(step) = steps.pop() {
        match step {
            Step::Enter(path) => {
                steps.push(Step::Leave(path.clone()));
                let dirs = copy.entries(&path).map_err(failed(&path))?;
                steps.extend(dirs.into_iter().map(Step::Enter));
            }
            // After its entries, because each of them changes the directory's times.
            Step::Leave(path) => copy.leave(&path).map_err(failed(&path))?,
        }
    }
    operation.step("storing the copy");
    // Errors of earlier writes, which a server may tell late, are told here too.
    syncfs(to).map_err(|e| Error::file("store", "the copy", e))
}

/// Why an entry was not copied.
enum Failure {
    System(&'static str, Errno),
    Ended(Error),
}

type Copied<T> = Result<T, Failure>;

fn system(verb: &'static str) -> impl Fn(Errno) -> Failure {
    move |e| Failure::System(verb, e)
}

/// Whether an entry has vanished, or another kind of entry has taken its place. A file on NFS that another client
/// removed is stale.
fn vanished(e: Errno) -> bool {
    matches!(e, Errno::NOENT | Errno::STALE | Errno::NOTDIR | Errno::LOOP)
}

struct Copy<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    /// Copied path of each file with several names, by device and inode.
    linked: HashMap<(u64, u64), Vec<u8>>,
    operation: &'a Operation,
}

impl Copy<'_> {
    /// Copies the entries of a directory. Returns its directories, which are made and still empty.
    fn entries(&mut self, path: &[u8]) -> Copied<Vec<Vec<u8>>> {
        let from = match open_dir(self.from, path) {
            Ok(fd) => fd,
            Err(e) if vanished(e) && !path.is_empty() => return Ok(Vec::new()),
            Err(e) => return Err(Failure::System("open", e)),
        };
        let to = open_dir(self.to, path).map_err(system("open the copy of"))?;
        let mut dirs = Vec::new();
        for entry in Dir::read_from(&from).map_err(system("list"))? {
            let entry = entry.map_err(system("list"))?;
            let name = entry.file_name();
            if !is_entry(name) {
                continue;
            }
            let mut below = path.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(name.to_bytes());
            if below.len() > LONGEST_PATH {
                return Err(Failure::System("copy a path of more than 4095 bytes in", Errno::NAMETOOLONG));
            }
            self.operation.progress(1, 0).map_err(Failure::Ended)?;
            if self.entry(&from, &to, name, &below)? {
                dirs.push(below);
            }
        }
        Ok(dirs)
    }

    /// Copies an entry; true for a directory.
    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, path: &[u8]) -> Copied<bool> {
        let stat = match statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(e) if vanished(e) => return Ok(false),
            Err(e) => return Err(Failure::System("look at an entry of", e)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            mkdirat(to, name, Mode::RWXU).map_err(system("make a directory in the copy of"))?;
            return Ok(true);
        }
        if stat.st_nlink > 1
            && let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino))
        {
            linkat(self.to, first.as_slice(), to, name, AtFlags::empty())
                .map_err(system("link in the copy of"))?;
            return Ok(false);
        }
        let copied = match kind {
            FileType::RegularFile => self.file(from, to, name)?,
            FileType::Symlink => self.link(from, to, name, &stat)?,
            FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
                mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)
                    .map_err(system("make a special file in the copy of"))?;
                attributes::owner_at(to, name, &stat).map_err(system("give an owner to"))?;
                // The copy's directory is the driver's own, so the entry is the one that was just made.
                chmodat(to, name, attributes::mode(&stat), AtFlags::empty())
                    .map_err(system("set the mode of"))?;
                attributes::times_at(to, name, &stat).map_err(system("set the times of"))?;
                true
            }
            _ => return Err(Failure::System("copy an entry of unknown kind in", Errno::INVAL)),
        };
        if copied && stat.st_nlink > 1 && self.linked.len() < MOST_HARD_LINKS {
            self.linked.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        Ok(false)
    }

    /// Copies a link; false where it has vanished.
    fn link(&self, from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &rustix::fs::Stat) -> Copied<bool> {
        let target = match readlinkat(from, name, Vec::new()) {
            Ok(target) => target,
            Err(e) if vanished(e) || e == Errno::INVAL => return Ok(false),
            Err(e) => return Err(Failure::System("read a link in", e)),
        };
        symlinkat(target, to, name).map_err(system("make a link in the copy of"))?;
        attributes::owner_at(to, name, stat).map_err(system("give an owner to"))?;
        attributes::times_at(to, name, stat).map_err(system("set the times of"))?;
        Ok(true)
    }

    /// Copies a file; false where it has vanished.
    fn file(&self, from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Copied<bool> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let source = match openat(from, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(e) if vanished(e) => return Ok(false),
            Err(e) => return Err(Failure::System("open a file of", e)),
        };
        let stat = fstat(&source).map_err(system("look at a file of"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(false);
        }
        let make = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody else can enter the copy, so that its files may have their modes at once.
        let target =
            openat(to, name, make, attributes::mode(&stat)).map_err(system("make a file in the copy of"))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let sparse = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        content::copy(source.as_fd(), target.as_fd(), size, sparse, |bytes| {
            self.operation.progress(0, bytes)
        })?;
        attributes::copy(source.as_fd(), target.as_fd(), &stat)?;
        Ok(true)
    }

    fn leave(&self, path: &[u8]) -> Copied<()> {
        let from = match open_dir(self.from, path) {
            Ok(fd) => fd,
            Err(e) if vanished(e) && !path.is_empty() => return Ok(()),
            Err(e) => return Err(Failure::System("open", e)),
        };
        let to = open_dir(self.to, path).map_err(system("open the copy of"))?;
        let stat = fstat(&from).map_err(system("look at"))?;
        attributes::copy(from.as_fd(), to.as_fd(), &stat)
    }
}

#[cfg(test)]
mod tests;
