//! In-place resize of a pod's CPU and memory (KEP-1287). The API server takes new `resources` of a bound pod by the
//! subresource `resize`. The node then allocates them, if they fit, and sets them on what runs (`pkg/kubelet/allocation`,
//! `pkg/kubelet/kuberuntime`).
//!
//! Three values are apart:
//! - what the API server wants: the pod of the source;
//! - what the node has allocated: the pod that its worker runs, with [`Pod::pending_resize`] where the wanted one waits;
//! - what is set on a run: the resources on the run's record ([`crate::plan::ObservedContainer::resources`]).

mod events;
mod order;
mod steps;

pub use events::{completed, failed, pending, started};
pub use order::by_priority;
pub use steps::{ContainerUpdate, PodLimits, ResizeStep, shrink_fault, steps};

use crate::{
    ids::ContainerName,
    model::{Container, Pod, Resources},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// CPU and memory of a container, or of a pod itself. 0 stands for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct CpuMemory {
    /// Requested CPU in thousandths of a core.
    pub cpu_request: i64,
    /// The CPU limit in thousandths of a core.
    pub cpu_limit: i64,
    /// Requested memory in bytes.
    pub memory_request: i64,
    /// The memory limit in bytes.
    pub memory_limit: i64,
}

impl CpuMemory {
    /// CPU and memory of these resources.
    pub fn of(resources: &Resources) -> CpuMemory {
        CpuMemory {
            cpu_request: resources.cpu_request_millis(),
            cpu_limit: resources.cpu_limit_millis().unwrap_or(0),
            memory_request: resources.memory_request_bytes(),
            memory_limit: resources.memory_limit_bytes().unwrap_or(0),
        }
    }

    /// The same CPU with the memory of `other`.
    pub fn with_memory(self, other: &CpuMemory) -> CpuMemory {
        CpuMemory { memory_request: other.memory_request, memory_limit: other.memory_limit, ..self }
    }

    /// The same memory with the CPU of `other`.
    pub fn with_cpu(self, other: &CpuMemory) -> CpuMemory {
        CpuMemory { cpu_request: other.cpu_request, cpu_limit: other.cpu_limit, ..self }
    }

    /// Whether the requested or limited CPU differs.
    pub fn cpu_differs(&self, other: &CpuMemory) -> bool {
        (self.cpu_request, self.cpu_limit) != (other.cpu_request, other.cpu_limit)
    }

    /// Whether the requested or limited memory differs.
    pub fn memory_differs(&self, other: &CpuMemory) -> bool {
        (self.memory_request, self.memory_limit) != (other.memory_request, other.memory_limit)
    }
}

/// CPU and memory of all containers of a pod, and of the pod itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Allocation {
    /// By the names of init and main containers.
    pub containers: BTreeMap<ContainerName, CpuMemory>,
    /// `spec.resources`.
    pub pod: Option<CpuMemory>,
}

impl Allocation {
    /// What is allocated to this pod.
    pub fn of(pod: &Pod) -> Allocation {
        let of = |c: &Container| (c.name.clone(), CpuMemory::of(&c.resources));
        Allocation {
            containers: pod.lasting_containers().map(of).collect(),
            pod: pod.resources.as_ref().map(CpuMemory::of),
        }
    }
}

/// Why a wanted resize is not allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PendingReason {
    /// It does not fit now, and is tried again.
    Deferred,
    /// The node cannot do it.
    Infeasible,
}

impl PendingReason {
    /// `reason` of the condition PodResizePending.
    pub fn name(self) -> &'static str {
        match self {
            PendingReason::Deferred => "Deferred",
            PendingReason::Infeasible => "Infeasible",
        }
    }
}

/// A resize that the API server wants and that the node has not allocated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingResize {
    /// Why it waits.
    pub reason: PendingReason,
    /// The cause, for people.
    pub message: String,
    /// The generation of the spec that wants it.
    pub generation: Option<i64>,
}

/// Whether both specs want the same CPU and memory of the same containers.
pub fn same_resources(wanted: &Pod, allocated: &Pod) -> bool {
    // The spec of an unsupported pod is not known.
    wanted.unsupported.is_some()
        || allocated.unsupported.is_some()
        || Allocation::of(wanted) == Allocation::of(allocated)
}

/// The pod as the node runs it: `wanted`, with the resources of `allocated`, which is the same pod as the node runs it
/// now, and with the reason why its own are not allocated.
pub fn with_allocated_resources(
    wanted: &Arc<Pod>,
    allocated: &Pod,
    pending: Option<PendingResize>,
) -> Arc<Pod> {
    if same_resources(wanted, allocated) {
        return Arc::clone(wanted);
    }
    let mut pod =
        Pod { pending_resize: pending, resources: allocated.resources.clone(), ..(**wanted).clone() };
    for container in pod.init_containers.iter_mut().chain(&mut pod.containers) {
        if let Some(known) = allocated.container(&container.name) {
            container.resources = known.resources.clone();
        }
    }
    Arc::new(pod)
}

/// Whether the node has to restart a container for this change, by the `resizePolicy` of the resources that change.
pub fn needs_restart(container: &Container, now: &CpuMemory) -> bool {
    let wanted = CpuMemory::of(&container.resources);
    let policy = container.resize_policy;
    (policy.cpu_restarts && wanted.cpu_differs(now)) || (policy.memory_restarts && wanted.memory_differs(now))
}

#[cfg(test)]
mod tests;
