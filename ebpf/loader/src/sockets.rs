//! Removal of sockets connected to a backend that no longer exists: sock_diag(7) finds them, SOCK_DESTROY
//! destroys them.
//!
//! A destroyed UDP socket wakes its reader with ECONNABORTED and is disconnected. Its next send without an
//! address fails with EDESTADDRREQ, so the application must connect again (resolvers do). Unconnected sockets
//! stay: for their next datagram the hook finds that the backend no longer serves, and selects another.
//!
//! A socket's records say whether it came to its peer through a Service, and through which.
//! [`destroy_translated`] spares sockets that dialled the backend themselves or through a Service that still
//! has it. The list of sockets is read before the records: a socket connects only after its hook has written
//! the record, so each listed socket has its record.

use crate::{
    Error, Result, SocketRecords, StalePeer,
    netns::within,
    records::{Losses, Remembered},
};
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
        setsockopt, socket, sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};
use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const HEADER: usize = 16;
/// `struct inet_diag_sockid`
const ID: usize = 48;
/// `struct inet_diag_msg` up to the end of its sockid.
const MESSAGE: usize = 4 + ID;
const BUFFER: usize = 1 << 16;
/// Limit for an unexpected delay: the kernel answers within the call.
const PATIENCE_S: i64 = 2;
/// Maximum number of dumps. A dump can miss a socket when others are created or closed, so it is repeated
/// until a dump finds no socket.
const PASSES: usize = 4;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proto {
    /// Connections that are being established or are established; the peer receives a reset.
    Tcp,
    /// Connected sockets.
    Udp,
}

impl Proto {
    fn number(self) -> u8 {
        match self {
            Proto::Tcp => 6,
            Proto::Udp => 17,
        }
    }

    /// Bits of the socket states that are listed, by the kernel's TCP_* numbers.
    fn states(self) -> u32 {
        const ESTABLISHED: u32 = 1 << 1;
        const SYN_SENT: u32 = 1 << 2;
        const FIN_WAIT1: u32 = 1 << 4;
        const CLOSE_WAIT: u32 = 1 << 8;
        match self {
            Proto::Tcp => ESTABLISHED | SYN_SENT | FIN_WAIT1 | CLOSE_WAIT,
            Proto::Udp => ESTABLISHED,
        }
    }
}

/// Destroys the sockets in this network namespace whose peer is one of `dead`, regardless of their origin.
/// IPv6 sockets with v4-mapped peers match by the IPv4 address. Returns how many. Blocks in proportion to the
/// number of sockets.
///
/// # Errors
/// The namespace cannot be entered, or the kernel refuses. A socket that closed in the meantime is no error.
pub fn destroy_sockets(netns: impl AsFd, proto: Proto, dead: &HashSet<SocketAddr>) -> Result<usize> {
    destroy(netns.as_fd(), proto, dead, |_| Ok(Box::new(|_| true)))
}

/// Destroys the sockets in this network namespace that came to a backend through a frontend that has lost it.
/// Otherwise as [`destroy_sockets`]. A socket that received eight other backends since it was connected has
/// lost its record and is destroyed.
///
/// # Errors
/// As for [`destroy_sockets`], or the sockets' records cannot be read.
pub fn destroy_translated(
    netns: impl AsFd,
    proto: Proto,
    lost: &[StalePeer],
    records: &SocketRecords,
) -> Result<usize> {
    let losses = Losses::new(lost);
    destroy(netns.as_fd(), proto, &losses.backends(), |found| {
        let remembered = if found { records.read()? } else { Remembered::default() };
        let losses = &losses;
        Ok(Box::new(move |socket: &SocketId| {
            socket.peer().is_some_and(|peer| losses.must_end(&remembered, socket.cookie(), peer))
        }))
    })
}

/// Filter of the listed sockets: true for sockets to destroy.
type SocketFilter<'a> = Box<dyn Fn(&SocketId) -> bool + 'a>;

/// Calls `select` for a new filter after each list of sockets; its argument says whether the list has any.
fn destroy<'a>(
    netns: BorrowedFd<'_>,
    proto: Proto,
    dead: &HashSet<SocketAddr>,
    select: impl Fn(bool) -> Result<SocketFilter<'a>> + Sync,
) -> Result<usize> {
    if dead.is_empty() {
        return Ok(0);
    }
    within(netns, || {
        let diag = Diag::open().map_err(failed("open sock_diag"))?;
        let mut destroyed = 0;
        for _ in 0..PASSES {
            let mut found = Vec::new();
            for family in [libc::AF_INET, libc::AF_INET6] {
                let family = u8::try_from(family).map_err(|e| failed("list sockets")(io::Error::other(e)))?;
                found.extend(diag.list(family, proto, dead).map_err(failed("list sockets"))?);
            }
            let selected = select(!found.is_empty())?;
            let mut gone = 0;
            for id in found.iter().filter(|id| selected(id)) {
                gone += usize::from(diag.destroy(proto, id).map_err(failed("destroy a socket"))?);
            }
            destroyed += gone;
            if gone == 0 {
                break;
            }
        }
        Ok(destroyed)
    })
}

fn failed(op: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Netns { op, source }
}

/// A socket as the kernel names it: its family, and `struct inet_diag_sockid` as received.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SocketId {
    family: u8,
    id: [u8; ID],
}

impl SocketId {
    fn parse(message: &[u8]) -> Option<SocketId> {
        let id = message.get(4..MESSAGE)?.try_into().ok()?;
        Some(SocketId { family: *message.first()?, id })
    }

