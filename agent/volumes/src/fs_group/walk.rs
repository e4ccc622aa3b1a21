//! A walk over all that is below a directory, by several threads where it is much.
//!
//! Owns the threads that help; they end with the walk. A thread that is idle gets half of the names that another one has
//! still to do in the directory nearest to the root, so that one large directory is shared as well as many small ones.

use super::{Group, Refused};
use crate::os;
use berth_core::sync::lock;
use rustix::fd::OwnedFd;
use std::{
    ffi::CString,
    io,
    num::NonZero,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, Scope},
};

/// The deepest directory that is entered. Each level holds a descriptor. What is deeper keeps its group.
pub(super) const DEEPEST: usize = 400;

/// Files after which other threads help: a thread is not worth while for fewer.
const MANY: usize = 2_000;

/// The most threads of a walk. Pods of the node need processors as well.
const THREADS: usize = 4;

/// A thread looks after so many files whether another one is idle.
const SHARE: usize = 32;

/// Some names of a directory, and how deep that is.
struct Part {
    dir: Arc<OwnedFd>,
    names: Vec<CString>,
    depth: usize,
}

impl Part {
    fn of(dir: OwnedFd, depth: usize) -> io::Result<Part> {
        Ok(Part { names: os::entries(&dir)?, dir: Arc::new(dir), depth })
    }
}

/// Parts that nobody has, and how many threads have one.
#[derive(Default)]
struct Free {
    parts: Vec<Part>,
    busy: usize,
}

pub(super) struct Walk<'a> {
    group: &'a Group,
    free: Mutex<Free>,
    changed: Condvar,
    /// Threads that wait for a part.
    idle: AtomicUsize,
    refused: Mutex<Refused>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(group: &'a Group) -> Walk<'a> {
        Walk {
            group,
            free: Mutex::default(),
            changed: Condvar::new(),
            idle: AtomicUsize::new(0),
            refused: Mutex::default(),
        }
    }

    /// Changes all that is below the root.
    ///
    /// # Errors
    /// The root cannot be read.
    pub(super) fn below(self, root: &OwnedFd) -> io::Result<Refused> {
        let part = Part::of(root.try_clone()?, 1)?;
        lock(&self.free).parts.push(part);
        thread::scope(|scope| self.work(Some(scope)));
        Ok(self.refused.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Works until nothing is left. The thread with the scope calls for help.
    fn work<'s>(&'s self, mut scope: Option<&'s Scope<'s, '_>>) {
        let mut files = 0usize;
        while let Some(part) = self.take() {
            let mut levels = vec![part];
            while let Some(level) = levels.last_mut() {
                let Some(name) = level.names.pop() else {
                    levels.pop();
                    continue;
                };
                let (depth, entered) = (level.depth, self.group.entry(&level.dir, &name));
                if let Some(below) = self.entered(depth, entered) {
                    levels.push(below);
                }
                files = files.wrapping_add(1);
                if files >= MANY
                    && let Some(scope) = scope.take()
                {
                    self.call_help(scope);
                }
                if files.is_multiple_of(SHARE) && self.idle.load(Ordering::Relaxed) > 0 {
                    self.share(&mut levels);
                }
            }
            let mut free = lock(&self.free);
            free.busy = free.busy.saturating_sub(1);
            drop(free);
            self.changed.notify_all();
        }
    }

    /// What to do in a directory that was entered at that depth.
    fn entered(&self, depth: usize, entered: io::Result<Option<OwnedFd>>) -> Option<Part> {
        let below = match entered {
            Ok(None) => return None,
            Ok(Some(_)) if depth >= DEEPEST => {
                Err(io::Error::other(format!("directories are nested deeper than {DEEPEST}")))
            }
            Ok(Some(dir)) => self.directory(dir, depth.saturating_add(1)),
            Err(error) => Err(error),
        };
        match below {
            Ok(below) => Some(below),
            // A container removed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                lock(&self.refused).note(Err(error));
                None
            }
        }
    }

    fn directory(&self, dir: OwnedFd, depth: usize) -> io::Result<Part> {
        let changed = rustix::fs::fstat(&dir).map_err(io::Error::from);
        let changed = changed.and_then(|found| self.group.change(&dir, &found));
        if changed.is_err() {
            // What is in it is changed all the same.
            lock(&self.refused).note(changed);
        }
        Part::of(dir, depth)
    }

    /// The next part; `None` where nobody has one.
    fn take(&self) -> Option<Part> {
        let mut free = lock(&self.free);
        loop {
            if let Some(part) = free.parts.pop() {
                free.busy = free.busy.saturating_add(1);
                return Some(part);
            }
            if free.busy == 0 {
                return None;
            }
            self.idle.fetch_add(1, Ordering::Relaxed);
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
            self.idle.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Starts the threads that help.
    fn call_help<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS);
        for _ in 1..threads {
            let thread = thread::Builder::new().name("fs-group".to_owned());
            if let Err(error) = thread.spawn_scoped(scope, || self.work(None)) {
                tracing::debug!(%error, "nobody helps to give files their group");
                return;
            }
        }
    }

    /// Gives half of the names of the outermost directory that has several to an idle thread.
    fn share(&self, levels: &mut [Part]) {
        let Some(level) = levels.iter_mut().find(|level| level.names.len() > 1) else { return };
        let mut free = lock(&self.free);
        // Others have given enough.
        if free.parts.len() >= self.idle.load(Ordering::Relaxed) {
            return;
        }
        let names = level.names.split_off(level.names.len() / 2);
        free.parts.push(Part { dir: Arc::clone(&level.dir), names, depth: level.depth });
        drop(free);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

    fn all(dir: &Path, gid: u32) -> usize {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| {
                let found = fs::symlink_metadata(&path).unwrap();
                assert_eq!(found.gid(), gid, "{}", path.display());
                1 + if found.is_dir() { all(&path, gid) } else { 0 }
            })
            .sum()
    }

    #[test]
    fn every_file_of_large_and_of_deep_directories_is_changed_by_whichever_thread() {
        let dir = tempfile::tempdir().unwrap();
        let (root, mut deep) = (dir.path().join("root"), dir.path().join("root/deep"));
        fs::create_dir(&root).unwrap();
        for n in 0..3 * MANY {
            fs::write(root.join(format!("f{n}")), "").unwrap();
        }
        for n in 0..60 {
            fs::create_dir(&deep).unwrap();
            for n in 0..SHARE {
                fs::write(deep.join(format!("f{n}")), "").unwrap();
            }
            deep.push(format!("d{n}"));
        }
        for gid in [4711, 4712] {
            let group = Group::new(gid).unwrap();
            let refused = Walk::new(&group).below(&os::open_dir(&root).unwrap()).unwrap();
            assert!(refused.first.is_none() && refused.files == 0, "{refused:?}");
            assert_eq!(all(&root, gid), 3 * MANY + 60 * (1 + SHARE));
        }
    }
}
