//! Errors of the commands, and their exit codes.

use berth_api::message::ErrorCode;
use std::{io, path::PathBuf};

/// Exit code of success.
pub(crate) const OK: u8 = 0;
/// Exit code of a found problem, or of a failure.
pub(crate) const PROBLEM: u8 = 1;
/// Exit code of wrong usage; clap's own.
pub(crate) const USAGE: u8 = 2;
/// Exit code where the command needs the agent and the agent cannot be reached.
pub(crate) const UNREACHABLE: u8 = 3;
/// Exit code where no object has the given name.
pub(crate) const NOT_FOUND: u8 = 4;

/// The failure of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The agent cannot be reached, or answered with an error.
    #[error(transparent)]
    Agent(#[from] berth_api::Error),
    /// No agent runs, and none has left state.
    #[error("the agent is not running and has left no state in {path}: {why}", path = .path.display())]
    NoState {
        /// The directory of the status files.
        path: PathBuf,
        /// Why the agent cannot be reached.
        why: String,
    },
    /// No object has the given name.
    #[error("{0}")]
    NotFound(String),
    /// The given name fits several objects.
    #[error("{name:?} fits several: {fits}")]
    Ambiguous {
        /// The given name.
        name: String,
        /// The names of the objects.
        fits: String,
    },
    /// A malformed name or option.
    #[error("{0}")]
    Usage(String),
    /// The log files cannot be read.
    #[error("cannot read container output")]
    Logs(#[from] berth_logd::Error),
    /// A system call failed: on the terminal, the FIFOs of `exec`, or a file.
    #[error("cannot {what}")]
    Io {
        /// The operation and its subject.
        what: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// No Service tables are pinned.
    #[error("no Service tables in {path}: {why}", path = .path.display())]
    NoTables {
        /// The pin directory.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// The programs or maps in the kernel cannot be read.
    #[error("cannot read the Service tables in the kernel")]
    Datapath(#[from] berth_ebpf_loader::Error),
    /// The output cannot be encoded as JSON.
    #[error("cannot encode JSON")]
    Json(#[from] serde_json::Error),
    /// Images are damaged; the output names the parts.
    #[error("{damaged} of {checked} images damaged; `berth image pull` fetches what is missing")]
    Damaged {
        /// The number of damaged images.
        damaged: usize,
        /// The number of images.
        checked: usize,
    },
    /// Standard output is closed.
    #[error("standard output is closed")]
    Pipe,
}

impl Error {
    /// Wraps an error of the system; `what` is a verb phrase such as `open /run/x`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        |source| Error::Io { what: what.into(), source }
    }

    /// Wraps a failed write to standard output.
    pub(crate) fn output(source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::BrokenPipe {
            return Error::Pipe;
        }
        Error::Io { what: "write the output".to_owned(), source }
    }

    /// No pod has this name.
    pub(crate) fn no_pod(name: &str) -> Error {
        Error::NotFound(format!(
            "no pod is named {name:?}; `berth status` lists manifests that cannot be used"
        ))
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Error::Pipe => OK,
            Error::Agent(berth_api::Error::Agent { code: ErrorCode::NotFound, .. }) | Error::NotFound(_) => {
                NOT_FOUND
            }
            Error::Agent(e) if e.is_unreachable() => UNREACHABLE,
            Error::NoState { .. } => UNREACHABLE,
            Error::Ambiguous { .. } | Error::Usage(_) => USAGE,
            _ => PROBLEM,
        }
    }
}
