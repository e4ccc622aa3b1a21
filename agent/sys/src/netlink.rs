//! Routing netlink of the kernel in the calling thread's network namespace: single requests, each over a
//! socket of its own, and notifications of changes.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike as _},
};
use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

/// Buffer size, larger than any datagram of the kernel's answers.
const DATAGRAM: usize = 64 << 10;

/// Longest wait for one answer of the kernel, in seconds.
const DEADLINE_S: i64 = 5;

/// Sends a request with `NLM_F_REQUEST` and these flags, plus `NLM_F_ACK` where the request is no dump;
/// returns the kernel's answers. The wait for each datagram ends after `deadline_s` seconds. The kernel
/// answers before send(2) returns, so the deadline only bounds an unexpected delay.
///
/// # Errors
/// The kernel refuses (its errno), sends a malformed message, or does not answer.
pub fn route_request(
    message: RouteNetlinkMessage,
    flags: u16,
    deadline_s: i64,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(deadline_s))?;
    let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags | if dump { 0 } else { NLM_F_ACK };
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    let mut datagram = Vec::with_capacity(DATAGRAM);
    loop {
        datagram.clear();
        socket.recv(&mut datagram, 0)?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = next(&mut rest)?;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(e) => {
                    return match e.code {
                        None => Ok(answers),
                        Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_abs())),
                    };
                }
                NetlinkPayload::Overrun(_) => return Err(io::Error::other("netlink overrun")),
                _ => {}
            }
        }
    }
}

/// Index of the device by which packets to `to` leave, by the routes of the calling thread's network
/// namespace; `None` where there is no route.
///
/// # Errors
/// The kernel refuses, or does not answer.
pub fn route_device(to: IpAddr) -> io::Result<Option<u32>> {
    let mut asked = RouteMessage::default();
    let (family, length, destination) = match to {
        IpAddr::V4(to) => (AddressFamily::Inet, 32, RouteAddress::Inet(to)),
        IpAddr::V6(to) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(to)),
    };
    asked.header.address_family = family;
    asked.header.destination_prefix_length = length;
    asked.attributes.push(RouteAttribute::Destination(destination));
    let messages = match route_request(RouteNetlinkMessage::GetRoute(asked), 0, DEADLINE_S) {
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENETUNREACH | nix::libc::EHOSTUNREACH)) => {
            return Ok(None);
        }
        messages => messages?,
    };
    let routes = messages.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) => Some(&route.attributes),
        _ => None,
    });
    Ok(routes.flatten().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    }))
}

/// Removes and parses the first message of `rest`.
fn next(rest: &mut &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
    let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
    *rest = rest.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
    Ok(message)
}

/// Notifications of the kernel about changed links, addresses and routes.
#[derive(Debug)]
pub struct RouteEvents {
    socket: Socket,
}

impl RouteEvents {
    /// Subscribes to these groups (`RTNLGRP_*`).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(groups: &[u32]) -> io::Result<RouteEvents> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(RouteEvents { socket })
    }

    /// All notifications since the last call; does not wait.
    ///
    /// # Errors
    /// Notifications were lost (`ENOBUFS`) or malformed. Any link, address or route may have changed then.
    pub fn drain(&self) -> io::Result<Vec<RouteNetlinkMessage>> {
        let (mut messages, mut lost) = (Vec::new(), None);
        let mut datagram = Vec::with_capacity(DATAGRAM);
        loop {
            datagram.clear();
            match self.socket.recv(&mut datagram, 0) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // The socket still delivers the notifications after the lost ones.
                Err(e) if e.raw_os_error() == Some(nix::libc::ENOBUFS) => lost = Some(e),
                Err(e) => return Err(e),
            }
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                match next(&mut rest) {
                    Ok(message) => {
                        if let NetlinkPayload::InnerMessage(inner) = message.payload {
                            messages.push(inner);
                        }
                    }
                    Err(e) => {
                        lost = Some(e);
                        break;
                    }
                }
            }
        }
        lost.map_or(Ok(messages), Err)
    }
}

impl AsFd for RouteEvents {
    /// The descriptor is readable when notifications have arrived.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
