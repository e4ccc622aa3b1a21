//! Asking the node's upstreams.
//!
//! Each question has a socket of its own, connected, so that the kernel picks its port at random and hands over only
//! what that upstream sends. Besides port and id, a forger has to guess the case of the name's letters, which is random
//! and which the answer must repeat. What does not answer the question is passed over until the deadline. No task is
//! spawned; a dropped future ends the question.
//!
//! An upstream that answers in another case is asked again by TCP, which nobody forges from aside. Where it changes the
//! case there too, its case is not looked at for the next questions. One that does not know EDNS (FORMERR, RFC 6891 7) is
//! asked again without.
//!
//! An upstream that was silent is asked last for [`DEMOTED`], so that one dead server of two does not cost each
//! question its deadline.

use crate::cache::Key;
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
    /// Servers that have answered by TCP in another case than they were asked in.
    caseless: Mutex<HashSet<SocketAddr>>,
}

/// An answer that is one to our question.
struct Heard {
    message: Message,
    wire: Vec<u8>,
    /// The name is in the case in which it was asked for.
    same_case: bool,
}

impl Upstreams {
    /// Replaces the servers; whether they differ from those before.
    pub fn set(&self, servers: Vec<SocketAddr>) -> bool {
        let mut now = lock(&self.servers);
        let changed = *now != servers;
        if changed {
            // What was learned of the servers before says nothing of others at their addresses.
            lock(&self.caseless).clear();
        }
        *now = servers;
        changed
    }

    /// The servers, in the order of resolv.conf.
    pub fn servers(&self) -> Vec<SocketAddr> {
        lock(&self.servers).clone()
    }

    /// The same, those that were silent just now last.
    fn in_turn(&self) -> Vec<SocketAddr> {
        let mut servers = self.servers();
        let (now, mut silent) = (Instant::now(), lock(&self.silent));
        silent.retain(|server, since| now.duration_since(*since) < DEMOTED && servers.contains(server));
        servers.sort_by_key(|server| silent.contains_key(server));
        servers
    }

    fn heard(&self, server: SocketAddr, answered: bool) {
        let mut silent = lock(&self.silent);
        if answered {
            silent.remove(&server);
        } else {
            silent.insert(server, Instant::now());
        }
    }

    /// Asks one after the other until one has an answer. A name that does not exist is one; a failure or refusal is
    /// told only where no other has better. Nothing where all are silent or there are none. `name` is the key's name in
    /// the case in which it is asked for, see [`random_case`].
    pub async fn ask(&self, key: &Key, name: &Name) -> Option<(Message, Vec<u8>)> {
        let end = Instant::now().checked_add(WHOLE)?;
        let mut poor = None;
        for server in self.in_turn() {
            let Some(until) = Instant::now().checked_add(UPSTREAM).map(|t| t.min(end)) else { continue };
            match timeout_at(until, self.ask_one(server, key, name)).await {
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

    async fn ask_one(&self, server: SocketAddr, key: &Key, name: &Name) -> io::Result<(Message, Vec<u8>)> {
        let mut query = query(key, name)?;
        let mut heard = by_udp(server, &query).await?;
        if heard.message.metadata.response_code == ResponseCode::FormErr && query.edns.take().is_some() {
            heard = by_udp(server, &query).await?;
        }
        let caseless = |set: &Mutex<HashSet<SocketAddr>>| lock(set).contains(&server);
        let believed = heard.same_case || caseless(&self.caseless);
        if believed && !heard.message.metadata.truncation {
            return Ok((heard.message, heard.wire));
        }
        match by_tcp(server, &query).await {
            Ok(whole) => {
                if !whole.same_case && !believed {
                    tracing::debug!(%server, "upstream changes the case of names");
                    lock(&self.caseless).insert(server);
                }
                Ok((whole.message, whole.wire))
            }
            // A part is better than nothing; its truncation is told on.
            Err(error) if believed && !heard.message.answers.is_empty() => {
                tracing::debug!(%server, %error, "upstream cannot be asked by TCP; the truncated answer is handed on");
                Ok((heard.message, heard.wire))
            }
            Err(error) => Err(error),
        }
    }
}

/// The name with each letter in upper or lower case by chance.
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
        return Err(io::Error::new(io::ErrorKind::Unsupported, "questions for everything are not forwarded"));
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

async fn by_udp(server: SocketAddr, query: &Message) -> io::Result<Heard> {
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
        if let Some(heard) = answers(query, buffer.get(..n).unwrap_or_default()) {
            return Ok(heard);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &Message) -> io::Result<Heard> {
    let wire = query.to_vec().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(wire.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(&wire);
    stream.write_all(&framed).await?;
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    let garbage = || io::Error::new(io::ErrorKind::InvalidData, "no answer to the question");
    answers(query, &bytes).ok_or_else(garbage)
}

/// The message, where it answers that query.
fn answers(query: &Message, bytes: &[u8]) -> Option<Heard> {
    let id = bytes.first_chunk::<2>().map(|b| u16::from_be_bytes(*b));
    // Checked first: noise is not worth parsing.
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
        // A server that did not understand the question may not repeat it (RFC 6891 7); nothing is believed of it.
        ([], _) if message.metadata.response_code == ResponseCode::FormErr => true,
        _ => return None,
    };
    sane_ttls(&mut message);
    Some(Heard { message, wire: bytes.to_vec(), same_case })
}

/// Takes a TTL with the highest bit set as 0 (RFC 2181 8).
pub(crate) fn sane_ttls(message: &mut Message) {
    let Message { answers, authorities, additionals, .. } = message;
    for record in answers.iter_mut().chain(authorities).chain(additionals) {
        if record.ttl > i32::MAX.unsigned_abs() {
            record.ttl = 0;
        }
    }
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
