//! A directory of manifests as desired state.
//!
//! Owns one thread, which waits for inotify, the slow rescan, or its end; it may block on a slow file system without
//! holding up anything else. Channels: a `watch` with the newest [`Snapshot`]; it closes when the thread ends.
//!
//! An event leads to a look at the file that it names; where events do not tell all (links, an overflow, the slow
//! rescan) all names are looked at. Only files that changed are read, and only what has their objects' names is settled
//! again. A bad file holds what its last good version held; that version is remembered on disk, so that the hold
//! outlives a restart. Whether a look at the whole is believed is decided in `listing_guard`.

mod events;
mod file_objects;
mod first_seen;
mod last_good;
mod listing;
mod listing_guard;
mod manifest_file;
mod merged_objects;
mod name_index;
mod watcher;

use crate::{Error, ServiceRanges, Snapshot, manifest::Mode};
use berth_core::ids::NodeName;
use std::{os::unix::net::UnixStream, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::{oneshot, watch as channel};
use watcher::DirectoryWatcher;

/// How long [`DirectorySource::shutdown`] waits for a look that is under way.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What to watch, and how.
#[derive(Debug, Clone)]
pub struct DirectoryConfig {
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

impl DirectoryConfig {
    /// With a rescan every 20 s, and 1 s for a replaced directory to settle.
    pub fn new(dir: PathBuf, node: NodeName, mode: Mode, state: PathBuf) -> DirectoryConfig {
        let (rescan, settle) = (Duration::from_secs(20), Duration::from_secs(1));
        DirectoryConfig { dir, node, mode, rescan, settle, state, services: None }
    }
}

/// Owns the watching thread, which ends when this is dropped.
#[derive(Debug)]
pub struct DirectorySource {
    dir: PathBuf,
    stop: Option<UnixStream>,
    ended: oneshot::Receiver<()>,
}

impl DirectorySource {
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
/// when the thread ends, which before [`DirectorySource`] is dropped only happens if it could not be started.
pub fn start(cfg: DirectoryConfig) -> (DirectorySource, channel::Receiver<Arc<Snapshot>>) {
    let (sender, receiver) = channel::channel(Arc::new(Snapshot::default()));
    let (end, ended) = oneshot::channel();
    let dir = cfg.dir.clone();
    let stop = UnixStream::pair().and_then(|(ours, theirs)| {
        std::thread::Builder::new().name("berth-manifests".to_owned()).stack_size(8 << 20).spawn(
            move || {
                let _end: oneshot::Sender<()> = end;
                DirectoryWatcher::new(cfg, sender).run(&theirs);
            },
        )?;
        Ok(ours)
    });
    let stop = stop.inspect_err(|e| {
        tracing::error!(dir = %dir.display(), error = %e, "the manifest source cannot be started");
    });
    (DirectorySource { dir, stop: stop.ok(), ended }, receiver)
}

#[cfg(test)]
mod tests;
