//! What can go wrong here, one variant for each operation.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// An operation that failed, with its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A zone that cannot be read.
    #[error("zone {path:?}: {reason}")]
    Zone {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Reading or writing a file.
    #[error("file {path:?}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Reading or writing a file by a crate of ours.
    #[error("state file {path:?}")]
    State {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: berth_sys::Error,
    },
    /// Looking at or changing an address of `lo`.
    #[error("{op} address {address} of lo")]
    Address {
        /// The operation.
        op: &'static str,
        /// The address.
        address: IpAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Binding a socket.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Listening on or connecting to the local socket.
    #[error("socket {path:?}")]
    Socket {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Setting up kernel events or the runtime.
    #[error("{what}")]
    Kernel {
        /// The operation.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another one is in charge and does not yield.
    #[error("another berth dns holds {path:?}")]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// Nobody answered in time.
    #[error("{op}: no answer from berth dns within {after:?}")]
    Deadline {
        /// The request.
        op: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// An answer to something else.
    #[error("{op}: berth dns answered something else")]
    Unexpected {
        /// The request.
        op: &'static str,
    },
}
