//! Input and result of a start.

use crate::{image::Image, record::ExitRecord};
use berth_core::{
    ids::{Attempt, ContainerId, ContainerName, PodKey, PodUid, SandboxAttempt},
    time::Wall,
};
use std::{path::PathBuf, time::Duration};

/// FIFOs of a container's output and input. The other ends are open before the start. Without a terminal,
/// `stdout` and `stderr` are both set or both empty; with a terminal there is no `stderr`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stdio {
    /// Standard output, and all output of a terminal.
    pub stdout: PathBuf,
    /// Standard error; unused with a terminal.
    pub stderr: PathBuf,
    /// Standard input; `None` is an empty one.
    pub stdin: Option<PathBuf>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

/// Request to start one attempt of one container.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// The container's id, derived from pod, name and attempts.
    pub id: ContainerId,
    /// The UID of the pod.
    pub pod: PodUid,
    /// Namespace and name of the pod.
    pub key: PodKey,
    /// The container's name in the pod.
    pub container: ContainerName,
    /// The container's attempt.
    pub attempt: Attempt,
    /// The sandbox attempt of the pod.
    pub sandbox_attempt: SandboxAttempt,
    /// The container's image.
    pub image: Image,
    /// The container's OCI spec.
    pub spec: serde_json::Value,
    /// Data of the caller that adoption reads back.
    pub extension: serde_json::Value,
    /// The container's output and input.
    pub stdio: Stdio,
    /// The shim group: containers of one group share a shim. Equals the spec's annotation
    /// `io.containerd.runc.v2.group`.
    pub shim_group: String,
}

/// A started container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The first process, in the host's PID namespace.
    pub pid: u32,
    /// The first process's start time in clock ticks since the boot; 0 where the process ended before it
    /// could be read.
    pub start_time: u64,
    /// The wall-clock time of the start.
    pub started_at: Wall,
    /// Duration of each step. Parallel steps are timed independently.
    pub timings: Vec<(&'static str, Duration)>,
    /// Whether an earlier call had started the container.
    pub adopted: bool,
    /// The exit of an adopted container that ended in the meantime: no event may follow for it.
    pub exit: Option<ExitRecord>,
}
