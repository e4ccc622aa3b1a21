//! IPv4 headers. Owns no state.

use super::{
    answer::{IcmpAnswer, TTL, swap_hardware_addresses},
    headers::{FibLookup, Headers, NETWORK, PortPair, checksum_of, parse_ports, put_ends, rewrite_ports},
    skb::{PSEUDO, Skb, Wire},
};
use crate::maps::{SCRATCH4, Scratch};
use aya_ebpf::maps::PerCpuArray;
use berth_ebpf_abi::{Tuple, V4};
use berth_ebpf_decide::flow::{
    Packet, Part, TCP, UDP,
    checksum::{Summand, difference, fold16, fold32, ports, replace},
    reverse,
};
use core::{mem::size_of, ptr::addr_of};

/// `IPPROTO_ICMP`.
const ICMP: u8 = 1;
/// Flag of a fragment that is not the last.
const MORE: u16 = 0x2000;
/// Mask of a fragment's offset in the datagram.
const OFFSET: u16 = 0x1fff;

/// IPv4 header without options.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ipv4Header {
    version: u8,
    tos: u8,
    total: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    proto: u8,
    check: u16,
    src: V4,
    dst: V4,
}
// SAFETY: integers without padding.
unsafe impl Wire for Ipv4Header {}
// SAFETY: integers; all sizes are multiples of four, which is the alignment.
unsafe impl Wire for IcmpAnswer<Ipv4Header> {}

/// Fields of the header that a translation changes, from byte 8 on.
#[repr(C)]
#[derive(Clone, Copy)]
struct ChangedFields {
    ttl: u8,
    proto: u8,
    check: u16,
    src: V4,
    dst: V4,
}
// SAFETY: integers without padding.
unsafe impl Wire for ChangedFields {}

/// Headers that were read.
#[derive(Clone, Copy)]
pub(super) struct Ipv4View {
    ip: Ipv4Header,
    /// Offset of the transport header.
    transport: u32,
    /// Header that an ICMP error quotes.
    inner: Ipv4Header,
}

impl Ipv4Header {
    #[inline(always)]
    fn len(&self) -> u32 {
        u32::from(self.version & 15) << 2
    }

    #[inline(always)]
    fn tuple(&self) -> Tuple<V4> {
        Tuple { src: self.src, dst: self.dst, proto: self.proto, ..Tuple::default() }
    }

    #[inline(always)]
    fn life(ttl: u8, proto: u8) -> u64 {
        u64::from(u16::from_ne_bytes([ttl, proto]))
    }

    /// Header of an answer of `total` bytes to the packet's sender.
    #[inline(always)]
    fn answer(&self, total: u32, proto: u8, ttl: u8) -> Ipv4Header {
        let first = (0x4500_0000 | total).to_be();
        let life = Ipv4Header::life(ttl, proto);
        let sum = u64::from(first) + life + self.src.sum() + self.dst.sum();
        Ipv4Header {
            version: 0x45,
            tos: 0,
            total: ((total & 0xffff) as u16).to_be(),
            id: 0,
            fragment: 0,
            ttl,
            proto,
            check: !fold16(fold32(sum)),
            src: self.dst,
            dst: self.src,
        }
    }

    /// TTL of the packet, after one more hop if `hop`; `None` if no hop is left.
    #[inline(always)]
    fn life_after(&self, hop: bool) -> Option<u8> {
        match (hop, self.ttl) {
            (false, ttl) => Some(ttl),
            (true, 0 | 1) => None,
            (true, ttl) => Some(ttl - 1),
        }
    }

    /// Fields of the header after a translation, with their checksum.
    #[inline(always)]
    fn changed(&self, src: V4, dst: V4, ttl: u8) -> ChangedFields {
        let old =
            self.src.complement() + self.dst.complement() + (0xffff - Ipv4Header::life(self.ttl, self.proto));
        let new = src.sum() + dst.sum() + Ipv4Header::life(ttl, self.proto);
        let check = replace(self.check, difference(old, new));
        ChangedFields { ttl, proto: self.proto, check, src, dst }
    }
}

impl Headers for V4 {
    type View = Ipv4View;
    type Header = Ipv4Header;

