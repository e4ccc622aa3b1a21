//! Commands in containers: target and outcome. The helper runs them ([`crate::exec_helper`]).

pub(crate) mod client;
mod process;
pub(crate) mod wire;

pub use process::{Capabilities, ExecProcess, Rlimit};

use berth_core::probe::ProbeResult;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// The most bytes of a command's output that are kept. The rest is discarded.
pub const MAX_OUTPUT: usize = 10 * 1024;

/// The helper cannot run this command exactly as containerd would, for the reason given. Callers go
/// through containerd.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub String);

/// A command and its container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecTarget {
    /// The command, looked up in the container's `PATH`.
    pub command: Vec<String>,
    /// Process id of the container's first process, in the host's PID namespace.
    pub pid: u32,
    /// Start time of that process: field 22 of `/proc/<pid>/stat`, in clock ticks since boot. A
    /// reused process id is never entered.
    pub start_time: u64,
    /// User, capabilities and limits of the command.
    pub process: ExecProcess,
    /// The container's cgroup directory in each hierarchy that has one.
    pub cgroup_dirs: Vec<PathBuf>,
}

impl ExecTarget {
    /// Whether the helper can run this command exactly as containerd would.
    pub fn supported(&self) -> Result<(), Unsupported> {
        if self.process.seccomp.is_some() {
            return Err(Unsupported("the container has a seccomp filter".to_owned()));
        }
        if self.cgroup_dirs.is_empty() {
            return Err(Unsupported("the container's cgroups are not known".to_owned()));
        }
        Ok(())
    }
}

/// Outcome of a command. Output is stdout and stderr together, cut at [`MAX_OUTPUT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecOutcome {
    /// The command exited.
    Exited {
        /// The exit code.
        code: i32,
        /// The output.
        output: String,
    },
    /// The command was ended by a signal.
    Killed {
        /// The signal.
        signal: i32,
        /// The output.
        output: String,
    },
    /// The command exceeded its deadline and was killed with all its children.
    TimedOut {
        /// The output until then.
        output: String,
    },
    /// The command was never started, for the reason given: the container is gone, the program does
    /// not exist, the node lacks resources, or the helper died.
    NotRun(String),
    /// The helper cannot run the command; see [`Unsupported`].
    Unsupported(String),
}

impl ExecOutcome {
    /// The outcome as a probe result. A command that did not run gives an unknown result.
    pub fn into_result(self, timeout: Duration) -> ProbeResult {
        match self {
            ExecOutcome::Exited { code: 0, .. } => ProbeResult::Success,
            ExecOutcome::Exited { output, .. } => ProbeResult::Failure(output),
            ExecOutcome::Killed { signal, output } => {
                ProbeResult::Failure(format!("command was ended by signal {signal}: {output}"))
            }
            ExecOutcome::TimedOut { .. } => {
                ProbeResult::Failure(format!("command timed out after {timeout:?}"))
            }
            ExecOutcome::NotRun(why) | ExecOutcome::Unsupported(why) => ProbeResult::Unknown(why),
        }
    }
}
