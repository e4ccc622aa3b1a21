//! Errors between the agent and containerd, and their classification.

use berth_core::ids::{ContainerId, IdError};
use std::{fmt, io, path::PathBuf, time::Duration};

/// containerd's answer to a failed call. Its text is the message alone: the gRPC code is in [`Kind`].
#[derive(Debug)]
pub struct Answer(Box<tonic::Status>);

impl Answer {
    /// The text of containerd, its shim or the OCI runtime.
    pub fn message(&self) -> &str {
        self.0.message()
    }

    /// Whether the call broke below gRPC, or a daemon that ends has cancelled it.
    fn is_lost(&self) -> bool {
        std::error::Error::source(&*self.0).is_some() || self.0.code() == tonic::Code::Cancelled
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

/// Classification of a failed call. The caller decides by the kind, never by the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The subject does not exist.
    NotFound,
    /// The subject exists already.
    AlreadyExists,
    /// containerd could not be reached or the connection broke during the call: the subject's state is
    /// unknown.
    Unavailable,
    /// No answer within the call's deadline: the subject's state is unknown.
    Deadline,
    /// The subject's state forbids the call, for example deleting a running task.
    Precondition,
    /// containerd, the shim or runc refused the call.
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
        /// Description of the value.
        what: &'static str,
        /// The rejected value.
        value: String,
    },
    /// A call to containerd failed.
    #[error("cannot {operation} {subject}")]
    Call {
        /// The requested operation, as a verb phrase.
        operation: &'static str,
        /// The subject of the operation.
        subject: String,
        /// The classification.
        kind: Kind,
        /// containerd's answer.
        #[source]
        source: Answer,
    },
    /// A call had no answer before its deadline.
    #[error("no answer to {operation} {subject} within {after:?}")]
    Deadline {
        /// The requested operation, as a verb phrase.
        operation: &'static str,
        /// The subject of the operation.
        subject: String,
        /// The deadline.
        after: Duration,
    },
    /// A pull made no progress.
    #[error("no progress of the pull of image {image} within {after:?}")]
    Stalled {
        /// The image.
        image: String,
        /// The longest time without progress.
        after: Duration,
    },
    /// The answer lacks a part that the protocol promises.
    #[error("containerd's answer to {operation} {subject} lacks {missing}")]
    Answer {
        /// The requested operation, as a verb phrase.
        operation: &'static str,
        /// The subject of the operation.
        subject: String,
        /// The missing part.
        missing: &'static str,
    },
    /// A stored or received document cannot be read.
    #[error("cannot read the {what} of {subject}")]
    Decode {
        /// Kind of document.
        what: &'static str,
        /// Owner of the document.
        subject: String,
        /// The decoder's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A document or message cannot be written as JSON.
    #[error("cannot encode the {what} of {subject}")]
    Encode {
        /// Kind of document.
        what: &'static str,
        /// Owner of the document.
        subject: String,
        /// The encoder's error.
        #[source]
        source: serde_json::Error,
    },
    /// The identity in a container's record is invalid.
    #[error("the record of container {id:?} names no valid container")]
    Identity {
        /// The record's id.
        id: String,
        /// The fault of the identity.
        #[source]
        source: IdError,
    },
    /// A blob of an image is larger than any valid one.
    #[error("the {what} of image {image} has {size} bytes, more than {limit}")]
    TooLarge {
        /// Kind of blob.
        what: &'static str,
        /// The image.
        image: String,
        /// Size of the blob in bytes.
        size: u64,
        /// Maximum size in bytes.
        limit: u64,
    },
    /// The image has no manifest for this machine.
    #[error("image {image} has no manifest for {platform}")]
    Platform {
        /// The image.
        image: String,
        /// The machine, as `os/architecture`.
        platform: String,
    },
    /// The image's manifest and configuration contradict each other, or a layer contradicts them.
    #[error("image {image} is not consistent: {reason}")]
    Image {
        /// The image.
        image: String,
        /// Description of the contradiction.
        reason: String,
    },
    /// The image's file tree could not be mounted.
    #[error("cannot open the files of image {image}")]
    ImageRoot {
        /// The image.
        image: String,
        /// The system's error.
        #[source]
        source: berth_sys::Error,
    },
    /// An imported archive names no image.
    #[error("archive {} names no image", path.display())]
    Unnamed {
        /// The archive.
        path: PathBuf,
    },
    /// A local file or FIFO could not be used.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// The operation, as a verb.
        operation: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A shim could not be started.
    #[error("cannot start shim {}", binary.display())]
    Shim {
        /// The shim's binary.
        binary: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The path of a unix socket exceeds the kernel's limit.
    #[error("socket path {} is longer than {limit} bytes", path.display())]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Maximum length in bytes.
        limit: usize,
    },
    /// A process could not be signalled.
    #[error("cannot send signal {signal} to process {pid} of container {id}")]
    Signal {
        /// The container.
        id: ContainerId,
        /// The process.
        pid: u32,
        /// The signal.
        signal: i32,
        /// The system's error.
        #[source]
        source: berth_sys::Error,
    },
}

impl Error {
    /// The classification of the failure.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Call { kind, .. } => *kind,
            Error::Connect { .. } => Kind::Unavailable,
            Error::Deadline { .. } | Error::Stalled { .. } => Kind::Deadline,
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

    /// Whether the subject's state is unknown: the call may or may not have taken effect, and a retry is
    /// right.
    pub fn is_unknown(&self) -> bool {
        matches!(self.kind(), Kind::Unavailable | Kind::Deadline)
    }

    /// Whether the connection to containerd, or containerd itself, was lost in the call.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Error::Connect { .. } => true,
            Error::Call { source, .. } => source.is_lost(),
            _ => false,
        }
    }

    /// The cause alone, without the operation: containerd's own words where there are any.
    pub fn cause(&self) -> String {
        match self {
            Error::Call { source, .. } => source.message().to_owned(),
            other => berth_core::error::Chain(other).to_string(),
        }
    }

    pub(crate) fn file(operation: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::File { operation, path, source }
    }
}

/// Turns "not found" into `None`, for removals: an absent subject is already removed.
pub(crate) fn absent<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == Kind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Turns "already exists" into `None`.
pub(crate) fn present<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == Kind::AlreadyExists => Ok(None),
        Err(e) => Err(e),
    }
}
