//! What can go wrong, in words for the person who wrote the manifest.

use std::{fmt, path::PathBuf};

/// A file, or one object in it, that cannot be used. Everything that its last good version held stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManifestError {
    /// The file; empty for a text that came from none.
    pub file: PathBuf,
    /// Which document of the file, counted from 1; `None` where it is about the file as a whole, or there is but one.
    pub document: Option<usize>,
    /// The field, for example `spec.containers[0].ports[1].containerPort`.
    pub field: Option<String>,
    /// What is wrong, for people.
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
    /// inotify could not be set up; the slow rescan goes on without it.
    #[error("watch manifest directory {dir}", dir = .dir.display())]
    Watch {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The last good contents of a manifest could not be written or read.
    #[error("remember manifests in {path}", path = .path.display())]
    Remember {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The directory's task did not end in time.
    #[error("stop the manifest source of {dir}: it did not end in time", dir = .dir.display())]
    Stop {
        /// The directory.
        dir: PathBuf,
    },
}
