//! Errors of manifests, for the person who wrote them, and of the source itself.

use std::{fmt, path::PathBuf};

/// A file, or one object in it, that cannot be used. The objects of the file's last good version stay as they
/// were.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManifestError {
    /// The file; empty for a text that is not from a file.
    pub file: PathBuf,
    /// The number of the document, from 1; `None` for the file as a whole, or if it has a single document.
    pub document: Option<usize>,
    /// The field, for example `spec.containers[0].ports[1].containerPort`.
    pub field: Option<String>,
    /// What is wrong, for the author of the manifest.
    pub reason: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lead = "";
        if !self.file.as_os_str().is_empty() {
            write!(f, "{}", self.file.display())?;
            lead = ": ";
        }
        if let Some(document) = self.document {
            write!(f, "{lead}document {document}")?;
            lead = ": ";
        }
        if let Some(field) = &self.field {
            write!(f, "{lead}{field}")?;
            lead = ": ";
        }
        write!(f, "{lead}{}", self.reason)
    }
}

impl std::error::Error for ManifestError {}

/// An operation of the source that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// inotify could not be set up; changes are found by the rescan only.
    #[error("cannot watch the manifest directory {dir}", dir = .dir.display())]
    Watch {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A state file of the source could not be written or removed.
    #[error("cannot write the state file {path}", path = .path.display())]
    State {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The thread of the directory did not end in time.
    #[error("cannot stop the thread of the manifest directory {dir}: it did not end in time", dir = .dir.display())]
    Stop {
        /// The directory.
        dir: PathBuf,
    },
}
