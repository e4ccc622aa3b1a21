//! IPv4 headers.

use super::{
    act::{Headers, NETWORK, Route, Work, checksum_of, parse_ports, put_ends, rewrite_ports},
    refuse::{self, Answer},
    skb::{PSEUDO, Skb, Wire},
    tables::{SCRATCH4, bucket, work},
};
use berth_ebpf_abi::{Tuple, V4};
use berth_ebpf_decide::flow::{
    Bucket, Packet, Part, TCP, UDP,
    checksum::{Summand, difference, fold16, fold32, ports, replace},
    reverse,
};

use core::ptr::addr_of;

/// `IPPROTO_ICMP`.
const ICMP: u8 = 1;
/// Fragments follow.
const MORE: u16 = 0x2000;
/// Where in the datagram a fragment belongs.
const OFFSET: u16 = 0x1fff;

/// The header without options.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ip {
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
unsafe impl Wire for Ip {}

/// What of it changes, from byte 8 on.
#[repr(C)]
#[derive(Clone, Copy)]
struct Changed {
    ttl: u8,
    proto: u8,
    check: u16,
    src: V4,
    dst: V4,
}
// SAFETY: integers without padding.
unsafe impl Wire for Changed {}

/// A TCP header up to its flags.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) ports: Ports,
    seq: [u16; 4],
    offset: u8,
    pub(super) flags: u8,
}
// SAFETY: integers without padding.
unsafe impl Wire for Segment {}

/// The ports at the start of a transport header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ports {
    pub(super) src: u16,
    pub(super) dst: u16,
}
// SAFETY: integers without padding.
unsafe impl Wire for Ports {}

/// The headers that were read.
#[derive(Clone, Copy)]
pub(super) struct View {
    ip: Ip,
    /// Where the transport header begins.
    transport: u32,
    /// An ICMP error's quoted header.
    inner: Ip,
}

impl Ip {
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

    /// The header of an answer to this packet's sender, `total` bytes long.
    #[inline(always)]
    pub(super) fn answer(&self, total: u32, proto: u8, ttl: u8) -> Ip {
        let first = (0x4500_0000 | total).to_be();
        let life = Ip::life(ttl, proto);
        let sum = u64::from(first) + life + self.src.sum() + self.dst.sum();
        Ip {
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

    /// How many hops it may still take, after one more if `hop`.
    #[inline(always)]
    fn life_after(&self, hop: bool) -> Option<u8> {
        match (hop, self.ttl) {
            (false, ttl) => Some(ttl),
            (true, 0 | 1) => None,
            (true, ttl) => Some(ttl - 1),
        }
    }

    /// The fields that change, with a checksum that fits them.
    #[inline(always)]
    fn changed(&self, src: V4, dst: V4, ttl: u8) -> Changed {
        let old = self.src.complement() + self.dst.complement() + (0xffff - Ip::life(self.ttl, self.proto));
        let new = src.sum() + dst.sum() + Ip::life(ttl, self.proto);
        let check = replace(self.check, difference(old, new));
        Changed { ttl, proto: self.proto, check, src, dst }
    }
}

impl Headers for V4 {
    type View = View;
    type Header = Ip;

    #[inline(always)]
    fn work() -> Option<&'static mut Work<V4>> {
        work::<V4>(&SCRATCH4)
    }

    #[inline(always)]
    fn bucket() -> Option<&'static mut Bucket> {
        bucket(&SCRATCH4)
    }

    #[inline(always)]
    fn parse_ends(skb: Skb, packet: &mut Packet<V4>, view: &mut View) -> Option<()> {
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
    fn parse(skb: Skb, packet: &mut Packet<V4>, view: &mut View) -> Option<bool> {
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
            let head: Ports = skb.load(transport)?;
            let [kind, _] = head.src.to_ne_bytes();
            // Destination unreachable, time exceeded, parameter problem.
            return Some(kind == 3 || kind == 11 || kind == 12);
        }
        Some(false)
    }

    #[inline(always)]
    fn parse_quoted(skb: Skb, packet: &mut Packet<V4>, view: &mut View) -> Option<()> {
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
        let ports: Ports = skb.load(quote + inner.len())?;
        let quoted = Tuple { src_port: ports.src, dst_port: ports.dst, ..inner.tuple() };
        packet.tuple = reverse(&quoted);
        packet.part = Part::Error;
        Some(())
    }

    #[inline(always)]
    fn rewrite(skb: Skb, view: &View, packet: &Packet<V4>, to: &Tuple<V4>, hop: bool) -> Option<()> {
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
    fn rewrite_error(skb: Skb, view: &View, packet: &Packet<V4>, to: &Tuple<V4>, hop: bool) -> Option<()> {
        let (ip, inner) = (&view.ip, &view.inner);
        skb.store(NETWORK + 8, &ip.changed(to.src, to.dst, ip.life_after(hop)?))?;
        // Quoted is what travelled the other way.
        let quote = view.transport + 8;
        skb.store(quote + 8, &inner.changed(to.dst, to.src, inner.ttl))?;
        let from = &packet.tuple;
        let old = ports(from.dst_port, from.src_port);
        let new = ports(to.dst_port, to.src_port);
        skb.store(quote + inner.len(), &Ports { src: to.dst_port, dst: to.src_port })?;
        skb.add_to_checksum(view.transport + 2, difference(old.complement(), new.sum()), 0)
    }

    #[inline(always)]
    fn refuse(skb: Skb, view: &View, answer: &mut Answer<Ip>, mtu: u32) -> Option<()> {
        refuse::v4(skb, &view.ip, view.transport, answer, mtu)
    }

    #[inline(always)]
    fn transport(view: &View) -> u32 {
        view.transport
    }

    #[inline(always)]
    fn question(to: &Tuple<V4>) -> Route {
        Route {
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
