//! What can go wrong, and the exit code of each.

use berth_api::message::ErrorCode;
use std::{io, path::PathBuf, process::ExitCode};

/// All is well.
pub(crate) const OK: u8 = 0;
/// A problem was found, or something failed.
pub(crate) const PROBLEM: u8 = 1;
/// The command was not understood; clap's own code.
pub(crate) const USAGE: u8 = 2;
/// The agent cannot be reached, and without it the command cannot do anything.
pub(crate) const UNREACHABLE: u8 = 3;
/// What was asked for does not exist.
pub(crate) const NOT_FOUND: u8 = 4;

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The agent, or its absence.
    #[error(transparent)]
    Agent(#[from] berth_api::Error),
    /// No agent, and it left no state behind.
    #[error("the agent is not running and has left no state in {path}: {why}", path = .path.display())]
    NoState {
        /// Where it would be.
        path: PathBuf,
        /// Why the agent could not be asked.
        why: String,
    },
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// A name that fits several.
    #[error("{name:?} fits several: {fits}")]
    Ambiguous {
        /// What was written.
        name: String,
        /// What it fits.
        fits: String,
    },
    /// A name or option that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Log files.
    #[error("read container output")]
    Logs(#[from] berth_logd::Error),
    /// The terminal, the FIFOs of a command, a file.
    #[error("{what}")]
    Io {
        /// The operation and its subject.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing is pinned that could be read.
    #[error("no Service tables in {path}: {why}", path = .path.display())]
    NoTables {
        /// The pin directory.
        path: PathBuf,
        /// Why there are none.
        why: &'static str,
    },
    /// The programs and maps in the kernel.
    #[error("read the Service tables in the kernel")]
    Datapath(#[from] berth_ebpf_loader::Error),
    /// Something that cannot be written as JSON.
    #[error("write JSON")]
    Json(#[from] serde_json::Error),
    /// Whoever read the output has gone.
    #[error("the output was closed")]
    Pipe,
}

impl Error {
    /// An error of the system.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        |source| Error::Io { what: what.into(), source }
    }

    /// Of writing to standard output.
    pub(crate) fn output(source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::BrokenPipe {
            return Error::Pipe;
        }
        Error::Io { what: "write the output".to_owned(), source }
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Error::Pipe => OK,
            Error::Agent(berth_api::Error::Refused { code: ErrorCode::NotFound, .. })
            | Error::NotFound(_) => NOT_FOUND,
            Error::Agent(e) if e.is_unreachable() => UNREACHABLE,
            Error::NoState { .. } => UNREACHABLE,
            Error::Ambiguous { .. } | Error::Usage(_) => USAGE,
            _ => PROBLEM,
        }
    }

    /// Tells it and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if !matches!(self, Error::Pipe) {
            crate::out::tell(&format!("berth: {}", self.chain()));
        }
        ExitCode::from(self.code())
    }

    /// With all its causes.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(e) = source {
            text.push_str(": ");
            text.push_str(&e.to_string());
            source = e.source();
        }
        text
    }
}
