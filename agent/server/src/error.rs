//! What can go wrong with the socket.

use std::{io, path::PathBuf};

/// An operation of the server that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be listened on.
    #[error("listen on {path}", path = .path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory of the status files cannot be made or read.
    #[error("keep status files in {path}", path = .path.display())]
    StatusFiles {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
