//! Cleanup on the node: lists and removes orphans, which stem from a reboot or from an agent that died
//! between the last steps of a pod's end.
//!
//! The manager asks for cleanup once every source has listed and containerd has answered. Cleanup touches
//! only what bears the agent's names below the agent's roots. A lease or output stream that a start could
//! soon use is marked while being released ([`crate::claims`]).

use crate::{
    NodeExecutor, claims::Claimable, node_executor::blocking, pod_locks::Area, stopwatch::Stopwatch,
};
use berth_core::{
    error::Chain,
    ids::{ContainerId, PodUid},
    plan::Failure,
};
use std::collections::BTreeSet;

impl NodeExecutor {
    /// The pods outside `known` that have a sandbox, a directory or a cgroup, but no container.
    pub(crate) async fn list_orphans(&self, known: BTreeSet<PodUid>) -> Result<BTreeSet<PodUid>, Failure> {
        let mut left: BTreeSet<PodUid> = self.sandboxes();
        let (volumes, cgroups) = (self.volumes.clone(), self.cgroups.clone());
        let (on_disk, groups) = blocking(move || (volumes.pods_on_disk(), cgroups.pods())).await?;
        left.extend(on_disk.map_err(|e| Failure::new("FailedCleanup", e.message()))?);
        left.extend(groups.map_err(|e| Failure::new("FailedCleanup", Chain(&e)))?);
        left.retain(|uid| !known.contains(uid));
        if left.is_empty() {
            return Ok(left);
        }
        // A pod with containers is no orphan: a worker will adopt it, or its spec cannot be read and it is
        // left alone.
        let list = self.runtime()?.list().await.map_err(|e| Failure::new("FailedCleanup", Chain(&e)))?;
        for c in list {
            left.remove(&c.pod);
        }
        Ok(left)
    }

    pub(crate) async fn remove_orphan(&self, uid: &PodUid) -> Result<(), Failure> {
        if self.sandboxes().contains(uid) {
            let record = self.sandbox_record(uid)?;
            let attempt = record.map(|r| r.sandbox_attempt).unwrap_or_default();
            self.take_down(uid, attempt, &mut Stopwatch::start()).await?;
        }
        let (volumes, name) = (self.volumes.clone(), uid.clone());
        let unmounted = self.pod_locks.blocking(uid, Area::Files, move || volumes.unmount(&name)).await?;
        unmounted.map_err(|e| Failure::new("FailedUnMount", e.message()))?;
        let (cgroups, name) = (self.cgroups.clone(), uid.clone());
        let removed = self
            .pod_locks
            .blocking(uid, Area::Sandbox, move || {
                cgroups.kill_pod(&name).and_then(|()| cgroups.remove_pod(&name))
            })
            .await?;
        removed.map_err(|e| Failure::new("FailedKillPod", Chain(&e)))?;
        self.pod_locks.forget(uid);
        Ok(())
    }

    /// Removes stale network attachments, leases and output streams.
    pub(crate) async fn remove_orphaned_files(&self, known: BTreeSet<PodUid>) {
        let valid = self.sandbox_ids(known.iter().cloned());
        if let Err(e) = self.network.gc(&valid).await {
            tracing::warn!(why = %Chain(&e), "cannot remove stale network attachments");
        }
        if let Err(failure) = self.release_stale_leases(&known).await {
            tracing::warn!(why = failure.message, "cannot release stale leases");
        }
        if let Ok(runtime) = self.runtime() {
            self.pulls.sweep(runtime);
        }
        if let Err(failure) = self.finish_stale_output().await {
            tracing::warn!(why = failure.message, "cannot finish the output of unknown containers");
        }
    }

    async fn release_stale_leases(&self, known: &BTreeSet<PodUid>) -> Result<(), Failure> {
        let failed = |e: berth_runtime::Error| Failure::new("FailedCleanup", Chain(&e));
        let runtime = self.runtime()?;
        // Leases are listed before containers: a container created in between keeps its pod's lease from
        // counting as stale.
        let leased = runtime.leased_pods().await.map_err(failed)?;
        let used: BTreeSet<PodUid> =
            runtime.list().await.map_err(failed)?.into_iter().map(|c| c.pod).collect();
        for uid in leased {
            if used.contains(&uid) || known.contains(&uid) {
                continue;
            }
            let Some(_leaving) = self.claims.leave(Claimable::Pod(uid.clone())) else { continue };
            match runtime.release_lease(&uid).await {
                Ok(()) => tracing::info!(%uid, "stale lease released"),
                Err(e) => tracing::debug!(%uid, why = %Chain(&e), "cannot release a stale lease"),
            }
        }
        Ok(())
    }

    /// Finishes the output streams of containers that no longer exist. An agent that died between the removal
    /// of a container and the end of its stream leaves such streams.
    async fn finish_stale_output(&self) -> Result<(), Failure> {
        // Streams are listed before containers, for the same reason as leases.
        let streams = self.logd.list().await.map_err(|e| Failure::new("FailedCleanup", Chain(&e)))?;
        if streams.is_empty() {
            return Ok(());
        }
        let list = self.runtime()?.list().await.map_err(|e| Failure::new("FailedCleanup", Chain(&e)))?;
        let containers: BTreeSet<ContainerId> = list.into_iter().map(|c| c.id).collect();
        for stream in streams.into_iter().filter(|s| !containers.contains(&s.spec.id)) {
            let (id, pod) = (stream.spec.id, stream.spec.key);
            let Some(_leaving) = self.claims.leave(Claimable::Run(id.clone())) else { continue };
            match self.logd.finish(&id).await {
                Ok(_) => {
                    tracing::info!(%pod, container = id.short(), "output of a removed container finished")
                }
                Err(e) => {
                    tracing::warn!(%pod, container = id.short(), why = %Chain(&e), "cannot finish the output of a removed container")
                }
            }
        }
        Ok(())
    }

    /// Claims a pod, and a run of it, before anything of them is created.
    pub(crate) async fn claim(&self, pod: &PodUid, run: Option<&ContainerId>) {
        self.claims.claim(pod, run).await;
    }
}
