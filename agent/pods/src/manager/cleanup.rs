//! Cleanup of what pods left that nobody wants any more: after a reboot, after a death between the last steps of an end,
//! and from time to time.
//!
//! A round lists the orphans, removes each of them in a task of its own, and then removes what belongs to no pod's
//! directory. A round begins once every source has listed and containerd answers. A pod is not started while its orphan
//! is being removed. What cannot be listed or removed is tried again after [`CLEANUP_RETRY`].

use super::{CleanupState, Manager, ManagerTask, Outcome};
use crate::{executor::Executor, report::Reports};
use berth_core::ids::PodUid;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// The time until orphans that could not be listed or removed are tried again.
pub(super) const CLEANUP_RETRY: Duration = Duration::from_secs(120);
/// The time between two rounds. Every pod cleans up after itself; a round finds what a pod could not know of.
pub(super) const CLEANUP_PERIOD: Duration = Duration::from_secs(300);

impl<H: Executor, R: Reports> Manager<H, R> {
    /// The pods that somebody knows: wanted, at work, or not to be touched.
    pub(super) fn known(&self) -> BTreeSet<PodUid> {
        let all = self.workers.keys().chain(self.desired.pods.keys()).chain(&self.unreadable);
        all.chain(self.found.keys()).chain(self.stored.keys()).cloned().collect()
    }

    /// Sees to what is left of pods that nobody knows: after a reboot, or a death between the last steps; and now and
    /// then.
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
        // Somebody may have come to know it since.
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
