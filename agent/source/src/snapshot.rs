//! What the directory says, at one moment.

use crate::{Keyed, ManifestError, Shared};
use berth_core::{
    ids::{PodKey, PodUid},
    model::{EndpointSlice, Objects, Pod, Service},
};
use std::{collections::BTreeMap, sync::Arc};

/// The desired state as the directory has it. What did not change keeps its `Arc` from one snapshot to the next, the
/// objects and the sets of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Whether `pods` is all there is. While it is false nothing may be deleted for being absent: the directory was
    /// not read yet, is missing or unreadable, or was replaced and the new one is not believed yet. The pods known
    /// from before stay in `pods`, held.
    pub listed: bool,
    /// The pods to run.
    pub pods: Arc<BTreeMap<PodUid, Arc<DesiredPod>>>,
    /// The ConfigMaps and Secrets.
    pub objects: Arc<Objects>,
    /// The Services.
    pub services: Shared<DesiredService>,
    /// The EndpointSlices.
    pub slices: Shared<EndpointSlice>,
    /// Every file that cannot be used as it is, in order of file and document; for people.
    pub errors: Arc<[ManifestError]>,
    /// What could not be given to Services, for their events; each is among `errors` too.
    pub unserved: Arc<[UnallocatedService]>,
    /// Counts the changes, from 1; 0 before the first look.
    pub version: u64,
}

impl Snapshot {
    /// Whether nothing changed, versions aside, by pointer.
    pub(crate) fn is(&self, other: &Snapshot) -> bool {
        self.listed == other.listed
            && Arc::ptr_eq(&self.pods, &other.pods)
            && Arc::ptr_eq(&self.objects, &other.objects)
            && self.services.is(&other.services)
            && self.slices.is(&other.slices)
            && self.errors == other.errors
            && self.unserved == other.unserved
    }
}

/// A Service that lacks something which an API server would have refused it for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnallocatedService {
    /// The Service.
    pub service: PodKey,
    /// Its `metadata.uid`.
    pub uid: Arc<str>,
    /// What it lacks, for people.
    pub message: String,
}

/// A pod to run.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredPod {
    /// The checked pod.
    pub pod: Arc<Pod>,
    /// The v1.Pod it was made from, metadata filled.
    pub raw: Arc<serde_json::Value>,
    /// Why its file cannot be read now; it stays as it was, and is not deleted.
    pub held: Option<String>,
}

/// A Service.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredService {
    /// The checked Service, with addresses and node ports given to it where the manifest has none.
    pub service: Arc<Service>,
    /// The v1.Service it was made from, with metadata, addresses and node ports filled.
    pub raw: Arc<serde_json::Value>,
}

impl Keyed for DesiredService {
    fn key(&self) -> &PodKey {
        &self.service.key
    }
}

impl Keyed for EndpointSlice {
    fn key(&self) -> &PodKey {
        &self.key
    }
}
