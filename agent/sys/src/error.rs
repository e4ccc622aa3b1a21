//! What can go wrong between this program and the kernel.

use std::{io, path::PathBuf};

/// The outcome of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation and what it was about. The kernel's answer is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or directory could not be made, written or renamed.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or directory could not be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or directory could not be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry of a directory could not be copied.
    #[error("cannot copy {:?}", path.display())]
    Copy {
        /// Which, relative to the directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is longer than its reader takes.
    #[error("{} is longer than {max} bytes", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
        /// The most that is taken.
        max: usize,
    },
    /// A file does not hold what it must.
    #[error("{} {reason}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file system could not be mounted.
    #[error("cannot {what} at {}", path.display())]
    Mount {
        /// What was tried, for example `mount a tmpfs`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A mount could not be taken away.
    #[error("cannot unmount {}", path.display())]
    Unmount {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tree is not deleted, because something is mounted in it.
    #[error("refusing to delete {}: {} is a mount", path.display(), mount.display())]
    MountBelow {
        /// The tree.
        path: PathBuf,
        /// The mount in it.
        mount: PathBuf,
    },
    /// A step of making namespaces failed.
    #[error("cannot {what} for the namespaces in {}", path.display())]
    Namespace {
        /// What was tried.
        what: &'static str,
        /// The directory of the pins, or the file of the namespace.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A sysctl that is not set.
    #[error("cannot set sysctl {name:?}: {reason}")]
    Sysctl {
        /// Its name as given.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A sysctl that the kernel refused.
    #[error("cannot set sysctl {name:?} to {value:?}")]
    SysctlWrite {
        /// Its name as given.
        name: String,
        /// The value.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An operation on a process failed.
    #[error("cannot {what} process {pid}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// Which.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pause program could not be started.
    #[error("cannot start pause: {step}")]
    Pause {
        /// The step that failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel gave no thread.
    #[error("cannot start a thread to {what}")]
    Thread {
        /// What it was for.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A clock could not be read.
    #[error("cannot read the clock {clock}")]
    Clock {
        /// Its name.
        clock: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}
