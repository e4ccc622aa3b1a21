//! Messages on logd's socket: a length (u32, little endian), then JSON.
//!
//! Each side ignores unknown fields and answers an unknown operation with [`Reply::Unsupported`],
//! so that an agent and a logd of neighbouring versions understand each other. [`PROTOCOL`] is
//! raised when a meaning changes. Each side accepts its own number and the one before.

mod stream;

pub use stream::{StreamPaths, StreamSpec, attach_fifo, log_name};

use crate::frame;
use berth_core::ids::{ContainerId, PodKey, PodUid};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io;

/// Version of this protocol.
pub const PROTOCOL: u32 = 1;

/// The longest request in bytes. A longer one ends the connection.
pub const REQUEST_MAX: usize = 64 * 1024;

/// The longest reply in bytes: a list of some ten thousand streams.
pub const REPLY_MAX: usize = 16 * 1024 * 1024;

/// A message with its protocol version and sequence number.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`PROTOCOL`] of the sender.
    pub v: u32,
    /// Sequence number, chosen by the client and repeated in the reply.
    #[serde(default)]
    pub seq: u64,
    /// The request or reply.
    pub body: T,
}

/// A request of a client.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Ask for logd's version and process id.
    Hello,
    /// Register a stream; see `Client::register`.
    Register {
        /// The stream.
        spec: StreamSpec,
    },
    /// Finish a stream; see `Client::finish`.
    Finish {
        /// The container.
        id: ContainerId,
    },
    /// Remove an attempt's output; see `Client::remove_attempt`.
    RemoveAttempt {
        /// The stream.
        spec: StreamSpec,
    },
    /// Remove a pod's output; see `Client::remove_pod`.
    RemovePod {
        /// The pod's namespace and name.
        key: PodKey,
        /// The pod's UID.
        uid: PodUid,
    },
    /// Attach a reader to a container's output; see `Client::attach`.
    Attach {
        /// The container.
        id: ContainerId,
        /// Name of the attachment, which names its FIFOs: see [`attach_fifo`].
        session: String,
    },
    /// Drop logd's hold of a container's standard input; see `Client::close_stdin`.
    CloseStdin {
        /// The container.
        id: ContainerId,
    },
    /// List all streams; see `Client::list`.
    List,
    /// Ask the active logd to hand over. The server's module documentation describes the exchange.
    Takeover,
    /// The new logd has received everything. It is active once the old one replies `Released`.
    Commit,
}

impl Request {
    /// The operation's name in errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Hello => "hello",
            Request::Register { .. } => "register",
            Request::Finish { .. } => "finish",
            Request::RemoveAttempt { .. } => "remove-attempt",
            Request::RemovePod { .. } => "remove-pod",
            Request::Attach { .. } => "attach",
            Request::CloseStdin { .. } => "close-stdin",
            Request::List => "list",
            Request::Takeover => "takeover",
            Request::Commit => "commit",
        }
    }
}

/// A reply of logd.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reply {
    /// Reply to `Hello`.
    Hello(Hello),
    /// Reply to `Register`.
    Paths(StreamPaths),
    /// Reply to `Finish`.
    Finished(FinishReport),
    /// Reply to `List`.
    Streams {
        /// All streams, ordered by container id.
        streams: Vec<StreamStatus>,
    },
    /// The request was carried out; there is no result.
    Done,
    /// The request failed.
    Failed {
        /// Reason of the failure.
        message: String,
    },
    /// This logd does not know the operation.
    Unsupported {
        /// The part that was not understood.
        message: String,
    },
    /// Reply to `Takeover`, with the lock and the listening socket. That many [`Reply::Handed`]
    /// follow.
    Handover {
        /// Number of containers.
        containers: usize,
    },
    /// One container, with its FIFOs: standard output, standard error and standard input, as far as
    /// it has them.
    Handed {
        /// The stream.
        spec: StreamSpec,
        /// Raw bytes read so far.
        bytes: u64,
        /// Lost records that the log file does not mention yet.
        #[serde(default)]
        lost: u64,
    },
    /// Reply to `Commit`: the old logd has stopped.
    Released,
}

/// Identity of the logd that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Process id.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// Number of streams it drains.
    #[serde(default)]
    pub streams: usize,
}

/// Result of finishing a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishReport {
    /// Whether logd knew the stream. A second finish of one container reports `false` and is no
    /// error.
    pub known: bool,
    /// Raw bytes of output since the registration, or since logd's last forced restart.
    pub bytes: u64,
    /// Records that could not be written, over the same time.
    #[serde(default)]
    pub lost: u64,
}

/// State of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// The registered specification.
    pub spec: StreamSpec,
    /// Raw bytes read so far.
    pub bytes: u64,
    /// Records that could not be written.
    #[serde(default)]
    pub lost: u64,
    /// Reason why output is being dropped now, if it is.
    #[serde(default)]
    pub failing: Option<String>,
}

/// Encodes a message as one frame.
pub fn encode<T: Serialize>(seq: u64, body: T) -> io::Result<Vec<u8>> {
    Ok(frame::encode(&Envelope { v: PROTOCOL, seq, body }, REPLY_MAX)?)
}

/// Decodes the JSON of a frame. A protocol that is neither this one nor a neighbour is an error.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> io::Result<Envelope<T>> {
    let envelope: Envelope<T> = serde_json::from_slice(json)?;
    if envelope.v > PROTOCOL.saturating_add(1) || envelope.v.saturating_add(1) < PROTOCOL {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("cannot decode a message of protocol {}: this build has protocol {PROTOCOL}", envelope.v),
        ));
    }
    Ok(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_ignored_and_unknown_operations_refused() {
        let newer = br#"{"v":2,"seq":7,"body":{"op":"hello","colour":"red"},"trace":1}"#;
        let e: Envelope<Request> = decode(newer).unwrap();
        assert_eq!((e.seq, e.body.name()), (7, "hello"));
        assert!(decode::<Request>(br#"{"v":1,"seq":7,"body":{"op":"dance"}}"#).is_err());
        assert!(decode::<Request>(br#"{"v":9,"seq":7,"body":{"op":"hello"}}"#).is_err());
        let reply = br#"{"v":1,"seq":1,"body":{"kind":"finished","known":true,"bytes":1,"new":[]}}"#;
        assert!(matches!(decode(reply).unwrap().body, Reply::Finished(FinishReport { lost: 0, .. })));
    }
}
