//! What is told about a pod: phase, conditions and container states in Kubernetes' terms.

use crate::{
    ids::{ContainerId, ContainerName},
    model::QosClass,
    time::{Boottime, Wall},
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// `status` of a pod, as far as this node owns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// `status.phase`.
    pub phase: Phase,
    /// `status.reason`, for example `DeadlineExceeded`.
    pub reason: Option<String>,
    /// `status.message`.
    pub message: Option<String>,
    /// `status.startTime`.
    pub start_time: Option<Wall>,
    /// `status.podIPs`, the first is `podIP`.
    pub pod_ips: Vec<IpAddr>,
    /// `status.conditions`, in the kubelet's order.
    pub conditions: Vec<Condition>,
    /// `status.initContainerStatuses`, in the order of the spec.
    pub init_containers: Vec<ContainerStatus>,
    /// `status.containerStatuses`, sorted by name.
    pub containers: Vec<ContainerStatus>,
    /// `status.qosClass`.
    pub qos: QosClass,
    /// Set while the pod is being ended.
    pub terminating: bool,
    /// Why the pod is not Ready and what is waited for, one sentence; `None` when Ready.
    pub waiting_for: Option<String>,
    /// When what is waited for is tried again, where a time is known; past: it is being tried. A moment and not a span,
    /// so that a status stays equal while nothing but time goes on.
    pub next_try: Option<Boottime>,
}

impl PodStatus {
    /// The condition of that type.
    pub fn condition(&self, kind: ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }

    /// Whether condition `Ready` is `True`.
    pub fn is_ready(&self) -> bool {
        self.condition(ConditionType::Ready).is_some_and(|c| c.status == Truth::True)
    }
}

/// `status.phase` (`core/v1` PodPhase).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Accepted, something has never run yet.
    Pending,
    /// Something runs or will be started again.
    Running,
    /// All ended with 0 and none will be started again.
    Succeeded,
    /// All ended, one of them badly, and none will be started again.
    Failed,
}

impl Phase {
    /// Whether it is one that a pod ends in.
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// A condition's type, those that a node owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionType {
    /// Sandbox made and network configured.
    PodReadyToStartContainers,
    /// Every init container done, every sidecar started.
    Initialized,
    /// ContainersReady and every readiness gate.
    Ready,
    /// Every container is ready.
    ContainersReady,
    /// Bound to a node.
    PodScheduled,
    /// Ended by the node itself.
    DisruptionTarget,
}

/// A condition's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nothing is known, for example after the memory of it was lost.
    Unknown,
}

/// One of `status.conditions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// `type`.
    pub kind: ConditionType,
    /// `status`.
    pub status: Truth,
    /// `reason`, for example `ContainersNotReady`.
    pub reason: Option<String>,
    /// `message`.
    pub message: Option<String>,
    /// `lastTransitionTime`: when `status` last changed.
    pub since: Wall,
}

/// One of `status.containerStatuses`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// `name`.
    pub name: ContainerName,
    /// `image`, as in the spec.
    pub image: String,
    /// `imageID`: `repo@digest` or the config digest; empty where unknown.
    pub image_id: String,
    /// `containerID` without its `containerd://`.
    pub id: Option<ContainerId>,
    /// `ready`; `Unknown` is shown as `false`, and condition Ready as `Unknown`.
    pub ready: Truth,
    /// `started`.
    pub started: Option<bool>,
    /// `restartCount`.
    pub restart_count: u32,
    /// `state`.
    pub state: ContainerState,
    /// `lastState`.
    pub last_state: Option<Terminated>,
}

/// `state` of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Not running, and something is waited for.
    Waiting {
        /// For example `CrashLoopBackOff`.
        reason: String,
        /// For people.
        message: Option<String>,
    },
    /// Its process runs.
    Running {
        /// Since when.
        started_at: Wall,
    },
    /// Its process ended.
    Terminated(Terminated),
}

/// `state.terminated`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminated {
    /// The exit code; 128 + signal where a signal ended it.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`.
    pub reason: String,
    /// The termination message.
    pub message: Option<String>,
    /// When its process started.
    pub started_at: Option<Wall>,
    /// When it ended.
    pub finished_at: Wall,
    /// Which attempt it was.
    pub id: ContainerId,
}
