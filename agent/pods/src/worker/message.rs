//! What a worker begins with, and what it hears from its manager.

use crate::{executor::PodSnapshot, store::Store};
use berth_core::{
    ids::ContainerId,
    model::Objects,
    plan::{Desired, Exit, Memory},
    time::Boottime,
};
use std::sync::{Arc, atomic::AtomicBool};

/// What a worker hears from its manager.
#[derive(Debug)]
pub enum WorkerMessage {
    /// The source wants this now.
    Desired(Desired),
    /// What pods refer to has changed.
    Objects(Arc<Objects>),
    /// The machine is shut down: what runs ends within this grace in seconds, and nothing is started.
    Shutdown(u32),
    /// A process of the pod ended.
    Exit(ContainerId, Exit),
    /// The kernel killed something in that container for memory.
    Oom(ContainerId),
    /// The pause process is gone.
    PauseDied,
    /// containerd does not answer.
    RuntimeLost,
    /// containerd answers again, and this is what it shows.
    Snapshot(Box<PodSnapshot>),
    /// containerd answers again, and what it shows of the pod could not be looked at.
    Observe,
    /// containerd answers again, and there is neither a container nor a sandbox of the pod. With the moment of the look.
    NothingThere(Boottime),
}

/// What a worker begins with.
pub(crate) struct WorkerConfig<H, R> {
    pub(crate) desired: Desired,
    pub(crate) objects: Arc<Objects>,
    pub(crate) memory: Memory,
    pub(crate) snapshot: InitialState,
    pub(crate) executor: Arc<H>,
    pub(crate) reports: Arc<R>,
    pub(crate) store: Store,
    pub(crate) agent_start: Boottime,
    /// Set once the pod has ended and needs nothing of the node any more.
    pub(crate) over: Arc<AtomicBool>,
}

/// What a worker knows of its pod at first.
#[derive(Debug)]
pub(crate) enum InitialState {
    /// This.
    Observed(Box<PodSnapshot>),
    /// Nothing: it looks for itself.
    Observe,
    /// Nothing, and containerd is away: it will be told. Until then nothing is claimed of it.
    Wait,
}
