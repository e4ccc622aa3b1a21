//! A directory of manifests as desired state.
//!
//! Owns one thread, which waits for inotify, the slow rescan, or its end; it may block on a slow file system without
//! holding up anything else. Channels: a `watch` with the newest [`Snapshot`]; it closes when the thread ends.
//!
//! Each wake is a full look at the directory's names, and only files that changed are read. A bad file holds what its
//! last good version held; that version is remembered on disk, so that the hold outlives a restart. Whether a look is
//! believed at all is decided in `judge`.

mod allot;
mod judge;
mod listing;
mod merge;
mod remember;
mod watch;

use crate::{
    Error, ManifestError, Snapshot,
    manifest::{self, Context, Mode, Parsed},
};
use allot::Allotment;
use berth_core::{ids::NodeName, time::Wall};
use judge::{Judge, Known, Verdict};
use listing::{Files, OpenDir, Stamp};
use merge::{FileView, Good};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use remember::{ContentHash, Memory, Remembered};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::{fd::AsFd, unix::net::UnixStream},
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{oneshot, watch as channel};
use watch::{WRITE_QUIET, Watch};

/// While the directory cannot be read it is tried this often: there is nothing that could tell of its return.
const MISSING_RETRY: Duration = Duration::from_secs(1);

/// How long [`ManifestDir::shutdown`] waits for a look that is under way.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What to watch, and how.
#[derive(Debug, Clone)]
pub struct DirConfig {
    /// The directory.
    pub dir: PathBuf,
    /// This node.
    pub node: NodeName,
    /// Whose rules hold for the files.
    pub mode: Mode,
    /// How often to look although no event came.
    pub rescan: Duration,
    /// How long a directory that replaced the one before has to stay the same until it counts.
    pub settle: Duration,
    /// A folder of our own, where the last good contents of each file are remembered.
    pub state: PathBuf,
    /// Where Services without an address get one from; without, they stay without.
    pub services: Option<ServiceRanges>,
}

pub use allot::ServiceRanges;

impl DirConfig {
    /// With a rescan every 20 s, and 1 s for a replaced directory to settle.
    pub fn new(dir: PathBuf, node: NodeName, mode: Mode, state: PathBuf) -> DirConfig {
        let (rescan, settle) = (Duration::from_secs(20), Duration::from_secs(1));
        DirConfig { dir, node, mode, rescan, settle, state, services: None }
    }
}

/// Owns the watching thread, which ends when this is dropped.
#[derive(Debug)]
pub struct ManifestDir {
    dir: PathBuf,
    stop: Option<UnixStream>,
    ended: oneshot::Receiver<()>,
}

impl ManifestDir {
    /// Ends the thread and waits for it, at most 5 s.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        drop(self.stop.take());
        match tokio::time::timeout(STOP_DEADLINE, &mut self.ended).await {
            // The sender is dropped when the thread ends.
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Stop { dir: self.dir.clone() }),
        }
    }
}

/// Starts watching. The receiver shows an empty snapshot that is not listed until the first look is done; it closes
/// when the thread ends, which before [`ManifestDir`] is dropped only happens if it could not be started.
pub fn start(cfg: DirConfig) -> (ManifestDir, channel::Receiver<Arc<Snapshot>>) {
    let (sender, receiver) = channel::channel(Arc::new(Snapshot::default()));
    let (end, ended) = oneshot::channel();
    let dir = cfg.dir.clone();
    let stop = UnixStream::pair().and_then(|(ours, theirs)| {
        std::thread::Builder::new().name("berth-manifests".to_owned()).stack_size(8 << 20).spawn(
            move || {
                let _end: oneshot::Sender<()> = end;
                Looker::new(cfg, sender).run(&theirs);
            },
        )?;
        Ok(ours)
    });
    let stop = stop.inspect_err(|e| {
        tracing::error!(dir = %dir.display(), error = %e, "the manifest source cannot be started");
    });
    (ManifestDir { dir, stop: stop.ok(), ended }, receiver)
}

