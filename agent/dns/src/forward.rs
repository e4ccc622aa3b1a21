//! Asking the node's upstreams.
//!
//! Each question has a socket of its own, connected, so that the kernel picks its port at random and hands over only
//! what that upstream sends. What does not answer the question is passed over until the deadline. No task is spawned;
//! a dropped future ends the question.
//!
//! An upstream that was silent is asked last for [`DEMOTED`], so that one dead server of two does not cost each
//! question its deadline.

use crate::cache::Key;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::RecordType,
};
use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};

/// How long one upstream may take.
pub const UPSTREAM: Duration = Duration::from_secs(2);

/// How long all of them together may take.
pub const WHOLE: Duration = Duration::from_secs(5);

/// How long an upstream that was silent is asked last.
const DEMOTED: Duration = Duration::from_secs(10);

/// What we take by UDP, in bytes.
const PAYLOAD: u16 = crate::question::UDP_MAX;

/// Who is asked.
#[derive(Debug, Default)]
pub struct Upstreams {
    servers: Mutex<Vec<SocketAddr>>,
    silent: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Upstreams {
    /// Replaces the servers; whether they differ from those before.
    pub fn set(&self, servers: Vec<SocketAddr>) -> bool {
        let mut now = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *now != servers;
        *now = servers;
        changed
    }

    /// The servers, in the order of resolv.conf.
    pub fn servers(&self) -> Vec<SocketAddr> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, those that were silent just now last.
    fn in_turn(&self) -> Vec<SocketAddr> {
        let mut servers = self.servers();
        let (now, mut silent) = (Instant::now(), self.silent.lock().unwrap_or_else(PoisonError::into_inner));
        silent.retain(|server, since| now.duration_since(*since) < DEMOTED && servers.contains(server));
        servers.sort_by_key(|server| silent.contains_key(server));
        servers
    }

    fn heard(&self, server: SocketAddr, answered: bool) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            silent.remove(&server);
        } else {
            silent.insert(server, Instant::now());
        }
    }

    /// Asks one after the other until one has an answer. A name that does not exist is one; a failure or refusal is
    /// told only where no other has better. Nothing where all are silent or there are none.
    pub async fn ask(&self, key: &Key) -> Option<(Message, Vec<u8>)> {
        let end = Instant::now().checked_add(WHOLE)?;
        let mut poor = None;
        for server in self.in_turn() {
            let Some(until) = Instant::now().checked_add(UPSTREAM).map(|t| t.min(end)) else { continue };
            match timeout_at(until, ask_one(server, key)).await {
                Ok(Ok((message, wire))) => {
                    self.heard(server, true);
                    if matches!(
                        message.metadata.response_code,
                        ResponseCode::NoError | ResponseCode::NXDomain
                    ) {
                        return Some((message, wire));
                    }
                    poor = Some((message, wire));
                }
                Ok(Err(error)) => {
                    tracing::debug!(%server, %error, "upstream cannot be asked");
                    self.heard(server, false);
                }
                Err(_elapsed) => self.heard(server, false),
            }
            if Instant::now() >= end {
                break;
            }
        }
        poor
    }
}

async fn ask_one(server: SocketAddr, key: &Key) -> io::Result<(Message, Vec<u8>)> {
    let query = query(key)?;
    let wire = query.to_vec().map_err(io::Error::other)?;
    let (answer, bytes) = by_udp(server, &query, &wire).await?;
    if !answer.metadata.truncation {
        return Ok((answer, bytes));
    }
    by_tcp(server, &query, &wire).await
}

fn query(key: &Key) -> io::Result<Message> {
    if key.kind == RecordType::ANY {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "questions for everything are not forwarded"));
    }
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = key.checking_disabled;
    message.add_query(Query::query(key.name.clone(), key.kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_version(0).set_dnssec_ok(key.dnssec);
    message.set_edns(edns);
    Ok(message)
}

async fn by_udp(server: SocketAddr, query: &Message, wire: &[u8]) -> io::Result<(Message, Vec<u8>)> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(wire).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let n = socket.recv(&mut buffer).await?;
        let bytes = buffer.get(..n).unwrap_or_default();
        if let Some(message) = answers(query, bytes) {
            return Ok((message, bytes.to_vec()));
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &Message, wire: &[u8]) -> io::Result<(Message, Vec<u8>)> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(wire.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(wire);
    stream.write_all(&framed).await?;
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    let garbage = || io::Error::new(io::ErrorKind::InvalidData, "no answer to the question");
    let message = answers(query, &bytes).ok_or_else(garbage)?;
    Ok((message, bytes))
}

/// The message, where it answers that query.
fn answers(query: &Message, bytes: &[u8]) -> Option<Message> {
    let id = bytes.first_chunk::<2>().map(|b| u16::from_be_bytes(*b));
    // Checked first: noise is not worth parsing.
    if id != Some(query.metadata.id) {
        return None;
    }
    let message = Message::from_vec(bytes).ok()?;
    let same = message.metadata.message_type == MessageType::Response
        && message.metadata.op_code == OpCode::Query
        && matches!(
            (message.queries.as_slice(), query.queries.as_slice()),
            ([theirs], [ours]) if theirs.name() == ours.name()
                && theirs.query_type() == ours.query_type()
                && theirs.query_class() == ours.query_class()
        );
    same.then_some(message)
}
