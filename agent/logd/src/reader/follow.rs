//! Following a container's output over rotations.
//!
//! The file being read stays open, whatever it is renamed to. When another one has its name, it is read to its end,
//! then its successors in the chain. Its own place is found by its inode or, once it was compressed, by its time of
//! modification, which compression keeps. A reader slower than the limit of files allows misses some and counts it.

use super::{From, LogSet, Pump};
use crate::{error::Error, format::Record, spec::log_name};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fd::{AsRawFd, OwnedFd},
    fs::{AtFlags, inotify},
    io::Errno,
};
use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    time::{Duration, Instant},
};

/// Reads that are handed on before the caller is asked again.
const TURN: usize = 16;

/// Follows one attempt of one container.
#[derive(Debug)]
pub struct Follow {
    set: LogSet,
    events: OwnedFd,
    current: Option<Pump>,
    then: VecDeque<Pump>,
    missed: u64,
}

impl Follow {
    pub(super) fn start(set: LogSet, from: From) -> Result<Follow, Error> {
        let watch = || {
            let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let what = inotify::WatchFlags::MODIFY
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVE
                | inotify::WatchFlags::DELETE_SELF;
            inotify::add_watch(&events, format!("/proc/self/fd/{}", set.dir.as_raw_fd()), what)?;
            Ok::<_, Errno>(events)
        };
        // Before anything is read, so that nothing is written unseen in between.
        let events = set.told(watch().map_err(io::Error::from))?;
        let mut then = VecDeque::from(set.from(from)?);
        let current = then.pop_front();
        Ok(Follow { set, events, current, then, missed: 0 })
    }

    /// How often files were removed by the limit before they were read.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Whether the pod's directory has been removed: nothing more will come.
    pub fn gone(&self) -> bool {
        rustix::fs::fstat(&self.set.dir).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Hands on what has come; waits for it at most so long. Returns whether anything was read. To be called again
    /// either way.
    pub fn next(&mut self, wait: Duration, emit: &mut dyn FnMut(Record<'_>)) -> Result<bool, Error> {
        let until = Instant::now().checked_add(wait);
        loop {
            if self.drain(emit)? {
                return Ok(true);
            }
            if let Some(next) = self.then.pop_front() {
                self.current = Some(next);
                continue;
            }
            if self.rotated()? {
                // What was written between the end just seen and the renaming; nothing is written after it.
                while self.drain(emit)? {}
                self.then = self.successors()?;
                if let Some(next) = self.then.pop_front() {
                    self.current = Some(next);
                    continue;
                }
            }
            let left = until.map_or(Duration::ZERO, |u| u.saturating_duration_since(Instant::now()));
            if left.is_zero() || !self.wait(left)? {
                return Ok(false);
            }
        }
    }

    fn drain(&mut self, emit: &mut dyn FnMut(Record<'_>)) -> Result<bool, Error> {
        let Some(current) = &mut self.current else { return Ok(false) };
        let mut any = false;
        for _ in 0..TURN {
            if !self.set.told(current.pump(emit))? {
                break;
            }
            any = true;
        }
        Ok(any)
    }

    /// Whether another file than the one being read is the current one.
    fn rotated(&self) -> Result<bool, Error> {
        let named = rustix::fs::statat(&self.set.dir, log_name(self.set.attempt), AtFlags::SYMLINK_NOFOLLOW);
        match (named, &self.current) {
            (Ok(stat), Some(current)) => Ok(!current.is(&stat)),
            (Ok(_), None) => Ok(true),
            // In the midst of a rotation, or removed.
            (Err(Errno::NOENT), _) => Ok(false),
            (Err(e), _) => self.set.told(Err(e.into())),
        }
    }

    /// The files after the one being read.
    fn successors(&mut self) -> Result<VecDeque<Pump>, Error> {
        let mut files = VecDeque::from(self.set.told(self.set.open_all())?);
        let Some(own) = &self.current else { return Ok(files) };
        let by_inode = files.iter().position(|f| f.same_file(own));
        let written = self.set.told(own.modified())?;
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
        let mut fds = [PollFd::new(&self.events, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return self.set.told(Err(e.into())),
        }
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.events, &mut space);
        // Only that something happened matters; the files say what.
        while events.next().is_ok() {}
        Ok(true)
    }
}
