//! Cleanup of orphans: removal of what pods left that no source wants any more. Orphans come from a reboot,
//! or from an agent that died between the last steps of a pod's end. Rounds repeat every [`CLEANUP_PERIOD`].
//!
//! A round lists the orphans, removes each in a task of its own, and then removes what belongs to no pod's
//! directory. A round begins once every source has listed and containerd answers. A pod does not start while
//! its orphan is being removed. A listing or removal that failed is tried again after [`CLEANUP_RETRY`].

use super::{Manager, ManagerTask, TaskOutcome};
use crate::{executor::Executor, report::Reports};
use berth_core::ids::PodUid;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// State of the cleanup of orphans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CleanupState {
    /// The next round begins once every source has listed and containerd answers.
    Due,
    /// A round is running, or the pause before the next round is.
    Busy,
}

/// Pause before a listing or removal that failed is tried again.
const CLEANUP_RETRY: Duration = Duration::from_secs(120);
/// Pause between two rounds. Every pod cleans up after itself; a round finds only what a pod could not know
/// of.
const CLEANUP_PERIOD: Duration = Duration::from_secs(300);

impl<H: Executor, R: Reports> Manager<H, R> {
    /// The pods that are no orphans: wanted pods, pods with a worker, and pods found or stored that still
    /// wait for one. Pods whose spec cannot be read count as known, because their containers are left alone.
    fn known(&self) -> BTreeSet<PodUid> {
        let all = self.workers.keys().chain(self.desired.pods.keys()).chain(&self.unreadable);
        all.chain(self.found.keys()).chain(self.stored.keys()).cloned().collect()
    }

    /// Begins a cleanup round where one is due.
    pub(super) fn cleanup_orphans(&mut self) {
        if !(self.desired.all_listed() && self.runtime_answers && self.cleanup == CleanupState::Due) {
            return;
        }
        self.cleanup = CleanupState::Busy;
        self.cleanup_failed = false;
        let (executor, known) = (Arc::clone(&self.executor), self.known());
        self.spawn(ManagerTask::ListOrphans, async move {
            TaskOutcome::Listed(executor.orphaned_pods(known).await)
        });
    }

    fn cleanup_each(&mut self, left: BTreeSet<PodUid>) {
        // The listing took time: a listed pod may be wanted by now.
        let known = self.known();
        for uid in left.difference(&known) {
            self.being_cleaned.insert(uid.clone());
            let (executor, name) = (Arc::clone(&self.executor), uid.clone());
            self.spawn(ManagerTask::CleanupPod(uid.clone()), async move {
                TaskOutcome::Cleaned(executor.cleanup_pod(&name).await)
            });
        }
        match (self.being_cleaned.is_empty(), self.cleaned_once) {
            (true, true) => self.cleanup_later(CLEANUP_PERIOD),
            (true, false) => self.cleanup_node(),
            (false, _) => {}
        }
    }

    fn cleanup_node(&mut self) {
        let (executor, known) = (Arc::clone(&self.executor), self.known());
        self.spawn(ManagerTask::CleanupNode, async move {
            executor.cleanup_node(known).await;
            TaskOutcome::Done
        });
    }

    fn cleanup_later(&mut self, rest: Duration) {
        self.spawn(ManagerTask::CleanupWait, async move {
            tokio::time::sleep(rest).await;
            TaskOutcome::Done
        });
    }

    /// Handles the end of a task of cleanup. `outcome` is the task's panic where it panicked.
    pub(super) fn cleanup_ended(&mut self, task: ManagerTask, outcome: Result<TaskOutcome, String>) {
        match (task, outcome) {
            (ManagerTask::ListOrphans, Ok(TaskOutcome::Listed(Ok(left)))) => self.cleanup_each(left),
            (ManagerTask::ListOrphans, Ok(TaskOutcome::Listed(Err(failure)))) => {
                tracing::warn!(why = failure.message, "cannot list the orphans");
                self.cleanup_later(CLEANUP_RETRY);
            }
            (ManagerTask::CleanupPod(uid), outcome) => {
                self.being_cleaned.remove(&uid);
                match outcome {
                    Ok(TaskOutcome::Cleaned(Err(failure))) => {
                        self.cleanup_failed = true;
                        tracing::warn!(%uid, why = failure.message, "cannot remove an orphan");
                    }
                    Ok(_) => tracing::info!(%uid, "orphan removed"),
                    Err(panic) => {
                        self.cleanup_failed = true;
                        tracing::error!(%uid, panic, "the removal of an orphan panicked");
                    }
                }
                if self.being_cleaned.is_empty() {
                    self.cleanup_node();
                }
            }
            (ManagerTask::CleanupNode, _) if self.cleanup_failed => self.cleanup_later(CLEANUP_RETRY),
            (ManagerTask::CleanupNode, _) => {
                self.cleaned_once = true;
                self.cleanup_later(CLEANUP_PERIOD);
            }
            (ManagerTask::CleanupWait, _) => self.cleanup = CleanupState::Due,
            (ManagerTask::ListOrphans, _) => self.cleanup_later(CLEANUP_RETRY),
            (
                ManagerTask::Worker(_)
                | ManagerTask::RestartDelay(_)
                | ManagerTask::LabelWait
                | ManagerTask::ResizeRetry,
                _,
            ) => {}
        }
    }
}
