//! Inputs of the manager: the desired set, and events from the node.

use crate::{executor::PodSnapshot, worker::WorkerMessage};
use berth_core::{
    ids::PodUid,
    model::{Objects, Origin, OriginKind, Pod},
    plan::Desired,
    status::ApiStatus,
    time::Boottime,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The objects that the sources want on this node.
#[derive(Debug, Clone, Default)]
pub struct DesiredSet {
    /// The origins whose source has listed, or has no source on this node. No pod of another origin is ended because
    /// the set lacks it.
    pub listed: BTreeSet<OriginKind>,
    /// The wanted pods. Their workers find the unknown objects.
    pub pods: BTreeMap<PodUid, Desired>,
    /// The statuses that the API server has of wanted pods, where a node has reported on them.
    pub past: BTreeMap<PodUid, Arc<ApiStatus>>,
    /// The objects that the pods may refer to, such as ConfigMaps and Secrets.
    pub objects: Arc<Objects>,
}

impl DesiredSet {
    /// Whether the source of that origin has listed: a pod of it that the set lacks is not wanted.
    pub fn is_listed(&self, origin: &Origin) -> bool {
        self.listed.contains(&origin.kind())
    }

    /// Whether every source has listed.
    pub fn all_listed(&self) -> bool {
        OriginKind::ALL.iter().all(|kind| self.listed.contains(kind))
    }
}

/// A pod that a relist found in containerd.
#[derive(Debug, Clone, Default)]
pub struct FoundPod {
    /// The pod as stored on its containers. `None` where the record cannot be read.
    pub pod: Option<Arc<Pod>>,
    /// The snapshot of the pod that the relist took.
    pub snapshot: PodSnapshot,
}

/// An event from the node to the manager.
#[derive(Debug)]
pub enum NodeEvent {
    /// A message for the worker of one pod.
    One(PodUid, WorkerMessage),
    /// The machine shuts down: every pod ends within this grace, in seconds, and keeps its record for the
    /// next boot.
    Shutdown(u32),
    /// containerd does not answer.
    RuntimeLost,
    /// containerd answers, for the first time or again. The event carries every pod that has a container or a
    /// sandbox.
    RuntimeBack {
        /// The pods that the relist could observe.
        found: BTreeMap<PodUid, FoundPod>,
        /// Pods that have a container or a sandbox but could not be observed. Their workers observe them on
        /// their own.
        unseen: BTreeSet<PodUid>,
        /// The moment at which the relist began.
        taken: Boottime,
    },
}
