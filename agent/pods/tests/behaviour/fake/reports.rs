//! Record of everything that workers reported.

use berth_core::{
    event::EventRecord,
    ids::PodUid,
    status::{ConditionType, ContainerStatus, Truth},
    sync::lock,
};
use berth_pods::{PodReport, Reports};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};
use tokio::sync::watch;

#[derive(Default)]
pub struct Recorded {
    pub pods: BTreeMap<PodUid, PodReport>,
    pub events: Vec<EventRecord>,
    /// The last reports on pods of which nothing is left.
    pub removed: BTreeMap<PodUid, PodReport>,
    /// Values of condition Ready in the order of the reports.
    pub readiness: BTreeMap<PodUid, Vec<Truth>>,
    /// Number of coming reports of this pod that panic.
    pub panics: BTreeMap<PodUid, u32>,
}

pub struct RecordedReports {
    recorded: Mutex<Recorded>,
    bump: watch::Sender<u64>,
}

impl RecordedReports {
    pub fn new(bump: watch::Sender<u64>) -> RecordedReports {
        RecordedReports { recorded: Mutex::default(), bump }
    }

    pub fn recorded(&self) -> MutexGuard<'_, Recorded> {
        lock(&self.recorded)
    }

    pub fn shows(&self, pod: &PodUid) -> bool {
        self.recorded().pods.contains_key(pod)
    }

    pub fn is_ready(&self, pod: &PodUid) -> bool {
        self.recorded().pods.get(pod).is_some_and(|p| p.status.is_ready())
    }

    pub fn report(&self, pod: &PodUid) -> PodReport {
        self.recorded().pods.get(pod).expect("a report").clone()
    }

    pub fn container(&self, pod: &PodUid, name: &str) -> ContainerStatus {
        let status = self.report(pod).status;
        let all = status.init_containers.iter().chain(&status.containers);
        all.into_iter().find(|c| c.name.as_str() == name).expect("a container").clone()
    }

    pub fn readiness(&self, pod: &PodUid) -> Vec<Truth> {
        self.recorded().readiness.get(pod).cloned().unwrap_or_default()
    }

    pub fn reasons(&self, pod: &PodUid) -> Vec<String> {
        let recorded = self.recorded();
        recorded.events.iter().filter(|e| e.involved.is_pod(pod)).map(|e| e.event.reason.clone()).collect()
    }

    /// Messages of a pod's events with this reason, in order.
    pub fn messages(&self, pod: &PodUid, reason: &str) -> Vec<String> {
        let recorded = self.recorded();
        let of_pod = recorded.events.iter().filter(|e| e.involved.is_pod(pod) && e.event.reason == reason);
        of_pod.map(|e| e.event.message.clone()).collect()
    }

    fn bumped(&self) {
        self.bump.send_modify(|n| *n += 1);
    }
}

impl Reports for RecordedReports {
    fn pod(&self, report: PodReport) {
        let mut recorded = self.recorded();
        let uid = report.pod.uid.clone();
        if let Some(left) = recorded.panics.get_mut(&uid).filter(|n| **n > 0) {
            *left -= 1;
            drop(recorded);
            self.bumped();
            panic!("as the test wants");
        }
        let ready = report.status.condition(ConditionType::Ready).map(|c| c.status);
        let before = recorded.readiness.entry(uid.clone()).or_default();
        if let Some(ready) = ready
            && before.last() != Some(&ready)
        {
            before.push(ready);
        }
        recorded.pods.insert(uid, report);
        drop(recorded);
        self.bumped();
    }

    fn removed(&self, uid: &PodUid) {
        let mut recorded = self.recorded();
        if let Some(last) = recorded.pods.remove(uid) {
            recorded.removed.insert(uid.clone(), last);
        }
        drop(recorded);
        self.bumped();
    }

    fn event(&self, event: EventRecord) {
        self.recorded().events.push(event);
        self.bumped();
    }
}