    /// The cookie, as in `SO_COOKIE`.
    fn cookie(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.id;
        let (low, high) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
        u64::from(high) << 32 | u64::from(low)
    }

    /// The peer; a v4-mapped address is returned as IPv4.
    fn peer(&self) -> Option<SocketAddr> {
        let port = u16::from_be_bytes(self.id.get(2..4)?.try_into().ok()?);
        let address: [u8; 16] = self.id.get(20..36)?.try_into().ok()?;
        let ip = if i32::from(self.family) == libc::AF_INET {
            let [a, b, c, d, ..] = address;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(address)).to_canonical()
        };
        Some(SocketAddr::new(ip, port))
    }
}

/// A netlink message with `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, proto: Proto, states: u32, of: &SocketId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 8 + ID);
    bytes.extend(72_u32.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    // Sequence number and port stay 0: one exchange at a time on its own socket needs neither.
    bytes.extend([0; 8]);
    bytes.extend([of.family, proto.number(), 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(of.id);
    bytes
}

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Answer<'a> {
    Socket(&'a [u8]),
    /// The kernel's status; 0 is success.
    Status(i32),
    Other,
}

/// Splits a datagram into its messages.
fn answers(mut bytes: &[u8]) -> io::Result<Vec<Answer<'_>>> {
    let torn = || io::Error::from(io::ErrorKind::InvalidData);
    let mut all = Vec::new();
    while bytes.len() >= HEADER {
        let word = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
        let len = u32::from_ne_bytes(word(0).ok_or_else(torn)?);
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let kind = bytes.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
        let body = bytes.get(HEADER..len).ok_or_else(torn)?;
        all.push(match kind {
            Some(BY_FAMILY) => Answer::Socket(body),
            Some(ERROR | DONE) => Answer::Status(word(HEADER).map_or(0, i32::from_ne_bytes)),
            _ => Answer::Other,
        });
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(all)
}

struct Diag(OwnedFd);

impl Diag {
    fn open() -> io::Result<Diag> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0))?;
        Ok(Diag(fd))
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        sendto(self.0.as_raw_fd(), message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Passes each message to `see` until the kernel's final status.
    fn hear(&self, mut see: impl FnMut(&[u8])) -> io::Result<i32> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let len = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC)?;
            let datagram = buffer.get(..len).ok_or(io::ErrorKind::InvalidData)?;
            for answer in answers(datagram)? {
                match answer {
                    Answer::Socket(message) => see(message),
                    Answer::Status(status) => return Ok(status),
                    Answer::Other => {}
                }
            }
        }
    }

    fn list(&self, family: u8, proto: Proto, dead: &HashSet<SocketAddr>) -> io::Result<Vec<SocketId>> {
        let any = SocketId { family, id: [0; ID] };
        self.send(&request(BY_FAMILY, DUMP, proto, proto.states(), &any))?;
        let mut found = Vec::new();
        let status = self.hear(|message| {
            let socket = SocketId::parse(message);
            found.extend(socket.filter(|s| s.peer().is_some_and(|peer| dead.contains(&peer))));
        })?;
        match -status {
            0 => Ok(found),
            // The kernel supports no sockets of this family or protocol.
            libc::ENOENT | libc::EAFNOSUPPORT => Ok(Vec::new()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Destroys a socket. Returns false where the socket was already gone.
    fn destroy(&self, proto: Proto, socket: &SocketId) -> io::Result<bool> {
        self.send(&request(DESTROY, ACK, proto, 0, socket))?;
        match -self.hear(|_| {})? {
            0 => Ok(true),
            libc::ENOENT | libc::ESTALE => Ok(false),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket_id(family: i32, peer: &[u8], port: u16) -> SocketId {
        let mut id = [0; ID];
        id[2..4].copy_from_slice(&port.to_be_bytes());
        id[20..20 + peer.len()].copy_from_slice(peer);
        SocketId { family: u8::try_from(family).unwrap(), id }
    }

    #[test]
    fn peers_are_told_by_family_and_mapped_ones_as_ipv4() {
        let v4 = socket_id(libc::AF_INET, &[10, 0, 0, 1], 53);
        assert_eq!(v4.peer(), Some("10.0.0.1:53".parse().unwrap()));
        let mapped = "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(socket_id(libc::AF_INET6, &mapped, 53).peer(), v4.peer());
        let v6 = "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(socket_id(libc::AF_INET6, &v6, 8080).peer(), Some("[2001:db8::7]:8080".parse().unwrap()));
    }

    #[test]
    fn a_request_is_as_long_as_it_says_and_names_the_socket() {
        let socket = socket_id(libc::AF_INET, &[10, 0, 0, 1], 53);
        let bytes = request(DESTROY, ACK, Proto::Udp, 0, &socket);
        assert_eq!(bytes.len(), 72);
        assert_eq!(&bytes[..4], 72_u32.to_ne_bytes());
        assert_eq!(bytes[16..18], [2, 17]);
        assert_eq!(bytes[24..], socket.id);
    }

    #[test]
    fn torn_answers_are_errors_and_never_loops() {
        let mut message = 20_u32.to_ne_bytes().to_vec();
        message.extend(DONE.to_ne_bytes());
        message.extend([0; 14]);
        assert_eq!(answers(&message).unwrap(), [Answer::Status(0)]);
        for len in [0_u32, 3, 15, 21, u32::MAX] {
            message[..4].copy_from_slice(&len.to_ne_bytes());
            assert!(answers(&message).is_err(), "{len}");
        }
        assert_eq!(answers(&message[..7]).unwrap(), []);
    }
}
