//! What is left of pods that nobody knows any more: after a reboot, or a death between the last steps.
//!
//! Runs once, after every source has listed and containerd has answered. Touches only what carries our names below
//! our roots.

use super::{NodeHands, blocking, chain};
use berth_core::{ids::PodUid, plan::Failure};
use std::collections::BTreeSet;

impl NodeHands {
    pub(super) async fn clean(&self, known: BTreeSet<PodUid>) {
        let mut left: BTreeSet<PodUid> = self.sandboxes().into_iter().collect();
        match self.volumes.pods_on_disk() {
            Ok(uids) => left.extend(uids),
            Err(e) => tracing::warn!(why = e.message(), "pod directories not listed"),
        }
        match self.cgroups.pods() {
            Ok(uids) => left.extend(uids),
            Err(e) => tracing::warn!(why = chain(&e), "pod cgroups not listed"),
        }
        for uid in left.difference(&known) {
            match self.clean_pod(uid).await {
                Ok(()) => tracing::info!(%uid, "leftovers of an unknown pod removed"),
                Err(failure) => {
                    tracing::warn!(%uid, why = failure.message, "leftovers of an unknown pod not removed")
                }
            }
        }
        let valid = self.sandbox_ids(known.into_iter());
        if let Err(e) = self.network.gc(&valid).await {
            tracing::warn!(why = chain(&e), "stale network attachments not removed");
        }
        if let Ok(runtime) = self.runtime() {
            self.release_stale_leases(&runtime).await;
        }
    }

    async fn release_stale_leases(&self, runtime: &berth_runtime::Runtime) {
        let kept: BTreeSet<PodUid> = match runtime.list().await {
            Ok(list) => list.into_iter().map(|c| c.pod).collect(),
            Err(_unknown) => return,
        };
        for uid in runtime.leased_pods().await.unwrap_or_default() {
            if !kept.contains(&uid)
                && let Err(e) = runtime.release_lease(&uid).await
            {
                tracing::debug!(%uid, why = e.chain(), "lease not released");
            }
        }
    }

    async fn clean_pod(&self, uid: &PodUid) -> Result<(), Failure> {
        if let Some(record) = self.sandbox_record(uid)? {
            self.take_down(uid, record.incarnation).await?;
        }
        let (volumes, cgroups, uid) = (self.volumes.clone(), self.cgroups.clone(), uid.clone());
        blocking(move || {
            volumes.unmount(&uid).map_err(|e| Failure::new("FailedUnMount", e.message()))?;
            cgroups
                .kill_pod(&uid)
                .and_then(|()| cgroups.remove_pod(&uid))
                .map_err(|e| Failure::new("FailedKillPod", chain(&e)))
        })
        .await?
    }
}
