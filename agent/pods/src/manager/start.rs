//! The start of a pod's worker: the first observation of the pod, and whether the node accepts a new pod.

use super::{Manager, ManagerTask, TaskOutcome, WorkerHandle};
use crate::{
    executor::{Executor, PodSnapshot},
    report::Reports,
    worker::{self, InitialState, WorkerConfig},
};
use berth_core::{
    event::{Event, EventRecord, Involved},
    model::Pod,
    plan::{Desired, Ending, Memory, Observed},
    unsupported::unsupported,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};

/// The age up to which a worker begins with the pod's snapshot from the relist. With an older snapshot the
/// worker observes the pod itself.
const FRESH: Duration = Duration::from_secs(1);

impl<H: Executor, R: Reports> Manager<H, R> {
    /// Starts the worker of a pod. `unwanted` says that no source wants the pod.
    pub(super) fn start(&mut self, wanted: Desired, unwanted: bool) {
        let uid = wanted.pod.uid.clone();
        let stored = self.stored.remove(&uid);
        let desired = self.allocated_before(&wanted, stored.as_ref().map(|(pod, _)| &**pod));
        let pod = Arc::clone(&desired.pod);
        let clocks = self.executor.now();
        let now = clocks.boottime;
        let mut memory = stored.map(|(_, memory)| memory);
        let past = self.desired.past.get(&uid).cloned();
        let told = memory.is_some() || self.desired.pods.contains_key(&uid);
        let unseen = self.unseen.remove(&uid);
        let snapshot = match (self.found.remove(&uid), &memory) {
            // Neither containerd's list nor the stored memory has the pod, and no worker of the pod has
            // panicked: the pod is new, or the API server alone remembers it.
            (None, None) if !unseen && !self.panics.contains_key(&uid) => {
                // A pod that only ends needs nothing of the node.
                if desired.end.is_none() && desired.terminal.is_none() {
                    memory = self.rejection(&pod);
                    if memory.is_none() {
                        self.report_unsupported(&pod);
                    }
                }
                match past {
                    Some(_) if !self.runtime_answers => InitialState::Wait,
                    Some(_) => InitialState::Observe,
                    None => {
                        let mut nothing = PodSnapshot::nothing(now);
                        nothing.seen.runtime_answers = self.runtime_answers;
                        InitialState::Observed(Box::new(nothing))
                    }
                }
            }
            _ if !self.runtime_answers => InitialState::Wait,
            (Some(f), _) if now.since(f.snapshot.taken) <= FRESH => {
                InitialState::Observed(Box::new(f.snapshot))
            }
            _ => InitialState::Observe,
        };
        let from_api = || past.map(|api| Memory::from_api_status(&pod, &api, clocks));
        let mut memory = memory.or_else(from_api).unwrap_or_default();
        if let Some(grace) = self.shutdown {
            memory.shutdown.get_or_insert(Ending { since: now, grace });
        }
        self.unreadable.remove(&uid);
        self.references.put(&pod);
        self.names.take(&pod.key, &uid);
        let (sender, mailbox) = mpsc::unbounded_channel();
        let rejected = memory.rejected;
        let (publisher, published) = watch::channel(None);
        let config = WorkerConfig {
            desired: desired.clone(),
            objects: Arc::new(self.desired.objects.of_pod(&desired.pod)),
            memory,
            snapshot,
            executor: Arc::clone(&self.executor),
            reports: Arc::clone(&self.reports),
            store: self.store.clone(),
            agent_start: self.agent_start,
            published: publisher,
            freed: Arc::clone(&self.freed),
        };
        self.spawn(ManagerTask::Worker(uid.clone()), async move {
            worker::run(config, mailbox).await;
            TaskOutcome::Done
        });
        let mailbox = Some(sender);
        self.workers
            .insert(uid, WorkerHandle { wanted, desired, mailbox, unwanted, told, rejected, published });
    }

    /// The wanted pod with the resources that an earlier agent has allocated to it: by the stored pod, or after a reboot by
    /// the records of its containers.
    fn allocated_before(&mut self, wanted: &Desired, stored: Option<&Pod>) -> Desired {
        if let Some(stored) = stored {
            return self.allocated(wanted, stored);
        }
        let Some(found) = self.found.get(&wanted.pod.uid) else { return wanted.clone() };
        let recorded = recorded_resources(&wanted.pod, &found.snapshot.seen);
        self.allocated(wanted, &recorded)
    }

    /// Reports an event about a pod, where there is one.
    pub(super) fn report_event(&self, pod: &Pod, event: Option<Event>) {
        if let Some(event) = event {
            let involved = Involved::Pod { key: pod.key.clone(), uid: pod.uid.clone() };
            self.reports.event(EventRecord::once(involved, event, self.executor.now().wall));
        }
    }

    /// The memory of a new pod that the node rejects. `None` where the node admits the pod. Pods that no
    /// source wants do not count against the node, as in the kubelet, which forgets pods that its sources
    /// remove (`HandlePodRemoves`).
    fn rejection(&self, pod: &Arc<Pod>) -> Option<Memory> {
        let others = self.counted_pods(&pod.uid);
        let why = self.executor.admit(pod, &others).err()?;
        tracing::warn!(pod = %pod.key, uid = %pod.uid, reason = why.reason, why = why.message, "pod rejected");
        self.report_event(pod, Some(Event::warning(&why.reason, why.message.clone())));
        Some(Memory::of_rejected(why))
    }

    fn report_unsupported(&self, pod: &Pod) {
        for event in unsupported(pod) {
            self.report_event(pod, Some(event));
        }
    }
}

/// The pod with the resources on the newest record of each of its containers.
fn recorded_resources(pod: &Pod, seen: &Observed) -> Pod {
    let mut pod = pod.clone();
    for container in pod.init_containers.iter_mut().chain(&mut pod.containers) {
        let runs = seen.containers.values().filter(|run| run.container == container.name);
        let newest = runs.max_by_key(|run| (run.attempt, run.sandbox_attempt));
        if let Some(resources) = newest.and_then(|run| run.resources.as_ref()) {
            container.resources = resources.clone();
        }
    }
    pod
}
