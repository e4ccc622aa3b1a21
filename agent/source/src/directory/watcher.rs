//! The thread of a watched directory: when it scans, what it scans, and the snapshot that follows.

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
    DesiredService, ManifestError, Snapshot, UnallocatedService,
    controllers::{cluster_ips::ClusterIpAllocator, volume_binder::VolumeBinder},
    manifest::ManifestContext,
    provisioned::ProvisionedReader,
};
use berth_core::{ids::PodKey, model::NodeInfo, shared::Shared, time::Wall};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::watch;

/// Interval of tries while the directory cannot be read, since no event announces its return.
const MISSING_RETRY: Duration = Duration::from_secs(1);

/// Time after which a file is read again that changed while it was read.
const UNSTEADY_RETRY: Duration = Duration::from_millis(100);

/// Watcher of one directory: its files, the state on disk, and the sender of snapshots.
pub(super) struct DirectoryWatcher {
    cfg: DirectoryConfig,
    sender: watch::Sender<Arc<Snapshot>>,
    /// State of each file by name.
    files: BTreeMap<String, ManifestFile>,
    guard: ListingGuard,
    store: LastGoodStore,
    events: DirectoryEvents,
    /// The directory of the last scan; `None` while it cannot be read.
    open: Option<OpenDir>,
    first_seen: FirstSeen,
    index: ObjectIndex,
    allocator: ClusterIpAllocator,
    binder: VolumeBinder,
    /// The latest time of the next full scan.
    full_scan_due: Instant,
    /// Inode of the directory to which the state on disk belongs.
    saved_inode: Option<u64>,
    /// Why the listing of the directory does not count.
    directory_problem: Option<String>,
    /// The reason for which all files were held in the last snapshot.
    all_held: Option<String>,
    /// Names that are not UTF-8.
    not_utf8: Vec<PathBuf>,
    /// Files whose state changed since the last snapshot.
    changed: BTreeSet<String>,
    /// Files with a good version that has yet to be written to disk.
    unsaved: BTreeSet<String>,
    /// Files that are bad and were never good. They may define Services that are not known.
    never_good: BTreeSet<String>,
    /// An earlier process listed the directory and saved the good version of each file.
    listed_before: bool,
    #[cfg(test)]
    by_name: bool,
}

impl DirectoryWatcher {
    pub(super) fn new(cfg: DirectoryConfig, sender: watch::Sender<Arc<Snapshot>>) -> DirectoryWatcher {
        let store = LastGoodStore::new(cfg.state.clone());
        let (saved, saved_inode) = store.load(&cfg.dir);
        let mut first_seen = FirstSeen::default();
        let mut files = BTreeMap::new();
        for (name, saved) in saved {
            first_seen.extend(&saved.seen);
            files.insert(name, ManifestFile::saved(saved));
        }
        DirectoryWatcher {
            listed_before: saved_inode.is_some(),
            guard: ListingGuard::new(saved_inode.map(KnownDirectory::Inode), cfg.settle),
            store,
            events: DirectoryEvents::new(cfg.mode),
            open: None,
            first_seen,
            index: ObjectIndex::new(cfg.dir.clone()),
            allocator: ClusterIpAllocator::open(cfg.services.clone(), &cfg.state),
            binder: VolumeBinder::open(
                NodeInfo { labels: cfg.labels.clone(), ..NodeInfo::new(cfg.node.clone()) },
                &cfg.state,
            ),
            full_scan_due: Instant::now(),
            // Written again at the first scan, which also drops the state of files that are gone.
            saved_inode: None,
            directory_problem: None,
            all_held: None,
            not_utf8: Vec::new(),
            changed: BTreeSet::new(),
            unsaved: BTreeSet::new(),
            never_good: BTreeSet::new(),
            #[cfg(test)]
            by_name: false,
            files,
            sender,
            cfg,
        }
    }

    /// Scans whenever an event or the time asks for it, until the other side of `stop` is closed.
    pub(super) fn run(mut self, stop: &UnixStream) {
        let mut due = true;
        loop {
            if due {
                self.scan();
            }
            let now = Instant::now();
            let full_scan = self.full_scan_due.saturating_duration_since(now);
            let timeout = self.events.next_quiet(now).map_or(full_scan, |quiet| quiet.min(full_scan));
            let provisioned = self.cfg.provisioned.as_ref();
            let Some(woken) = wait(stop, &self.events, provisioned, timeout) else { return };
            let made = provisioned.is_some_and(ProvisionedReader::take);
            due = !woken || self.read_events() || made || Instant::now() >= self.full_scan_due;
        }
    }

