//! Messages to a worker, and the state in which a worker begins.

use crate::{executor::PodSnapshot, store::MemoryStore};
use berth_core::{
    ids::ContainerId,
    model::Objects,
    plan::{Desired, Exit, Fact, Memory},
    status::{ApiStatus, PodStatus},
    time::Boottime,
};
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// A message from the manager to a worker.
#[derive(Debug)]
pub enum WorkerMessage {
    /// The desired state of the pod has changed. The worker finds the unknown objects itself.
    Desired(Desired),
    /// The status that the API server has of the pod, for a worker that began without the pod's memory.
    Past(Arc<ApiStatus>),
    /// The objects that pods refer to have changed.
    Objects(Arc<Objects>),
    /// The machine shuts down: what runs ends within this grace, in seconds, and nothing is started.
    Shutdown(u32),
    /// A process of the pod ended.
    Exit(ContainerId, Exit),
    /// The OOM killer ended a process in that container.
    Oom(ContainerId),
    /// An action that is in flight has learned something.
    Learned(Fact),
    /// The pause process is gone.
    PauseDied,
    /// containerd does not answer.
    RuntimeLost,
    /// containerd answers again, and the relist took this snapshot of the pod.
    Snapshot(Box<PodSnapshot>),
    /// containerd answers again, but the relist could not observe the pod. The worker observes the pod
    /// itself.
    Observe,
    /// containerd answers again and has neither a container nor a sandbox of the pod. The value is the moment
    /// at which the relist began.
    NothingThere(Boottime),
}

/// Everything that a worker begins with.
pub(crate) struct WorkerConfig<H, R> {
    pub(crate) desired: Desired,
    pub(crate) objects: Arc<Objects>,
    pub(crate) memory: Memory,
    pub(crate) snapshot: InitialState,
    pub(crate) executor: Arc<H>,
    pub(crate) reports: Arc<R>,
    pub(crate) store: MemoryStore,
    pub(crate) agent_start: Boottime,
    /// Status that the worker published last; `None` before the first report.
    pub(crate) published: watch::Sender<Option<Arc<PodStatus>>>,
    /// Told when the pod has ended: its resources are free.
    pub(crate) freed: Arc<Notify>,
}

/// A worker's first knowledge of its pod.
#[derive(Debug)]
pub(crate) enum InitialState {
    /// A snapshot from the relist, or the empty snapshot of a new pod.
    Observed(Box<PodSnapshot>),
    /// No snapshot: the worker observes the pod at once.
    Observe,
    /// No snapshot, and containerd is away. The manager sends a message once containerd is back; until then
    /// the worker claims nothing of the pod.
    Wait,
}