    #[inline(always)]
    fn scratch() -> &'static PerCpuArray<Scratch> {
        &SCRATCH4
    }

    #[inline(always)]
    fn parse_ends(skb: Skb, packet: &mut Packet<V4>, view: &mut Ipv4View) -> Option<()> {
        skb.load_into(NETWORK, &mut view.ip)?;
        let ip = &view.ip;
        if ip.version >> 4 != 4 || ip.version & 15 < 5 {
            return None;
        }
        view.transport = NETWORK + ip.len();
        put_ends(packet, addr_of!(ip.src), ip.proto);
        packet.tcp_flags = 0;
        packet.part = Part::Whole;
        packet.ifindex = skb.ifindex();
        Some(())
    }

    #[inline(always)]
    fn parse(skb: Skb, packet: &mut Packet<V4>, view: &mut Ipv4View) -> Option<bool> {
        let (ip, transport) = (&view.ip, view.transport);
        let fragment = u16::from_be(ip.fragment);
        if fragment & OFFSET != 0 {
            packet.part = Part::Later(u32::from(ip.id));
            return Some(false);
        }
        if fragment & MORE != 0 {
            packet.part = Part::First(u32::from(ip.id));
        }
        parse_ports(skb, transport, packet)?;
        if ip.proto == ICMP {
            let head: PortPair = skb.load(transport)?;
            let [kind, _] = head.src.to_ne_bytes();
            // Destination unreachable, time exceeded, parameter problem.
            return Some(kind == 3 || kind == 11 || kind == 12);
        }
        Some(false)
    }

    #[inline(always)]
    fn parse_quoted(skb: Skb, packet: &mut Packet<V4>, view: &mut Ipv4View) -> Option<()> {
        let quote = view.transport + 8;
        skb.load_into(quote, &mut view.inner)?;
        let inner = &view.inner;
        if inner.version >> 4 != 4
            || inner.version & 15 < 5
            || u16::from_be(inner.fragment) & OFFSET != 0
            || (inner.proto != TCP && inner.proto != UDP)
        {
            return None;
        }
        let ports: PortPair = skb.load(quote + inner.len())?;
        let quoted = Tuple { src_port: ports.src, dst_port: ports.dst, ..inner.tuple() };
        packet.tuple = reverse(&quoted);
        packet.part = Part::Error;
        Some(())
    }

    #[inline(always)]
    fn rewrite(skb: Skb, view: &Ipv4View, packet: &Packet<V4>, to: &Tuple<V4>, hop: bool) -> Option<()> {
        let ip = &view.ip;
        skb.store(NETWORK + 8, &ip.changed(to.src, to.dst, ip.life_after(hop)?))?;
        let from = &packet.tuple;
        let Some((offset, flags)) = checksum_of(from.proto, &packet.part) else { return Some(()) };
        let old = ip.src.complement() + ip.dst.complement();
        let new = to.src.sum() + to.dst.sum();
        skb.add_to_checksum(view.transport + offset, difference(old, new), flags | PSEUDO)?;
        rewrite_ports(skb, view.transport, (offset, flags), from, to)
    }

    #[inline(always)]
    fn rewrite_error(
        skb: Skb,
        view: &Ipv4View,
        packet: &Packet<V4>,
        to: &Tuple<V4>,
        hop: bool,
    ) -> Option<()> {
        let (ip, inner) = (&view.ip, &view.inner);
        skb.store(NETWORK + 8, &ip.changed(to.src, to.dst, ip.life_after(hop)?))?;
        // The quoted packet travelled in the other direction.
        let quote = view.transport + 8;
        skb.store(quote + 8, &inner.changed(to.dst, to.src, inner.ttl))?;
        let from = &packet.tuple;
        let old = ports(from.dst_port, from.src_port);
        let new = ports(to.dst_port, to.src_port);
        skb.store(quote + inner.len(), &PortPair { src: to.dst_port, dst: to.src_port })?;
        skb.add_to_checksum(view.transport + 2, difference(old.complement(), new.sum()), 0)
    }

    #[inline(always)]
    fn refuse(skb: Skb, view: &Ipv4View, answer: &mut IcmpAnswer<Ipv4Header>, mtu: u32) -> Option<()> {
        let (ip, transport) = (&view.ip, view.transport);
        if transport != NETWORK + size_of::<Ipv4Header>() as u32 {
            return None;
        }
        let IcmpAnswer { ip: head, error } = answer;
        skb.load_into(transport, &mut error.start)?;
        error.quote = *ip;
        // Destination unreachable: port unreachable, or fragmentation needed.
        error.begin(if mtu == 0 { (3, 3) } else { (3, 4) }, mtu);
        error.check = !fold16(error.sum());
        let len = size_of::<IcmpAnswer<Ipv4Header>>() as u32;
        *head = ip.answer(len, ICMP, TTL);
        skb.resize(NETWORK + len)?;
        skb.store(NETWORK, answer)?;
        swap_hardware_addresses(skb)
    }

    #[inline(always)]
    fn transport(view: &Ipv4View) -> u32 {
        view.transport
    }

    #[inline(always)]
    fn route(to: &Tuple<V4>) -> FibLookup {
        FibLookup {
            family: 2,
            proto: to.proto,
            src_port: to.src_port,
            dst_port: to.dst_port,
            total: 0,
            ifindex: 0,
            info: 0,
            src: [to.src, 0, 0, 0],
            dst: [to.dst, 0, 0, 0],
            rest: [0; 4],
        }
    }
}