    /// Reads the waiting events. Returns whether a scan is due.
    pub(super) fn read_events(&mut self) -> bool {
        self.events.drain(self.open.as_ref(), Instant::now())
    }

    /// Scans the files that events name, or the whole directory, and publishes a snapshot.
    pub(super) fn scan(&mut self) {
        let now = Instant::now();
        let named = if now < self.full_scan_due { self.named(now) } else { None };
        #[cfg(test)]
        {
            self.by_name = named.is_some();
        }
        match named {
            Some(named) => self.scan_names(named, now),
            None => {
                let again = self.scan_directory(now);
                self.full_scan_due = now + again.unwrap_or(self.cfg.rescan).min(self.cfg.rescan);
            }
        }
        self.save();
    }

    /// Makes the next scan a full one.
    #[cfg(test)]
    pub(super) fn full_scan_next(&mut self) {
        self.full_scan_due = Instant::now();
    }

    /// Whether the last scan was of named files only.
    #[cfg(test)]
    pub(super) fn scanned_by_name(&self) -> bool {
        self.by_name
    }

    /// The files that events name, with their kind now; `None` if the whole directory must be scanned.
    fn named(&self, now: Instant) -> Option<Vec<(String, NameState)>> {
        let open = self.open.as_ref().filter(|_| self.directory_problem.is_none())?;
        let ScanScope::Names(names) = self.events.scope(open, now) else { return None };
        let named: Vec<_> = names.into_iter().map(|name| (open.entry(&name), name)).collect();
        let plain = named.iter().all(|(entry, _)| *entry != NameState::Linked);
        // Checked last, so that the files were examined in this very directory.
        (plain && open.is_at(&self.cfg.dir)).then(|| named.into_iter().map(|(e, n)| (n, e)).collect())
    }

    fn scan_names(&mut self, named: Vec<(String, NameState)>, now: Instant) {
        let ctx = self.context();
        let mut unsteady = false;
        for (name, entry) in named {
            match entry {
                NameState::Plain(stamp) => unsteady |= self.take(&name, stamp, &ctx, now),
                NameState::Absent | NameState::Linked => {
                    self.gone(&name);
                    self.events.forget(&name);
                }
            }
        }
        if unsteady {
            self.full_scan_due = self.full_scan_due.min(now + UNSTEADY_RETRY);
        }
        self.publish(true);
    }

    /// Scans the whole directory. Returns the time until the next full scan, if it is due before the rescan.
    fn scan_directory(&mut self, now: Instant) -> Option<Duration> {
        let (verdict, Listing { files, not_utf8, linked }) = match self.list() {
            Ok((open, listing)) => {
                let to_lose = self.files.values().any(|f| f.good.is_some() || f.saved.is_some());
                let verdict = self.guard.check(open.identity, &listing.files, to_lose, now);
                self.open = Some(open);
                (verdict, listing)
            }
            Err(e) => {
                self.guard.unreadable();
                self.open = None;
                let reason = format!("cannot be read: {e}");
                (ListingVerdict::NotListed { reason, again: Some(MISSING_RETRY) }, Listing::default())
            }
        };
        self.not_utf8 = not_utf8;
        match verdict {
            ListingVerdict::Listed => {
                if self.directory_problem.take().is_some() {
                    tracing::info!(dir = %self.cfg.dir.display(), "the manifest directory is listed again");
                }
                self.events.full_scan_done(linked);
                let unsteady = self.take_all(&files, now);
                self.publish(true);
                unsteady.then_some(UNSTEADY_RETRY)
            }
            ListingVerdict::NotListed { reason, again } => {
                if self.directory_problem.as_ref() != Some(&reason) {
                    tracing::warn!(dir = %self.cfg.dir.display(), reason, "the manifest directory is not listed: its pods stay as they are; check that it is mounted and readable");
                    self.directory_problem = Some(reason);
                }
                self.events.end_silent_writers(now);
                let ctx = self.context();
                for (name, file) in &mut self.files {
                    file.restore(&self.cfg.dir.join(name), &ctx, &mut self.first_seen);
                    self.changed.insert(name.clone());
                }
                self.publish(false);
                again
            }
        }
    }

