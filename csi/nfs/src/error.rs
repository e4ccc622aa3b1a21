//! Errors of the driver, and the gRPC code of each.

use rustix::io::Errno;
use std::io;
use tonic::{Code, Status};

/// Result of the driver's own operations.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation that failed, with its subject.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A field of a request has a value that the driver refuses.
    #[error("{field} is refused: {reason}")]
    Field {
        /// The request's field, or the parameter.
        field: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// The thing that a request names does not exist.
    #[error("there is no {0}")]
    NotFound(String),
    /// The name is taken by something else.
    #[error("cannot create {what}: {reason}")]
    Exists {
        /// What was to be created.
        what: String,
        /// What is there.
        reason: String,
    },
    /// An operation on the same thing still runs.
    #[error("cannot {what}: {reason}")]
    Busy {
        /// The operation that has to wait.
        what: String,
        /// The operation that runs, and how far it is.
        reason: String,
    },
    /// The state of the volume does not permit the operation.
    #[error("cannot {what}: {reason}")]
    State {
        /// The operation.
        what: String,
        /// The state in its way.
        reason: String,
    },
    /// The wanted size is impossible.
    #[error("cannot give {wanted} bytes: {reason}")]
    Size {
        /// The required size.
        wanted: i64,
        /// Why not.
        reason: String,
    },
    /// Nobody answered in time.
    #[error("cannot {what}: no answer for {seconds} s")]
    Deadline {
        /// The operation.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The share of a server cannot be mounted.
    #[error("cannot mount {source_name}: {reason}")]
    Mount {
        /// The server and the path.
        source_name: String,
        /// What the kernel said.
        reason: String,
    },
    /// The kernel or the server refuses an operation on a file.
    #[error("cannot {verb} {subject}: {source}")]
    File {
        /// The operation.
        verb: &'static str,
        /// The file, relative to the share or absolute on the node.
        subject: String,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// The operation was ended from outside.
    #[error("{0} was ended before it was complete")]
    Cancelled(&'static str),
}

impl Error {
    /// An error of a system call on a file.
    pub(crate) fn file(verb: &'static str, subject: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::File { verb, subject: subject.into(), source: source.into() }
    }

    /// A refused field.
    pub(crate) fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Field { field: field.into(), reason: reason.into() }
    }

    /// The gRPC code by which the other side decides whether a repetition can help.
    fn code(&self) -> Code {
        match self {
            Self::Field { .. } => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::Busy { .. } | Self::Cancelled(_) => Code::Aborted,
            Self::State { .. } => Code::FailedPrecondition,
            Self::Size { .. } => Code::OutOfRange,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Mount { .. } => Code::Internal,
            Self::File { source, .. } => match Errno::from_io_error(source) {
                Some(Errno::NOSPC | Errno::DQUOT) => Code::ResourceExhausted,
                _ => Code::Internal,
            },
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), error.to_string())
    }
}
