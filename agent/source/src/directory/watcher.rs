//! The thread's work: when to look, at what, and what follows.

use super::{
    DirectoryConfig,
    events::{DirectoryEvents, ScanScope, WRITE_QUIET},
    first_seen::FirstSeen,
    last_good::LastGoodStore,
    listing::{Files, Listing, NameState, OpenDir, Stamp},
    listing_guard::{KnownDirectory, ListingGuard, ListingVerdict},
    manifest_file::ManifestFile,
    merged_objects::ObjectIndex,
};
use crate::{
    DesiredService, ManifestError, Shared, Snapshot, UnallocatedService,
    controllers::cluster_ips::ClusterIpAllocator, manifest::ManifestContext,
};
use berth_core::{ids::PodKey, time::Wall};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::watch as channel;

/// While the directory cannot be read it is tried this often: there is nothing that could tell of its return.
const MISSING_RETRY: Duration = Duration::from_secs(1);

/// A file that changed while it was read is read again after this.
const UNSTEADY_RETRY: Duration = Duration::from_millis(100);

/// See the module's page.
pub(super) struct DirectoryWatcher {
    cfg: DirectoryConfig,
    sender: channel::Sender<Arc<Snapshot>>,
    records: BTreeMap<String, ManifestFile>,
    judge: ListingGuard,
    memory: LastGoodStore,
    watch: DirectoryEvents,
    open: Option<OpenDir>,
    seen: FirstSeen,
    index: ObjectIndex,
    allocator: ClusterIpAllocator,
    /// When the whole is to be looked at at the latest.
    whole_due: Instant,
    /// The directory that the memory on disk is about.
    about: Option<u64>,
    directory_problem: Option<String>,
    /// The reason for which all files were last shown held.
    all_held: Option<String>,
    /// Names that are not UTF-8.
    odd: Vec<PathBuf>,
    /// Files whose record changed since the index was told.
    changed: BTreeSet<String>,
    /// Files with contents that still have to be written to disk.
    to_keep: BTreeSet<String>,
    /// Files that are bad and were never good: they may hold what nobody knows of.
    unknown: BTreeSet<String>,
    #[cfg(test)]
    by_name: bool,
}

impl DirectoryWatcher {
    pub(super) fn new(cfg: DirectoryConfig, sender: channel::Sender<Arc<Snapshot>>) -> DirectoryWatcher {
        let memory = LastGoodStore::new(cfg.state.clone());
        let (remembered, about) = memory.load(&cfg.dir);
        let mut seen = FirstSeen::default();
        let mut records = BTreeMap::new();
        for (name, remembered) in remembered {
            seen.extend(&remembered.seen);
            records.insert(name, ManifestFile::known(remembered));
        }
        DirectoryWatcher {
            judge: ListingGuard::new(about.map(KnownDirectory::Inode), cfg.settle),
            memory,
            watch: DirectoryEvents::new(cfg.mode),
            open: None,
            seen,
            index: ObjectIndex::new(cfg.dir.clone()),
            allocator: ClusterIpAllocator::open(cfg.services.clone(), &cfg.state),
            whole_due: Instant::now(),
            about: None,
            directory_problem: None,
            all_held: None,
            odd: Vec::new(),
            changed: BTreeSet::new(),
            to_keep: BTreeSet::new(),
            unknown: BTreeSet::new(),
            #[cfg(test)]
            by_name: false,
            records,
            sender,
            cfg,
        }
    }

    /// Looks whenever there is something to see, until the other side of `stop` is closed.
    pub(super) fn run(mut self, stop: &UnixStream) {
        let mut look = true;
        loop {
            if look {
                self.look();
            }
            let now = Instant::now();
            let due = self.whole_due.saturating_duration_since(now);
            let timeout = self.watch.next_quiet(now).map_or(due, |quiet| quiet.min(due));
            let Some(woken) = wait(stop, &self.watch, timeout) else { return };
            look = !woken || self.hear() || Instant::now() >= self.whole_due;
        }
    }

