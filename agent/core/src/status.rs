//! Status types of a pod: phase, conditions and container states in Kubernetes' terms.

mod api_status;

pub use api_status::ApiStatus;

use crate::{
    ids::{ContainerId, ContainerName},
    model::{QosClass, Resources},
    time::{Boottime, Wall},
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// `status` of a pod, as far as the node owns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// `status.observedGeneration`, also that of every condition: the generation of the spec on which the status rests.
    #[serde(default)]
    pub observed_generation: Option<i64>,
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
    /// `status.ephemeralContainerStatuses`, sorted by name.
    #[serde(default)]
    pub ephemeral_containers: Vec<ContainerStatus>,
    /// `status.qosClass`.
    pub qos: QosClass,
    /// Whether the pod is ending.
    pub terminating: bool,
    /// One sentence on why the pod is not Ready and what has to happen; `None` when Ready.
    pub waiting_for: Option<String>,
    /// When the failed step is tried again, where the time is known; a past time means that the try is under
    /// way. A point in time and not a span, so that equal statuses stay equal while time passes.
    pub next_try: Option<Boottime>,
}

impl PodStatus {
    /// The status of a pod of which nothing is known but its phase and class: no reason, address, condition or
    /// container.
    pub fn new(phase: Phase, qos: QosClass) -> PodStatus {
        PodStatus {
            observed_generation: None,
            phase,
            reason: None,
            message: None,
            start_time: None,
            pod_ips: Vec::new(),
            conditions: Vec::new(),
            init_containers: Vec::new(),
            containers: Vec::new(),
            ephemeral_containers: Vec::new(),
            qos,
            terminating: false,
            waiting_for: None,
            next_try: None,
        }
    }

    /// The condition of that type, if the status has it.
    pub fn condition(&self, kind: ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }

    /// The statuses of all containers: of the init containers, the main ones and the ephemeral ones.
    pub fn all_containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.init_containers.iter().chain(&self.containers).chain(&self.ephemeral_containers)
    }

    /// Whether condition `Ready` is `True`.
    pub fn is_ready(&self) -> bool {
        self.condition(ConditionType::Ready).is_some_and(|c| c.status == Truth::True)
    }
}

/// `status.phase` (`core/v1` PodPhase).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// The node accepted the pod, and at least one container has never run.
    Pending,
    /// At least one container runs or will start again.
    Running,
    /// All containers ended with exit code 0, and none will start again.
    Succeeded,
    /// All containers ended, at least one of them badly, and none will start again.
    Failed,
}

impl Phase {
    /// Whether the phase is final (Succeeded or Failed).
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// Phase Succeeded or Failed as the API server shows it, set by this node or by another writer: eviction by taints,
/// the garbage collection of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminalPhase {
    /// The phase.
    pub phase: Phase,
    /// `status.reason`.
    pub reason: Option<String>,
    /// `status.message`.
    pub message: Option<String>,
}

/// Type of a condition; only the types that a node owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionType {
    /// The sandbox exists and its network is configured.
    PodReadyToStartContainers,
    /// Every init container has finished and every sidecar has started.
    Initialized,
    /// `ContainersReady` is true, and every readiness gate is.
    Ready,
    /// Every container is ready.
    ContainersReady,
    /// The pod is bound to a node.
    PodScheduled,
    /// The node itself ended the pod.
    DisruptionTarget,
    /// The node has not carried out a resize of the pod. The condition is absent where there is none.
    PodResizePending,
    /// The node sets a resize that it has allocated.
    PodResizeInProgress,
}

impl ConditionType {
    /// Every type, in the order of the declaration.
    pub const ALL: [ConditionType; 8] = [
        ConditionType::PodReadyToStartContainers,
        ConditionType::Initialized,
        ConditionType::Ready,
        ConditionType::ContainersReady,
        ConditionType::PodScheduled,
        ConditionType::DisruptionTarget,
        ConditionType::PodResizePending,
        ConditionType::PodResizeInProgress,
    ];

    /// `type` of the condition.
    pub fn name(self) -> &'static str {
        match self {
            ConditionType::PodReadyToStartContainers => "PodReadyToStartContainers",
            ConditionType::Initialized => "Initialized",
            ConditionType::Ready => "Ready",
            ConditionType::ContainersReady => "ContainersReady",
            ConditionType::PodScheduled => "PodScheduled",
            ConditionType::DisruptionTarget => "DisruptionTarget",
            ConditionType::PodResizePending => "PodResizePending",
            ConditionType::PodResizeInProgress => "PodResizeInProgress",
        }
    }
}

/// Status of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Truth {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// The node does not know, for example after the memory of the pod was lost.
    Unknown,
}

impl Truth {
    /// `status` of a condition.
    pub fn name(self) -> &'static str {
        match self {
            Truth::True => "True",
            Truth::False => "False",
            Truth::Unknown => "Unknown",
        }
    }
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
    /// `lastTransitionTime`: when `status` last changed; of a resize, when `reason` did.
    pub since: Wall,
    /// `observedGeneration`, where it is not the status's own.
    #[serde(default)]
    pub generation: Option<i64>,
}

/// `user.linux`: whom a container's first process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUser {
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
    /// The supplementary groups as the process is given them; the primary one may be among them.
    pub groups: Vec<u32>,
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
    /// `resources` of a run, as they are set on it; `None` where they are the allocated ones.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// `user`, where a run of it is known.
    #[serde(default)]
    pub user: Option<ContainerUser>,
}

/// `state` of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// The container does not run and waits for its start.
    Waiting {
        /// The reason, for example `CrashLoopBackOff`.
        reason: String,
        /// The cause, in words for the user.
        message: Option<String>,
    },
    /// The container's process runs.
    Running {
        /// When the process started.
        started_at: Wall,
    },
    /// The container's process ended.
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
    /// When the process started.
    pub started_at: Option<Wall>,
    /// When the process ended; `None` where the end was not observed.
    pub finished_at: Option<Wall>,
    /// The container id of the run that ended; `None` for a container that is not known to have run.
    pub id: Option<ContainerId>,
}
