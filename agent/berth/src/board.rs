//! What workers report, handed on: to the published views, to the QoS cgroups, to the events.

use berth_core::{event::EventRecord, ids::PodUid, model::Pod};
use berth_pods::{PodReport, Reports};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;

/// Where reports come together.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pods: Mutex<BTreeMap<PodUid, Arc<Pod>>>,
    pub(crate) changed: Notify,
}

impl Board {
    /// The pods that have a worker.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Reports for Board {
    fn pod(&self, report: PodReport) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let new = pods.insert(report.pod.uid.clone(), Arc::clone(&report.pod)).is_none();
        drop(pods);
        if new {
            self.changed.notify_one();
        }
    }

    fn removed(&self, uid: &PodUid) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.changed.notify_one();
    }

    fn event(&self, _event: EventRecord) {}
}
