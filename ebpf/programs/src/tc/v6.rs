//! IPv6 headers. A fragment header is understood if it directly follows the IPv6 header; any other extension
//! header counts as a protocol without ports, which no Service has. Owns no state.

use super::{
    answer::{IcmpAnswer, IcmpError, TTL, swap_hardware_addresses},
    headers::{FibLookup, Headers, NETWORK, PortPair, checksum_of, parse_ports, put_ends, rewrite_ports},
    skb::{Skb, Wire},
};
use crate::maps::{SCRATCH6, Scratch};
use aya_ebpf::maps::PerCpuArray;
use berth_ebpf_abi::{Tuple, V6};
use berth_ebpf_decide::flow::{
    Packet, Part, TCP, UDP,
    checksum::{Summand, difference, fold16, ports},
    reverse,
};
use core::{
    mem::{offset_of, size_of},
    ptr::addr_of,
};

/// `IPPROTO_ICMPV6`.
const ICMP6: u8 = 58;
/// `NEXTHDR_FRAGMENT`.
const FRAGMENT: u8 = 44;
/// Flag of a fragment that is not the last.
const MORE: u16 = 1;
/// Mask of a fragment's offset in the datagram.
const OFFSET: u16 = 0xfff8;
/// Length of the IPv6 header.
const LEN: u32 = 40;

/// IPv6 header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ipv6Header {
    /// Version, class and flow label.
    first: u32,
    /// Number of bytes behind this header.
    payload: u16,
    proto: u8,
    hops: u8,
    src: V6,
    dst: V6,
}
// SAFETY: integers without padding.
unsafe impl Wire for Ipv6Header {}
// SAFETY: integers; all sizes are multiples of four, which is the alignment.
unsafe impl Wire for IcmpAnswer<Ipv6Header> {}

/// Both addresses of the header.
#[repr(C)]
#[derive(Clone, Copy)]
struct AddressPair {
    src: V6,
    dst: V6,
}
// SAFETY: integers without padding.
unsafe impl Wire for AddressPair {}

/// Fragment header.
#[repr(C)]
#[derive(Clone, Copy)]
struct FragmentHeader {
    proto: u8,
    reserved: u8,
    place: u16,
    id: u32,
}
// SAFETY: integers without padding.
unsafe impl Wire for FragmentHeader {}

/// Headers that were read.
#[derive(Clone, Copy)]
pub(super) struct Ipv6View {
    ip: Ipv6Header,
    /// Offset of the transport header.
    transport: u32,
}

impl Ipv6Header {
    /// Whether the version is 6.
    #[inline(always)]
    fn is_six(&self) -> bool {
        u32::from_be(self.first) >> 28 == 6
    }

    #[inline(always)]
    fn tuple(&self) -> Tuple<V6> {
        Tuple { src: self.src, dst: self.dst, proto: self.proto, ..Tuple::default() }
    }

    /// Writes the addresses of `to`, and with `hop` one hop less; `None` if no hop is left.
    #[inline(always)]
    fn rewrite(&self, skb: Skb, to: &Tuple<V6>, hop: bool) -> Option<()> {
        if hop {
            if self.hops < 2 {
                return None;
            }
            skb.store(NETWORK + 7, &(self.hops - 1))?;
        }
        const { assert!(offset_of!(Tuple<V6>, src) == 0 && offset_of!(Tuple<V6>, dst) == 16) };
        // SAFETY: a tuple begins with both addresses.
        skb.store(NETWORK + 8, unsafe { &*addr_of!(*to).cast::<AddressPair>() })
    }

    /// Sum of an answer's pseudo header. Swapped addresses have the same sum.
    #[inline(always)]
    fn pseudo(&self, len: u32, proto: u8) -> u64 {
        self.src.sum() + self.dst.sum() + u64::from(len.to_be()) + u64::from(u32::from(proto).to_be())
    }

    /// Header of an answer to the packet's sender, with `payload` bytes behind the header.
    #[inline(always)]
    fn answer(&self, payload: u32, proto: u8, hops: u8) -> Ipv6Header {
        Ipv6Header {
            first: 0x6000_0000_u32.to_be(),
            payload: ((payload & 0xffff) as u16).to_be(),
            proto,
            hops,
            src: self.dst,
            dst: self.src,
        }
    }
}

impl Headers for V6 {
    type View = Ipv6View;
    type Header = Ipv6Header;

