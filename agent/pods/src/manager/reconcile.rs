//! Reconciliation of the workers with the desired set and with what the node shows: which pods get a worker,
//! which end, and which wait for a worker.

use super::Manager;
use crate::{
    executor::Executor,
    report::{PodReport, Reports},
    waiting::{self, WaitReason},
    worker::WorkerMessage,
};
use berth_core::{
    ids::PodUid,
    model::{Origin, Pod},
    plan::{Desired, Memory, Observed, plan},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

impl<H: Executor, R: Reports> Manager<H, R> {
    /// Brings the workers in line with the desired set and with what the node shows.
    pub(super) fn reconcile(&mut self) {
        // The order matters: pods found on the node take their names before new pods do, and ending pods free
        // their ports and resources for new pods.
        self.forget_done();
        self.settle_removed();
        self.adopt();
        self.end_unwanted();
        self.start_wanted();
        self.allocate_resizes();
        self.show_waiting();
        self.cleanup_orphans();
    }

    /// Forgets the pods of which nothing is left and that their source has let go.
    fn forget_done(&mut self) {
        let desired = Arc::clone(&self.desired);
        let gone: Vec<PodUid> = self.done.extract_if(.., |uid| !desired.pods.contains_key(uid)).collect();
        gone.iter().for_each(|uid| self.forget(uid));
    }

    /// Settles the pods of which an earlier agent left nothing. A pod that its source still has gets no worker: its last
    /// status is reported once more, for whoever ends the pod there.
    fn settle_removed(&mut self) {
        let desired = Arc::clone(&self.desired);
        let settled = |uid: &PodUid, (pod, memory): &(Arc<Pod>, Memory)| {
            memory.removed && (desired.pods.contains_key(uid) || desired.is_listed(&pod.origin))
        };
        let removed: Vec<_> = self.stored.extract_if(.., |uid, stored| settled(uid, stored)).collect();
        for (uid, (_, memory)) in removed {
            match desired.pods.get(&uid).filter(|wanted| wanted.end.is_some()) {
                Some(wanted) => {
                    self.report_removed(wanted, &memory);
                    self.done.insert(uid);
                }
                None => self.forget(&uid),
            }
        }
    }

    /// Reports the end of a pod of which nothing is left.
    fn report_removed(&self, wanted: &Desired, memory: &Memory) {
        let now = self.executor.now();
        let nothing = Observed { runtime_answers: true, ..Observed::default() };
        self.reports.pod(PodReport {
            pod: Arc::clone(&wanted.pod),
            status: Arc::new(plan(wanted, &nothing, memory, now).status),
            processes: BTreeMap::new(),
            timeline: Vec::new(),
            observed: true,
            gone: true,
            reclaimed: true,
            as_of: now.wall,
        });
        self.reports.removed(&wanted.pod.uid);
    }

    /// Gives a worker to each pod that is on the node but not wanted. The pod keeps running until the source of
    /// its origin has listed, and ends after that.
    fn adopt(&mut self) {
        if !self.answered {
            return;
        }
        let strays: BTreeSet<PodUid> = self
            .found
            .keys()
            .chain(self.stored.keys())
            .filter(|u| !self.workers.contains_key(*u) && !self.desired.pods.contains_key(*u))
            .filter(|u| !self.being_cleaned.contains(*u))
            // Nothing of it is left, and its source has not listed yet.
            .filter(|u| !self.stored.get(*u).is_some_and(|(_, memory)| memory.removed))
            .cloned()
            .collect();
        for uid in strays {
            let found = self.found.get(&uid);
            // The memory has the newest spec; the oldest container has that of its own creation.
            let stored = self.stored.get(&uid).map(|k| Arc::clone(&k.0));
            let Some(pod) = stored.or_else(|| found.and_then(|f| f.pod.clone())) else {
                let has_containers = found.is_some_and(|f| !f.snapshot.seen.containers.is_empty());
                if has_containers && self.unreadable.insert(uid.clone()) {
                    tracing::error!(%uid, "cannot read the spec of a pod: its containers are left alone");
                }
                self.found.remove(&uid);
                continue;
            };
            tracing::info!(pod = %pod.key, %uid, "pod found on the node that no source is known to want");
            let unwanted = self.desired.is_listed(&pod.origin);
            let desired = Desired::new(pod, None);
            self.start(if unwanted { desired.unwanted() } else { desired }, unwanted);
        }
    }

    fn start_wanted(&mut self) {
        let desired = Arc::clone(&self.desired);
        let mut new = Vec::new();
        for (uid, wanted) in &desired.pods {
            if let Some(live) = self.workers.get_mut(uid) {
                let past = desired.past.get(uid).filter(|_| !live.told).cloned();
                live.told = true;
                if live.wanted != *wanted {
                    live.wanted = wanted.clone();
                    live.unwanted = false;
                    let before = Arc::clone(&live.desired.pod);
                    let allocated = self.allocated(wanted, &before);
                    if let Some(live) = self.workers.get_mut(uid) {
                        live.desired = allocated.clone();
                    }
                    self.references.put(&wanted.pod);
                    self.names.take(&wanted.pod.key, uid);
                    // The pod may name an object that it did not name before.
                    self.send(uid, WorkerMessage::Objects(Arc::new(desired.objects.of_pod(&wanted.pod))));
                    self.send(uid, WorkerMessage::Desired(allocated));
                }
                if let Some(api) = past {
                    self.send(uid, WorkerMessage::Past(api));
                }
            } else if !self.done.contains(uid) {
                new.push(wanted);
            }
        }
        // Older pods start first, as in the kubelet: of two pods that want one host port, the older gets the
        // port.
        new.sort_by_key(|new| (new.pod.created.seconds(), new.pod.origin.clone(), new.pod.created));
        self.look_at_labels(&new);
        for wanted in new {
            if self.start_blocked_by(&wanted.pod.uid, &wanted.pod).is_none() {
                self.start(wanted.clone(), false);
            }
        }
    }

    /// The reason why a wanted pod has no worker yet. `None` where a worker may start.
    fn start_blocked_by(&self, uid: &PodUid, pod: &Pod) -> Option<WaitReason> {
        if !self.answered {
            return Some(WaitReason::Runtime);
        }
        if self.being_cleaned.contains(uid) {
            return Some(WaitReason::Orphan);
        }
        // A pod that is already on the node gets a worker even where another pod holds its name.
        let there =
            self.found.contains_key(uid) || self.unseen.contains(uid) || self.stored.contains_key(uid);
        if !there && self.shutdown.is_some() {
            return Some(WaitReason::Shutdown);
        }
        // The API server lets a name go to the next pod only once the first is ended, or by force: then the next one
        // starts beside the end of the first, as with the kubelet's workers by UID.
        if !there && pod.origin != Origin::Cluster && self.names.taken(&pod.key, uid) {
            return Some(WaitReason::Name);
        }
        (!there && self.labels.may_change(uid)).then_some(WaitReason::NodeLabels)
    }

    fn end_unwanted(&mut self) {
        let set = &self.desired;
        let unwanted = |uid: &PodUid, pod: &Pod| !set.pods.contains_key(uid) && set.is_listed(&pod.origin);
        let mut over = Vec::new();
        for (uid, live) in &mut self.workers {
            if live.unwanted || !unwanted(uid, &live.desired.pod) {
                continue;
            }
            live.unwanted = true;
            live.wanted = live.wanted.clone().unwanted();
            live.desired = live.desired.clone().unwanted();
            let pod = &live.desired.pod;
            tracing::info!(pod = %pod.key, %uid, grace = live.desired.end, "pod ends: no source wants it any more");
            over.push((uid.clone(), live.desired.clone()));
        }
        for (uid, desired) in over {
            self.send(&uid, WorkerMessage::Desired(desired));
        }
    }

    /// Reports the wanted pods that have no worker yet, with the reason.
    fn show_waiting(&mut self) {
        let desired = Arc::clone(&self.desired);
        let mut waiting = BTreeMap::new();
        let workerless = |uid: &PodUid| !self.workers.contains_key(uid) && !self.done.contains(uid);
        for (uid, wanted) in desired.pods.iter().filter(|(uid, _)| workerless(uid)) {
            let pod = &wanted.pod;
            let Some(why) = self.start_blocked_by(uid, pod) else { continue };
            waiting.insert(uid.clone(), why);
            if self.shown_waiting.get(uid) != Some(&why) {
                let now = self.executor.now();
                let past = desired.past.get(uid).map(|api| Memory::from_api_status(pod, api, now));
                let memory = self.stored.get(uid).map(|k| &k.1).or(past.as_ref());
                self.reports.pod(waiting::report(pod, memory, why, now));
            }
        }
        for uid in self.shown_waiting.keys() {
            if !waiting.contains_key(uid) && !self.workers.contains_key(uid) {
                self.reports.removed(uid);
            }
        }
        self.shown_waiting = waiting;
    }
}
