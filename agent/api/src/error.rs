//! Errors of the local socket and of the status files.

use crate::message::ErrorCode;
use std::{io, path::PathBuf};

/// A failed operation of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No agent listens on the socket.
    #[error("cannot reach the agent at {path}", path = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The connection failed.
    #[error("cannot {what} the agent's socket")]
    Io {
        /// `read from` or `write to`.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The other side closed the connection.
    #[error("the other side closed the connection")]
    Closed,
    /// A frame is longer than its limit.
    #[error("a message of {length} bytes is longer than the limit of {limit}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A frame holds no message.
    #[error("cannot decode a message")]
    Decode(#[source] serde_json::Error),
    /// A message cannot be encoded.
    #[error("cannot encode a message")]
    Encode(#[source] serde_json::Error),
    /// The two sides share no protocol version.
    #[error(
        "the agent accepts protocol versions {oldest} to {newest}, this program speaks {ours}: use the agent's version of berth"
    )]
    Protocol {
        /// The oldest version that the agent accepts.
        oldest: u32,
        /// The agent's own version.
        newest: u32,
        /// This program's version.
        ours: u32,
    },
    /// The agent missed a deadline.
    #[error("the agent did not answer in time")]
    Deadline,
    /// The agent answered with an error.
    #[error("{message}")]
    Agent {
        /// The kind of error.
        code: ErrorCode,
        /// The message, for people.
        message: String,
    },
    /// A reply does not belong to the request.
    #[error("the agent's reply does not fit the request")]
    Unexpected,
    /// A status file cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        match error {
            Error::Connect { source, .. } | Error::Io { source, .. } | Error::File { source, .. } => source,
            Error::Decode(source) | Error::Encode(source) => source.into(),
            Error::Closed => io::ErrorKind::UnexpectedEof.into(),
            Error::Deadline => io::ErrorKind::TimedOut.into(),
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}

impl Error {
    /// Whether no agent answers, as opposed to one that answers with an error.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Error::Connect { .. } | Error::Io { .. } | Error::Closed | Error::Deadline)
    }
}
