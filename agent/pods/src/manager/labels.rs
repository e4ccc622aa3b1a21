//! Pods of the API server that were bound to this node although its labels or taints, as the node knows them, do not
//! match.
//!
//! A label or a taint and a pod that needs its change come by two watches, in either order. A pod that is rejected has failed for good, so
//! both are looked at again for [`PATIENCE`] (the kubelet asks the API server for its Node before it rejects such
//! a pod, `pkg/kubelet/lifecycle/predicate.go`).

use super::{Manager, ManagerTask, TaskOutcome};
use crate::{executor::Executor, report::Reports};
use berth_core::{ids::PodUid, model::Origin, plan::Desired, time::Boottime};
use std::{collections::BTreeMap, time::Duration};

/// Time for which a pod waits for a change of the node's labels and taints.
const PATIENCE: Duration = Duration::from_secs(5);

/// Interval between two looks at the labels.
const EVERY: Duration = Duration::from_millis(100);

/// The pods that wait for labels.
#[derive(Debug, Default)]
pub(super) struct LabelMatches {
    /// The time since which each pod waits, and whether its time is over.
    unmatched: BTreeMap<PodUid, (Boottime, bool)>,
    /// A task sleeps until the next look.
    pub(super) waits: bool,
}

impl LabelMatches {
    /// Whether the labels do not match the pod and may still change.
    pub(super) fn may_change(&self, uid: &PodUid) -> bool {
        self.unmatched.get(uid).is_some_and(|(_, over)| !over)
    }
}

impl<H: Executor, R: Reports> Manager<H, R> {
    /// Looks at the labels for these new pods, and once more soon where one of them waits.
    pub(super) fn look_at_labels(&mut self, new: &[&Desired]) {
        let now = self.executor.now().boottime;
        let before = std::mem::take(&mut self.labels.unmatched);
        let unmatched = |wanted: &&&Desired| {
            wanted.pod.origin == Origin::Cluster && wanted.end.is_none() && !self.executor.suits(&wanted.pod)
        };
        self.labels.unmatched = new
            .iter()
            .filter(unmatched)
            .map(|wanted| {
                let uid = &wanted.pod.uid;
                let since = before.get(uid).map_or(now, |(since, _)| *since);
                (uid.clone(), (since, now.since(since) >= PATIENCE))
            })
            .collect();
        if self.labels.unmatched.values().any(|(_, over)| !over) && !self.labels.waits {
            self.labels.waits = true;
            self.spawn(ManagerTask::LabelWait, async {
                tokio::time::sleep(EVERY).await;
                TaskOutcome::Done
            });
        }
    }
}