/// One manifest file.
#[derive(Default)]
struct Record {
    /// What was last read, good or bad.
    stamp: Option<Stamp>,
    /// The content that was last read.
    hash: Option<ContentHash>,
    good: Option<Good>,
    /// From before the restart, as long as nothing good was read since.
    remembered: Option<Remembered>,
    problem: Option<ManifestError>,
    /// Good contents that still have to be written to disk.
    to_keep: Option<Remembered>,
}

struct Looker {
    cfg: DirConfig,
    sender: channel::Sender<Arc<Snapshot>>,
    records: BTreeMap<String, Record>,
    judge: Judge,
    memory: Memory,
    watch: Watch,
    open: Option<OpenDir>,
    seen: BTreeMap<String, i64>,
    allotment: Allotment,
    /// The directory that the memory on disk is about.
    about: Option<u64>,
    directory_problem: Option<String>,
}

impl Looker {
    fn new(cfg: DirConfig, sender: channel::Sender<Arc<Snapshot>>) -> Looker {
        let memory = Memory::new(cfg.state.clone());
        let (remembered, about) = memory.load(&cfg.dir);
        let mut seen = BTreeMap::new();
        let mut records = BTreeMap::new();
        for (name, remembered) in remembered {
            seen.extend(remembered.seen.clone());
            records.insert(name, Record { remembered: Some(remembered), ..Record::default() });
        }
        Looker {
            judge: Judge::new(about.map(Known::Inode), cfg.settle),
            memory,
            watch: Watch::new(),
            open: None,
            seen,
            allotment: Allotment::open(cfg.services.clone(), &cfg.state),
            about: None,
            directory_problem: None,
            records,
            sender,
            cfg,
        }
    }

    fn run(mut self, stop: &UnixStream) {
        let mut look = true;
        let mut last_look = Instant::now();
        let mut again = None;
        loop {
            if look {
                last_look = Instant::now();
                again = self.look();
                self.remember();
            }
            let now = Instant::now();
            let due = again.unwrap_or(self.cfg.rescan).min(self.cfg.rescan);
            let due = due.saturating_sub(now.saturating_duration_since(last_look));
            let quiet = self.watch.next_quiet(now);
            let timeout = quiet.map_or(due, |q| q.min(due));
            let Some(woken) = wait(stop, &self.watch, timeout) else { return };
            let now = Instant::now();
            look = if woken { self.watch.drain(self.open.as_ref(), now) } else { true };
            look |= now.saturating_duration_since(last_look) >= self.cfg.rescan;
        }
    }

    /// One look and its consequences; when to look again at the latest.
    fn look(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let (verdict, files, odd, again) = match self.list() {
            Ok((open, files, odd)) => {
                let to_lose = self.records.values().any(|r| r.good.is_some() || r.remembered.is_some());
                let verdict = self.judge.look(open.identity, &files, to_lose, now);
                self.open = Some(open);
                (verdict, files, odd, None)
            }
            Err(e) => {
                self.judge.unreadable();
                self.open = None;
                let reason = format!("cannot be read: {e}");
                let verdict = Verdict::NotListed { reason, again: Some(MISSING_RETRY) };
                (verdict, BTreeMap::new(), Vec::new(), None)
            }
        };
        let mut again: Option<Duration> = again;
        match verdict {
            Verdict::Listed => {
                if self.directory_problem.take().is_some() {
                    tracing::info!(dir = %self.cfg.dir.display(), "the manifest directory is back");
                }
                if self.take(&files, now) {
                    again = Some(Duration::from_millis(100));
                }
                self.publish(true, odd);
            }
            Verdict::NotListed { reason, again: soon } => {
                if self.directory_problem.as_ref() != Some(&reason) {
                    tracing::warn!(dir = %self.cfg.dir.display(), reason, "the manifest directory is not listed: its pods stay");
                    self.directory_problem = Some(reason);
                }
                again = soon;
                let ctx = self.context();
                for (name, record) in &mut self.records {
                    record.recall(&self.cfg.dir.join(name), &ctx, &mut self.seen);
                }
                self.publish(false, odd);
            }
        }
        again
    }

