//! Allocation of resizes: which of the resources that the API server wants for a running pod the node gives it
//! (`handlePodResourcesResize`, `pkg/kubelet/allocation`).
//!
//! A resize is tried when the pod's spec changes, when another pod has ended or was given less, and every three minutes.

use super::{Manager, ManagerTask, TaskOutcome};
use crate::{executor::Executor, report::Reports, worker::WorkerMessage};
use berth_core::{
    ids::PodUid,
    model::Pod,
    plan::Desired,
    resize::{self, PendingReason, PendingResize, same_resources, with_allocated_resources},
    time::Wall,
};
use std::{sync::Arc, time::Duration};

/// The longest time until a pending resize is tried again (`retryDelay`).
const RETRY: Duration = Duration::from_secs(180);

impl<H: Executor, R: Reports> Manager<H, R> {
    /// The wanted pod with the resources that are allocated to it, as long as its own are not.
    pub(super) fn allocated(&mut self, wanted: &Desired, allocated: &Pod) -> Desired {
        let uid = &wanted.pod.uid;
        if same_resources(&wanted.pod, allocated) {
            self.resizes.remove(uid);
            return wanted.clone();
        }
        self.resizes.entry(uid.clone()).or_insert_with(|| self.executor.now().wall);
        let pending = allocated.pending_resize.clone();
        Desired { pod: with_allocated_resources(&wanted.pod, allocated, pending), ..wanted.clone() }
    }

    /// Tries every resize that is not allocated yet.
    pub(super) fn allocate_resizes(&mut self) {
        if self.resizes.is_empty() {
            return;
        }
        for uid in self.resizes_in_order() {
            self.allocate_resize(&uid);
        }
        if !self.resizes.is_empty() && !self.resize_retry {
            self.resize_retry = true;
            self.spawn(ManagerTask::ResizeRetry, async {
                tokio::time::sleep(RETRY).await;
                TaskOutcome::Done
            });
        }
    }

    fn resizes_in_order(&mut self) -> Vec<PodUid> {
        let workers = &self.workers;
        self.resizes.retain(|uid, _| workers.contains_key(uid));
        let mut list: Vec<(PodUid, &Pod, &Pod, Option<Wall>)> = Vec::new();
        for (uid, since) in &self.resizes {
            let Some(worker) = workers.get(uid) else { continue };
            let (wanted, allocated) = (worker.wanted.pod.as_ref(), worker.desired.pod.as_ref());
            list.push((uid.clone(), wanted, allocated, Some(*since)));
        }
        resize::by_priority(&mut list);
        list.into_iter().map(|(uid, ..)| uid).collect()
    }

    fn allocate_resize(&mut self, uid: &PodUid) {
        let Some(worker) = self.workers.get(uid) else { return };
        if !worker.uses_resources() || worker.unwanted {
            self.resizes.remove(uid);
            return;
        }
        let (wanted, allocated) = (worker.wanted.clone(), Arc::clone(&worker.desired.pod));
        let others = self.counted_pods(uid);
        let (desired, event) = match self.executor.admit(&wanted.pod, &others) {
            Ok(()) => {
                self.resizes.remove(uid);
                let event = resize::started(&wanted.pod);
                (wanted, Some(event))
            }
            Err(why) => {
                let pending = PendingResize {
                    reason: PendingReason::Deferred,
                    message: why.message,
                    generation: wanted.pod.generation,
                };
                let told =
                    |p: &PendingResize| (p.reason, p.generation) == (pending.reason, pending.generation);
                let known = allocated.pending_resize.as_ref().is_some_and(told);
                let event = (!known).then(|| resize::pending(&wanted.pod, &pending));
                let pod = with_allocated_resources(&wanted.pod, &allocated, Some(pending));
                (Desired { pod, ..wanted }, event)
            }
        };
        if desired.pod == allocated {
            return;
        }
        self.report_event(&desired.pod, event);
        if let Some(worker) = self.workers.get_mut(uid) {
            worker.desired = desired.clone();
        }
        self.send(uid, WorkerMessage::Desired(desired));
    }

    /// The pods that count against the node beside this one.
    pub(super) fn counted_pods(&self, uid: &PodUid) -> Vec<Arc<Pod>> {
        let wanted =
            self.workers.iter().filter(|(other, _)| *other != uid && self.desired.pods.contains_key(*other));
        let counted = wanted.filter(|(_, worker)| worker.uses_resources());
        counted.map(|(_, worker)| Arc::clone(&worker.desired.pod)).collect()
    }
}
