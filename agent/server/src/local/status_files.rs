//! Status files: the published pods on disk, for commands while no agent runs.
//!
//! Owns one task, a watcher of the cache. The task gathers a burst of changes and writes on a
//! blocking thread. A file that cannot be written is logged and tried again at the pod's next
//! change.

use super::watch_cache::{Change, Interest, Subscription, WatchCache};
use crate::Error;
use berth_api::{files, view::NodeView};
use berth_core::{ids::PodUid, roots::Roots};
use std::{collections::BTreeSet, fs, io, time::Duration};
use tokio::{sync::oneshot, task::spawn_blocking};

/// Time for which changes are gathered before they are written.
const SETTLE: Duration = Duration::from_millis(5);

/// Mode of the files: readable by root and its group, as the socket is.
const MODE: u32 = 0o640;

/// Makes the directory. Files of an earlier agent stay until their pods are published again, or
/// until [`cleanup`].
pub fn prepare(roots: &Roots) -> Result<(), Error> {
    let dir = roots.status_dir();
    fs::create_dir_all(&dir).map_err(|source| Error::StatusFiles { path: dir, source })
}

/// Writes the files of changed pods until `stop` is sent or its sender dropped; changes up to then
/// are written.
pub async fn keep(cache: WatchCache, roots: Roots, mut stop: oneshot::Receiver<()>) {
    let changes = cache.subscribe(Interest::PodsAndEvents);
    let mut last = false;
    loop {
        tokio::select! {
            () = changes.changed() => {}
            _ = &mut stop, if !last => last = true,
        }
        if !last {
            tokio::time::sleep(SETTLE).await;
        }
        let due = due(&cache, &changes);
        let (cache, roots) = (cache.clone(), roots.clone());
        let written = spawn_blocking(move || due.iter().for_each(|uid| write(&cache, &roots, uid))).await;
        if let Err(error) = written {
            tracing::error!(%error, "cannot write status files: the writer panicked");
        }
        if last {
            return;
        }
    }
}

fn due(cache: &WatchCache, changes: &Subscription) -> BTreeSet<PodUid> {
    let mut due = BTreeSet::new();
    while let Some(change) = changes.take() {
        match change {
            Change::Pod(pod) => {
                due.insert(pod.view.uid.clone());
            }
            Change::Events(uid) | Change::Removed(uid, _) => {
                due.insert(uid);
            }
            Change::Resync => due.extend(cache.pods().iter().map(|p| p.view.uid.clone())),
        }
    }
    due
}

/// Writes or removes the file of one pod.
fn write(cache: &WatchCache, roots: &Roots, uid: &PodUid) {
    let path = files::pod_file(roots, uid);
    let done = match cache.pod(uid) {
        Some(pod) => {
            let Some(json) = pod.json() else { return };
            let events = match serde_json::to_vec(&cache.events(Some(uid))) {
                Ok(events) => events,
                Err(error) => {
                    tracing::error!(pod = %pod.view.key, %error, "cannot encode the pod's events");
                    return;
                }
            };
            let text = [br#"{"pod":"#.as_slice(), &json, br#","events":"#, &events, b"}"].concat();
            berth_sys::fs::write_atomic(&path, &text, MODE).map_err(|e| e.to_string())
        }
        None => berth_sys::fs::remove_if_there(&path).map_err(|e| e.to_string()),
    };
    if let Err(error) = done {
        tracing::warn!(%uid, error, "cannot update the pod's status file");
    }
}

/// Replaces the node's file. Blocks on the file system.
pub fn write_node(roots: &Roots, view: &NodeView) -> Result<(), Error> {
    let path = files::node_file(roots);
    let failed = |source| Error::StatusFiles { path: path.clone(), source };
    let text = serde_json::to_vec(view).map_err(|e| failed(e.into()))?;
    berth_sys::fs::write_atomic(&path, &text, MODE).map_err(|e| failed(io::Error::other(e)))
}

/// Removes the files of pods that are not published. To be called once every source has listed its
/// pods and the runtime its containers. Blocks on the file system.
pub fn cleanup(cache: &WatchCache, roots: &Roots) -> Result<(), Error> {
    let dir = roots.status_dir();
    let failed = |source| Error::StatusFiles { path: dir.clone(), source };
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(uid) = files::uid_of(&entry.file_name())
            && cache.pod(&uid).is_none()
        {
            berth_sys::fs::remove_if_there(&entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}
