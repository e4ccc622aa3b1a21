//! `volumesInUse` of the Node: the attached volumes that the node's pods want, and those that are still mounted. The
//! attach-detach controller leaves these attached.
//!
//! Owns one task. A change of the pods is told at once; what is mounted is looked at every few seconds, because a volume
//! that is freed late costs nothing but time.

use super::super::sources::Latest;
use berth_cluster::Task;
use berth_core::volume::attachable;
use berth_volumes::Volumes;
use std::{collections::BTreeSet, time::Duration};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};

/// Interval between two looks at what is mounted.
const EVERY: Duration = Duration::from_secs(5);
/// The shortest time between two looks: every change of a pod is one of the sources.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts the task.
pub(super) fn start(latest: Latest, volumes: Volumes) -> (watch::Receiver<BTreeSet<String>>, Task) {
    let (publish, in_use) = watch::channel(BTreeSet::new());
    (in_use, Task::spawn(follow(latest, volumes, publish)))
}

async fn follow(mut latest: Latest, volumes: Volumes, publish: watch::Sender<BTreeSet<String>>) {
    let mut mounted = BTreeSet::new();
    loop {
        let mut wanted = wanted(&mut latest);
        let look = volumes.clone();
        match spawn_blocking(move || look.volumes_in_use()).await {
            Ok(Ok(found)) => mounted = found,
            // What was in use may be so still.
            Ok(Err(error)) => tracing::warn!(%error, "cannot tell which volumes are in use"),
            Err(error) => tracing::error!(%error, "cannot tell which volumes are in use"),
        }
        wanted.extend(mounted.iter().cloned());
        publish.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
        sleep(PAUSE).await;
        tokio::select! {
            changed = latest.changed() => if changed.is_err() {
                return;
            },
            () = sleep(EVERY) => {}
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
