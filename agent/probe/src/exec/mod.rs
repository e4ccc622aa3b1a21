//! Commands in containers: what is run where, and how it ended. The running is the helper's ([`crate::exec_helper`]).

pub(crate) mod client;
mod process;
pub(crate) mod wire;

pub use process::{Capabilities, ExecProcess, Rlimit};

use berth_core::probe::ProbeResult;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// At most this much of a command's output is kept; it may write more.
pub const MAX_OUTPUT: usize = 10 * 1024;

/// This way into the container would not be faithful, for the reason given: go through containerd.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub String);

/// A command and the container to run it in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecTarget {
    /// The command, looked up in the container's `PATH`.
    pub command: Vec<String>,
    /// The container's first process, as the host counts.
    pub pid: u32,
    /// When that process started: field 22 of `/proc/<pid>/stat`, in clock ticks since boot. A pid that was taken
    /// again is never entered.
    pub start_time: u64,
    /// What the command runs as.
    pub process: ExecProcess,
    /// The container's cgroup directory in each hierarchy that has one.
    pub cgroup_dirs: Vec<PathBuf>,
}

impl ExecTarget {
    /// Whether the helper can run this as containerd would.
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

/// How a command ended. Output is stdout and stderr together, cut at [`MAX_OUTPUT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecOutcome {
    /// It exited by itself.
    Exited {
        /// The exit code.
        code: i32,
        /// What it wrote.
        output: String,
    },
    /// A signal ended it.
    Killed {
        /// Which.
        signal: i32,
        /// What it wrote.
        output: String,
    },
    /// It ran out of time and was killed with all that it had started.
    TimedOut {
        /// What it wrote until then.
        output: String,
    },
    /// It was never started, for the reason given: the container is gone, there is no such program, the node lacks
    /// something, the helper died.
    NotRun(String),
    /// See [`Unsupported`].
    Unsupported(String),
}

impl ExecOutcome {
    /// As a probe's answer: what did not run says nothing.
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
