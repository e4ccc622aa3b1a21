//! Errors of this crate, one variant an operation.

use std::{io, path::PathBuf, time::Duration};

/// A failed operation with its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The limits of container logs are not usable.
    #[error("container log limits: {reason}")]
    Limits {
        /// Reason.
        reason: &'static str,
    },
    /// Creating a directory.
    #[error("open directory {path:?}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Creating or opening a container's FIFO.
    #[error("open fifo {path:?}")]
    Fifo {
        /// The FIFO.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Opening, rotating or reading a log file.
    #[error("log file {path:?}")]
    LogFile {
        /// The log file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Creating the link to a log file.
    #[error("link {path:?}")]
    Link {
        /// The link.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Reading or writing a state file.
    #[error("state file {path:?}")]
    State {
        /// The state file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Removing a file or directory of a pod or container.
    #[error("remove {path:?}")]
    Remove {
        /// The file or directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Connecting to logd's socket, or talking over the connection.
    #[error("socket {path:?}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A system call without a file as its subject.
    #[error("{what}")]
    Kernel {
        /// The operation.
        what: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Another logd holds the lock and neither answers nor hands over.
    #[error("another logd holds {path:?}")]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// Taking over from another logd.
    #[error("take over from the running logd: {step}")]
    Takeover {
        /// The step that failed.
        step: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A message that could not be read.
    #[error("message from the other side of the logd socket")]
    Message {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// logd did not answer within the deadline.
    #[error("{op}: no answer from logd within {after:?}")]
    Deadline {
        /// The request.
        op: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// logd answered that the request failed.
    #[error("{op}: {message}")]
    Refused {
        /// The request.
        op: &'static str,
        /// Reason, in logd's words.
        message: String,
    },
    /// Registering a container id that is already registered with another specification.
    #[error("container {id} is registered with another specification")]
    Conflict {
        /// The container's id.
        id: berth_core::ids::ContainerId,
    },
    /// Starting `berth logd`.
    #[error("start {path:?}")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}