    /// Takes in what happened; whether it asks for a look.
    pub(super) fn hear(&mut self) -> bool {
        self.watch.drain(self.open.as_ref(), Instant::now())
    }

    /// One look and its consequences.
    pub(super) fn look(&mut self) {
        let now = Instant::now();
        let named = if now < self.whole_due { self.named(now) } else { None };
        #[cfg(test)]
        {
            self.by_name = named.is_some();
        }
        match named {
            Some(named) => self.look_at(named, now),
            None => {
                let again = self.look_at_whole(now);
                self.whole_due = now + again.unwrap_or(self.cfg.rescan).min(self.cfg.rescan);
            }
        }
        self.remember();
    }

    /// The next look is at the whole.
    #[cfg(test)]
    pub(super) fn whole_next(&mut self) {
        self.whole_due = Instant::now();
    }

    /// Whether the last look was at names only.
    #[cfg(test)]
    pub(super) fn looked_by_name(&self) -> bool {
        self.by_name
    }

    /// The files that events name, with what stands there now; `None` where that does not tell all.
    fn named(&self, now: Instant) -> Option<Vec<(String, NameState)>> {
        let open = self.open.as_ref().filter(|_| self.directory_problem.is_none())?;
        let ScanScope::Names(names) = self.watch.told(open, now) else { return None };
        let named: Vec<_> = names.into_iter().map(|name| (open.entry(&name), name)).collect();
        let plain = named.iter().all(|(entry, _)| *entry != NameState::Linked);
        // Asked last: what was seen was seen there.
        (plain && open.is_at(&self.cfg.dir)).then(|| named.into_iter().map(|(e, n)| (n, e)).collect())
    }

    fn look_at(&mut self, named: Vec<(String, NameState)>, now: Instant) {
        let ctx = self.context();
        let mut unsteady = false;
        for (name, entry) in named {
            match entry {
                NameState::Plain(stamp) => unsteady |= self.take(&name, stamp, &ctx, now),
                NameState::Absent | NameState::Linked => {
                    self.gone(&name);
                    self.watch.forget(&name);
                }
            }
        }
        if unsteady {
            self.whole_due = self.whole_due.min(now + UNSTEADY_RETRY);
        }
        self.publish(true);
    }

    /// When to look at the whole again at the latest, where that is before the rescan.
    fn look_at_whole(&mut self, now: Instant) -> Option<Duration> {
        let (verdict, Listing { files, odd, linked }) = match self.list() {
            Ok((open, listing)) => {
                let to_lose = self.records.values().any(|r| r.good.is_some() || r.remembered.is_some());
                let verdict = self.judge.look(open.identity, &listing.files, to_lose, now);
                self.open = Some(open);
                (verdict, listing)
            }
            Err(e) => {
                self.judge.unreadable();
                self.open = None;
                let reason = format!("cannot be read: {e}");
                (ListingVerdict::NotListed { reason, again: Some(MISSING_RETRY) }, Listing::default())
            }
        };
        self.odd = odd;
        match verdict {
            ListingVerdict::Listed => {
                if self.directory_problem.take().is_some() {
                    tracing::info!(dir = %self.cfg.dir.display(), "the manifest directory is back");
                }
                self.watch.looked_at_whole(linked);
                let unsteady = self.take_all(&files, now);
                self.publish(true);
                unsteady.then_some(UNSTEADY_RETRY)
            }
            ListingVerdict::NotListed { reason, again } => {
                if self.directory_problem.as_ref() != Some(&reason) {
                    tracing::warn!(dir = %self.cfg.dir.display(), reason, "the manifest directory is not listed: its pods stay");
                    self.directory_problem = Some(reason);
                }
                self.watch.end_silent(now);
                let ctx = self.context();
                for (name, record) in &mut self.records {
                    record.recall(&self.cfg.dir.join(name), &ctx, &mut self.seen);
                    self.changed.insert(name.clone());
                }
                self.publish(false);
                again
            }
        }
    }

