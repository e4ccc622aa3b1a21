//! What the world shows of a pod.

use super::Action;
use crate::{
    ids::{Attempt, ContainerId, ContainerName, SandboxAttempt},
    status::Terminated,
    time::Wall,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// What is seen of a pod: read from containerd, the pinned namespaces and the mounts at start and after an outage,
/// kept up by events and by the ends of actions in between.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Observed {
    /// Whether containerd answers. While it does not, everything else here is the last that was known.
    pub runtime_answers: bool,
    /// The sandbox, where there is anything of one.
    pub sandbox: Option<ObservedSandbox>,
    /// Whether every volume is mounted and the pod's files are written.
    pub volumes_mounted: bool,
    /// Whether there is a pod directory at all, mounted or half mounted.
    pub volumes_present: bool,
    /// Every container record of the pod.
    pub containers: BTreeMap<ContainerId, ObservedContainer>,
    /// An action on a container failed, and nobody has looked since at what it left: something may be there that is not
    /// shown here, and nothing may be decided by its absence.
    #[serde(default)]
    pub stale: bool,
}

impl Observed {
    /// Takes in that an action failed: what it may have left counts as there. Of volumes and sandbox that is known (each
    /// is taken away by an action that may find nothing); of a container only a look can tell.
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
            | Action::RemovePod => {}
        }
    }
}

/// What is seen of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedSandbox {
    /// Which one.
    #[serde(rename = "incarnation")]
    pub sandbox_attempt: SandboxAttempt,
    /// How complete it is.
    pub state: SandboxState,
    /// The pod's addresses, primary family first; the node's for host-network pods.
    pub ips: Vec<IpAddr>,
}

/// How complete a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// Namespaces pinned, network attached, pause alive.
    Ready,
    /// As Ready, but pause is dead or not started yet: containers run and start without it.
    NoPause,
    /// Making or removing it was cut off, or it belongs to another boot: to be finished backwards.
    Broken,
}

/// What is seen of one container record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedContainer {
    /// Whose run it is.
    pub container: ContainerName,
    /// Which run.
    pub attempt: Attempt,
    /// In which sandbox it ran.
    #[serde(rename = "incarnation")]
    pub sandbox_attempt: SandboxAttempt,
    /// `repo@digest` or the digest of what runs.
    pub image_id: String,
    /// Its state.
    pub state: RunState,
    /// Whether a task is still there to be reaped.
    pub task: bool,
}

/// The state of a container record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// No process was started, as far as is known.
    NotStarted,
    /// Its process runs.
    Running {
        /// Since when.
        started_at: Wall,
    },
    /// Its process ended; how is not yet stored on the container.
    Ended(Exit),
    /// Its process ended, and how is stored.
    Recorded(Exit),
}

impl RunState {
    /// How it ended, stored or not.
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            RunState::Ended(e) | RunState::Recorded(e) => Some(e),
            _ => None,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, 128 + signal where a signal ended it.
    pub code: i32,
    /// When.
    pub at: Wall,
    /// Whether the kernel's OOM killer did it.
    pub oom: bool,
    /// Instead of the reason that follows from the rest: `StartError`, `Unknown`.
    pub reason: Option<String>,
    /// The termination message.
    pub message: Option<String>,
    /// When its process started.
    pub started_at: Option<Wall>,
}

impl Exit {
    /// An end that nobody saw: the task is gone and nothing tells how. Code and reason as containerd's CRI plugin.
    pub fn unknown(at: Wall) -> Exit {
        Exit { code: 255, at, oom: false, reason: Some("Unknown".into()), message: None, started_at: None }
    }

    /// Whether an init container that ended so has done its work. One of which a process was killed for memory has not,
    /// whatever its own exit code (`pkg/kubelet/kuberuntime` isInitContainerFailed).
    pub fn init_done(&self) -> bool {
        self.code == 0 && self.reason() != "OOMKilled"
    }

    /// `reason` in `state.terminated`.
    pub fn reason(&self) -> &str {
        match (&self.reason, self.oom, self.code) {
            (Some(r), _, _) => r,
            (None, true, _) => "OOMKilled",
            (None, false, 0) => "Completed",
            _ => "Error",
        }
    }

    /// As `state.terminated`.
    pub fn terminated(&self, id: &ContainerId) -> Terminated {
        Terminated {
            exit_code: self.code,
            reason: self.reason().to_owned(),
            message: self.message.clone(),
            started_at: self.started_at,
            finished_at: self.at,
            id: id.clone(),
        }
    }
}
