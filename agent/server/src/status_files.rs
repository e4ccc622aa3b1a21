//! The published pods as files, for the time when the agent is not there.
//!
//! Owns one task, which hears of changes like any watcher, lets a burst settle for a moment and writes off the async
//! threads. A file that cannot be written is told and tried again at the pod's next change.

use crate::{
    Error,
    hub::{Change, Hub, Interest, Subscription},
};
use berth_api::{files, view::NodeView};
use berth_core::{ids::PodUid, roots::Roots};
use std::{collections::BTreeSet, fs, io, time::Duration};
use tokio::{sync::oneshot, task::spawn_blocking};

/// How long changes are gathered before they are written.
const SETTLE: Duration = Duration::from_millis(5);

/// Mode of the files: as the socket's, for root and its group.
const MODE: u32 = 0o640;

/// Makes the directory. Files of an earlier agent stay until their pods are met again, or [`sweep`].
pub fn prepare(roots: &Roots) -> Result<(), Error> {
    let dir = files::dir(roots);
    fs::create_dir_all(&dir).map_err(|source| Error::StatusFiles { path: dir, source })
}

/// Keeps the files until told to stop (or until the other end of `stop` is dropped); what changed until then is
/// written.
pub async fn keep(hub: Hub, roots: Roots, mut stop: oneshot::Receiver<()>) {
    let changes = hub.subscribe(Interest::PodsAndEvents);
    let mut last = false;
    loop {
        tokio::select! {
            () = changes.changed() => {}
            _ = &mut stop, if !last => last = true,
        }
        if !last {
            tokio::time::sleep(SETTLE).await;
        }
        let due = due(&hub, &changes);
        let (hub, roots) = (hub.clone(), roots.clone());
        let written = spawn_blocking(move || due.iter().for_each(|uid| write(&hub, &roots, uid))).await;
        if let Err(error) = written {
            tracing::error!(%error, "writing status files ended early");
        }
        if last {
            return;
        }
    }
}

fn due(hub: &Hub, changes: &Subscription) -> BTreeSet<PodUid> {
    let mut due = BTreeSet::new();
    while let Some(change) = changes.take() {
        match change {
            Change::Pod(pod) => {
                due.insert(pod.view.uid.clone());
            }
            Change::Events(uid) | Change::Removed(uid, _) => {
                due.insert(uid);
            }
            Change::Resync => due.extend(hub.pods().iter().map(|p| p.view.uid.clone())),
        }
    }
    due
}

/// Brings the file of one pod up to date.
fn write(hub: &Hub, roots: &Roots, uid: &PodUid) {
    let path = files::pod_file(roots, uid);
    let done = match hub.pod(uid) {
        Some(pod) => {
            let Some(json) = pod.json() else { return };
            let events = match serde_json::to_vec(&hub.events(Some(uid))) {
                Ok(events) => events,
                Err(error) => {
                    tracing::error!(pod = %pod.view.key, %error, "events cannot be written");
                    return;
                }
            };
            let text = [br#"{"pod":"#.as_slice(), &json, br#","events":"#, &events, b"}"].concat();
            berth_sys::fs::write_atomic(&path, &text, MODE).map_err(|e| e.to_string())
        }
        None => berth_sys::fs::remove_if_there(&path).map_err(|e| e.to_string()),
    };
    if let Err(error) = done {
        tracing::warn!(uid = %uid, error, "status file not kept");
    }
}

/// Replaces the node's file. Blocks on the file system.
pub fn write_node(roots: &Roots, view: &NodeView) -> Result<(), Error> {
    let path = files::node_file(roots);
    let failed = |source| Error::StatusFiles { path: path.clone(), source };
    let text = serde_json::to_vec(view).map_err(|e| failed(e.into()))?;
    berth_sys::fs::write_atomic(&path, &text, MODE).map_err(|e| failed(io::Error::other(e)))
}

/// Removes the files of pods that are not published: to be called once every source has listed and the runtime has
/// shown what there is. Blocks on the file system.
pub fn sweep(hub: &Hub, roots: &Roots) -> Result<(), Error> {
    let dir = files::dir(roots);
    let failed = |source| Error::StatusFiles { path: dir.clone(), source };
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(uid) = files::uid_of(&entry.file_name())
            && hub.pod(&uid).is_none()
        {
            berth_sys::fs::remove_if_there(&entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}
