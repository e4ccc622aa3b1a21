//! inotify on the directory: what happened since the last look, as far as it decides what to read.
//!
//! A file that is created or written in place passes through states that must not be read (empty, cut off): from the
//! first write to the close it counts as being written. What is renamed or linked into place is complete.
//!
//! An event names the one file that is to be looked at, as long as each manifest is a plain file with one name; else,
//! and where events were lost, the whole directory is.

use super::listing::{FileId, NameState, OpenDir, is_manifest};
use crate::{Error, manifest::Mode};
use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::{Duration, Instant},
};

/// A writer that has been silent for this long does not keep its file from being read.
pub(super) const WRITE_QUIET: Duration = Duration::from_secs(1);

/// The watch and what it told.
pub(super) struct DirectoryEvents {
    mode: Mode,
    inotify: Option<Inotify>,
    on: Option<(FileId, WatchDescriptor)>,
    writing: BTreeMap<String, Instant>,
    dirty: BTreeSet<String>,
    /// Whether names do not tell what is to be looked at.
    whole: bool,
    linked: bool,
}

/// What is to be looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ScanScope {
    Full,
    /// These names; no other manifest changed.
    Names(BTreeSet<String>),
}

impl DirectoryEvents {
    pub(super) fn new(mode: Mode) -> DirectoryEvents {
        let (writing, dirty) = (BTreeMap::new(), BTreeSet::new());
        DirectoryEvents { mode, inotify: None, on: None, writing, dirty, whole: true, linked: false }
    }

    /// What happened since the whole was last looked at, if events tell it. Files whose writer fell silent are among it.
    pub(super) fn told(&self, dir: &OpenDir, now: Instant) -> ScanScope {
        if self.whole || self.linked || self.on.is_none_or(|(identity, _)| identity != dir.identity) {
            return ScanScope::Full;
        }
        let silent = |since: &Instant| now.saturating_duration_since(*since) >= WRITE_QUIET;
        let silent = self.writing.iter().filter(|(_, since)| silent(since)).map(|(name, _)| name);
        ScanScope::Names(self.dirty.iter().chain(silent).cloned().collect())
    }

    /// The whole was looked at and believed; `linked` says whether a manifest has more names than its own.
    pub(super) fn looked_at_whole(&mut self, linked: bool) {
        (self.whole, self.linked) = (false, linked);
    }

    /// What to poll.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Watches that directory, if it does not already. Called before the directory is read, so that nothing between
    /// two looks is lost.
    pub(super) fn ensure(&mut self, dir: &OpenDir, shown: &Path) -> Result<(), Error> {
        if self.on.is_some_and(|(identity, _)| identity == dir.identity) {
            return Ok(());
        }
        let fail = |e: Errno| Error::Watch { dir: shown.to_owned(), source: e.into() };
        if self.inotify.is_none() {
            self.inotify = Some(Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(fail)?);
        }
        let Some(inotify) = &self.inotify else { return Ok(()) };
        if let Some((_, old)) = self.on.take() {
            // It fails where the old directory is gone, which ended the watch too.
            inotify.rm_watch(old).ok();
        }
        self.writing.clear();
        self.whole = true;
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let watch = inotify.add_watch(&dir.path(), flags).map_err(fail)?;
        self.on = Some((dir.identity, watch));
        Ok(())
    }

    /// Takes in what happened; whether it asks for a look now. Without one, a file is only being written.
    pub(super) fn drain(&mut self, dir: Option<&OpenDir>, now: Instant) -> bool {
        let mut look = false;
        loop {
            let events = match self.inotify.as_ref().map(Inotify::read_events) {
                Some(Ok(events)) if !events.is_empty() => events,
                Some(Err(Errno::EINTR)) => continue,
                _ => return look,
            };
            for event in events {
                look |= self.event(&event, dir, now);
            }
        }
    }

    fn event(&mut self, event: &InotifyEvent, dir: Option<&OpenDir>, now: Instant) -> bool {
        use AddWatchFlags as F;
        if event.mask.contains(F::IN_Q_OVERFLOW) {
            self.writing.clear();
            self.whole = true;
            return true;
        }
        if self.on.is_none_or(|(_, watch)| watch != event.wd) {
            // The last words of a directory that is not watched any more.
            return false;
        }
        if event.mask.intersects(F::IN_DELETE_SELF | F::IN_MOVE_SELF | F::IN_UNMOUNT | F::IN_IGNORED) {
            if let (Some((_, watch)), Some(inotify)) = (self.on.take(), &self.inotify) {
                // It fails where the kernel ended the watch already.
                inotify.rm_watch(watch).ok();
            }
            self.whole = true;
            return true;
        }
        let Some(name) = event.name.as_ref().and_then(|n| n.to_str()) else {
            self.whole = true;
            return true;
        };
        if !is_manifest(name, self.mode) {
            // It matters where manifests may lead to it.
            let matters = self.linked || dir.is_none_or(|d| d.entry(name) == NameState::Linked);
            self.whole |= matters;
            return matters && !event.mask.contains(F::IN_MODIFY);
        }
        let created = event.mask.contains(F::IN_CREATE);
        let fresh = created && dir.is_some_and(|d| d.is_fresh_file(name));
        if event.mask.contains(F::IN_MODIFY) || fresh {
            self.writing.insert(name.to_owned(), now);
            return false;
        }
        if event.mask.intersects(F::IN_CLOSE_WRITE | F::IN_MOVED_TO | F::IN_MOVED_FROM | F::IN_DELETE) {
            self.writing.remove(name);
        }
        // It may be another name's file now, which has to come in the same look as its going: of that no event may have
        // come yet.
        self.whole |= event.mask.contains(F::IN_MOVED_FROM);
        // Times may be too coarse to show a second write of the same length: what an event names is read anyway.
        self.dirty.insert(name.to_owned());
        true
    }

    /// Counts the file as being written, its last write then.
    pub(super) fn mark_writing(&mut self, name: &str, then: Instant) {
        self.writing.entry(name.to_owned()).or_insert(then);
    }

    /// Whether the file is to be left alone for now.
    pub(super) fn is_writing(&mut self, name: &str, now: Instant) -> bool {
        match self.writing.get(name) {
            Some(since) if now.saturating_duration_since(*since) < WRITE_QUIET => true,
            Some(_) => {
                self.writing.remove(name);
                self.dirty.insert(name.to_owned());
                false
            }
            None => false,
        }
    }

    /// Whether an event named the file since it was last read; read it, whatever its times say.
    pub(super) fn take_dirty(&mut self, name: &str) -> bool {
        self.dirty.remove(name)
    }

    /// What fell silent does not count as being written any more.
    pub(super) fn end_silent(&mut self, now: Instant) {
        let dirty = &mut self.dirty;
        self.writing.retain(|name, since| {
            let goes_on = now.saturating_duration_since(*since) < WRITE_QUIET;
            if !goes_on {
                dirty.insert(name.clone());
            }
            goes_on
        });
    }

    /// Forgets about a name that is not there any more.
    pub(super) fn forget(&mut self, name: &str) {
        self.dirty.remove(name);
        self.writing.remove(name);
    }

    /// Forgets about names that are not there any more.
    pub(super) fn retain(&mut self, there: impl Fn(&str) -> bool) {
        self.dirty.retain(|n| there(n));
        self.writing.retain(|n, _| there(n));
    }

    /// How long until a silent writer does not count any more.
    pub(super) fn next_quiet(&self, now: Instant) -> Option<Duration> {
        let ends = self.writing.values().map(|since| *since + WRITE_QUIET);
        ends.min().map(|end| end.saturating_duration_since(now))
    }
}
