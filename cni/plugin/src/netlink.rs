//! A synchronous rtnetlink socket of the network namespace in which it was opened.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike},
};
use std::io;

/// The largest datagram of an answer of the kernel in bytes.
const DATAGRAM: usize = 64 << 10;

pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// Attributes of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    pub(crate) alias: Option<String>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel answers before send(2) returns; the deadline is a safeguard.
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(10))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends a request and waits until the kernel has carried it out. Returns the other messages of
    /// the answer.
    pub(crate) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags | if dump { 0 } else { NLM_F_ACK };
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        let mut datagram = Vec::with_capacity(DATAGRAM);
        loop {
            datagram.clear();
            self.socket.recv(&mut datagram, 0)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                let length = message.header.length as usize;
                rest = rest.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
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

    /// The link with that name, if it exists.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut ask = LinkMessage::default();
        ask.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.one_link(ask)
    }

    /// The link with that index, if it exists.
    pub(crate) fn link_by_index(&mut self, index: u32) -> io::Result<Option<Link>> {
        let mut ask = LinkMessage::default();
        ask.header.index = index;
        self.one_link(ask)
    }

    fn one_link(&mut self, ask: LinkMessage) -> io::Result<Option<Link>> {
        match self.request(RouteNetlinkMessage::GetLink(ask), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(Link::of)),
            Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All links of the namespace.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut ask = LinkMessage::default();
        ask.header.interface_family = AddressFamily::Unspec;
        let answers = self.request(RouteNetlinkMessage::GetLink(ask), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(Link::of).collect())
    }

    /// Deletes the link with that name. `false` if it does not exist.
    pub(crate) fn delete_link(&mut self, name: &str) -> io::Result<bool> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.request(RouteNetlinkMessage::DelLink(message), 0) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Link {
    fn of(message: RouteNetlinkMessage) -> Option<Link> {
        let RouteNetlinkMessage::NewLink(message) = message else { return None };
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            up: message.header.flags.contains(LinkFlags::Up),
            mac: Vec::new(),
            mtu: 0,
            alias: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                _ => {}
            }
        }
        Some(link)
    }
}
