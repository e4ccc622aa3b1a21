//! Errors of cgroup operations.

use std::{io, path::PathBuf};

/// A failed operation, with the cgroup, file or process that it concerns.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mounts of this machine could not be read.
    #[error("cannot find the cgroup hierarchies")]
    Discover {
        /// Cause of the failure.
        #[source]
        source: berth_sys::Error,
    },
    /// No cgroup hierarchy is mounted below the configured directory.
    #[error("no cgroup hierarchy is mounted below {}", path.display())]
    NoHierarchy {
        /// Configured mount directory of the hierarchies.
        path: PathBuf,
    },
    /// A configured cgroup is not a relative path below the hierarchy's root.
    #[error("cgroup {} must be relative, without '..', and not the root", path.display())]
    BadRoot {
        /// Path of the cgroup as configured.
        path: PathBuf,
    },
    /// A cgroup could not be made.
    #[error("cannot make cgroup {}", path.display())]
    Create {
        /// Directory of the cgroup.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// A cgroup file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// A cgroup file could not be written.
    #[error("cannot write {value:?} to {}", path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Value that the write carried.
        value: String,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// A limit of a cgroup could not be set.
    #[error("cannot set {what} of cgroup {} to {value}", path.display())]
    Limit {
        /// Name of the limit.
        what: &'static str,
        /// Directory of the cgroup.
        path: PathBuf,
        /// Value of the limit.
        value: String,
        /// Cause of the failure.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A cgroup could not be removed.
    #[error("cannot remove cgroup {}", path.display())]
    Remove {
        /// Directory of the cgroup.
        path: PathBuf,
        /// Cause of the failure.
        #[source]
        source: io::Error,
    },
    /// A cgroup still holds processes after all tries.
    #[error("cgroup {} still holds processes {pids:?}", path.display())]
    Busy {
        /// Directory of the cgroup.
        path: PathBuf,
        /// Ids of the first few processes in it.
        pids: Vec<u32>,
    },
    /// A process could not be killed.
    #[error("cannot kill process {pid}")]
    Kill {
        /// Process id.
        pid: u32,
        /// Cause of the failure.
        #[source]
        source: berth_sys::Error,
    },
}
