//! IPv6 headers. A fragment header is understood right behind the first one; any other extension header is taken for a
//! protocol without ports, which no Service has.

use super::{
    act::{Headers, NETWORK, Route, Work, checksum_of, parse_ports, put_ends, rewrite_ports},
    refuse::{self, Answer, ICMP6},
    skb::{Skb, Wire},
    tables::{SCRATCH6, bucket, work},
    v4::Ports,
};
use berth_ebpf_abi::{Tuple, V6};
use berth_ebpf_decide::flow::{
    Bucket, Packet, Part, TCP, UDP,
    checksum::{Summand, difference, ports},
    reverse,
};

use core::{mem::offset_of, ptr::addr_of};

/// `NEXTHDR_FRAGMENT`.
const FRAGMENT: u8 = 44;
/// Fragments follow.
const MORE: u16 = 1;
/// Where in the datagram a fragment belongs.
const OFFSET: u16 = 0xfff8;
/// The header's length.
const LEN: u32 = 40;

/// The header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ip {
    /// Version, class and flow label.
    first: u32,
    /// Bytes after this header.
    payload: u16,
    proto: u8,
    hops: u8,
    src: V6,
    dst: V6,
}
// SAFETY: integers without padding.
unsafe impl Wire for Ip {}

/// Both addresses.
#[repr(C)]
#[derive(Clone, Copy)]
struct Addresses {
    src: V6,
    dst: V6,
}
// SAFETY: integers without padding.
unsafe impl Wire for Addresses {}

/// A fragment header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Fragment {
    proto: u8,
    reserved: u8,
    place: u16,
    id: u32,
}
// SAFETY: integers without padding.
unsafe impl Wire for Fragment {}

/// The headers that were read.
#[derive(Clone, Copy)]
pub(super) struct View {
    ip: Ip,
    /// Where the transport header begins.
    transport: u32,
}

impl Ip {
    #[inline(always)]
    fn is_six(&self) -> bool {
        u32::from_be(self.first) >> 28 == 6
    }

    #[inline(always)]
    fn tuple(&self) -> Tuple<V6> {
        Tuple { src: self.src, dst: self.dst, proto: self.proto, ..Tuple::default() }
    }

    /// Writes other addresses, and with `hop` one hop less.
    #[inline(always)]
    fn rewrite(&self, skb: Skb, to: &Tuple<V6>, hop: bool) -> Option<()> {
        if hop {
            if self.hops < 2 {
                return None;
            }
            skb.store(NETWORK + 7, &(self.hops - 1))?;
        }
        const { assert!(offset_of!(Tuple<V6>, src) == 0 && offset_of!(Tuple<V6>, dst) == 16) };
        // SAFETY: a tuple begins with both.
        skb.store(NETWORK + 8, unsafe { &*addr_of!(*to).cast::<Addresses>() })
    }

    /// The sum of an answer's pseudo header: the addresses swapped have the same.
    #[inline(always)]
    pub(super) fn pseudo(&self, len: u32, proto: u8) -> u64 {
        self.src.sum() + self.dst.sum() + u64::from(len.to_be()) + u64::from(u32::from(proto).to_be())
    }

    /// The header of an answer to this packet's sender with `payload` bytes behind it.
    #[inline(always)]
    pub(super) fn answer(&self, payload: u32, proto: u8, hops: u8) -> Ip {
        Ip {
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
    type View = View;
    type Header = Ip;

    #[inline(always)]
    fn work() -> Option<&'static mut Work<V6>> {
        work::<V6>(&SCRATCH6)
    }

    #[inline(always)]
    fn bucket() -> Option<&'static mut Bucket> {
        bucket(&SCRATCH6)
    }

    #[inline(always)]
    fn parse_ends(skb: Skb, packet: &mut Packet<V6>, view: &mut View) -> Option<()> {
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
    fn parse(skb: Skb, packet: &mut Packet<V6>, view: &mut View) -> Option<bool> {
        if view.ip.proto == FRAGMENT {
            let fragment: Fragment = skb.load(view.transport)?;
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
            let head: Ports = skb.load(view.transport)?;
            let [kind, _] = head.src.to_ne_bytes();
            // Neighbours and routers are found by 133 to 137: none of a Service's business.
            if kind >= 133 {
                return None;
            }
            // Unreachable, too big, time exceeded, parameter problem.
            return Some(kind >= 1 && kind <= 4);
        }
        Some(false)
    }

    #[inline(always)]
    fn parse_quoted(skb: Skb, packet: &mut Packet<V6>, view: &mut View) -> Option<()> {
        let quote = view.transport + 8;
        let inner: Ip = skb.load(quote)?;
        if !inner.is_six() || (inner.proto != TCP && inner.proto != UDP) {
            return None;
        }
        let ports: Ports = skb.load(quote + LEN)?;
        let quoted = Tuple { src_port: ports.src, dst_port: ports.dst, ..inner.tuple() };
        packet.tuple = reverse(&quoted);
        packet.part = Part::Error;
        Some(())
    }

    #[inline(always)]
    fn rewrite(skb: Skb, view: &View, packet: &Packet<V6>, to: &Tuple<V6>, hop: bool) -> Option<()> {
        let from = &packet.tuple;
        view.ip.rewrite(skb, to, hop)?;
        let Some((offset, flags)) = checksum_of(from.proto, &packet.part) else { return Some(()) };
        let old = from.src.complement() + from.dst.complement();
        let new = to.src.sum() + to.dst.sum();
        skb.add_to_checksum6(view.transport + offset, difference(old, new), flags)?;
        rewrite_ports(skb, view.transport, (offset, flags), from, to)
    }

    #[inline(always)]
    fn rewrite_error(skb: Skb, view: &View, packet: &Packet<V6>, to: &Tuple<V6>, hop: bool) -> Option<()> {
        let from = &packet.tuple;
        view.ip.rewrite(skb, to, hop)?;
        let check = view.transport + 2;
        let new = to.src.sum() + to.dst.sum();
        let old = view.ip.src.complement() + view.ip.dst.complement();
        skb.add_to_checksum6(check, difference(old, new), 0)?;
        // Quoted is what travelled the other way.
        let quote = view.transport + 8;
        skb.store(quote + 8, &Addresses { src: to.dst, dst: to.src })?;
        skb.store(quote + LEN, &Ports { src: to.dst_port, dst: to.src_port })?;
        let old =
            from.src.complement() + from.dst.complement() + ports(from.dst_port, from.src_port).complement();
        let new = new + ports(to.dst_port, to.src_port).sum();
        skb.add_to_checksum(check, difference(old, new), 0)
    }

    #[inline(always)]
    fn refuse(skb: Skb, view: &View, answer: &mut Answer<Ip>, mtu: u32) -> Option<()> {
        refuse::v6(skb, &view.ip, view.transport, answer, mtu)
    }

    #[inline(always)]
    fn transport(view: &View) -> u32 {
        view.transport
    }

    #[inline(always)]
    fn question(to: &Tuple<V6>) -> Route {
        Route {
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
