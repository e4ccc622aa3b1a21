//! Errors of the node's API, one variant per operation.

use std::{io, net::SocketAddr, path::PathBuf};

/// A failed operation with its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Listening on an address: the port is taken, or the address is not the node's.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Reading a certificate, a key or CAs.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// Using a certificate, a key or CAs.
    #[error("cannot use {}: {reason}", path.display())]
    Use {
        /// The file.
        path: PathBuf,
        /// Cause of the failure.
        reason: String,
    },
    /// Making a certificate.
    #[error("cannot make a serving certificate: {reason}")]
    Make {
        /// Cause of the failure.
        reason: String,
    },
}
