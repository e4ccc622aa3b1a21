//! nf_tables of the kernel in the calling thread's network namespace: dumps of objects, and batches of changes that the
//! kernel makes as a whole or not at all; and the connections that it tracks. Attributes are bytes; what they mean is the
//! caller's.
//!
//! Numbers and layouts: `include/uapi/linux/netfilter/nfnetlink.h`, `nf_tables.h` and `nfnetlink_conntrack.h`.

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike as _},
};
use std::io;

/// Buffer size, larger than any datagram of the kernel's answers.
const DATAGRAM: usize = 64 << 10;

/// Longest wait for one answer of the kernel, in seconds.
const DEADLINE_S: i64 = 5;

/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`.
const CONNTRACK: u16 = 1;
const GET_CONNECTION: u16 = 1;
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE_CONNECTION: u16 = 2;
/// `ENOENT`: the connection has ended meanwhile.
const GONE: i32 = 2;
/// `NFT_MSG_NEWTABLE`, `NFT_MSG_NEWCHAIN`, `NFT_MSG_NEWRULE`: what does not exist yet is made.
const NEW: [u16; 3] = [0, 3, 6];
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH: (u16, u16) = (0x10, 0x11);
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of `struct nlmsghdr` and of `struct nfgenmsg`.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// A message of nf_tables: a wanted change, or an object of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The kind, `enum nf_tables_msg_types`.
    pub kind: u16,
    /// The family, `NFPROTO_IPV4` or another.
    pub family: u8,
    /// The attributes.
    pub attributes: Vec<u8>,
}

/// An attribute: type, length, value and padding (`struct nlattr`).
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes in some bytes, their types without flags. Ends at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn write(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, body: &[u8]) {
    let length = u32::try_from(HEADER + GENERIC + body.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend_from_slice(body);
}

fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(DEADLINE_S))?;
    Ok(socket)
}

/// An answer of the kernel: its kind, the sequence number of the request, and what follows the header.
struct Answer<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// Receives a datagram and gives each answer in it to `take`, until that returns false.
fn receive(socket: &Socket, mut take: impl FnMut(&Answer<'_>) -> io::Result<bool>) -> io::Result<bool> {
    let malformed = || io::Error::other("malformed netlink message");
    let mut datagram = Vec::with_capacity(DATAGRAM);
    socket.recv(&mut datagram, 0)?;
    let mut rest = datagram.as_slice();
    while !rest.is_empty() {
        let number = |at: usize| Some(u32::from_ne_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let length = number(0).and_then(|n| usize::try_from(n).ok()).ok_or_else(malformed)?;
        let kind = rest.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        let (kind, sequence) = kind.zip(number(8)).ok_or_else(malformed)?;
        let body = rest.get(HEADER..length).ok_or_else(malformed)?;
        if !take(&Answer { kind, sequence, body })? {
            return Ok(false);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// The errno of an error message; `None` for an acknowledgement.
fn error_of(body: &[u8]) -> Option<io::Error> {
    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_abs()))
}

/// All objects of a kind, such as `NFT_MSG_GETRULE`, that the attributes choose.
///
/// # Errors
/// The kernel refuses (its errno; `ENOENT` for a table that is not there), or does not answer.
pub fn dump(request: &Message) -> io::Result<Vec<Message>> {
    let socket = connect()?;
    let mut bytes = Vec::new();
    let Message { kind, family, attributes } = request;
    write(&mut bytes, NFTABLES << 8 | kind, NLM_F_REQUEST | NLM_F_DUMP, 1, *family, 0, attributes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    while receive(&socket, |answer| {
        match answer.kind {
            DONE => return Ok(false),
            ERROR => return error_of(answer.body).map_or(Ok(false), Err),
            kind if kind >> 8 == NFTABLES => found.push(Message {
                kind: kind & 0xff,
                family: answer.body.first().copied().unwrap_or_default(),
                attributes: answer.body.get(GENERIC..).unwrap_or_default().to_vec(),
            }),
            _ => {}
        }
        Ok(true)
    })? {}
    Ok(found)
}

/// Whether one of the tracked connections of a family has attributes (`enum ctattr_type`) that `is_wanted` accepts. The
/// kernel is asked for all of them until one is found.
///
/// # Errors
/// The kernel refuses (its errno), or does not answer.
pub fn any_connection(family: u8, is_wanted: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
    let mut found = false;
    visit_connections(&connect()?, family, |connection| {
        found |= is_wanted(connection);
        !found
    })?;
    Ok(found)
}

/// Shows the attributes of each tracked connection of a family, as long as `goes_on` says so of the last one. Its question is
/// the socket's first.
fn visit_connections(socket: &Socket, family: u8, mut goes_on: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut bytes = Vec::new();
    let kind = CONNTRACK << 8 | GET_CONNECTION;
    write(&mut bytes, kind, NLM_F_REQUEST | NLM_F_DUMP, 1, family, 0, &[]);
    socket.send(&bytes, 0)?;
    while receive(socket, |answer| {
        Ok(match answer.kind {
            DONE => false,
            ERROR => return error_of(answer.body).map_or(Ok(false), Err),
            kind if kind >> 8 == CONNTRACK => answer.body.get(GENERIC..).is_none_or(&mut goes_on),
            _ => true,
        })
    })? {}
    Ok(())
}

/// Deletes the tracked connections of a family for whose attributes (`enum ctattr_type`) `name` gives those that name the
/// connection. Returns how many.
///
/// # Errors
/// The kernel refuses (its errno), or does not answer. Some may be deleted by then.
pub fn delete_connections(family: u8, name: impl Fn(&[u8]) -> Option<Vec<u8>>) -> io::Result<usize> {
    let (socket, mut names) = (connect()?, Vec::new());
    visit_connections(&socket, family, |connection| {
        names.extend(name(connection));
        true
    })?;
    let mut deleted = 0;
    for (sequence, name) in (2..).zip(&names) {
        let mut bytes = Vec::new();
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        write(&mut bytes, CONNTRACK << 8 | DELETE_CONNECTION, flags, sequence, family, 0, name);
        socket.send(&bytes, 0)?;
        let mut refused = None;
        while receive(&socket, |answer| {
            refused = error_of(answer.body).filter(|_| answer.kind == ERROR);
            Ok(answer.sequence < sequence)
        })? {}
        match refused {
            None => deleted += 1,
            Some(error) if error.raw_os_error() == Some(GONE) => {}
            Some(error) => return Err(error),
        }
    }
    Ok(deleted)
}

/// Makes changes as a whole or not at all.
///
/// # Errors
/// The kernel refuses one of them (its errno), or does not answer.
pub fn batch(changes: &[Message]) -> io::Result<()> {
    let socket = connect()?;
    let mut bytes = Vec::new();
    write(&mut bytes, BATCH.0, NLM_F_REQUEST, 0, 0, NFTABLES, &[]);
    let mut last = 0;
    for (sequence, Message { kind, family, attributes }) in (1..).zip(changes) {
        last = sequence;
        let create = if NEW.contains(kind) { NLM_F_CREATE } else { 0 };
        let flags = NLM_F_REQUEST | NLM_F_ACK | create;
        write(&mut bytes, NFTABLES << 8 | kind, flags, sequence, *family, 0, attributes);
    }
    write(&mut bytes, BATCH.1, NLM_F_REQUEST, 0, 0, NFTABLES, &[]);
    socket.send(&bytes, 0)?;
    let mut refused = None;
    while last > 0
        && receive(&socket, |answer| {
            if answer.kind == ERROR
                && let Some(error) = error_of(answer.body)
            {
                refused.get_or_insert(error);
            }
            Ok(answer.sequence < last)
        })?
    {}
    refused.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let bytes =
            [attribute(1, b"nat\0"), attribute(0x8000 | 3, b"KUBE-SERVICES\0"), attribute(2, &[])].concat();
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found, [(1, &b"nat\0"[..]), (3, b"KUBE-SERVICES\0"), (2, b"")]);
        for end in 0..bytes.len() {
            // Cut anywhere, nothing but whole attributes is found.
            let whole = attributes(&bytes[..end]).count();
            assert!(whole <= 3 && attributes(&bytes[..end]).all(|a| found.contains(&a)), "{end}");
        }
        assert_eq!(attributes(&[3, 0, 1, 0, 9]).count(), 0, "a length below its own header");
    }
}
