//! The headers of a packet: the trait of an address family, and the parts that both families share. Owns no
//! state.

use super::{
    answer::IcmpAnswer,
    skb::{ETH, Skb, Wire, ZERO_IS_NONE},
};
use crate::{maps::Scratch, wide::Wide};
use aya_ebpf::maps::PerCpuArray;
use berth_ebpf_abi::Tuple;
use berth_ebpf_decide::flow::{
    Packet, Part, TCP, UDP,
    checksum::{Summand, difference, ports},
};
use core::{mem::offset_of, ptr::addr_of_mut};

/// Offset of the network header, behind the Ethernet header.
pub(super) const NETWORK: u32 = ETH;

/// Address family with its headers.
pub(super) trait Headers: Wide {
    /// What a rewrite needs of the headers that were read.
    type View;
    /// Network header.
    type Header: Copy;
    /// Map of the scratch memory of this family's runs.
    fn scratch() -> &'static PerCpuArray<Scratch>;
    /// Reads the network header: addresses, protocol, device. `None` for a packet that is cut short or of
    /// another family.
    fn parse_ends(skb: Skb, packet: &mut Packet<Self>, view: &mut Self::View) -> Option<()>;
    /// Reads the other headers. `None` for a packet that is cut short or not understood, which then passes.
    /// Returns whether the packet is an ICMP error, for which [`Headers::parse_quoted`] must follow.
    fn parse(skb: Skb, packet: &mut Packet<Self>, view: &mut Self::View) -> Option<bool>;
    /// Reads the headers that an ICMP error quotes.
    fn parse_quoted(skb: Skb, packet: &mut Packet<Self>, view: &mut Self::View) -> Option<()>;
    /// Writes the addresses and ports of `to`, and with `hop` one hop less. `None` if that fails or the
    /// packet has no hop left: the packet is dropped.
    fn rewrite(skb: Skb, view: &Self::View, packet: &Packet<Self>, to: &Tuple<Self>, hop: bool)
    -> Option<()>;
    /// As [`Headers::rewrite`], for an ICMP error and the packet that it quotes.
    fn rewrite_error(
        skb: Skb,
        view: &Self::View,
        packet: &Packet<Self>,
        to: &Tuple<Self>,
        hop: bool,
    ) -> Option<()>;
    /// Turns the packet into the ICMP error "port unreachable" for its sender, or with an `mtu` into "too
    /// big".
    fn refuse(skb: Skb, view: &Self::View, answer: &mut IcmpAnswer<Self::Header>, mtu: u32) -> Option<()>;
    /// Offset of the transport header.
    fn transport(view: &Self::View) -> u32;
    /// Lookup of the route to these addresses.
    fn route(to: &Tuple<Self>) -> FibLookup;
}

/// Ports at the start of a transport header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PortPair {
    pub(super) src: u16,
    pub(super) dst: u16,
}
// SAFETY: integers without padding.
unsafe impl Wire for PortPair {}

/// TCP header up to its flags.
#[repr(C)]
#[derive(Clone, Copy)]
struct TcpHeader {
    ports: PortPair,
    seq: [u16; 4],
    offset: u8,
    flags: u8,
}
// SAFETY: integers without padding.
unsafe impl Wire for TcpHeader {}

/// The kernel's `struct bpf_fib_lookup`.
#[repr(C)]
pub(super) struct FibLookup {
    pub(super) family: u8,
    pub(super) proto: u8,
    pub(super) src_port: u16,
    pub(super) dst_port: u16,
    /// Size of the packet, not checked if 0. Afterwards the MTU of the route, if the packet is larger.
    pub(super) total: u16,
    pub(super) ifindex: u32,
    pub(super) info: u32,
    pub(super) src: [u32; 4],
    pub(super) dst: [u32; 4],
    pub(super) rest: [u32; 4],
}

/// Offset of the checksum in a transport header, and the kernel's flags for it. `None` for a protocol without
/// a known checksum and for a fragment without the header.
#[inline(always)]
pub(super) fn checksum_of(proto: u8, part: &Part) -> Option<(u32, u64)> {
    if let Part::Later(_) = part {
        return None;
    }
    match proto {
        TCP => Some((16, 0)),
        UDP => Some((6, ZERO_IS_NONE)),
        _ => None,
    }
}

/// Writes the addresses and the protocol of a packet, and ports of 0. `src` points to the source address in
/// the header that was read; the destination address follows it.
#[inline(always)]
pub(super) fn put_ends<A: Headers>(packet: &mut Packet<A>, src: *const A, proto: u8) {
    const {
        assert!(offset_of!(Tuple<A>, dst) == size_of::<A>());
        assert!(offset_of!(Tuple<A>, src_port) + 2 == offset_of!(Tuple<A>, dst_port));
        assert!(offset_of!(Tuple<A>, proto) + 1 == offset_of!(Tuple<A>, pad));
    };
    let tuple = &mut packet.tuple;
    // SAFETY: both lie in the scratch memory of this run. The two ports are four bytes; the protocol and the
    // padding behind it are four bytes as well.
    unsafe {
        A::take_pair(src, addr_of_mut!(tuple.src));
        addr_of_mut!(tuple.src_port).cast::<u32>().write(0);
        addr_of_mut!(tuple.proto).cast::<u32>().write(u32::from(proto).to_le());
    }
}

/// Reads the ports of TCP and UDP, and the flags of TCP.
#[inline(always)]
pub(super) fn parse_ports<A>(skb: Skb, transport: u32, packet: &mut Packet<A>) -> Option<()> {
    let ports = if packet.tuple.proto == TCP {
        let header: TcpHeader = skb.load(transport)?;
        packet.tcp_flags = header.flags;
        header.ports
    } else if packet.tuple.proto == UDP {
        skb.load(transport)?
    } else {
        return Some(());
    };
    packet.tuple.src_port = ports.src;
    packet.tuple.dst_port = ports.dst;
    Some(())
}

/// Writes the ports of `to`, if they differ from those of `from`, into a transport header and its checksum.
#[inline(always)]
pub(super) fn rewrite_ports<A>(
    skb: Skb,
    transport: u32,
    checksum: (u32, u64),
    from: &Tuple<A>,
    to: &Tuple<A>,
) -> Option<()> {
    if from.src_port == to.src_port && from.dst_port == to.dst_port {
        return Some(());
    }
    let (offset, flags) = checksum;
    let old = ports(from.src_port, from.dst_port);
    let new = ports(to.src_port, to.dst_port);
    skb.add_to_checksum(transport + offset, difference(old.complement(), new.sum()), flags)?;
    skb.store(transport, &PortPair { src: to.src_port, dst: to.dst_port })
}
