//! Errors of this crate, one variant an operation.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// A failed operation with its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading a zone.
    #[error("zone {path:?}: {reason}")]
    Zone {
        /// The file.
        path: PathBuf,
        /// Reason.
        reason: String,
    },
    /// Reading or writing a file.
    #[error("file {path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Reading or writing a state file by `berth_sys`.
    #[error("state file {path:?}")]
    State {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: berth_sys::Error,
    },
    /// Listing or changing an address of `lo`.
    #[error("{op} address {address} of lo")]
    Address {
        /// The operation.
        op: &'static str,
        /// The address.
        address: IpAddr,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Binding a socket for questions.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Binding or connecting to the local socket.
    #[error("socket {path:?}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Setting up kernel events or the runtime.
    #[error("{what}")]
    Kernel {
        /// The operation.
        what: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Another `berth dns` holds the lock and does not hand over.
    #[error("another berth dns holds {path:?}")]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// `berth dns` did not answer within the deadline.
    #[error("{op}: no answer from berth dns within {after:?}")]
    Deadline {
        /// The request.
        op: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// `berth dns` sent a reply that does not belong to the request.
    #[error("{op}: berth dns answered something else")]
    Unexpected {
        /// The request.
        op: &'static str,
    },
}
