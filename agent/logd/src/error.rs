//! What can go wrong here, one variant for each operation.

use std::{io, path::PathBuf, time::Duration};

/// An operation that failed, with its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The limits make no sense.
    #[error("container log limits: {reason}")]
    Limits {
        /// What is wrong with them.
        reason: &'static str,
    },
    /// Making or opening a directory.
    #[error("open directory {path:?}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Making or opening a container's FIFO.
    #[error("open fifo {path:?}")]
    Fifo {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Opening, rotating or reading an output file.
    #[error("log file {path:?}")]
    LogFile {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Making the link in the directory of links.
    #[error("link {path:?}")]
    Link {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Reading or writing a state file.
    #[error("state file {path:?}")]
    State {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Removing what belonged to a pod or container.
    #[error("remove {path:?}")]
    Remove {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Listening on or connecting to the socket.
    #[error("socket {path:?}")]
    Socket {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Waiting for or setting up kernel events.
    #[error("{what}")]
    Kernel {
        /// The operation.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another logd is in charge and neither yields nor answers.
    #[error("another logd holds {path:?}")]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// Taking over from another logd.
    #[error("take over from the running logd: {step}")]
    Takeover {
        /// Where it ended.
        step: &'static str,
        /// The cause.
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
    /// logd did not answer in time.
    #[error("{op}: no answer from logd within {after:?}")]
    Deadline {
        /// The request.
        op: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// logd answered that it could not.
    #[error("{op}: {message}")]
    Refused {
        /// The request.
        op: &'static str,
        /// Why, in logd's words.
        message: String,
    },
    /// A container id is registered already as something else.
    #[error("container {id} is registered with another specification")]
    Conflict {
        /// Its id.
        id: berth_core::ids::ContainerId,
    },
    /// Starting `berth logd`.
    #[error("start {path:?}")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}
