//! Observed state of a pod: what containerd, the namespaces and the mounts show.

use super::Action;
use crate::{
    ids::{Attempt, ContainerId, ContainerName, SandboxAttempt},
    model::Resources,
    status::{ContainerUser, Terminated},
    time::Wall,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// Observed state of a pod. Observing reads it from containerd, the pinned namespaces and the mounts, at the
/// agent's start and after an outage of containerd. Between observations, containerd's events and the ends of
/// actions keep it current.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Observed {
    /// Whether containerd answers. While containerd does not answer, the other fields hold the last known
    /// state.
    pub runtime_answers: bool,
    /// The sandbox, if any part of one exists.
    pub sandbox: Option<ObservedSandbox>,
    /// Whether every volume is mounted and the pod's files are written.
    pub volumes_mounted: bool,
    /// Whether the pod's directory exists, whether its volumes are all mounted or not.
    pub volumes_present: bool,
    /// All container records of the pod.
    pub containers: BTreeMap<ContainerId, ObservedContainer>,
    /// An action on a container failed, and the pod was not observed since. The failed action may have left
    /// something that this value does not show, so no decision may rest on an absence.
    #[serde(default)]
    pub stale: bool,
}

impl Observed {
    /// Records that an action failed: what the action may have left counts as present. Volumes and the
    /// sandbox simply count as partly present, since the actions that remove them may find nothing. What a
    /// container action left only an observation shows, so `stale` is set.
    pub fn failed(&mut self, action: &Action) {
        match action {
            Action::MountVolumes | Action::UnmountVolumes => {
                self.volumes_mounted = false;
                self.volumes_present = true;
            }
            Action::MakeSandbox(sandbox_attempt) | Action::TeardownSandbox(sandbox_attempt) => {
                let ips = self.sandbox.take().map(|s| s.ips).unwrap_or_default();
                self.sandbox = Some(ObservedSandbox {
                    sandbox_attempt: *sandbox_attempt,
                    state: SandboxState::Broken,
                    ips,
                });
            }
            Action::Start { .. }
            | Action::Signal { .. }
            | Action::Kill { .. }
            | Action::RecordExit { .. }
            | Action::Reap { .. }
            | Action::Remove { .. } => self.stale = true,
            Action::EnsurePause(_)
            | Action::EnsureImage(_)
            | Action::PostStart { .. }
            | Action::PreStop { .. }
            | Action::ResizePod(_)
            | Action::RemovePod => {}
        }
    }
}

/// Observed state of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedSandbox {
    /// The sandbox's attempt number.
    #[serde(rename = "incarnation")]
    pub sandbox_attempt: SandboxAttempt,
    /// How complete the sandbox is.
    pub state: SandboxState,
    /// The pod's addresses, primary family first. A pod on the host network has the node's addresses.
    pub ips: Vec<IpAddr>,
}

/// How complete a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// The namespaces are pinned, the network is attached and pause is alive.
    Ready,
    /// As `Ready`, but pause is dead or not started yet. Containers run and start without pause, unless the
    /// pod shares its PID namespace.
    NoPause,
    /// Creation or removal was interrupted, or the sandbox is of an earlier boot. Such a sandbox is torn
    /// down, never completed.
    Broken,
}

/// Observed state of one container record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedContainer {
    /// The container's name in the pod.
    pub container: ContainerName,
    /// The run's number.
    pub attempt: Attempt,
    /// The sandbox that the run belongs to.
    #[serde(rename = "incarnation")]
    pub sandbox_attempt: SandboxAttempt,
    /// `repo@digest`, or the digest alone, of the image that runs.
    pub image_id: String,
    /// The user that the run was started as. None in records of an earlier build.
    #[serde(default)]
    pub user: Option<ContainerUser>,
    /// The resources that are set on the run. None in records of an earlier build.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// The run's state.
    pub state: RunState,
    /// Whether containerd still holds a task that must be reaped.
    pub task: bool,
}

/// State of a container record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// No process was started, as far as is known.
    NotStarted,
    /// The process runs.
    Running {
        /// When the process started.
        started_at: Wall,
    },
    /// The process ended, and its exit is not yet stored on the container record.
    Ended(Exit),
    /// The process ended, and its exit is stored on the container record.
    Recorded(Exit),
}

impl RunState {
    /// The exit of the run, stored or not.
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            RunState::Ended(e) | RunState::Recorded(e) => Some(e),
            _ => None,
        }
    }
}

/// The exit of a run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + signal where a signal ended the process.
    pub code: i32,
    /// When the process ended.
    pub at: Wall,
    /// Whether the kernel's OOM killer ended the process.
    pub oom: bool,
    /// A reason that replaces the one derived from code and OOM kill: `StartError` or `Unknown`.
    pub reason: Option<String>,
    /// The termination message.
    pub message: Option<String>,
    /// When the process started.
    pub started_at: Option<Wall>,
}

impl Exit {
    /// An exit that was not observed: the task is gone and no record tells its exit. Code and reason are
    /// those of containerd's CRI plugin.
    pub fn unknown(at: Wall) -> Exit {
        Exit { code: 255, at, oom: false, reason: Some("Unknown".into()), message: None, started_at: None }
    }

    /// Whether an init container with this exit has succeeded. An init container with an OOM-killed process
    /// has failed, whatever its exit code (isInitContainerFailed, `pkg/kubelet/kuberuntime`).
    pub fn init_done(&self) -> bool {
        self.code == 0 && self.reason() != "OOMKilled"
    }

    /// The value of `state.terminated.reason`.
    pub fn reason(&self) -> &str {
        match (&self.reason, self.oom, self.code) {
            (Some(r), _, _) => r,
            (None, true, _) => "OOMKilled",
            (None, false, 0) => "Completed",
            _ => "Error",
        }
    }

    /// The value of `state.terminated`.
    pub fn terminated(&self, id: &ContainerId) -> Terminated {
        Terminated {
            exit_code: self.code,
            reason: self.reason().to_owned(),
            message: self.message.clone(),
            started_at: self.started_at,
            finished_at: Some(self.at),
            id: Some(id.clone()),
        }
    }
}
