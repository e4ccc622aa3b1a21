//! What can go wrong between the two sides.

use crate::message::ErrorCode;
use std::{io, path::PathBuf};

/// An operation of this crate that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens on the socket.
    #[error("reach the agent at {path}", path = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection failed.
    #[error("{what} the agent's socket")]
    Io {
        /// `read from` or `write to`.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The other side ended the connection.
    #[error("the connection was ended by the other side")]
    Closed,
    /// A frame longer than is allowed.
    #[error("a frame of {length} bytes is longer than {limit}")]
    TooLong {
        /// Its length.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A frame that is no message.
    #[error("read a message")]
    Decode(#[source] serde_json::Error),
    /// A message that cannot be written.
    #[error("write a message")]
    Encode(#[source] serde_json::Error),
    /// The two sides share no protocol.
    #[error("the agent speaks protocols {oldest} to {newest}, this program {ours}")]
    Protocol {
        /// The oldest that the other side accepts.
        oldest: u32,
        /// The other side's own.
        newest: u32,
        /// This side's own.
        ours: u32,
    },
    /// No answer in time.
    #[error("the agent did not answer in time")]
    Deadline,
    /// The agent answered that it cannot.
    #[error("{message}")]
    Refused {
        /// What kind of refusal.
        code: ErrorCode,
        /// Why, for people.
        message: String,
    },
    /// An answer to another question.
    #[error("the agent's answer does not fit the question")]
    Unexpected,
    /// A published state file could not be read.
    #[error("read {path}", path = .path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether this means that no agent is there, rather than that it said something.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Error::Connect { .. } | Error::Io { .. } | Error::Closed | Error::Deadline)
    }
}
