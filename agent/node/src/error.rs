//! What can go wrong with cgroups.

use std::{io, path::PathBuf};

/// A failed operation and what it was about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mounts of this machine could not be read.
    #[error("cannot find the cgroup hierarchies")]
    Discover {
        /// Why.
        #[source]
        source: berth_sys::Error,
    },
    /// Nothing is mounted where cgroups should be.
    #[error("no cgroup hierarchy is mounted below {}", path.display())]
    NoHierarchy {
        /// Where was looked.
        path: PathBuf,
    },
    /// A configured cgroup is not a relative path below the hierarchy's root.
    #[error("cgroup {} must be relative, without '..', and not the root", path.display())]
    BadRoot {
        /// As configured.
        path: PathBuf,
    },
    /// A cgroup could not be made.
    #[error("cannot make cgroup {}", path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A cgroup file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A cgroup file could not be written.
    #[error("cannot write {value:?} to {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A limit of a cgroup could not be set.
    #[error("cannot set {what} of cgroup {} to {value}", path.display())]
    Limit {
        /// Which limit.
        what: &'static str,
        /// Which cgroup.
        path: PathBuf,
        /// The wanted value.
        value: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A cgroup could not be removed.
    #[error("cannot remove cgroup {}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A cgroup still holds processes after all tries.
    #[error("cgroup {} still holds processes {pids:?}", path.display())]
    Busy {
        /// Which.
        path: PathBuf,
        /// Those in it, the first few.
        pids: Vec<u32>,
    },
    /// A process could not be killed.
    #[error("cannot kill process {pid}")]
    Kill {
        /// Which.
        pid: u32,
        /// Why.
        #[source]
        source: berth_sys::Error,
    },
}
