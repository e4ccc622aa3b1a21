//! The desired state of one source at one moment.

use crate::{ManifestError, RawPod, cluster::api_status, provisioned::StorageClaims};
use berth_core::{
    ids::{PodKey, PodUid},
    model::{EndpointSlice, Objects, Pod, Service},
    shared::{Keyed, Shared},
    status::{ApiStatus, Phase},
};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// The desired state of a source. From one snapshot to the next, an unchanged object keeps its `Arc`, and so does an
/// unchanged set of objects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Whether `pods` is complete. While it is not, no pod may be deleted for being absent: the directory was not read
    /// yet, is missing or unreadable, or was replaced and the replacement is not accepted yet. Pods known from before
    /// stay in `pods`, held.
    pub listed: bool,
    /// The pods to run.
    pub pods: Arc<BTreeMap<PodUid, Arc<DesiredPod>>>,
    /// The ConfigMaps and Secrets. They count as listed from the first accepted listing of the directory on, also of an
    /// earlier process.
    pub objects: Arc<Objects>,
    /// The Services.
    pub services: Shared<DesiredService>,
    /// The EndpointSlices.
    pub slices: Shared<EndpointSlice>,
    /// The EndpointSlices were not listed yet, for example because the node may not read them. Pods run without them; no
    /// endpoint may be removed for being absent.
    pub slices_pending: bool,
    /// The errors of the files, in order of file and document; for people.
    pub errors: Arc<[ManifestError]>,
    /// Services without a free address or node port, for their events; each is among `errors` too.
    pub unallocated: Arc<[UnallocatedService]>,
    /// The claims of the manifests, and those that a driver has to make volumes for.
    pub storage: Arc<StorageClaims>,
    /// The number of changes so far; 0 before the first scan.
    pub version: u64,
}

impl Snapshot {
    /// Whether both have the same contents by pointer, versions aside.
    pub fn is(&self, other: &Snapshot) -> bool {
        self.listed == other.listed
            && Arc::ptr_eq(&self.pods, &other.pods)
            && Arc::ptr_eq(&self.objects, &other.objects)
            && self.services.is(&other.services)
            && self.slices.is(&other.slices)
            && self.slices_pending == other.slices_pending
            && self.errors == other.errors
            && self.unallocated == other.unallocated
            && self.storage == other.storage
    }
}

/// A Service for which no address or node port is free. An API server would have rejected it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnallocatedService {
    /// The Service.
    pub service: PodKey,
    /// Its `metadata.uid`.
    pub uid: Arc<str>,
    /// What could not be allocated, for people.
    pub message: String,
}

/// A pod to run.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredPod {
    /// The checked pod.
    pub pod: Arc<Pod>,
    /// The v1.Pod it was converted from, with complete metadata.
    pub raw: Arc<RawPod>,
    /// Why the pod is held: its file is bad or its directory not listed. A held pod stays as it was.
    pub held: Option<String>,
    /// Grace period in seconds of a pod that shall end, at least 1; `None` for every pod of a directory.
    pub end: Option<u32>,
    /// The status that the API server has; empty for every pod of a directory.
    pub api: Arc<ApiStatus>,
}

impl DesiredPod {
    /// A pod of a directory.
    pub fn of_file(pod: Arc<Pod>, raw: &Value) -> DesiredPod {
        DesiredPod { pod, raw: Arc::new(RawPod::new(raw)), held: None, end: None, api: Arc::default() }
    }

    /// A pod of the API server. `raw` is the object with its status, and `pod` is converted from it.
    ///
    /// The grace period is the object's, never computed from `deletionTimestamp`, which is a time of another clock. It
    /// is at least a second (`calculateEffectiveGracePeriod`, `pkg/kubelet/pod_workers.go`).
    pub fn of_api(pod: Arc<Pod>, raw: &Value) -> DesiredPod {
        let metadata = &raw["metadata"];
        let end = metadata["deletionTimestamp"].is_string().then(|| {
            let seconds = metadata["deletionGracePeriodSeconds"].as_i64();
            seconds.map_or(pod.grace_seconds, |s| u32::try_from(s.max(1)).unwrap_or(u32::MAX)).max(1)
        });
        let api = Arc::new(api_status(&raw["status"]));
        DesiredPod { pod, raw: Arc::new(RawPod::new(raw)), held: None, end, api }
    }

    /// Whether the API server shows the end of the pod already: no container of the pod starts any more.
    pub fn is_over(&self) -> bool {
        self.api.phase.is_some_and(Phase::is_terminal)
    }
}

/// A Service.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredService {
    /// The checked Service, with addresses and node ports assigned where the manifest names none.
    pub service: Arc<Service>,
    /// The v1.Service it was converted from, with complete metadata, addresses and node ports; `null` for a Service of
    /// the API server.
    pub raw: Arc<serde_json::Value>,
}

impl Keyed for DesiredService {
    fn key(&self) -> &PodKey {
        &self.service.key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_end_of_a_pod_is_the_grace_period_that_the_api_server_granted() {
        let key = PodKey { namespace: "default".parse().unwrap(), name: "p".parse().unwrap() };
        let pod = Pod { grace_seconds: 40, ..Pod::new("u".parse().unwrap(), key, "n".parse().unwrap()) };
        let of = |metadata, phase| {
            let raw = json!({ "metadata": metadata, "status": { "phase": phase } });
            let desired = DesiredPod::of_api(Arc::new(pod.clone()), &raw);
            (desired.end, desired.api.phase.filter(|phase| phase.is_terminal()))
        };
        let deleted = |grace| json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace });
        assert_eq!(of(json!({}), "Pending"), (None, None));
        assert_eq!(of(json!({ "deletionGracePeriodSeconds": 3 }), "Running"), (None, None), "not deleted");
        assert_eq!(of(deleted(json!(7)), "Running"), (Some(7), None));
        assert_eq!(of(deleted(json!(0)), "Failed"), (Some(1), Some(Phase::Failed)));
        assert_eq!(of(deleted(json!(-5)), "Succeeded"), (Some(1), Some(Phase::Succeeded)));
        assert_eq!(of(deleted(json!(null)), "Pending"), (Some(40), None));
    }
}
