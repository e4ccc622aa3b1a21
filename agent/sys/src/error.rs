//! Errors of this crate's system calls.

use std::{io, path::PathBuf};

/// Result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation and the file or process that it concerns. The kernel's error is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Path of the file or directory.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A file or directory could not be made, written or renamed.
    #[error("cannot write {}", path.display())]
    Write {
        /// Path of the file or directory.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A file or directory could not be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// Path of the file or directory.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A file or directory could not be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// Path of the file or directory.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// An entry of a directory could not be copied.
    #[error("cannot copy {:?}", path.display())]
    Copy {
        /// Path of the entry, relative to the directory.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A file exceeds the size limit of its reader.
    #[error("{} is longer than {max} bytes", path.display())]
    TooLong {
        /// Path of the file.
        path: PathBuf,
        /// Size limit in bytes.
        max: usize,
    },
    /// A file has unexpected content.
    #[error("{} {reason}", path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// Fault in the content.
        reason: String,
    },
    /// A file system could not be mounted.
    #[error("cannot {what} at {}", path.display())]
    Mount {
        /// The failed operation, for example `mount a tmpfs`.
        what: &'static str,
        /// Mount point.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A mount could not be unmounted.
    #[error("cannot unmount {}", path.display())]
    Unmount {
        /// Mount point.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A tree was not deleted, because it contains a mount.
    #[error("refusing to delete {}: {} is a mount", path.display(), mount.display())]
    MountBelow {
        /// Root directory of the tree.
        path: PathBuf,
        /// Mount point in the tree.
        mount: PathBuf,
    },
    /// A step of making namespaces failed.
    #[error("cannot {what} for the namespaces in {}", path.display())]
    Namespace {
        /// The failed step.
        what: &'static str,
        /// The directory of the pins, or the file of the namespace.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// This crate refuses to set a sysctl.
    #[error("cannot set sysctl {name:?}: {reason}")]
    Sysctl {
        /// Name as passed by the caller.
        name: String,
        /// Reason for the refusal.
        reason: &'static str,
    },
    /// The kernel refused a sysctl.
    #[error("cannot set sysctl {name:?} to {value:?}")]
    SysctlWrite {
        /// Name as passed by the caller.
        name: String,
        /// Value of the write.
        value: String,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// An operation on a process failed.
    #[error("cannot {what} process {pid}")]
    Process {
        /// The failed operation.
        what: &'static str,
        /// Process id.
        pid: u32,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The pause program could not be started.
    #[error("cannot start pause: {step}")]
    Pause {
        /// The step that failed.
        step: &'static str,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a new thread.
    #[error("cannot start a thread to {what}")]
    Thread {
        /// Purpose of the thread.
        what: &'static str,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A clock could not be read.
    #[error("cannot read the clock {clock}")]
    Clock {
        /// Name of the clock.
        clock: &'static str,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
}
