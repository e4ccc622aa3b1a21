//! Compression of rotated files in small steps, while no stream has anything to read.
//!
//! `<name>` becomes `<name>.gz` through `<name>.gz.tmp` and a rename. The modification time is
//! kept, because followers use it to find their place. The half-written file of a killed logd is
//! removed, and compressed again at the next rotation.

use crate::{dirs, rotated::RotatedFile};
use flate2::{Compression, write::GzEncoder};
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags, Timespec, Timestamps},
};
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Bytes compressed in one step: about a millisecond.
const STEP: usize = 64 * 1024;

/// The most waiting files. Further files wait for the next rotation.
const WAITING_MAX: usize = 256;

#[derive(Debug)]
struct Job {
    dir: OwnedFd,
    old: RotatedFile,
    from: File,
    to: GzEncoder<File>,
    buf: Vec<u8>,
}

/// Queue of the files to compress.
#[derive(Debug)]
pub(super) struct Gzip {
    root: PathBuf,
    waiting: VecDeque<RotatedFile>,
    job: Option<Job>,
}

impl Gzip {
    /// Returns an empty queue.
    pub(super) fn new(root: &Path) -> Gzip {
        Gzip { root: root.to_owned(), waiting: VecDeque::new(), job: None }
    }

    /// Adds files, each once.
    pub(super) fn add(&mut self, files: &mut Vec<RotatedFile>) {
        for old in files.drain(..) {
            let running = self.job.as_ref().is_some_and(|j| j.old == old);
            if !running && !self.waiting.contains(&old) && self.waiting.len() < WAITING_MAX {
                self.waiting.push_back(old);
            }
        }
    }

    /// Whether [`Gzip::step`] has work to do.
    pub(super) fn busy(&self) -> bool {
        self.job.is_some() || !self.waiting.is_empty()
    }

    /// Compresses one small piece.
    pub(super) fn step(&mut self) {
        let job = match self.job.take() {
            Some(job) => job,
            None => {
                let Some(old) = self.waiting.pop_front() else { return };
                match Job::start(&self.root, old.clone()) {
                    Ok(job) => job,
                    // The file was removed by rotation or with its pod while it waited.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return,
                    Err(error) => return warn(&old, &error),
                }
            }
        };
        let old = job.old.clone();
        match job.step() {
            Ok(job) => self.job = job,
            Err(error) => {
                warn(&old, &error);
                let [pod, container] = &old.dir;
                let undone = dirs::open_root(&self.root)
                    .and_then(|root| dirs::open_dir(root, &[pod, container]))
                    .and_then(|dir| dirs::unlink(dir, &temporary(&old)));
                if let Err(error) = undone {
                    warn(&old, &error);
                }
            }
        }
    }
}

fn warn(old: &RotatedFile, error: &io::Error) {
    tracing::warn!(pod = %old.dir[0], file = %old.name, %error, "cannot compress a rotated log file");
}

fn temporary(old: &RotatedFile) -> String {
    format!("{}.gz.tmp", old.name)
}

impl Job {
    fn start(root: &Path, old: RotatedFile) -> io::Result<Job> {
        let [pod, container] = &old.dir;
        let dir = dirs::open_dir(dirs::open_root(root)?, &[pod, container])?;
        let from = dirs::open_read(&dir, &old.name)?;
        dirs::unlink(&dir, &temporary(&old))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(&dir, temporary(&old), flags, Mode::from_raw_mode(0o640))?;
        let to = GzEncoder::new(File::from(to), Compression::fast());
        Ok(Job { dir, old, from, to, buf: vec![0; STEP] })
    }

    fn step(mut self) -> io::Result<Option<Job>> {
        let n = self.from.read(&mut self.buf)?;
        if n > 0 {
            self.to.write_all(self.buf.get(..n).unwrap_or_default())?;
            return Ok(Some(self));
        }
        let to = self.to.finish()?;
        let meta = self.from.metadata()?;
        let time = Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
        rustix::fs::futimens(&to, &Timestamps { last_access: time, last_modification: time })?;
        // If the limit of files removed the file meanwhile, its compressed copy is not wanted
        // either.
        let name = self.old.name.as_str();
        let there = rustix::fs::statat(&self.dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|s| s.st_ino == meta.ino()) {
            rustix::fs::renameat(&self.dir, temporary(&self.old), &self.dir, format!("{name}.gz"))?;
            dirs::unlink(&self.dir, name)?;
        } else {
            dirs::unlink(&self.dir, &temporary(&self.old))?;
        }
        Ok(None)
    }
}