    fn list(&mut self) -> std::io::Result<(OpenDir, Files, Vec<PathBuf>)> {
        let open = OpenDir::open(&self.cfg.dir)?;
        if let Err(e) = self.watch.ensure(&open, &self.cfg.dir) {
            tracing::warn!(dir = %self.cfg.dir.display(), error = %e, "no events: changes are found by the slow rescan");
        }
        let (files, odd) = open.files(self.cfg.mode)?;
        Ok((open, files, odd))
    }

    fn context(&self) -> Context {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Wall(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX));
        Context { node: self.cfg.node.clone(), mode: self.cfg.mode, now }
    }

    /// Takes a believed listing over: gone files go, changed ones are read. Whether one changed while it was read.
    fn take(&mut self, files: &Files, now: Instant) -> bool {
        self.records.retain(|name, _| {
            let there = files.contains_key(name);
            if !there {
                tracing::info!(file = %self.cfg.dir.join(name).display(), "manifest is gone");
                if let Err(e) = self.memory.forget(name) {
                    tracing::warn!(error = %e, "a manifest that is gone stays remembered");
                }
            }
            there
        });
        self.watch.retain(|name| files.contains_key(name));
        let ctx = self.context();
        let mut unsteady = false;
        for (name, stamp) in files {
            let record = self.records.entry(name.clone()).or_default();
            let first = record.stamp.is_none() && record.hash.is_none();
            if first
                && record.remembered.is_some()
                && let Some(age) = stamp.and_then(|s| just_written(&s, ctx.now))
                && !self.open.as_ref().is_some_and(|open| open.is_complete(name))
            {
                // It may be half written: nothing told us when its writing began.
                self.watch.mark_writing(name, now.checked_sub(age).unwrap_or(now));
            }
            if self.watch.is_writing(name, now) {
                record.recall(&self.cfg.dir.join(name), &ctx, &mut self.seen);
                continue;
            }
            let dirty = self.watch.take_dirty(name);
            if stamp.is_some() && record.stamp == *stamp && !dirty {
                continue;
            }
            let Some(open) = &self.open else { continue };
            let path = self.cfg.dir.join(name);
            match open.read(name) {
                Ok((bytes, stamp)) => {
                    unsteady |= stamp.is_none();
                    record.stamp = stamp;
                    record.read(&path, &bytes, &ctx, &mut self.seen);
                }
                Err(e) => {
                    record.stamp = None;
                    record.hash = None;
                    let reason = format!("cannot be read: {e}");
                    record.bad(
                        &path,
                        ManifestError { file: path.clone(), document: None, field: None, reason },
                    );
                    record.recall(&path, &ctx, &mut self.seen);
                }
            }
        }
        unsteady
    }

    fn publish(&mut self, listed: bool, odd: Vec<PathBuf>) {
        let directory = self.directory_problem.as_ref().map(|reason| ManifestError {
            file: self.cfg.dir.clone(),
            document: None,
            field: None,
            reason: reason.clone(),
        });
        let why = directory.as_ref().map(ToString::to_string);
        for record in self.records.values_mut() {
            let held = why.clone().or_else(|| record.problem.as_ref().map(ToString::to_string));
            if let Some(good) = &mut record.good {
                good.hold(held.as_deref());
            }
        }
        let files: Vec<FileView<'_>> = self
            .records
            .iter()
            .map(|(name, r)| FileView {
                path: self.cfg.dir.join(name),
                good: r.good.as_ref(),
                problem: r.problem.as_ref(),
            })
            .collect();
        let before = Arc::clone(&self.sender.borrow());
        let mut next = merge::merge(listed, directory, &files, &before);
        // A file that is bad from the start may hold Services that nobody knows of yet.
        let all = listed && self.records.values().all(|r| r.good.is_some() || r.problem.is_none());
        self.allotment.fill(&mut next.services, all);
        if let Err(error) = self.allotment.keep() {
            tracing::warn!(%error, "addresses given to Services are not remembered; tried again at the next look");
        }
        merge::keep_services(&mut next, &before);
        next.errors.extend(odd.into_iter().map(|name| ManifestError {
            file: self.cfg.dir.join(name),
            document: None,
            field: None,
            reason: "its name is not UTF-8; it is passed over".to_owned(),
        }));
        if !merge::same(&next, &before) {
            next.version = next.version.saturating_add(1);
            self.sender.send_replace(Arc::new(next));
        }
    }

    /// Writes down what is new, after it was published: nobody waits for the disk.
    fn remember(&mut self) {
        let mut failed = None;
        for (name, record) in &mut self.records {
            let Some(good) = record.to_keep.take() else { continue };
            if let Err(e) = self.memory.keep(name, &good) {
                record.to_keep = Some(good);
                failed = Some(e);
            }
        }
        let goods = self.records.values().filter_map(|r| r.good.as_ref());
        let live: BTreeSet<&str> = goods.flat_map(Good::uids).collect();
        self.seen.retain(|uid, _| live.contains(uid.as_str()));
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

impl Record {
    /// Takes in what the file holds now.
    fn read(&mut self, path: &Path, bytes: &[u8], ctx: &Context, seen: &mut BTreeMap<String, i64>) {
        let hash = remember::hash(bytes);
        if self.hash.as_ref() == Some(&hash) {
            return;
        }
        match parse(path, bytes, ctx) {
            Ok(parsed) => {
                let (pods, first) = (parsed.pods.len(), self.good.is_none());
                let good = Good::new(parsed, self.good.as_ref(), seen);
                let seen = good.uids().filter_map(|u| seen.get(u).map(|at| (u.to_owned(), *at))).collect();
                let keep = Remembered { bytes: bytes.to_vec(), hash: hash.clone(), seen };
                if self.remembered.as_ref() != Some(&keep) {
                    self.to_keep = Some(keep);
                }
                self.good = Some(good);
                self.remembered = None;
                self.problem = None;
                tracing::info!(file = %path.display(), pods, first, "manifest read");
            }
            Err(problem) => {
                self.bad(path, problem);
                self.recall(path, ctx, seen);
            }
        }
        self.hash = Some(hash);
    }

    fn bad(&mut self, path: &Path, problem: ManifestError) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!(file = %path.display(), error = %problem, "manifest is bad; what it held before stays");
            self.problem = Some(problem);
        }
    }

    /// Without anything good from this run, what is remembered from before the restart counts.
    fn recall(&mut self, path: &Path, ctx: &Context, seen: &mut BTreeMap<String, i64>) {
        if self.good.is_some() {
            return;
        }
        let Some(remembered) = self.remembered.take() else { return };
        seen.extend(remembered.seen);
        match parse(path, &remembered.bytes, ctx) {
            Ok(parsed) => self.good = Some(Good::new(parsed, None, seen)),
            Err(e) => {
                tracing::error!(file = %path.display(), error = %e, "its remembered contents are not valid any more")
            }
        }
    }
}

/// A panic on one file is that file's failure alone.
fn parse(path: &Path, bytes: &[u8], ctx: &Context) -> Result<Parsed, ManifestError> {
    std::panic::catch_unwind(AssertUnwindSafe(|| manifest::parse_file(path, bytes, ctx))).unwrap_or_else(
        |_| {
            Err(ManifestError {
                file: path.to_owned(),
                document: None,
                field: None,
                reason: "cannot be read because of a defect in its reader".to_owned(),
            })
        },
    )
}

/// Waits for an event (`true`) or the time (`false`); `None` when it is the end.
fn wait(stop: &UnixStream, watch: &Watch, timeout: Duration) -> Option<bool> {
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

#[cfg(test)]
mod tests;
