//! Packets with arbitrary source addresses.

use crate::frame::{Net, OURS, Spec, THEIRS, frame};
use berth_ebpf_abi::{Tuple, V4, V6};
use berth_ebpf_decide::flow::Part;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
};

/// Bytes of an Ethernet header, which the kernel writes on this socket.
const ETHERNET: usize = 14;

/// Raw sockets of the namespace in which they are created.
pub(crate) struct Raw {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Raw {
    pub(crate) fn new() -> Raw {
        let raw = |family| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap();
        Raw { v4: raw(AddressFamily::Inet), v6: raw(AddressFamily::Inet6) }
    }

    /// Sends a TCP packet with these flags, or a UDP packet. Both addresses are of one family.
    pub(crate) fn send(&self, proto: u8, from: SocketAddr, to: SocketAddr, tcp_flags: u8) {
        let sent = match (from, to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                let words = |addr: &Ipv4Addr| u32::from_ne_bytes(addr.octets());
                let tuple = tuple::<V4>((words(from.ip()), from.port()), (words(to.ip()), to.port()), proto);
                let to = SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0));
                sendto(self.v4.as_raw_fd(), &packet(tuple, tcp_flags), &to, MsgFlags::empty())
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                let tuple = tuple::<V6>((words(from.ip()), from.port()), (words(to.ip()), to.port()), proto);
                let to = SockaddrIn6::from(SocketAddrV6::new(*to.ip(), 0, 0, 0));
                sendto(self.v6.as_raw_fd(), &packet(tuple, tcp_flags), &to, MsgFlags::empty())
            }
            _ => panic!("{from} and {to} are of two families"),
        };
        sent.unwrap();
    }
}

fn words(addr: &Ipv6Addr) -> V6 {
    let bytes = addr.octets();
    std::array::from_fn(|i| {
        u32::from_ne_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    })
}

fn tuple<A: Net>(from: (A, u16), to: (A, u16), proto: u8) -> Tuple<A> {
    let (src_port, dst_port) = (from.1.to_be(), to.1.to_be());
    Tuple { src: from.0, dst: to.0, src_port, dst_port, proto, pad: [0; 3] }
}

fn packet<A: Net>(tuple: Tuple<A>, tcp_flags: u8) -> Vec<u8> {
    let spec = Spec {
        tuple,
        outer: None,
        tcp_flags,
        part: Part::Whole,
        ttl: 64,
        unchecked: false,
        ports: (tuple.src_port, tuple.dst_port),
        macs: (OURS, THEIRS),
    };
    frame(&spec).split_off(ETHERNET)
}