    fn list(&mut self) -> std::io::Result<(OpenDir, Listing)> {
        let open = OpenDir::open(&self.cfg.dir)?;
        if let Err(e) = self.watch.ensure(&open, &self.cfg.dir) {
            tracing::warn!(dir = %self.cfg.dir.display(), error = %e, "no events: changes are found by the slow rescan");
        }
        let listing = open.files(self.cfg.mode)?;
        Ok((open, listing))
    }

    fn context(&self) -> ManifestContext {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Wall(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX));
        ManifestContext {
            node: self.cfg.node.clone(),
            mode: self.cfg.mode,
            now,
            services: self.cfg.services.clone().map(Arc::new),
        }
    }

    /// Takes a believed listing over: gone files go, changed ones are read. Whether one changed while it was read.
    fn take_all(&mut self, files: &Files, now: Instant) -> bool {
        let gone: Vec<String> = self.records.keys().filter(|n| !files.contains_key(*n)).cloned().collect();
        gone.iter().for_each(|name| self.gone(name));
        self.watch.retain(|name| files.contains_key(name));
        let ctx = self.context();
        files.iter().fold(false, |unsteady, (name, stamp)| self.take(name, *stamp, &ctx, now) | unsteady)
    }

    /// A file is not there any more.
    fn gone(&mut self, name: &str) {
        let Some(record) = self.records.remove(name) else { return };
        tracing::info!(file = %self.cfg.dir.join(name).display(), "manifest is gone");
        if let Some(good) = &record.good {
            self.seen.leave(good);
        }
        if let Err(e) = self.memory.forget(name) {
            tracing::warn!(error = %e, "a manifest that is gone stays remembered");
        }
        self.to_keep.remove(name);
        self.changed.insert(name.to_owned());
    }

    /// Takes a file over that is there; it is read where it changed. Whether it changed while it was read.
    fn take(&mut self, name: &str, stamp: Option<Stamp>, ctx: &ManifestContext, now: Instant) -> bool {
        let record = self.records.entry(name.to_owned()).or_default();
        let path = self.cfg.dir.join(name);
        if record.unread()
            && record.remembered.is_some()
            && let Some(age) = stamp.and_then(|s| just_written(&s, ctx.now))
            && !self.open.as_ref().is_some_and(|open| open.is_complete(name))
        {
            // It may be half written: nothing told us when its writing began.
            self.watch.mark_writing(name, now.checked_sub(age).unwrap_or(now));
        }
        if self.watch.is_writing(name, now) {
            record.recall(&path, ctx, &mut self.seen);
            self.changed.insert(name.to_owned());
            return false;
        }
        let dirty = self.watch.take_dirty(name);
        if stamp.is_some() && record.stamp == stamp && !dirty {
            return false;
        }
        let Some(open) = &self.open else { return false };
        let mut unsteady = false;
        match open.read(name) {
            Ok((bytes, stamp)) => {
                unsteady = stamp.is_none();
                record.stamp = stamp;
                record.read(&path, &bytes, ctx, &mut self.seen);
            }
            Err(e) => record.unreadable(&path, &e, ctx, &mut self.seen),
        }
        if record.to_keep.is_some() {
            self.to_keep.insert(name.to_owned());
        }
        self.changed.insert(name.to_owned());
        unsteady
    }

    fn publish(&mut self, listed: bool) {
        let problem = |file, reason| ManifestError { file, document: None, field: None, reason };
        let directory =
            self.directory_problem.as_ref().map(|reason| problem(self.cfg.dir.clone(), reason.clone()));
        let why = directory.as_ref().map(ToString::to_string);
        if self.all_held != why {
            self.changed.extend(self.records.keys().cloned());
            self.all_held.clone_from(&why);
        }
        for name in mem::take(&mut self.changed) {
            let record = self.records.get_mut(&name);
            if record.as_ref().is_some_and(|r| r.good.is_none() && r.problem.is_some()) {
                self.unknown.insert(name.clone());
            } else {
                self.unknown.remove(&name);
            }
            match record {
                Some(record) => {
                    self.index.update(&name, record.shown(why.as_deref()), record.problem.as_ref());
                }
                None => self.index.update(&name, None, None),
            }
        }
        let before = Arc::clone(&self.sender.borrow());
        let whole = self.index.settle();
        // A file that is bad from the start may hold Services that nobody knows of yet.
        let services = self.allocator.fill(&whole.services, listed && self.unknown.is_empty()).clone();
        let (pods, objects, slices) =
            (Arc::clone(&whole.pods), Arc::clone(&whole.objects), whole.slices.clone());
        if let Err(error) = self.allocator.keep() {
            tracing::warn!(%error, "addresses given to Services are not remembered; tried again at the next look");
        }
        let odd = self.odd.iter().map(|name| {
            problem(self.cfg.dir.join(name), "its name is not UTF-8; it is passed over".to_owned())
        });
        let unserved: Arc<[UnallocatedService]> =
            self.allocator.short().filter_map(|l| unserved(&services, l)).collect();
        let lacking = unserved.iter().map(|u| {
            let file = self.index.file_of_service(&u.service).unwrap_or_else(|| self.cfg.dir.clone());
            problem(file, format!("Service {}: {}", u.service, u.message))
        });
        let errors =
            directory.into_iter().chain(self.index.errors().cloned()).chain(lacking).chain(odd).collect();
        let version = before.version;
        let mut next = Snapshot { listed, pods, objects, services, slices, errors, unserved, version };
        if !next.is(&before) {
            next.version = next.version.saturating_add(1);
            self.sender.send_replace(Arc::new(next));
        }
    }

    /// Writes down what is new, after it was published: nobody waits for the disk.
    fn remember(&mut self) {
        let mut failed = None;
        for name in mem::take(&mut self.to_keep) {
            let Some(record) = self.records.get_mut(&name) else { continue };
            let Some(good) = record.to_keep.take() else { continue };
            if let Err(e) = self.memory.keep(&name, &good) {
                record.to_keep = Some(good);
                self.to_keep.insert(name);
                failed = Some(e);
            }
        }
        self.seen.sweep();
        let listed = self.directory_problem.is_none();
        if let Some(inode) =
            self.open.as_ref().map(|o| o.identity.inode).filter(|i| listed && self.about != Some(*i))
        {
            let names: Vec<&str> = self.records.keys().map(String::as_str).collect();
            match self.memory.about(&self.cfg.dir, inode, &names) {
                Ok(()) => self.about = Some(inode),
                Err(e) => failed = Some(e),
            }
        }
        if let Some(e) = failed {
            let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
            tracing::warn!(error = %e, cause, "last good manifests are not remembered; tried again at the next look");
        }
    }
}

