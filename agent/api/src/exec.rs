//! Messages between the agent and its exec helper: frames of a 32-bit length (little endian) and
//! JSON.
//!
//! Both ends are the same program, one started by the other, so there is one version.

use crate::{Error, frame};
use berth_core::{model::CapabilitySets, probe::ProbeResult};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{path::PathBuf, time::Duration};

/// The longest frame in bytes. An environment and a command line together are shorter.
pub const MAX_FRAME: usize = 8 * 1024 * 1024;

/// A request to the helper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Remove the cgroups that an earlier helper left below these directories.
    Clean {
        /// The directories.
        roots: Vec<PathBuf>,
    },
    /// Run a command.
    Exec {
        /// Id of the command, chosen by the agent.
        id: u64,
        /// Deadline in milliseconds.
        timeout_ms: u64,
        /// The command and its container.
        target: Box<ExecTarget>,
    },
    /// Run a command of a client, whose streams come with this frame's first byte as descriptors (`SCM_RIGHTS`). It
    /// has no deadline once it runs, outlives the helper and the agent, and what it leaves running stays.
    Session {
        /// Id of the command, chosen by the agent.
        id: u64,
        /// Deadline of the start in milliseconds.
        start_ms: u64,
        /// Which descriptors come.
        streams: SessionStreams,
        /// The command and its container.
        target: Box<ExecTarget>,
    },
    /// Kill a command, because its caller no longer waits.
    Cancel {
        /// Id of the command.
        id: u64,
    },
}

/// Streams of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionStreams {
    /// Three descriptors: standard input, output and errors.
    Given,
    /// One descriptor: the socket over which the other side of the command's terminal is sent.
    Terminal,
}

impl SessionStreams {
    /// Number of descriptors.
    pub fn count(self) -> usize {
        match self {
            SessionStreams::Given => 3,
            SessionStreams::Terminal => 1,
        }
    }
}

/// A reply of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The command of a session runs.
    Started {
        /// Id of the command.
        id: u64,
        /// Its process id, in the host's PID namespace.
        pid: u32,
    },
    /// A command has ended or was not run.
    Ended {
        /// Id of the command.
        id: u64,
        /// Its outcome.
        outcome: ExecOutcome,
    },
}

/// The most bytes of a command's output that are kept. The rest is discarded.
pub const MAX_OUTPUT: usize = 10 * 1024;

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

/// The parts of an OCI `process` that apply to a command in the same container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecProcess {
    /// `user.uid`.
    pub uid: u32,
    /// `user.gid`.
    pub gid: u32,
    /// `user.additionalGids`.
    pub groups: Vec<u32>,
    /// `user.umask`, default 022.
    pub umask: u32,
    /// `env`, each `NAME=value`. If `HOME` is missing, it is looked up in the container.
    pub env: Vec<String>,
    /// `cwd`.
    pub cwd: String,
    /// `capabilities`.
    pub capabilities: CapabilitySets,
    /// `noNewPrivileges`.
    pub no_new_privs: bool,
    /// `rlimits`. All others are those of the container's first process.
    pub rlimits: Vec<Rlimit>,
    /// `oomScoreAdj`.
    pub oom_score_adj: Option<i32>,
    /// `linux.seccomp` of the spec. Any value makes the command unsupported.
    pub seccomp: Option<serde_json::Value>,
}

/// A resource limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The resource's number (`RLIMIT_*`).
    pub resource: u32,
    /// The soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
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
    /// The helper cannot run the command exactly as containerd would, for the reason given.
    Unsupported(String),
}

impl ExecOutcome {
    /// The outcome as the result of a probe that runs `command`. A command that did not run gives
    /// an unknown result.
    pub fn into_result(self, command: &[String], timeout: Duration) -> ProbeResult {
        match self {
            ExecOutcome::Exited { code: 0, .. } => ProbeResult::Success,
            ExecOutcome::Exited { output, .. } => ProbeResult::Failure(output),
            ExecOutcome::Killed { signal, output } => {
                ProbeResult::Failure(format!("command was ended by signal {signal}: {output}"))
            }
            ExecOutcome::TimedOut { .. } => {
                let command = command.join(" ");
                ProbeResult::Failure(format!("command timed out: {command:?} timed out after {timeout:?}"))
            }
            ExecOutcome::NotRun(why) | ExecOutcome::Unsupported(why) => ProbeResult::Unknown(why),
        }
    }
}

/// Encodes one message as a frame.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, Error> {
    frame::encode(message, MAX_FRAME)
}

/// Takes one message off the front of `buffer`. None if it is incomplete.
pub fn take<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, Error> {
    frame::take(buffer, MAX_FRAME)?.map(|json| frame::decode(&json)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;

    /// The text of the kubelet's event (`tests/golden/events/readiness-exec-slow.json`).
    #[test]
    fn a_command_that_exceeds_its_time_is_named() {
        let late = ExecOutcome::TimedOut { output: String::new() };
        let command = ["sleep".to_owned(), "10".to_owned()];
        let result = late.into_result(&command, Duration::from_secs(1));
        let text = "command timed out: \"sleep 10\" timed out after 1s";
        assert_eq!(result, ProbeResult::Failure(text.to_owned()));
    }

    #[test]
    fn frames_split_anywhere() {
        let frame = frame::encode(&Request::Cancel { id: 7 }, MAX_FRAME).unwrap();
        let twice = [frame.clone(), frame.clone()].concat();
        for cut in 0..twice.len() {
            let mut buffer = twice[..cut].to_vec();
            let mut seen = 0;
            while let Some(Request::Cancel { id: 7 }) = take(&mut buffer).unwrap() {
                seen += 1;
            }
            buffer.extend(&twice[cut..]);
            while take::<Request>(&mut buffer).unwrap().is_some() {
                seen += 1;
            }
            assert_eq!((seen, buffer.len()), (2, 0), "{cut}");
        }
        assert!(take::<Request>(&mut vec![255; 8]).is_err());
        assert!(take::<Request>(&mut vec![1, 0, 0, 0, b'x']).is_err());
    }
}
