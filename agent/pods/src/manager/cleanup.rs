//! Cleanup of orphans: removal of what pods left that no source wants any more. Orphans come from a reboot,
//! or from an agent that died between the last steps of a pod's end. Rounds repeat every [`CLEANUP_PERIOD`].
//!
//! A round lists the orphans, removes each in a task of its own, and then removes what belongs to no pod's
//! directory. A round begins once every source has listed and containerd answers. A pod does not start while
//! its orphan is being removed. A listing or removal that failed is tried again after [`CLEANUP_RETRY`].

use super::{CleanupState, Manager, ManagerTask, Outcome};
use crate::{executor::Executor, report::Reports};
use berth_core::ids::PodUid;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// Pause before a listing or removal that failed is tried again.
pub(super) const CLEANUP_RETRY: Duration = Duration::from_secs(120);
/// Pause between two rounds. Every pod cleans up after itself; a round finds only what a pod could not know
/// of.
pub(super) const CLEANUP_PERIOD: Duration = Duration::from_secs(300);

impl<H: Executor, R: Reports> Manager<H, R> {
    /// The pods that are no orphans: wanted pods, pods with a worker, and pods found or stored that still
    /// wait for one. Pods whose spec cannot be read count as known, because their containers are left alone.
    pub(super) fn known(&self) -> BTreeSet<PodUid> {
        let all = self.workers.keys().chain(self.desired.pods.keys()).chain(&self.unreadable);
        all.chain(self.found.keys()).chain(self.stored.keys()).cloned().collect()
    }

    /// Begins a cleanup round where one is due.
    pub(super) fn cleanup_orphans(&mut self) {
        if !(self.desired.listed && self.runtime_answers && self.cleanup == CleanupState::Due) {
            return;
        }
        self.cleanup = CleanupState::Busy;
        self.clean_failed = false;
        let (executor, known) = (Arc::clone(&self.executor), self.known());
        self.spawn(
            ManagerTask::ListOrphans,
            async move { Outcome::Listed(executor.orphaned_pods(known).await) },
        );
    }

    pub(super) fn cleanup_each(&mut self, left: BTreeSet<PodUid>) {
        // The listing took time: a listed pod may be wanted by now.
        let known = self.known();
        for uid in left.difference(&known) {
            self.cleaned.insert(uid.clone());
            let (executor, name) = (Arc::clone(&self.executor), uid.clone());
            self.spawn(ManagerTask::CleanupPod(uid.clone()), async move {
                Outcome::Cleaned(executor.cleanup_pod(&name).await)
            });
        }
        match (self.cleaned.is_empty(), self.swept) {
            (true, true) => self.cleanup_later(CLEANUP_PERIOD),
            (true, false) => self.cleanup_node(),
            (false, _) => {}
        }
    }

    pub(super) fn cleanup_node(&mut self) {
        let (executor, known) = (Arc::clone(&self.executor), self.known());
        self.spawn(ManagerTask::CleanupNode, async move {
            executor.cleanup_node(known).await;
            Outcome::Done
        });
    }

    pub(super) fn cleanup_later(&mut self, rest: Duration) {
        self.spawn(ManagerTask::CleanupWait, async move {
            tokio::time::sleep(rest).await;
            Outcome::Done
        });
    }
}
