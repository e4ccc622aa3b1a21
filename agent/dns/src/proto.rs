//! Messages on the local socket: a length (u32, little endian), then JSON.
//!
//! Either side ignores fields it does not know; an operation that is not known is answered by [`Reply::Unsupported`].

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io,
    net::{IpAddr, SocketAddr},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The longest message, in bytes.
const MESSAGE_MAX: usize = 64 * 1024;

/// What a client asks for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Who are you, and how do you do?
    Status,
    /// Give me what you listen with and the lock, and go on until I say `End` on this connection. If I go without it,
    /// you stay in charge.
    HandOver,
    /// Finish what is under way and end.
    End,
    /// Anything else.
    #[serde(other)]
    Unknown,
}

/// The answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// To `Status`.
    Status(Box<Status>),
    /// To `HandOver`, with descriptors: the lock, then the sockets.
    HandedOver,
    /// To `HandOver`, while another one is taking over: ask again later.
    Busy,
    /// To `End`.
    Ending,
    /// Not known here.
    Unsupported,
}

/// What `berth dns` says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Where it listens.
    pub addresses: Vec<IpAddr>,
    /// The zone's serial number; nothing where there was no zone yet.
    pub serial: Option<u32>,
    /// The Services in the zone.
    pub services: usize,
    /// Why the newest zone file is not the one in use.
    pub zone_error: Option<String>,
    /// Who is asked for other names.
    pub upstreams: Vec<SocketAddr>,
    /// Answers kept of theirs.
    pub cached: usize,
    /// What was asked since it started.
    pub counts: Counts,
}

/// What was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Questions in datagrams.
    pub udp: u64,
    /// Questions in streams.
    pub tcp: u64,
    /// Answered from the zone.
    pub zone: u64,
    /// Answered from the cache.
    pub cache: u64,
    /// Answered by an upstream.
    pub upstream: u64,
    /// Not answered: no zone yet, all upstreams silent, too many questions at once.
    pub failed: u64,
    /// Refused: malformed, or of a kind that is not answered.
    pub refused: u64,
}

/// One message as it is sent.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// Writes one message.
pub(crate) async fn send(to: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(message)?).await
}

/// Reads one message.
pub(crate) async fn receive<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let mut head = [0; 4];
    from.read_exact(&mut head).await?;
    receive_rest(head, from).await
}

/// Reads what follows a message's length.
pub(crate) async fn receive_rest<T: DeserializeOwned>(
    head: [u8; 4],
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<T> {
    let length = usize::try_from(u32::from_le_bytes(head)).map_err(io::Error::other)?;
    if length > MESSAGE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    let mut json = vec![0; length];
    from.read_exact(&mut json).await?;
    Ok(serde_json::from_slice(&json)?)
}
