//! Forwarding of questions to the node's upstreams.
//!
//! Each question has a connected socket of its own, so that the kernel chooses a random port and
//! delivers only packets from that upstream. Besides port and id, a forger must guess the random
//! case of the name's letters, which the answer must repeat. Packets that do not answer the
//! question are ignored until the deadline. No task is spawned; dropping the future ends the
//! question.
//!
//! An upstream that answers in another case is asked again by TCP, where packets cannot be forged
//! off the path. If the case differs there too, the case is ignored for further questions to this
//! upstream. An upstream without EDNS (FORMERR, RFC 6891 7) is asked again without it.
//!
//! An upstream that did not answer is asked last for [`DEMOTED`], so that one dead server of two
//! does not delay each question by its deadline.

use crate::cache::{Key, sane_ttls};
use berth_core::sync::lock;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use std::{
    collections::{HashMap, HashSet},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Mutex,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};

/// Deadline of one upstream.
pub const UPSTREAM: Duration = Duration::from_secs(2);

/// Deadline of all upstreams together.
pub const WHOLE: Duration = Duration::from_secs(5);

/// How long an upstream that did not answer is asked last.
const DEMOTED: Duration = Duration::from_secs(10);

/// UDP payload size in bytes that is announced to upstreams.
const PAYLOAD: u16 = crate::question::UDP_MAX;

/// The node's upstreams and what is known of each.
#[derive(Debug, Default)]
pub struct Upstreams {
    servers: Mutex<Vec<SocketAddr>>,
    silent: Mutex<HashMap<SocketAddr, Instant>>,
    /// Servers that have answered by TCP in another case than the question's.
    caseless: Mutex<HashSet<SocketAddr>>,
}

/// An answer that belongs to the question.
struct Answer {
    message: Message,
    wire: Vec<u8>,
    /// The name is in the case of the question.
    same_case: bool,
}

impl Upstreams {
    /// Replaces the servers. Returns whether they changed.
    pub fn set(&self, servers: Vec<SocketAddr>) -> bool {
        let mut now = lock(&self.servers);
        let changed = *now != servers;
        if changed {
            // Knowledge about the previous servers does not hold for others at the same addresses.
            lock(&self.caseless).clear();
        }
        *now = servers;
        changed
    }

    /// The servers, in the order of resolv.conf.
    pub fn servers(&self) -> Vec<SocketAddr> {
        lock(&self.servers).clone()
    }

    /// The servers, those that recently did not answer last.
    fn in_order(&self) -> Vec<SocketAddr> {
        let mut servers = self.servers();
        let (now, mut silent) = (Instant::now(), lock(&self.silent));
        silent.retain(|server, since| now.duration_since(*since) < DEMOTED && servers.contains(server));
        servers.sort_by_key(|server| silent.contains_key(server));
        servers
    }

    fn record_outcome(&self, server: SocketAddr, answered: bool) {
        let mut silent = lock(&self.silent);
        if answered {
            silent.remove(&server);
        } else {
            silent.insert(server, Instant::now());
        }
    }

    /// Asks one upstream after the other until one has an answer. NXDOMAIN is an answer. A failure
    /// or refusal is returned only if no other upstream has a better answer. Returns None if no
    /// upstream answers. `name` is the key's name in the case of the question, see [`random_case`].
    pub async fn ask(&self, key: &Key, name: &Name) -> Option<(Message, Vec<u8>)> {
        let end = Instant::now().checked_add(WHOLE)?;
        let mut failure = None;
        for server in self.in_order() {
            let Some(until) = Instant::now().checked_add(UPSTREAM).map(|t| t.min(end)) else { continue };
            match timeout_at(until, self.ask_one(server, key, name)).await {
                Ok(Ok((message, wire))) => {
                    self.record_outcome(server, true);
                    if matches!(
                        message.metadata.response_code,
                        ResponseCode::NoError | ResponseCode::NXDomain
                    ) {
                        return Some((message, wire));
                    }
                    failure = Some((message, wire));
                }
                Ok(Err(error)) => {
                    tracing::debug!(%server, %error, "cannot ask an upstream");
                    self.record_outcome(server, false);
                }
                Err(_elapsed) => self.record_outcome(server, false),
            }
            if Instant::now() >= end {
                break;
            }
        }
        failure
    }

