//! Following a container's log over rotations.
//!
//! The file being read stays open, whatever it is renamed to. When another file has its name, the
//! old file is read to its end, then its successors in the chain. The old file's place in the chain
//! is found by its inode or, after compression, by its modification time, which compression keeps.
//! A reader that is slower than the limit of files misses some files and counts them.

use super::{LogSet, ReadFrom, RecordReader, changes};
use crate::{error::Error, format::Record};
use berth_api::logd::log_name;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fd::{AsFd as _, BorrowedFd, OwnedFd},
    fs::AtFlags,
    io::Errno,
};
use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

/// Reads before the caller gets control again.
const READS_PER_TURN: usize = 16;

/// Follower of the log of one attempt of one container.
#[derive(Debug)]
pub struct Follow {
    set: LogSet,
    /// `None` where somebody else waits for changes.
    events: Option<OwnedFd>,
    current: Option<RecordReader>,
    next_files: VecDeque<RecordReader>,
    missed: u64,
}

impl Follow {
    pub(super) fn start(set: LogSet, from: ReadFrom) -> Result<Follow, Error> {
        let watch = || {
            let events = changes::instance()?;
            changes::add(events.as_fd(), set.dir.as_fd())?;
            Ok::<_, Errno>(events)
        };
        // The watch starts before the first read, so that no write is missed in between.
        let events = set.with_path(watch().map_err(io::Error::from))?;
        Follow::with(set, from, Some(events))
    }

    pub(super) fn with(set: LogSet, from: ReadFrom, events: Option<OwnedFd>) -> Result<Follow, Error> {
        let mut next_files = VecDeque::from(set.from(from)?);
        let current = next_files.pop_front();
        Ok(Follow { set, events, current, next_files, missed: 0 })
    }

    /// How many times files were removed by the limit of files before they were read.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Whether the pod's log directory has been removed, so that nothing more will come.
    pub fn removed(&self) -> bool {
        rustix::fs::fstat(&self.set.dir).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// The log directory.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.set.dir.as_fd()
    }

    /// Emits records of one read, without waiting for new ones. Returns whether anything was read. At the end, memory of
    /// reads is given back.
    pub fn read(&mut self, emit: &mut dyn FnMut(Record<'_>)) -> Result<bool, Error> {
        // Taken before the files are read: a change after this is an event again.
        self.take_events();
        loop {
            if self.drain(1, emit)? {
                return Ok(true);
            }
            if !self.step(emit)? {
                if let Some(current) = &mut self.current {
                    current.release();
                }
                return Ok(false);
            }
        }
    }

    /// Emits new records and waits for them at most `wait`. Returns whether anything was read. The
    /// caller calls it again in either case.
    pub fn next(&mut self, wait: Duration, emit: &mut dyn FnMut(Record<'_>)) -> Result<bool, Error> {
        let until = Instant::now().checked_add(wait);
        loop {
            if self.drain(READS_PER_TURN, emit)? {
                return Ok(true);
            }
            if self.step(emit)? {
                continue;
            }
            let left = until.map_or(Duration::ZERO, |u| u.saturating_duration_since(Instant::now()));
            if left.is_zero() || !self.wait(left)? {
                return Ok(false);
            }
        }
    }

    /// Goes to the next file once the current one has been read. Returns whether there is one.
    fn step(&mut self, emit: &mut dyn FnMut(Record<'_>)) -> Result<bool, Error> {
        if self.next_files.is_empty() && self.rotated()? {
            // Reads what was written between the end seen before and the rename. Nothing is written
            // to this file afterwards.
            while self.drain(READS_PER_TURN, emit)? {}
            self.next_files = self.successors()?;
        }
        let next = self.next_files.pop_front();
        let any = next.is_some();
        if any {
            self.current = next;
        }
        Ok(any)
    }

    fn drain(&mut self, reads: usize, emit: &mut dyn FnMut(Record<'_>)) -> Result<bool, Error> {
        let Some(current) = &mut self.current else { return Ok(false) };
        let mut any = false;
        for _ in 0..reads {
            if !self.set.with_path(current.read_chunk(emit))? {
                break;
            }
            any = true;
        }
        Ok(any)
    }

    /// Whether the current log file is another file than the one being read.
    fn rotated(&self) -> Result<bool, Error> {
        let named = rustix::fs::statat(&self.set.dir, log_name(self.set.attempt), AtFlags::SYMLINK_NOFOLLOW);
        match (named, &self.current) {
            (Ok(stat), Some(current)) => Ok(!current.is(&stat)),
            (Ok(_), None) => Ok(true),
            // The file is being rotated, or was removed.
            (Err(Errno::NOENT), _) => Ok(false),
            (Err(e), _) => self.set.with_path(Err(e.into())),
        }
    }

    /// The files after the one being read.
    fn successors(&mut self) -> Result<VecDeque<RecordReader>, Error> {
        let mut files = VecDeque::from(self.set.with_path(self.set.open_all())?);
        let Some(own) = &self.current else { return Ok(files) };
        let by_inode = files.iter().position(|f| f.same_file(own));
        let written = self.set.with_path(own.modified())?;
        let place = by_inode.or_else(|| files.iter().rposition(|f| f.modified().is_ok_and(|m| m == written)));
        if let Some(place) = place {
            files.drain(..=place);
        } else {
            self.missed = self.missed.saturating_add(1);
            files.retain(|f| f.modified().is_ok_and(|m| m > written));
        }
        Ok(files)
    }

    fn wait(&self, left: Duration) -> Result<bool, Error> {
        let timeout = Timespec::try_from(left).ok();
        let mut fds: Vec<PollFd<'_>> =
            self.events.iter().map(|events| PollFd::new(events, PollFlags::IN)).collect();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return self.set.with_path(Err(e.into())),
        }
        self.take_events();
        Ok(true)
    }

    fn take_events(&self) {
        if let Some(events) = &self.events {
            changes::take(events.as_fd(), |_| {});
        }
    }
}
