//! What can go wrong between the agent and containerd, and how a failure is to be read.

use berth_core::ids::{ContainerId, IdError};
use std::{fmt, io, path::PathBuf, time::Duration};

/// containerd's answer to a call that failed. Prints as its message alone: the gRPC code is in [`Kind`].
#[derive(Debug)]
pub struct Answer(Box<tonic::Status>);

impl Answer {
    /// What containerd, its shim or the OCI runtime wrote.
    pub fn message(&self) -> &str {
        self.0.message()
    }
}

impl From<tonic::Status> for Answer {
    fn from(status: tonic::Status) -> Answer {
        Answer(Box::new(status))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Answer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.0)
    }
}

/// How a failed call is to be taken; the caller decides by this, never by text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The subject is not there.
    NotFound,
    /// The subject is there already.
    AlreadyExists,
    /// containerd could not be reached or went away during the call: nothing is known about the subject.
    Unavailable,
    /// No answer within the call's deadline: nothing is known about the subject.
    Deadline,
    /// The subject's state forbids it, for example deleting a running task.
    Precondition,
    /// containerd, the shim or runc refused.
    Refused,
    /// A local step failed: a file, a FIFO, a spawned shim.
    Local,
}

/// A failed operation of this adapter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// containerd's socket could not be used.
    #[error("cannot reach containerd at {}", socket.display())]
    Connect {
        /// The socket that was tried.
        socket: PathBuf,
        /// The failed connect.
        #[source]
        source: io::Error,
    },
    /// A configured value cannot be sent to containerd.
    #[error("{what} {value:?} cannot be used with containerd")]
    Config {
        /// Which value.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// A call failed.
    #[error("cannot {operation} {subject}")]
    Call {
        /// What was asked for, as a verb phrase.
        operation: &'static str,
        /// What it was asked for.
        subject: String,
        /// How to take it.
        kind: Kind,
        /// containerd's answer.
        #[source]
        source: Answer,
    },
    /// A call had no answer in time.
    #[error("no answer to {operation} {subject} within {after:?}")]
    Deadline {
        /// What was asked for.
        operation: &'static str,
        /// What it was asked for.
        subject: String,
        /// The deadline.
        after: Duration,
    },
    /// The answer misses a part that the protocol promises.
    #[error("containerd's answer to {operation} {subject} lacks {missing}")]
    Answer {
        /// What was asked for.
        operation: &'static str,
        /// What it was asked for.
        subject: String,
        /// The missing part.
        missing: &'static str,
    },
    /// A stored or received document cannot be read.
    #[error("cannot read the {what} of {subject}")]
    Decode {
        /// Which document.
        what: &'static str,
        /// Whose.
        subject: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A document or message cannot be written as JSON.
    #[error("cannot encode the {what} of {subject}")]
    Encode {
        /// Which document.
        what: &'static str,
        /// Whose.
        subject: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A stored identity is not one.
    #[error("the record of container {id:?} names no valid container")]
    Identity {
        /// The record's id.
        id: String,
        /// What is wrong with it.
        #[source]
        source: IdError,
    },
    /// An image's blob is larger than an honest one.
    #[error("the {what} of image {image} has {size} bytes, more than {limit}")]
    TooLarge {
        /// Which blob.
        what: &'static str,
        /// The image.
        image: String,
        /// Its size.
        size: u64,
        /// The most that is read.
        limit: u64,
    },
    /// An image has nothing for this machine.
    #[error("image {image} has no manifest for {platform}")]
    Platform {
        /// The image.
        image: String,
        /// The machine, as `os/architecture`.
        platform: String,
    },
    /// An image's manifest and configuration do not fit together, or a layer is not what they say.
    #[error("image {image} is not consistent: {reason}")]
    Image {
        /// The image.
        image: String,
        /// What does not fit.
        reason: String,
    },
    /// The tree of an image could not be mounted.
    #[error("cannot open the files of image {image}")]
    ImageRoot {
        /// The image.
        image: String,
        /// Why not.
        #[source]
        source: berth_sys::Error,
    },
    /// An archive was imported, but it names no image.
    #[error("archive {} names no image", path.display())]
    Unnamed {
        /// The archive.
        path: PathBuf,
    },
    /// A local file or FIFO could not be used.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A shim could not be started.
    #[error("cannot start shim {}", binary.display())]
    Shim {
        /// The shim's binary.
        binary: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A unix socket's path is longer than the kernel takes.
    #[error("socket path {} is longer than {limit} bytes", path.display())]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// The most.
        limit: usize,
    },
    /// A process could not be signalled.
    #[error("cannot send signal {signal} to process {pid} of container {id}")]
    Signal {
        /// The container.
        id: ContainerId,
        /// Its process.
        pid: u32,
        /// The signal.
        signal: i32,
        /// Why not.
        #[source]
        source: berth_sys::Error,
    },
}

impl Error {
    /// How the failure is to be taken.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Call { kind, .. } => *kind,
            Error::Connect { .. } => Kind::Unavailable,
            Error::Deadline { .. } => Kind::Deadline,
            Error::Answer { .. }
            | Error::Decode { .. }
            | Error::Identity { .. }
            | Error::TooLarge { .. }
            | Error::Platform { .. }
            | Error::Image { .. }
            | Error::Unnamed { .. } => Kind::Refused,
            Error::Config { .. }
            | Error::Encode { .. }
            | Error::File { .. }
            | Error::ImageRoot { .. }
            | Error::Shim { .. }
            | Error::SocketPath { .. }
            | Error::Signal { .. } => Kind::Local,
        }
    }

    /// Whether nothing is known about the subject: the call may or may not have happened, and a retry is right.
    pub fn is_unknown(&self) -> bool {
        matches!(self.kind(), Kind::Unavailable | Kind::Deadline)
    }

    pub(crate) fn file(operation: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::File { operation, path, source }
    }
}

/// Turns "not there" into `None`: what is to be gone and is not there is done.
pub(crate) fn absent<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == Kind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Turns "already there" into `None`.
pub(crate) fn present<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == Kind::AlreadyExists => Ok(None),
        Err(e) => Err(e),
    }
}
