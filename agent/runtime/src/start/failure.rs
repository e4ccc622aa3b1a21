//! How a start fails: at which step, and how that is to be taken.

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
    /// The task: everything up to the container's first instruction. A command that cannot be run fails here.
    Create,
    /// Letting it run.
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

/// How a failed start is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFailure {
    /// Nothing is known: try the same request again.
    Unknown,
    /// The command is not in the image.
    CommandNotFound,
    /// The command may not be executed.
    NotExecutable,
    /// This attempt has run already and ended so.
    Finished(ExitRecord),
    /// Anything else that containerd or runc refused.
    Refused,
}

/// A container that could not be started. What was made of it stays on record until it is removed; the same request
/// may be made again.
#[derive(Debug, thiserror::Error)]
#[error("cannot start container {id} at step {stage}")]
pub struct StartError {
    /// The container.
    pub id: ContainerId,
    /// The step that failed.
    pub stage: Stage,
    /// How to take it.
    pub failure: StartFailure,
    /// The call that failed; absent where none did.
    #[source]
    pub source: Option<Box<Error>>,
}

impl StartError {
    /// Whether the same request may succeed when made again, with nothing changed.
    pub fn is_unknown(&self) -> bool {
        self.failure == StartFailure::Unknown
    }

    /// What people are to read: the runtime's own words, introduced as containerd's CRI plugin does, since tools and
    /// people look for that.
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

    /// Whether the shim, not the container, is what failed. containerd ends a shim after a create that failed while no
    /// other task is in it, and with it every create that is under way there.
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

/// What containerd says where it could not reach the shim, or lost it. It has no code for it.
fn of_shim(text: &str) -> bool {
    ["ttrpc: closed", "failed to start shim", "failed to load sandbox task", "shim disconnected"]
        .iter()
        .any(|sign| text.contains(sign))
        || (text.contains("ttrpc") && text.contains("dial"))
}

/// What runc's words say of the command. It has no codes for it.
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
