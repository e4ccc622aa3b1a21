//! Messages on the local socket of `berth dns`: a length (u32, little endian), then JSON.
//!
//! Each side ignores unknown fields. An unknown operation is answered by [`Reply::Unsupported`].

use crate::{Error, frame};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// The longest message in bytes.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// A request of a client.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Request the server's status.
    Status,
    /// Request the lock and the listening sockets, by SCM_RIGHTS. The server keeps serving until
    /// `End` on this connection. If the connection closes first, the server keeps the lock.
    HandOver,
    /// Finish the questions in flight and end.
    End,
    /// An operation that this build does not know.
    #[serde(other)]
    Unknown,
}

/// A reply of the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Reply to `Status`.
    Status(Box<Status>),
    /// Reply to `HandOver`, with descriptors: the lock, then the sockets.
    HandedOver,
    /// Reply to `HandOver` while another server is taking over: to be tried again.
    Busy,
    /// Reply to `End`.
    Ending,
    /// The server does not know the operation.
    Unsupported,
}

/// Status of `berth dns`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Addresses at which it listens.
    pub addresses: Vec<IpAddr>,
    /// The zone's serial number; None before the first zone.
    pub serial: Option<u32>,
    /// Number of Services in the zone.
    pub services: usize,
    /// Reason why the newest zone file is not in use, if it is not.
    pub zone_error: Option<String>,
    /// Upstreams for other names.
    pub upstreams: Vec<SocketAddr>,
    /// Number of cached upstream answers.
    pub cached: usize,
    /// Counts of questions since the start.
    pub counts: Counts,
}

/// Counts of questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Questions by UDP.
    pub udp: u64,
    /// Questions by TCP.
    pub tcp: u64,
    /// Answers from the zone.
    pub zone: u64,
    /// Answers from the cache.
    pub cache: u64,
    /// Answers of an upstream.
    pub upstream: u64,
    /// Questions without an answer: no zone yet, no upstream answered, or too many questions at
    /// once.
    pub failed: u64,
    /// Questions refused: malformed, or of a kind that is not answered.
    pub refused: u64,
}

/// Encodes one message as a frame.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, Error> {
    frame::encode(message, MESSAGE_MAX)
}
