//! Inputs of the manager: the desired set, and events from the node.

use crate::{executor::PodSnapshot, worker::WorkerMessage};
use berth_core::{
    ids::PodUid,
    model::{Objects, Origin, OriginKind, Pod},
    plan::Desired,
    status::Phase,
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
    /// The wanted pods.
    pub pods: BTreeMap<PodUid, DesiredPod>,
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

/// What a source wants of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredPod {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Grace period in seconds of a pod that shall end.
    pub end: Option<u32>,
    /// The phase Succeeded or Failed that the API server shows already: no container of the pod starts any more.
    pub terminal: Option<Phase>,
}

impl DesiredPod {
    /// A pod that shall run.
    pub fn new(pod: Arc<Pod>) -> DesiredPod {
        DesiredPod { pod, end: None, terminal: None }
    }

    /// What `plan` takes of it. The worker finds the unknown objects itself.
    pub(crate) fn planned(&self) -> Desired {
        Desired { terminal: self.terminal, ..Desired::new(Arc::clone(&self.pod), self.end) }
    }

    /// The pod without its source: the grace period is the spec's, or the shorter one that the pod was given before.
    pub(super) fn unwanted(self) -> DesiredPod {
        let grace = self.pod.grace_seconds;
        DesiredPod { end: Some(self.end.map_or(grace, |end| end.min(grace))), ..self }
    }
}

impl From<Pod> for DesiredPod {
    fn from(pod: Pod) -> DesiredPod {
        DesiredPod::new(Arc::new(pod))
    }
}

impl From<Arc<Pod>> for DesiredPod {
    fn from(pod: Arc<Pod>) -> DesiredPod {
        DesiredPod::new(pod)
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
