//! Messages on logd's socket: a length (u32, little endian), then JSON.
//!
//! Either side ignores fields it does not know and answers an operation it does not know with [`Reply::Unsupported`],
//! so that an agent and a logd of neighbouring versions understand each other. [`PROTOCOL`] is raised when a meaning
//! changes; each side accepts its own number and the one before.

use crate::spec::{StreamPaths, StreamSpec};
use berth_core::ids::{ContainerId, PodKey, PodUid};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io;

/// The number of this protocol.
pub(crate) const PROTOCOL: u32 = 1;

/// The longest request; a longer one ends the connection.
pub(crate) const REQUEST_MAX: usize = 64 * 1024;

/// The longest answer: a list of some ten thousand streams.
pub(crate) const REPLY_MAX: usize = 16 * 1024 * 1024;

/// What travels.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope<T> {
    /// [`PROTOCOL`] of the sender.
    pub(crate) v: u32,
    /// Chosen by the asking side, repeated in the answer.
    #[serde(default)]
    pub(crate) seq: u64,
    /// The request or answer.
    pub(crate) body: T,
}

/// What a client asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Are you there?
    Hello,
    /// See `Client::register`.
    Register {
        /// The stream.
        spec: StreamSpec,
    },
    /// See `Client::finish`.
    Finish {
        /// The container.
        id: ContainerId,
    },
    /// See `Client::remove_attempt`.
    RemoveAttempt {
        /// The stream.
        spec: StreamSpec,
    },
    /// See `Client::remove_pod`.
    RemovePod {
        /// The pod's names.
        key: PodKey,
        /// Its UID.
        uid: PodUid,
    },
    /// See `Client::list`.
    List,
    /// A new logd wants to be in charge; the server's module documentation has the rest of the exchange.
    Takeover,
    /// The new logd has everything and is in charge once this is answered by `Released`.
    Commit,
}

impl Request {
    /// The name in errors.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Request::Hello => "hello",
            Request::Register { .. } => "register",
            Request::Finish { .. } => "finish",
            Request::RemoveAttempt { .. } => "remove-attempt",
            Request::RemovePod { .. } => "remove-pod",
            Request::List => "list",
            Request::Takeover => "takeover",
            Request::Commit => "commit",
        }
    }
}

/// What logd answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// To hello.
    Hello(Hello),
    /// To register.
    Paths(StreamPaths),
    /// To finish.
    Finished(FinishReport),
    /// To list.
    Streams {
        /// All of them, by container id.
        streams: Vec<StreamStatus>,
    },
    /// Done, with nothing to tell.
    Done,
    /// It could not be done.
    Failed {
        /// Why.
        message: String,
    },
    /// This logd does not know the operation.
    Unsupported {
        /// What was not understood.
        message: String,
    },
    /// To takeover: comes with the lock and the listener, and that many [`Reply::Handed`] follow.
    Handover {
        /// How many containers.
        containers: usize,
    },
    /// One container, with its FIFOs: standard output, standard error, standard input, those that it has.
    Handed {
        /// The stream.
        spec: StreamSpec,
        /// Raw bytes so far.
        bytes: u64,
        /// Records lost and not yet told about in the file.
        #[serde(default)]
        lost: u64,
    },
    /// To commit: the old logd has ended its work.
    Released,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// logd's process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Streams under its care.
    #[serde(default)]
    pub streams: usize,
}

/// What became of a stream that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishReport {
    /// Whether logd knew it; a second finish of one container reports `false` and is no error.
    pub known: bool,
    /// Raw bytes of output since it was registered (since logd's last restart by force, if there was one).
    pub bytes: u64,
    /// Records that could not be written, over the same time.
    #[serde(default)]
    pub lost: u64,
}

/// One stream under logd's care.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// What was registered.
    pub spec: StreamSpec,
    /// Raw bytes so far.
    pub bytes: u64,
    /// Records that could not be written.
    #[serde(default)]
    pub lost: u64,
    /// Why output is being dropped now, if it is.
    #[serde(default)]
    pub failing: Option<String>,
}

/// A message as it travels.
pub(crate) fn encode<T: Serialize>(seq: u64, body: T) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(&Envelope { v: PROTOCOL, seq, body })?;
    let len = u32::try_from(json.len()).map_err(io::Error::other)?;
    let mut frame = len.to_le_bytes().to_vec();
    frame.extend_from_slice(&json);
    Ok(frame)
}

/// Reads a message without its length.
pub(crate) fn decode<T: DeserializeOwned>(json: &[u8]) -> io::Result<Envelope<T>> {
    let envelope: Envelope<T> = serde_json::from_slice(json)?;
    if envelope.v > PROTOCOL.saturating_add(1) || envelope.v.saturating_add(1) < PROTOCOL {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("protocol {} is not spoken", envelope.v),
        ));
    }
    Ok(envelope)
}

/// The length that a message begins with.
pub(crate) fn length(head: [u8; 4], max: usize) -> io::Result<usize> {
    let len = usize::try_from(u32::from_le_bytes(head)).map_err(io::Error::other)?;
    if len > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message of {len} bytes is too long"),
        ));
    }
    Ok(len)
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
