//! Errors of the servers.

use std::{io, path::PathBuf};

/// A failed operation of a server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be made.
    #[error("cannot listen on {path}", path = .path.display())]
    Listen {
        /// The path of the socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The status files cannot be written or removed.
    #[error("cannot keep status files in {path}", path = .path.display())]
    StatusFiles {
        /// The directory or file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}