    #[inline(always)]
    fn scratch() -> &'static PerCpuArray<Scratch> {
        &SCRATCH6
    }

    #[inline(always)]
    fn parse_ends(skb: Skb, packet: &mut Packet<V6>, view: &mut Ipv6View) -> Option<()> {
        skb.load_into(NETWORK, &mut view.ip)?;
        let ip = &view.ip;
        if !ip.is_six() {
            return None;
        }
        view.transport = NETWORK + LEN;
        put_ends(packet, addr_of!(ip.src), ip.proto);
        packet.tcp_flags = 0;
        packet.part = Part::Whole;
        packet.ifindex = skb.ifindex();
        Some(())
    }

    #[inline(always)]
    fn parse(skb: Skb, packet: &mut Packet<V6>, view: &mut Ipv6View) -> Option<bool> {
        if view.ip.proto == FRAGMENT {
            let fragment: FragmentHeader = skb.load(view.transport)?;
            view.transport += 8;
            packet.tuple.proto = fragment.proto;
            let place = u16::from_be(fragment.place);
            if place & OFFSET != 0 {
                packet.part = Part::Later(fragment.id);
                return Some(false);
            }
            if place & MORE != 0 {
                packet.part = Part::First(fragment.id);
            }
        }
        parse_ports(skb, view.transport, packet)?;
        if packet.tuple.proto == ICMP6 {
            let head: PortPair = skb.load(view.transport)?;
            let [kind, _] = head.src.to_ne_bytes();
            // Neighbour and router discovery (133 to 137) concerns no Service.
            if kind >= 133 {
                return None;
            }
            // Destination unreachable, packet too big, time exceeded, parameter problem.
            return Some(kind >= 1 && kind <= 4);
        }
        Some(false)
    }

    #[inline(always)]
    fn parse_quoted(skb: Skb, packet: &mut Packet<V6>, view: &mut Ipv6View) -> Option<()> {
        let quote = view.transport + 8;
        let inner: Ipv6Header = skb.load(quote)?;
        if !inner.is_six() || (inner.proto != TCP && inner.proto != UDP) {
            return None;
        }
        let ports: PortPair = skb.load(quote + LEN)?;
        let quoted = Tuple { src_port: ports.src, dst_port: ports.dst, ..inner.tuple() };
        packet.tuple = reverse(&quoted);
        packet.part = Part::Error;
        Some(())
    }

    #[inline(always)]
    fn rewrite(skb: Skb, view: &Ipv6View, packet: &Packet<V6>, to: &Tuple<V6>, hop: bool) -> Option<()> {
        let from = &packet.tuple;
        view.ip.rewrite(skb, to, hop)?;
        let Some((offset, flags)) = checksum_of(from.proto, &packet.part) else { return Some(()) };
        let old = from.src.complement() + from.dst.complement();
        let new = to.src.sum() + to.dst.sum();
        skb.add_to_checksum6(view.transport + offset, difference(old, new), flags)?;
        rewrite_ports(skb, view.transport, (offset, flags), from, to)
    }

    #[inline(always)]
    fn rewrite_error(
        skb: Skb,
        view: &Ipv6View,
        packet: &Packet<V6>,
        to: &Tuple<V6>,
        hop: bool,
    ) -> Option<()> {
        let from = &packet.tuple;
        view.ip.rewrite(skb, to, hop)?;
        let check = view.transport + 2;
        let new = to.src.sum() + to.dst.sum();
        let old = view.ip.src.complement() + view.ip.dst.complement();
        skb.add_to_checksum6(check, difference(old, new), 0)?;
        // The quoted packet travelled in the other direction.
        let quote = view.transport + 8;
        skb.store(quote + 8, &AddressPair { src: to.dst, dst: to.src })?;
        skb.store(quote + LEN, &PortPair { src: to.dst_port, dst: to.src_port })?;
        let old =
            from.src.complement() + from.dst.complement() + ports(from.dst_port, from.src_port).complement();
        let new = new + ports(to.dst_port, to.src_port).sum();
        skb.add_to_checksum(check, difference(old, new), 0)
    }

    #[inline(always)]
    fn refuse(skb: Skb, view: &Ipv6View, answer: &mut IcmpAnswer<Ipv6Header>, mtu: u32) -> Option<()> {
        let (ip, transport) = (&view.ip, view.transport);
        if transport != NETWORK + size_of::<Ipv6Header>() as u32 {
            return None;
        }
        let IcmpAnswer { ip: head, error } = answer;
        skb.load_into(transport, &mut error.start)?;
        error.quote = *ip;
        // Destination unreachable: port unreachable, or packet too big.
        error.begin(if mtu == 0 { (1, 4) } else { (2, 0) }, mtu);
        let len = size_of::<IcmpError<Ipv6Header>>() as u32;
        let pseudo = ip.pseudo(len, ICMP6);
        error.check = !fold16(difference(u64::from(error.sum()), pseudo));
        *head = ip.answer(len, ICMP6, TTL);
        skb.resize(NETWORK + size_of::<IcmpAnswer<Ipv6Header>>() as u32)?;
        skb.store(NETWORK, answer)?;
        swap_hardware_addresses(skb)
    }

    #[inline(always)]
    fn transport(view: &Ipv6View) -> u32 {
        view.transport
    }

    #[inline(always)]
    fn route(to: &Tuple<V6>) -> FibLookup {
        FibLookup {
            family: 10,
            proto: to.proto,
            src_port: to.src_port,
            dst_port: to.dst_port,
            total: 0,
            ifindex: 0,
            info: 0,
            src: to.src,
            dst: to.dst,
            rest: [0; 4],
        }
    }
}
