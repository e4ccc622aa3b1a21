//! What a start is asked for, and what it gives.

use crate::{image::Image, record::ExitRecord};
use berth_core::{
    ids::{Attempt, ContainerId, ContainerName, PodKey, PodUid, SandboxAttempt},
    time::Wall,
};
use std::{path::PathBuf, time::Duration};

/// Where a container's output goes and its input comes from: FIFOs whose other ends are held before it is started.
/// Without a terminal, `stdout` and `stderr` are both set or both empty; with one there is no `stderr`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stdio {
    /// Standard output, and everything of a terminal.
    pub stdout: PathBuf,
    /// Standard error; unused with a terminal.
    pub stderr: PathBuf,
    /// Standard input; `None` is an empty one.
    pub stdin: Option<PathBuf>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

/// One attempt of one container, ready to be started.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// Its id, a function of what it is.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodUid,
    /// Its pod's names.
    pub key: PodKey,
    /// Its name in the pod.
    pub container: ContainerName,
    /// Which run of it.
    pub attempt: Attempt,
    /// In which sandbox of the pod.
    pub sandbox_attempt: SandboxAttempt,
    /// Its image.
    pub image: Image,
    /// Its OCI spec.
    pub spec: serde_json::Value,
    /// What the agent wants back at adoption.
    pub extension: serde_json::Value,
    /// Its output and input.
    pub stdio: Stdio,
    /// Containers of one group share a shim; also the spec's annotation `io.containerd.runc.v2.group`.
    pub shim_group: String,
}

/// A started container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Its first process, in the host's PID namespace.
    pub pid: u32,
    /// That process's start time in clock ticks since the boot; 0 where it was gone before it could be read.
    pub start_time: u64,
    /// When it started.
    pub started_at: Wall,
    /// How long each step took. Steps that ran side by side are timed each on its own.
    pub timings: Vec<(&'static str, Duration)>,
    /// It was found started, by an earlier call.
    pub adopted: bool,
    /// It was found started and has ended meanwhile: no event may come for it any more.
    pub exit: Option<ExitRecord>,
}