/// How long ago it was written, if that was within the last moment, by the clock that file times have.
fn just_written(stamp: &Stamp, now: Wall) -> Option<Duration> {
    let age = Duration::from_nanos(u64::try_from(now.0.saturating_sub(stamp.modified_nanos())).ok()?);
    (age < WRITE_QUIET).then_some(age)
}

/// Waits for an event (`true`) or the time (`false`); `None` when it is the end.
fn wait(stop: &UnixStream, watch: &DirectoryEvents, timeout: Duration) -> Option<bool> {
    let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    fds.extend(watch.descriptor().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    // Rounded up, so that it does not wake just before the time.
    let millis = i32::try_from(timeout.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    match nix::poll::poll(&mut fds, timeout) {
        Ok(0) | Err(_) => Some(false),
        Ok(_) => {
            let stopped = fds.first().and_then(PollFd::revents).is_some_and(|e| !e.is_empty());
            (!stopped).then_some(true)
        }
    }
}

/// What a Service lacks, to be told.
fn unserved(services: &Shared<DesiredService>, (key, lacks): (&PodKey, &str)) -> Option<UnallocatedService> {
    let uid = Arc::clone(&services.get(key)?.service.uid);
    Some(UnallocatedService {
        service: key.clone(),
        uid,
        message: format!("{lacks} is not to be had: none is free"),
    })
}
