//! Errors of this crate, one variant an operation.

use std::{io, path::PathBuf, time::Duration};

/// A failed operation with its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The limits of container logs are not usable.
    #[error("cannot use the limits of container logs: {reason}")]
    Limits {
        /// Reason of the failure.
        reason: &'static str,
    },
    /// Creating a directory.
    #[error("cannot create directory {path:?}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Creating or opening a container's FIFO.
    #[error("cannot open fifo {path:?}")]
    Fifo {
        /// The FIFO.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Attaching a reader to a container's output.
    #[error("cannot attach to the output of container {id}: {reason}")]
    Attach {
        /// The container.
        id: berth_core::ids::ContainerId,
        /// Reason of the failure.
        reason: &'static str,
    },
    /// Opening, rotating or reading a log file.
    #[error("cannot open, rotate or read log file {path:?}")]
    LogFile {
        /// The log file.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Creating the link to a log file.
    #[error("cannot create link {path:?}")]
    Link {
        /// The link.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Reading or writing a state file.
    #[error("cannot read or write state file {path:?}")]
    State {
        /// The state file.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Removing a file or directory of a pod or container.
    #[error("cannot remove {path:?}")]
    Remove {
        /// The file or directory.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Connecting to logd's socket, or talking over the connection.
    #[error("cannot reach logd at {path:?}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// A system call without a file as its subject.
    #[error("cannot {what}")]
    Kernel {
        /// The operation.
        what: &'static str,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Another logd holds the lock and neither answers nor hands over.
    #[error("cannot become the active logd: another one holds {path:?} and neither answers nor hands over")]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// Taking over from another logd.
    #[error("cannot take over from the active logd, at step {step:?}")]
    Takeover {
        /// The step that failed.
        step: &'static str,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// logd did not answer within the deadline.
    #[error("cannot get an answer from logd to {op} within {after:?}")]
    Deadline {
        /// The request.
        op: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// logd answered that the request failed.
    #[error("logd cannot carry out {op}: {message}")]
    Refused {
        /// The request.
        op: &'static str,
        /// Reason, in logd's words.
        message: String,
    },
    /// Registering a container id that is already registered with another specification.
    #[error("cannot register container {id}: it is registered already with another specification")]
    Conflict {
        /// The container's id.
        id: berth_core::ids::ContainerId,
    },
    /// Listening on logd's socket.
    #[error("cannot listen on {path:?}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
}
