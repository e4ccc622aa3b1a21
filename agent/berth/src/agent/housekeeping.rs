//! Housekeeping of the agent: QoS cgroups, staged volumes, unfinished files.

use super::status_manager::StatusManager;
use berth_core::roots::Roots;
use berth_node::cgroup::CgroupTree;
use berth_volumes::Volumes;
use std::{sync::Arc, time::Duration};

/// Time for which a burst of changes is gathered into one update of the cgroups.
const SETTLE: Duration = Duration::from_millis(200);

/// Time between two looks for staged volumes that no pod has.
const UNSTAGE: Duration = Duration::from_secs(60);

/// Time until the first look: the agent of before may have died with the last pod's end, and drivers introduce themselves
/// again within seconds.
const UNSTAGE_FIRST: Duration = Duration::from_secs(5);

/// Unstages the volumes that no pod has, from time to time: a driver may have been away when the last pod ended. A driver
/// that hangs holds up this task alone.
pub(super) async fn unstage_volumes(volumes: Volumes) {
    let mut wait = UNSTAGE_FIRST;
    loop {
        tokio::time::sleep(wait).await;
        wait = UNSTAGE;
        let volumes = volumes.clone();
        if tokio::task::spawn_blocking(move || volumes.unstage_unused()).await.is_err() {
            tracing::warn!("cannot unstage unused volumes: the task panicked");
        }
    }
}

/// Keeps the QoS cgroups at the sums of their pods' requests.
pub(super) async fn run(status: Arc<StatusManager>, cgroups: CgroupTree) {
    loop {
        status.changed.notified().await;
        tokio::time::sleep(SETTLE).await;
        let (status, cgroups) = (Arc::clone(&status), cgroups.clone());
        let updated = tokio::task::spawn_blocking(move || {
            let pods = status.active_pods();
            cgroups.update_qos(&pods.iter().map(AsRef::as_ref).collect::<Vec<_>>())
        });
        if let Ok(Err(error)) = updated.await {
            tracing::warn!(%error, "cannot update the QoS cgroups; tried again at the next change of a pod");
        }
    }
}

/// Removes the temporary files that a killed agent was writing its state to.
pub(super) fn remove_unfinished_files(roots: &Roots) {
    for dir in [&roots.runtime_state, &roots.lasting_state] {
        let below = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let below =
            below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
        for dir in std::iter::once(dir.clone()).chain(below) {
            if let Err(error) = berth_sys::fs::remove_unfinished(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "cannot remove unfinished files");
            }
        }
    }
}
