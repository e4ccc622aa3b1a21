//! The effects that a plan can ask the executor for.

use super::{Exit, PodResize};
use crate::ids::{Attempt, ContainerId, ContainerName, SandboxAttempt};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
};

/// Data that an action carries and that is not part of the action's identity. Two actions that differ in
/// their payload alone count as the same action, both in flight and in the memory of failures.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Payload<T>(pub T);

impl<T> PartialEq for Payload<T> {
    fn eq(&self, _: &Payload<T>) -> bool {
        true
    }
}

impl<T> Eq for Payload<T> {}

impl<T> PartialOrd for Payload<T> {
    fn partial_cmp(&self, other: &Payload<T>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Payload<T> {
    fn cmp(&self, _: &Payload<T>) -> Ordering {
        Ordering::Equal
    }
}

impl<T> Hash for Payload<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// One effect on the node. Each action is idempotent: carrying it out twice ends in the same world as once.
/// The value without its payload is the action's identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Mount every volume and write the pod's files.
    MountVolumes,
    /// Create the cgroup, the namespaces and the network. Where the pod shares its PID namespace, also start
    /// pause as process 1 of it.
    MakeSandbox(SandboxAttempt),
    /// Start pause in a sandbox whose namespaces exist. The containers need not wait for it.
    #[serde(rename = "RestartPause")]
    EnsurePause(SandboxAttempt),
    /// Find the container's image in containerd's store, or pull it, as its policy wants.
    EnsureImage(ContainerName),
    /// Create the container and start its process. A second try continues where an earlier one stopped.
    Start {
        /// The container's name.
        container: ContainerName,
        /// The run of the container.
        attempt: Attempt,
        /// The sandbox that the container joins.
        #[serde(rename = "incarnation")]
        sandbox_attempt: SandboxAttempt,
        /// The container id, derived from the three values above and the pod's UID.
        id: ContainerId,
    },
    /// Run the postStart hook.
    PostStart {
        /// The container's name.
        container: ContainerName,
        /// The run whose hook this is.
        id: ContainerId,
    },
    /// Run the preStop hook.
    PreStop {
        /// The container's name.
        container: ContainerName,
        /// The run whose hook this is.
        id: ContainerId,
    },
    /// Send the stop signal.
    Signal {
        /// The container's name.
        container: ContainerName,
        /// The run to signal.
        id: ContainerId,
    },
    /// Send SIGKILL.
    Kill {
        /// The container's name.
        container: ContainerName,
        /// The run to kill.
        id: ContainerId,
    },
    /// Store the exit of a run on its container record.
    RecordExit {
        /// The container's name.
        container: ContainerName,
        /// The run that ended.
        id: ContainerId,
        /// The exit. It is a payload because an exit that was not observed carries the time of the
        /// observation, which differs from one observation to the next.
        exit: Payload<Exit>,
    },
    /// Delete the ended task and close its output.
    Reap {
        /// The container's name.
        container: ContainerName,
        /// The run whose task ended.
        id: ContainerId,
    },
    /// Remove a dead container record and its file system.
    Remove {
        /// The container's name.
        container: ContainerName,
        /// The run to remove.
        id: ContainerId,
    },
    /// End pause, then release the network, then unpin the namespaces. Each step may already be done.
    TeardownSandbox(SandboxAttempt),
    /// Set other resources on the pod's cgroup and on its running containers. What is set is a payload: a resize that
    /// changes while it waits for its next try is the same action.
    ResizePod(Payload<PodResize>),
    /// Unmount every volume and remove the pod's directory.
    UnmountVolumes,
    /// Remove the pod's cgroup, its output files and its stored memory.
    RemovePod,
}

impl Action {
    /// The name of the action's kind, for logs, timings and failpoints.
    pub fn kind(&self) -> &'static str {
        match self {
            Action::MountVolumes => "MountVolumes",
            Action::MakeSandbox(_) => "MakeSandbox",
            Action::EnsurePause(_) => "EnsurePause",
            Action::EnsureImage(_) => "EnsureImage",
            Action::Start { .. } => "Start",
            Action::PostStart { .. } => "PostStart",
            Action::PreStop { .. } => "PreStop",
            Action::Signal { .. } => "Signal",
            Action::Kill { .. } => "Kill",
            Action::RecordExit { .. } => "RecordExit",
            Action::Reap { .. } => "Reap",
            Action::Remove { .. } => "Remove",
            Action::TeardownSandbox(_) => "TeardownSandbox",
            Action::ResizePod(_) => "ResizePod",
            Action::UnmountVolumes => "UnmountVolumes",
            Action::RemovePod => "RemovePod",
        }
    }

    /// The names of all kinds, for test suites that go through each of them.
    pub const KINDS: [&'static str; 16] = [
        "MountVolumes",
        "MakeSandbox",
        "EnsurePause",
        "EnsureImage",
        "Start",
        "PostStart",
        "PreStop",
        "Signal",
        "Kill",
        "RecordExit",
        "Reap",
        "Remove",
        "TeardownSandbox",
        "ResizePod",
        "UnmountVolumes",
        "RemovePod",
    ];

    /// A resize of the pod, for comparison: what it sets does not count.
    pub(super) fn resize() -> Action {
        Action::ResizePod(Payload(PodResize::default()))
    }

    /// The run that the action concerns, if any.
    pub fn run(&self) -> Option<&ContainerId> {
        match self {
            Action::Start { id, .. }
            | Action::PostStart { id, .. }
            | Action::PreStop { id, .. }
            | Action::Signal { id, .. }
            | Action::Kill { id, .. }
            | Action::RecordExit { id, .. }
            | Action::Reap { id, .. }
            | Action::Remove { id, .. } => Some(id),
            _ => None,
        }
    }

    /// The container that the action concerns, if any.
    pub fn container(&self) -> Option<&ContainerName> {
        match self {
            Action::EnsureImage(container)
            | Action::Start { container, .. }
            | Action::PostStart { container, .. }
            | Action::PreStop { container, .. }
            | Action::Signal { container, .. }
            | Action::Kill { container, .. }
            | Action::RecordExit { container, .. }
            | Action::Reap { container, .. }
            | Action::Remove { container, .. } => Some(container),
            _ => None,
        }
    }
}

/// Why an action failed, in the words that status and events use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// A Kubernetes reason, for example `ErrImageNeverPull`, `CreateContainerConfigError`, `FailedMount`.
    pub reason: String,
    /// The cause, in words for the user.
    pub message: String,
}

impl Failure {
    /// Makes a failure with this reason and message.
    pub fn new(reason: &str, message: impl Into<String>) -> Failure {
        Failure { reason: reason.into(), message: message.into() }
    }
}
