//! `berth join` and `berth leave`: a node of a cluster out of a machine by a bootstrap token, and back.
//!
//! [`join`] asks the server for the cluster's ConfigMap `cluster-info` (`discovery`), checks it by the token
//! and by the pinned CA (`trust`, pure), writes the files of `files` (pure but for the writing), starts the
//! agent and waits until the node is Ready. The agent itself bootstraps: the command only waits for it, so a
//! command that is ended harms nothing. [`leave`] ends the agent and removes the same files.
//!
//! Invariants: the token is sent to no server whose CA is not verified. Nothing that exists is overwritten
//! without `--replace`, which says what it deletes. Files with a token or a key are readable for their owner
//! alone. On failure: the command says what to do and exits with 1; run again it says what is there.
#![forbid(unsafe_code)]

mod defaults;
mod discovery;
mod files;
mod join;
mod leave;
mod service;
mod trust;
mod wait;

pub use join::{JoinArgs, join};
pub use leave::{LeaveArgs, leave};

use std::path::PathBuf;

/// A failed step with its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A malformed argument.
    #[error("{0}")]
    Usage(String),
    /// Asking the server about the cluster.
    #[error("cannot ask {server} about the cluster: {reason}")]
    Discovery {
        /// URL of the server.
        server: String,
        /// Cause of the failure, with the remedy.
        reason: String,
    },
    /// What the server says of the cluster is not to be trusted.
    #[error("cannot trust {server}: {reason}")]
    Trust {
        /// URL of the server.
        server: String,
        /// What does not fit.
        reason: String,
    },
    /// The node has joined already.
    #[error(
        "this node has joined already:\n{0}\nlook at `berth status`; `berth leave` undoes it, --replace joins anew"
    )]
    Joined(String),
    /// Pods run that nobody would look after.
    #[error(
        "pods of the cluster run on this node: {0}\ndrain it first (kubectl drain NODE --ignore-daemonsets), or give \
         --force: they run on with nobody to look after them"
    )]
    PodsRun(String),
    /// Writing or removing a file.
    #[error("cannot {what} {}: {reason}", path.display())]
    File {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause of the failure.
        reason: String,
    },
    /// A command of the service manager.
    #[error("cannot run `{command}`: {reason}")]
    Service {
        /// The command.
        command: String,
        /// Cause of the failure.
        reason: String,
    },
    /// The node does not become Ready in time.
    #[error("the node is not Ready after {seconds} s: {reason}\nthe agent goes on; look at `berth status`")]
    NotReady {
        /// Time waited, in seconds.
        seconds: u64,
        /// What is missing.
        reason: String,
    },
    /// Starting the command's own parts.
    #[error("cannot {what}: {reason}")]
    Setup {
        /// The operation.
        what: &'static str,
        /// Cause of the failure.
        reason: String,
    },
}

/// Writes a line for the person at the terminal.
#[expect(clippy::print_stdout, reason = "the commands' progress is for the person who runs them")]
fn tell(line: &str) {
    println!("{line}");
}

/// Runs a future to its end.
fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| Error::Setup { what: "start the async runtime", reason: e.to_string() })?;
    runtime.block_on(work)
}