    async fn ask_one(&self, server: SocketAddr, key: &Key, name: &Name) -> io::Result<(Message, Vec<u8>)> {
        let mut query = query(key, name)?;
        let mut answer = by_udp(server, &query).await?;
        if answer.message.metadata.response_code == ResponseCode::FormErr && query.edns.take().is_some() {
            answer = by_udp(server, &query).await?;
        }
        let caseless = |set: &Mutex<HashSet<SocketAddr>>| lock(set).contains(&server);
        let trusted = answer.same_case || caseless(&self.caseless);
        if trusted && !answer.message.metadata.truncation {
            return Ok((answer.message, answer.wire));
        }
        match by_tcp(server, &query).await {
            Ok(whole) => {
                if !whole.same_case && !trusted {
                    tracing::debug!(%server, "upstream changes the case of names");
                    lock(&self.caseless).insert(server);
                }
                Ok((whole.message, whole.wire))
            }
            // A truncated answer is better than none. The client sees that it is truncated.
            Err(error) if trusted && !answer.message.answers.is_empty() => {
                tracing::debug!(%server, %error, "cannot ask an upstream by TCP; its truncated answer is used");
                Ok((answer.message, answer.wire))
            }
            Err(error) => Err(error),
        }
    }
}

/// The name with each letter randomly in upper or lower case.
pub fn random_case(name: &Name) -> Name {
    let mut bits: u64 = 0;
    let mut left = 0;
    let mut toss = || {
        if left == 0 {
            (bits, left) = (rand::random(), u64::BITS);
        }
        let up = bits & 1 == 1;
        bits >>= 1;
        left -= 1;
        up
    };
    let labels = name.iter().map(|label| {
        let cased = label.iter().map(|byte| match byte.is_ascii_alphabetic() {
            true if toss() => byte.to_ascii_uppercase(),
            true => byte.to_ascii_lowercase(),
            false => *byte,
        });
        cased.collect::<Vec<u8>>()
    });
    let Ok(mut cased) = Name::from_labels(labels.collect::<Vec<_>>()) else { return name.clone() };
    cased.set_fqdn(true);
    cased
}

fn query(key: &Key, name: &Name) -> io::Result<Message> {
    if key.kind == RecordType::ANY {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "questions of type ANY are not forwarded"));
    }
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = key.checking_disabled;
    message.add_query(Query::query(name.clone(), key.kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_version(0).set_dnssec_ok(key.dnssec);
    message.set_edns(edns);
    Ok(message)
}

async fn by_udp(server: SocketAddr, query: &Message) -> io::Result<Answer> {
    let wire = query.to_vec().map_err(io::Error::other)?;
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&wire).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let n = socket.recv(&mut buffer).await?;
        if let Some(answer) = answers(query, buffer.get(..n).unwrap_or_default()) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &Message) -> io::Result<Answer> {
    let wire = query.to_vec().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(wire.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(&wire);
    stream.write_all(&framed).await?;
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    let garbage = || io::Error::new(io::ErrorKind::InvalidData, "the message does not answer the question");
    answers(query, &bytes).ok_or_else(garbage)
}

/// The parsed message, if it answers that query.
fn answers(query: &Message, bytes: &[u8]) -> Option<Answer> {
    let id = bytes.first_chunk::<2>().map(|b| u16::from_be_bytes(*b));
    // The id is checked first, because other packets are not worth parsing.
    if id != Some(query.metadata.id) {
        return None;
    }
    let mut message = Message::from_vec(bytes).ok()?;
    if message.metadata.message_type != MessageType::Response || message.metadata.op_code != OpCode::Query {
        return None;
    }
    let same_case = match (message.queries.as_slice(), query.queries.as_slice()) {
        ([theirs], [ours])
            if theirs.name() == ours.name()
                && theirs.query_type() == ours.query_type()
                && theirs.query_class() == ours.query_class() =>
        {
            theirs.name().eq_case(ours.name())
        }
        // A server that did not understand the question may omit it (RFC 6891 7). Nothing else of
        // its answer is used.
        ([], _) if message.metadata.response_code == ResponseCode::FormErr => true,
        _ => return None,
    };
    sane_ttls(&mut message);
    Some(Answer { message, wire: bytes.to_vec(), same_case })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_random_and_the_name_stays() {
        let name = Name::from_ascii("www.a-long-enough-name.example.com.").unwrap();
        let cased: Vec<Name> = (0..20).map(|_| random_case(&name)).collect();
        assert!(cased.iter().all(|c| *c == name && c.is_fqdn()));
        assert!(cased.iter().any(|c| !c.eq_case(&cased[0])), "{cased:?}");
    }
}
