//! `volumesInUse` of the Node: the attached volumes that the node's pods want, and those that are still mounted. The
//! attach-detach controller leaves these attached.
//!
//! Owns two tasks. One looks: a change of the pods is told at once; what is mounted is looked at every few seconds, because
//! a volume that is freed late costs nothing but time. The other compares with the API server's Node: what both list may
//! be mounted.

use super::super::sources::Latest;
use berth_cluster::{Task, publish::node::NewestNode};
use berth_core::volume::{
    attachable,
    in_use::{Lingering, listed},
};
use berth_volumes::Volumes;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};

/// Interval between two looks at what is mounted.
const EVERY: Duration = Duration::from_secs(5);
/// The wait after a look that missed a volume: if the next one misses it as well, it is free.
const AGAIN: Duration = Duration::from_secs(1);
/// The shortest time between two looks: every change of a pod is one of the sources.
const PAUSE: Duration = Duration::from_millis(100);

/// What the node tells: `None` before the first look, and while no look has succeeded.
pub(super) type InUse = watch::Receiver<Option<BTreeSet<String>>>;

/// Starts the tasks. What both the node and the API server's Node list goes to `both`.
pub(super) fn start(
    latest: Latest,
    volumes: Volumes,
    node: NewestNode,
    both: watch::Sender<Arc<BTreeSet<String>>>,
) -> (InUse, [Task; 2]) {
    let (publish, in_use) = watch::channel(None);
    let tasks =
        [Task::spawn(follow(latest, volumes, publish)), Task::spawn(compare(in_use.clone(), node, both))];
    (in_use, tasks)
}

async fn follow(mut latest: Latest, volumes: Volumes, publish: watch::Sender<Option<BTreeSet<String>>>) {
    let mut mounted = None;
    let mut lingering = Lingering::default();
    loop {
        let mut found = wanted(&mut latest);
        let look = volumes.clone();
        match spawn_blocking(move || look.volumes_in_use()).await {
            Ok(Ok(found)) => mounted = Some(found),
            // What was in use may be so still.
            Ok(Err(error)) => tracing::warn!(%error, "cannot tell which volumes are in use"),
            Err(error) => tracing::error!(%error, "cannot tell which volumes are in use"),
        }
        let mut wait = EVERY;
        if let Some(mounted) = &mounted {
            found.extend(mounted.iter().cloned());
            let told = lingering.look(found.clone());
            if told != found {
                wait = AGAIN;
            }
            publish.send_if_modified(|known| {
                let changed = known.as_ref() != Some(&told);
                *known = Some(told);
                changed
            });
        }
        sleep(PAUSE).await;
        tokio::select! {
            changed = latest.changed() => if changed.is_err() {
                return;
            },
            () = sleep(wait) => {}
        }
    }
}

async fn compare(mut in_use: InUse, node: NewestNode, both: watch::Sender<Arc<BTreeSet<String>>>) {
    let mut nodes = node.changes();
    loop {
        let told = in_use.borrow_and_update().clone().unwrap_or_default();
        let node = nodes.borrow_and_update().clone();
        let names = node.iter().flat_map(|node| node["status"]["volumesInUse"].as_array()).flatten();
        let now = listed(&told, names.filter_map(|name| name.as_str()));
        both.send_if_modified(|known| {
            let changed = **known != now;
            if changed {
                *known = Arc::new(now);
            }
            changed
        });
        tokio::select! {
            changed = in_use.changed() => if changed.is_err() {
                return;
            },
            changed = nodes.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// The attachable volumes of the pods that have not ended.
fn wanted(latest: &mut Latest) -> BTreeSet<String> {
    let sources = latest.borrow_and_update();
    let objects = sources.objects();
    let alive = sources.snapshots().flat_map(|s| s.pods.values()).filter(|pod| !pod.is_over());
    alive.flat_map(|desired| attachable(&desired.pod, &objects)).collect()
}
