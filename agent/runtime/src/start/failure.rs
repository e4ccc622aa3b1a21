//! Failures of a start: the failed step, and the classification for the caller.

use crate::{error::Error, record::ExitRecord};
use berth_core::{error::Chain, ids::ContainerId};
use std::fmt;

/// The exit code of a container that never started, as Kubernetes shows it (reason `StartError`).
pub const START_ERROR_EXIT_CODE: i32 = 128;

/// A step of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The pod's lease.
    Lease,
    /// The container's record.
    Record,
    /// The container's file system.
    Snapshot,
    /// The task: everything up to the container's first instruction. A command that cannot run fails here.
    Create,
    /// The start of the created task.
    Start,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Lease => "lease",
            Stage::Record => "record",
            Stage::Snapshot => "snapshot",
            Stage::Create => "create",
            Stage::Start => "start",
        })
    }
}

/// Classification of a failed start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFailure {
    /// The outcome is unknown: the caller repeats the same request.
    Unknown,
    /// The image does not contain the command.
    CommandNotFound,
    /// The command is not executable.
    NotExecutable,
    /// This attempt has run already, with this exit.
    Finished(ExitRecord),
    /// Any other refusal of containerd or runc.
    Refused,
}

/// Error of a container that could not be started. Its partial state stays on record until its removal; the
/// caller may repeat the same request.
#[derive(Debug, thiserror::Error)]
#[error("cannot start container {id} at step {stage}")]
pub struct StartError {
    /// The container.
    pub id: ContainerId,
    /// The step that failed.
    pub stage: Stage,
    /// The classification.
    pub failure: StartFailure,
    /// The failed call; `None` where no call failed.
    #[source]
    pub source: Option<Box<Error>>,
}

impl StartError {
    /// Whether the same request may succeed unchanged when repeated.
    pub fn is_unknown(&self) -> bool {
        self.failure == StartFailure::Unknown
    }

    /// The message for people: the runtime's own text with the introduction of containerd's CRI plugin,
    /// because tools and people search for it.
    pub fn message(&self) -> String {
        match (self.stage, self.source.as_deref()) {
            (Stage::Create, Some(Error::Call { source, .. })) => {
                format!("failed to create containerd task: {}", source.message())
            }
            (Stage::Start, Some(Error::Call { source, .. })) => {
                format!("failed to start containerd task {:?}: {}", self.id.as_str(), source.message())
            }
            (_, Some(error)) => Chain(error).to_string(),
            (_, None) => self.to_string(),
        }
    }

    /// Whether the failure is the shim's, not the container's. containerd ends a shim after a failed create
    /// while no other task is in it, and every create in progress on the shim fails with it.
    pub(super) fn is_of_shim(&self) -> bool {
        self.source.as_deref().is_some_and(|e| of_shim(&Chain(e).to_string()))
    }

    pub(super) fn new(id: &ContainerId, stage: Stage, error: Error) -> StartError {
        let text = Chain(&error).to_string();
        let failure =
            if error.is_unknown() || of_shim(&text) { StartFailure::Unknown } else { refusal(&text) };
        StartError { id: id.clone(), stage, failure, source: Some(Box::new(error)) }
    }
}

/// Recognises containerd's texts for an unreachable or lost shim. containerd has no error code for it.
fn of_shim(text: &str) -> bool {
    ["ttrpc: closed", "failed to start shim", "failed to load sandbox task", "shim disconnected"]
        .iter()
        .any(|sign| text.contains(sign))
        || (text.contains("ttrpc") && text.contains("dial"))
}

/// Classifies runc's texts about the command. runc has no error codes for them.
fn refusal(text: &str) -> StartFailure {
    let of_command = text.contains("exec: ") || text.contains("exec /");
    if text.contains("executable file not found") {
        return StartFailure::CommandNotFound;
    }
    if of_command && text.contains("no such file or directory") {
        return StartFailure::CommandNotFound;
    }
    if of_command && (text.contains("permission denied") || text.contains("is a directory")) {
        return StartFailure::NotExecutable;
    }
    if of_command && text.contains("exec format error") {
        return StartFailure::NotExecutable;
    }
    StartFailure::Refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_shim_are_no_refusal_of_the_container() {
        for text in [
            "failed to start shim: failed to load sandbox task \"n\": dial unix /run/shims/1/s: no such file",
            "ttrpc: closed: unknown",
            "failed to create shim task: ttrpc: closed",
        ] {
            assert!(of_shim(text), "{text}");
        }
        for text in [
            "failed to create shim task: OCI runtime create failed: runc create failed: exec: \"\": executable file",
            "failed to create shim task: OCI runtime create failed: container init was OOM-killed",
        ] {
            assert!(!of_shim(text), "{text}");
        }
    }

    #[test]
    fn runcs_words_about_the_command_are_understood() {
        for (text, failure) in [
            (
                "runc create failed: unable to start container process: error during container init: exec: \
                 \"nope\": executable file not found in $PATH",
                StartFailure::CommandNotFound,
            ),
            (
                "error during container init: exec: \"/bin/nope\": stat /bin/nope: no such file or directory",
                StartFailure::CommandNotFound,
            ),
            (
                "error during container init: exec: \"/etc/passwd\": permission denied",
                StartFailure::NotExecutable,
            ),
            ("exec /x: exec format error", StartFailure::NotExecutable),
            ("mount /x: no such file or directory", StartFailure::Refused),
            ("", StartFailure::Refused),
        ] {
            assert_eq!(refusal(text), failure, "{text}");
        }
    }
}
