//! inotify on the manifest directory: the changes since the last scan, and what of the directory has to be
//! scanned.
//!
//! A file that is created or written in place passes through states that must not be read (empty, cut off).
//! It counts as being written from the first write to the close. A file renamed or linked into place is
//! complete at once.
//!
//! An event names the one file to scan, as long as each manifest is a plain file with one name. With links,
//! and after lost events, the whole directory is scanned.

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

/// A file being written is read all the same once its writer was silent for this long.
pub(super) const WRITE_QUIET: Duration = Duration::from_secs(1);

/// The inotify watch and the changes that it reported since the last scan.
pub(super) struct DirectoryEvents {
    mode: Mode,
    /// Created at the first watch.
    inotify: Option<Inotify>,
    /// The directory under watch; `None` after it was moved or deleted.
    watched: Option<(FileId, WatchDescriptor)>,
    /// Files being written, with the time of the last write.
    writing: BTreeMap<String, Instant>,
    /// Files that an event named since they were last read.
    changed: BTreeSet<String>,
    /// A full scan is needed: events were lost or are not reliable.
    full_scan: bool,
    /// A manifest is a link, or one name of several: a change of another name may change it.
    linked: bool,
}

/// The part of the directory to scan.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ScanScope {
    /// The whole directory.
    Full,
    /// These files; no other manifest changed.
    Names(BTreeSet<String>),
}

impl DirectoryEvents {
    pub(super) fn new(mode: Mode) -> DirectoryEvents {
        let (writing, changed) = (BTreeMap::new(), BTreeSet::new());
        DirectoryEvents {
            mode,
            inotify: None,
            watched: None,
            writing,
            changed,
            full_scan: true,
            linked: false,
        }
    }

    /// The scope of the next scan. Files whose writer fell silent are part of it.
    pub(super) fn scope(&self, dir: &OpenDir, now: Instant) -> ScanScope {
        if self.full_scan || self.linked || self.watched.is_none_or(|(identity, _)| identity != dir.identity)
        {
            return ScanScope::Full;
        }
        let silent = |since: &Instant| now.saturating_duration_since(*since) >= WRITE_QUIET;
        let silent = self.writing.iter().filter(|(_, since)| silent(since)).map(|(name, _)| name);
        ScanScope::Names(self.changed.iter().chain(silent).cloned().collect())
    }

    /// A full scan was done and its listing accepted; `linked`: a manifest is a link or has more than one
    /// name.
    pub(super) fn full_scan_done(&mut self, linked: bool) {
        (self.full_scan, self.linked) = (false, linked);
    }

    /// The inotify descriptor, to poll.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Watches the directory, unless it is watched already. Called before the directory is read, so that no
    /// change between two scans is lost.
    pub(super) fn watch(&mut self, dir: &OpenDir, shown: &Path) -> Result<(), Error> {
        if self.watched.is_some_and(|(identity, _)| identity == dir.identity) {
            return Ok(());
        }
        let fail = |e: Errno| Error::Watch { dir: shown.to_owned(), source: e.into() };
        if self.inotify.is_none() {
            self.inotify = Some(Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(fail)?);
        }
        let Some(inotify) = &self.inotify else { return Ok(()) };
        if let Some((_, old)) = self.watched.take() {
            // Fails if the old directory is gone; that ended its watch too.
            inotify.rm_watch(old).ok();
        }
        self.writing.clear();
        self.full_scan = true;
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
        self.watched = Some((dir.identity, watch));
        Ok(())
    }

    /// Reads all waiting events. Returns whether a scan is due; it is not while files are only being written.
    pub(super) fn drain(&mut self, dir: Option<&OpenDir>, now: Instant) -> bool {
        let mut scan = false;
        loop {
            let events = match self.inotify.as_ref().map(Inotify::read_events) {
                Some(Ok(events)) if !events.is_empty() => events,
                Some(Err(Errno::EINTR)) => continue,
                _ => return scan,
            };
            for event in events {
                scan |= self.event(&event, dir, now);
            }
        }
    }

    fn event(&mut self, event: &InotifyEvent, dir: Option<&OpenDir>, now: Instant) -> bool {
        use AddWatchFlags as F;
        if event.mask.contains(F::IN_Q_OVERFLOW) {
            self.writing.clear();
            self.full_scan = true;
            return true;
        }
        if self.watched.is_none_or(|(_, watch)| watch != event.wd) {
            // A late event of a directory that is no longer watched.
            return false;
        }
        if event.mask.intersects(F::IN_DELETE_SELF | F::IN_MOVE_SELF | F::IN_UNMOUNT | F::IN_IGNORED) {
            if let (Some((_, watch)), Some(inotify)) = (self.watched.take(), &self.inotify) {
                // Fails if the kernel ended the watch already.
                inotify.rm_watch(watch).ok();
            }
            self.full_scan = true;
            return true;
        }
        let Some(name) = event.name.as_ref().and_then(|n| n.to_str()) else {
            self.full_scan = true;
            return true;
        };
        if !is_manifest(name, self.mode) {
            // Matters only if a manifest may be a link to this file.
            let matters = self.linked || dir.is_none_or(|d| d.entry(name) == NameState::Linked);
            self.full_scan |= matters;
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
        // The file may have another name now. Both changes must be part of one scan, and the event about the
        // new name may not have come yet.
        self.full_scan |= event.mask.contains(F::IN_MOVED_FROM);
        // File times may be too coarse to show a second write of the same length, so a named file is read in
        // any case.
        self.changed.insert(name.to_owned());
        true
    }

    /// Counts the file as being written, with its last write at `then`.
    pub(super) fn mark_writing(&mut self, name: &str, then: Instant) {
        self.writing.entry(name.to_owned()).or_insert(then);
    }

    /// Whether the file is being written and must not be read yet.
    pub(super) fn is_writing(&mut self, name: &str, now: Instant) -> bool {
        match self.writing.get(name) {
            Some(since) if now.saturating_duration_since(*since) < WRITE_QUIET => true,
            Some(_) => {
                self.writing.remove(name);
                self.changed.insert(name.to_owned());
                false
            }
            None => false,
        }
    }

    /// Whether an event named the file since it was last read. Such a file is read even if its stamp is
    /// unchanged.
    pub(super) fn take_changed(&mut self, name: &str) -> bool {
        self.changed.remove(name)
    }

    /// Stops counting files as being written whose writer fell silent.
    pub(super) fn end_silent_writers(&mut self, now: Instant) {
        let changed = &mut self.changed;
        self.writing.retain(|name, since| {
            let goes_on = now.saturating_duration_since(*since) < WRITE_QUIET;
            if !goes_on {
                changed.insert(name.clone());
            }
            goes_on
        });
    }

    /// Forgets a file that is gone.
    pub(super) fn forget(&mut self, name: &str) {
        self.changed.remove(name);
        self.writing.remove(name);
    }

    /// Forgets all files but those that are there.
    pub(super) fn retain(&mut self, there: impl Fn(&str) -> bool) {
        self.changed.retain(|n| there(n));
        self.writing.retain(|n, _| there(n));
    }

    /// Time until the next file being written may be read because its writer is silent.
    pub(super) fn next_quiet(&self, now: Instant) -> Option<Duration> {
        let ends = self.writing.values().map(|since| *since + WRITE_QUIET);
        ends.min().map(|end| end.saturating_duration_since(now))
    }
}
