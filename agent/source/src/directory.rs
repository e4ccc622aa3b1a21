//! A directory of manifests as desired state.
//!
//! The source owns one thread, which waits for inotify, the slow rescan, or its end. A slow file system
//! blocks that thread and nothing else. The newest [`Snapshot`] is in a `watch` channel, which closes when
//! the thread ends.
//!
//! An inotify event leads to a scan of the one file that it names. A scan of the whole directory follows
//! where events do not name every changed file: with links, after an overflow, at the slow rescan. Only
//! changed files are read, and which file a name belongs to is determined again only for their objects. A bad
//! file keeps the objects of its last good version; that version is also on disk, so that it outlives a
//! restart. [`listing_guard`] decides whether a listing of the directory is accepted as complete.

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

use crate::{Error, ServiceRanges, Snapshot, Source, manifest::Mode, provisioned::ProvisionedReader};
use berth_core::{ids::NodeName, model::NodeLabels};
use std::{os::unix::net::UnixStream, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::{oneshot, watch};
use watcher::DirectoryWatcher;

/// Deadline of [`DirectorySource::shutdown`], for a scan that is under way.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Stack of the thread, for deeply nested manifests.
const STACK: usize = 8 << 20;

/// Configuration of a watched directory.
#[derive(Debug, Clone)]
pub struct DirectoryConfig {
    /// The watched directory.
    pub dir: PathBuf,
    /// This node.
    pub node: NodeName,
    /// The node's labels, which a persistent volume of one node selects it by.
    pub labels: NodeLabels,
    /// The rules by which the files are read.
    pub mode: Mode,
    /// Interval of the rescan, which finds changes without an event.
    pub rescan: Duration,
    /// How long a directory that replaced the one before must stay unchanged until it is accepted.
    pub settle: Duration,
    /// Folder of the source's own state: the last good contents of each file, and the addresses assigned to
    /// Services.
    pub state: PathBuf,
    /// Ranges from which Services without an address get one; `None`: they get none.
    pub services: Option<ServiceRanges>,
    /// The volumes that drivers make for claims; `None`: nobody has any made.
    pub provisioned: Option<ProvisionedReader>,
}

impl DirectoryConfig {
    /// A configuration with a rescan every 20 s and 1 s for a replaced directory to settle.
    pub fn new(dir: PathBuf, node: NodeName, mode: Mode, state: PathBuf) -> DirectoryConfig {
        let (rescan, settle) = (Duration::from_secs(20), Duration::from_secs(1));
        let (labels, services, provisioned) = (NodeLabels::new(), None, None);
        DirectoryConfig { dir, node, labels, mode, rescan, settle, state, services, provisioned }
    }
}

/// A watched directory. Owns the watching thread, which ends when this is dropped.
#[derive(Debug)]
pub struct DirectorySource {
    dir: PathBuf,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    stop: Option<UnixStream>,
    ended: oneshot::Receiver<()>,
}

impl DirectorySource {
    /// Starts watching. The channel of snapshots closes when the thread ends; before the source is dropped
    /// that happens only if the thread could not be started.
    pub fn start(cfg: DirectoryConfig) -> DirectorySource {
        let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let (end, ended) = oneshot::channel();
        let dir = cfg.dir.clone();
        let stop = UnixStream::pair().and_then(|(ours, theirs)| {
            let thread = std::thread::Builder::new().name("berth-manifests".to_owned()).stack_size(STACK);
            thread.spawn(move || {
                let _end: oneshot::Sender<()> = end;
                DirectoryWatcher::new(cfg, sender).run(&theirs);
            })?;
            Ok(ours)
        });
        let stop = stop.inspect_err(|e| {
            tracing::error!(dir = %dir.display(), error = %e, "cannot start the thread of the manifest directory: its pods are not run");
        });
        DirectorySource { dir, snapshots, stop: stop.ok(), ended }
    }

    /// Ends the thread and waits for its end, at most 5 s.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        drop(self.stop.take());
        match tokio::time::timeout(STOP_DEADLINE, &mut self.ended).await {
            // The sender is dropped when the thread ends.
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Stop { dir: self.dir.clone() }),
        }
    }
}

impl Source for DirectorySource {
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }
}

#[cfg(test)]
mod tests;
