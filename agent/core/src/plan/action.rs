//! What the shell can be asked to do to a pod.

use super::Exit;
use crate::ids::{Attempt, ContainerId, ContainerName, SandboxAttempt};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
};

/// What an action carries with it and is no part of its identity: two actions that differ in nothing else are one, in
/// flight and in the memory of what failed.
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

/// One effect. Each is idempotent: carried out twice it ends in the same world. The value itself, but for its payload,
/// is its identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Mount every volume and write the pod's files.
    MountVolumes,
    /// Make the cgroup, the namespaces and the network; pause too where it is process 1 of a shared PID namespace.
    MakeSandbox(SandboxAttempt),
    /// The namespaces are there, pause is not: start it, beside the containers.
    #[serde(rename = "RestartPause")]
    EnsurePause(SandboxAttempt),
    /// See that the container's image is here.
    EnsureImage(ContainerName),
    /// Create the container and start its process; goes on where an earlier try stopped.
    Start {
        /// Which container.
        container: ContainerName,
        /// Which run of it.
        attempt: Attempt,
        /// In which sandbox.
        #[serde(rename = "incarnation")]
        sandbox_attempt: SandboxAttempt,
        /// The id that follows from the three.
        id: ContainerId,
    },
    /// Run the postStart hook.
    PostStart {
        /// Which container.
        container: ContainerName,
        /// Which run of it.
        id: ContainerId,
    },
    /// Run the preStop hook.
    PreStop {
        /// Which container.
        container: ContainerName,
        /// Which run of it.
        id: ContainerId,
    },
    /// Send the stop signal.
    Signal {
        /// Which container.
        container: ContainerName,
        /// Which run of it.
        id: ContainerId,
    },
    /// Send SIGKILL.
    Kill {
        /// Which container.
        container: ContainerName,
        /// Which run of it.
        id: ContainerId,
    },
    /// Store how a run ended, on its container.
    RecordExit {
        /// Which container.
        container: ContainerName,
        /// Which run of it.
        id: ContainerId,
        /// How it ended. An end that nobody saw is told with the time of each look.
        exit: Payload<Exit>,
    },
    /// Delete the ended task and close its output.
    Reap {
        /// Which container.
        container: ContainerName,
        /// Which run of it.
        id: ContainerId,
    },
    /// Remove a dead container and its file system.
    Remove {
        /// Which container.
        container: ContainerName,
        /// Which run of it.
        id: ContainerId,
    },
    /// End pause, release the network, unpin the namespaces: in that order, each step allowed to be done already.
    TeardownSandbox(SandboxAttempt),
    /// Unmount every volume and remove the pod's directory.
    UnmountVolumes,
    /// Remove the cgroup, the output files and what is remembered.
    RemovePod,
}

impl Action {
    /// The kind's name, for logs, timings and failpoints.
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
            Action::UnmountVolumes => "UnmountVolumes",
            Action::RemovePod => "RemovePod",
        }
    }

    /// Every kind, for suites that go through all of them.
    pub const KINDS: [&'static str; 15] = [
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
        "UnmountVolumes",
        "RemovePod",
    ];

    /// The run that it is about.
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

    /// The container that it is about.
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

/// Why an action did not succeed, in the words that status and events use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// A Kubernetes reason, for example `ErrImageNeverPull`, `CreateContainerConfigError`, `FailedMount`.
    pub reason: String,
    /// The cause, for people.
    pub message: String,
}

impl Failure {
    /// A failure with that reason.
    pub fn new(reason: &str, message: impl Into<String>) -> Failure {
        Failure { reason: reason.into(), message: message.into() }
    }
}