    fn list(&mut self) -> std::io::Result<(OpenDir, Listing)> {
        let open = OpenDir::open(&self.cfg.dir)?;
        if let Err(e) = self.events.watch(&open, &self.cfg.dir) {
            tracing::warn!(dir = %self.cfg.dir.display(), error = %e, "cannot watch the manifest directory: changes are found by the slow rescan only");
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

    /// Takes an accepted listing: drops gone files and reads changed ones. Returns whether a file changed while it was read.
    fn take_all(&mut self, files: &Files, now: Instant) -> bool {
        let gone: Vec<String> = self.files.keys().filter(|n| !files.contains_key(*n)).cloned().collect();
        gone.iter().for_each(|name| self.gone(name));
        self.events.retain(|name| files.contains_key(name));
        let ctx = self.context();
        files.iter().fold(false, |unsteady, (name, stamp)| self.take(name, *stamp, &ctx, now) | unsteady)
    }

    /// Drops a file that is gone.
    fn gone(&mut self, name: &str) {
        let Some(file) = self.files.remove(name) else { return };
        tracing::info!(file = %self.cfg.dir.join(name).display(), "manifest removed: its pods are ended");
        if let Some(good) = &file.good {
            self.first_seen.leave(good.uids());
        }
        if let Err(e) = self.store.forget(name) {
            tracing::warn!(error = %e, "cannot remove the saved version of a manifest that is gone; it is removed at the next restart");
        }
        self.unsaved.remove(name);
        self.changed.insert(name.to_owned());
    }

    /// Takes a listed file and reads it if it changed. Returns whether it changed while it was read.
    fn take(&mut self, name: &str, stamp: Option<Stamp>, ctx: &ManifestContext, now: Instant) -> bool {
        let file = self.files.entry(name.to_owned()).or_default();
        let path = self.cfg.dir.join(name);
        if file.unread()
            && file.saved.is_some()
            && let Some(age) = stamp.and_then(|s| just_written(&s, ctx.now))
            && !self.open.as_ref().is_some_and(|open| open.is_complete(name))
        {
            // The file may be half written: this process has no event from the start of its writing.
            self.events.mark_writing(name, now.checked_sub(age).unwrap_or(now));
        }
        if self.events.is_writing(name, now) {
            file.restore(&path, ctx, &mut self.first_seen);
            self.changed.insert(name.to_owned());
            return false;
        }
        let changed = self.events.take_changed(name);
        if stamp.is_some() && file.stamp == stamp && !changed {
            return false;
        }
        let Some(open) = &self.open else { return false };
        let mut unsteady = false;
        match open.read(name) {
            Ok((bytes, stamp)) => {
                unsteady = stamp.is_none();
                file.stamp = stamp;
                file.read(&path, &bytes, ctx, &mut self.first_seen);
            }
            Err(e) => file.unreadable(&path, &e, ctx, &mut self.first_seen),
        }
        if file.unsaved.is_some() {
            self.unsaved.insert(name.to_owned());
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
            self.changed.extend(self.files.keys().cloned());
            self.all_held.clone_from(&why);
        }
        for name in mem::take(&mut self.changed) {
            let file = self.files.get_mut(&name);
            if file.as_ref().is_some_and(|f| f.good.is_none() && f.problem.is_some()) {
                self.never_good.insert(name.clone());
            } else {
                self.never_good.remove(&name);
            }
            match file {
                Some(file) => {
                    self.index.update(&name, file.shown(why.as_deref()), file.problem.as_ref());
                }
                None => self.index.update(&name, None, None),
            }
        }
        if listed || self.listed_before {
            self.index.objects_listed();
        }
        let before = Arc::clone(&self.sender.borrow());
        let merged = self.index.settle();
        // A file that was never good may define Services that have addresses already: none is freed meanwhile.
        let services = self.allocator.fill(&merged.services, listed && self.never_good.is_empty()).clone();
        let made = self.cfg.provisioned.as_ref().map(ProvisionedReader::now);
        let whole = self.never_good.is_empty();
        let objects = self.binder.fill(&merged.objects, &merged.storage, &merged.pods, made.as_ref(), whole);
        let storage = match &made {
            Some(_) => self.binder.claims(listed && whole),
            None => Arc::default(),
        };
        let (pods, slices) = (Arc::clone(&merged.pods), merged.slices.clone());
        if let Err(error) = self.binder.save() {
            tracing::warn!(%error, "cannot save which claim has which volume: after a restart a claim may get another; tried again at the next scan");
        }
        if let Err(error) = self.allocator.save() {
            tracing::warn!(%error, "cannot save the addresses assigned to Services: after a restart they may get others; tried again at the next scan");
        }
        let not_utf8 = self.not_utf8.iter().map(|name| {
            problem(self.cfg.dir.join(name), "its name is not UTF-8; it is passed over".to_owned())
        });
        let unallocated: Arc<[UnallocatedService]> =
            self.allocator.unallocated().filter_map(|l| unallocated(&services, l)).collect();
        let allocation = unallocated.iter().map(|u| {
            let file = self.index.file_of_service(&u.service).unwrap_or_else(|| self.cfg.dir.clone());
            problem(file, format!("Service {}: {}", u.service, u.message))
        });
        let errors = directory
            .into_iter()
            .chain(self.index.errors().cloned())
            .chain(allocation)
            .chain(not_utf8)
            .collect();
        let version = before.version;
        let slices_pending = false;
        let mut next = Snapshot {
            listed,
            pods,
            objects,
            services,
            slices,
            slices_pending,
            errors,
            unallocated,
            storage,
            version,
        };
        if !next.is(&before) {
            next.version = next.version.saturating_add(1);
            self.sender.send_replace(Arc::new(next));
        }
    }

    /// Writes new good versions to disk, after the snapshot was sent, so that no pod waits for the disk.
    fn save(&mut self) {
        let mut failed = None;
        for name in mem::take(&mut self.unsaved) {
            let Some(file) = self.files.get_mut(&name) else { continue };
            let Some(good) = file.unsaved.take() else { continue };
            if let Err(e) = self.store.save(&name, &good) {
                file.unsaved = Some(good);
                self.unsaved.insert(name);
                failed = Some(e);
            }
        }
        self.first_seen.forget_unheld();
        let listed = self.directory_problem.is_none();
        if let Some(inode) =
            self.open.as_ref().map(|o| o.identity.inode).filter(|i| listed && self.saved_inode != Some(*i))
        {
            let names: Vec<&str> = self.files.keys().map(String::as_str).collect();
            match self.store.save_directory(&self.cfg.dir, inode, &names) {
                Ok(()) => self.saved_inode = Some(inode),
                Err(e) => failed = Some(e),
            }
        }
        if let Some(e) = failed {
            let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
            tracing::warn!(error = %e, cause, "cannot save the last good manifests: after a restart a bad manifest would lose its pods; tried again at the next scan");
        }
    }
}

/// The time since the last write, if that is less than [`WRITE_QUIET`], by the clock of file times.
fn just_written(stamp: &Stamp, now: Wall) -> Option<Duration> {
    let age = Duration::from_nanos(u64::try_from(now.0.saturating_sub(stamp.modified_nanos())).ok()?);
    (age < WRITE_QUIET).then_some(age)
}

/// Waits for an event (`true`) or the timeout (`false`); `None` if the source is to end.
fn wait(
    stop: &UnixStream,
    events: &DirectoryEvents,
    provisioned: Option<&ProvisionedReader>,
    timeout: Duration,
) -> Option<bool> {
    let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    fds.extend(provisioned.map(|made| PollFd::new(made.descriptor(), PollFlags::POLLIN)));
    fds.extend(events.descriptor().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    // Rounded up, so that the wait does not end just before the time.
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

/// The error of a Service for which no address or node port is free.
fn unallocated(
    services: &Shared<DesiredService>,
    (key, missing): (&PodKey, &str),
) -> Option<UnallocatedService> {
    let uid = Arc::clone(&services.get(key)?.service.uid);
    Some(UnallocatedService {
        service: key.clone(),
        uid,
        message: format!("cannot allocate {missing}: none is free"),
    })
}
