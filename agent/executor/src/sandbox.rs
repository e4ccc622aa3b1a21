//! Sandbox creation and teardown: a pod's cgroup, pinned namespaces, network and pause process.
//!
//! Creation follows that order, and teardown the reverse one. A record on the tmpfs is written before the
//! first step and completed after the last. A sandbox whose record is not complete is torn down.

mod lifecycle;
mod pause;
mod record;

use berth_core::{
    error::Chain,
    ids::{Attempt, ContainerId, ContainerName, PodUid, SandboxAttempt},
    model::PodNamespaces,
    plan::Failure,
};
use berth_sys::ns::NsKind;

/// The sandbox's container id for the CNI.
fn sandbox_id(uid: &PodUid, sandbox_attempt: SandboxAttempt) -> Result<String, Failure> {
    let name = ContainerName::new("sandbox").map_err(|e| Failure::new("InternalError", e.to_string()))?;
    // No container has the attempt `u32::MAX`, so the id is never a container's.
    Ok(ContainerId::derive(uid, sandbox_attempt, &name, Attempt(u32::MAX)).to_string())
}

/// The namespaces of the pod's own that its sandbox pins, without a shared PID namespace.
fn kinds(namespaces: &PodNamespaces) -> Vec<NsKind> {
    let mut kinds = Vec::new();
    if !namespaces.host_network {
        kinds.extend([NsKind::Net, NsKind::Uts]);
    }
    if !namespaces.host_ipc {
        kinds.push(NsKind::Ipc);
    }
    kinds
}

/// A failure of the sandbox's creation with the kubelet's reason.
fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new("FailedCreatePodSandBox", format!("cannot {what}: {}", Chain(error)))
}

#[cfg(test)]
mod tests;
