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
    #[error("cannot use zone {path:?}: {reason}")]
    Zone {
        /// The file.
        path: PathBuf,
        /// Reason of the failure.
        reason: String,
    },
    /// Reading or writing a file.
    #[error("cannot read or write {path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Reading or writing a state file by `berth_sys`.
    #[error("cannot read or write state file {path:?}")]
    State {
        /// The file.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: berth_sys::Error,
    },
    /// Listing or changing an address of `lo`.
    #[error("cannot {op} address {address} on lo")]
    Address {
        /// The operation.
        op: &'static str,
        /// The address.
        address: IpAddr,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Binding a socket for questions.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Listening on the local socket.
    #[error("cannot listen on {path:?}")]
    LocalSocket {
        /// The socket.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Connecting to the local socket, or talking over the connection.
    #[error("cannot reach berth dns at {path:?}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Setting up kernel events or the runtime.
    #[error("cannot {what}")]
    Kernel {
        /// The operation.
        what: &'static str,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Another `berth dns` holds the lock and does not hand over.
    #[error("cannot become the active berth dns: another one holds {path:?} and does not hand over")]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// `berth dns` did not answer within the deadline.
    #[error("cannot get an answer from berth dns to {op} within {after:?}")]
    Deadline {
        /// The request.
        op: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// `berth dns` sent a reply that does not belong to the request.
    #[error("berth dns sent a reply to something else than {op}")]
    Unexpected {
        /// The request.
        op: &'static str,
    },
}
