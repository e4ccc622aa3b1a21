//! What is done with a packet, whatever its family.

use super::{
    NEXT, SHOT,
    refuse::Answer,
    skb::{ETH, Skb, Wire, into_peer, to_neighbour},
    stack::Stack,
    v4::{Ports, Segment},
};
use crate::{
    kernel::{Kernel, now_ms},
    maps::bump,
    wide::Wide,
};
use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_fib_lookup};
use berth_ebpf_abi::{LocalPod, Tuple, count};
use berth_ebpf_decide::flow::{
    Bucket, Dropped, FlowMaps, Hook, Packet, Part, FlowContext, TCP, UDP, Verdict, Forwarding, NextHop,
    checksum::{Summand, difference, ports},
    classify, forged, fast_path, open_flow, refresh_flow,
};
use core::{
    mem::offset_of,
    ptr::{addr_of, addr_of_mut},
};

/// What a run works on, in memory of its processor: a packet's program is not interrupted by another's.
pub(super) struct Work<A: Headers> {
    pub(super) ctx: FlowContext<A>,
    pub(super) view: A::View,
    pub(super) answer: Answer<A::Header>,
    stored: StoredVerdict,
    /// What a collection removed.
    pub(super) removed: u32,
}

/// A verdict in memory, or that there is none yet. Not the enum itself: its copy has bytes that mean nothing in some variants, which the verifier
/// refuses to see stored.
struct StoredVerdict {
    what: u32,
    /// Why dropped; a device.
    number: u32,
    pod: LocalPod,
}

const PASS: u32 = 0;
const DROP: u32 = 1;
const REJECT: u32 = 2;
const FORWARD: u32 = 3;
const TO_POD: u32 = 4;
const TO_NEIGHBOUR: u32 = 5;
const TO_STACK: u32 = 6;
const BEGINS: u32 = 7;

impl StoredVerdict {
    /// The pod, if any, is there already.
    #[inline(always)]
    fn next_hop(&mut self, next_hop: NextHop) {
        match next_hop {
            NextHop::Pod => self.what = TO_POD,
            NextHop::Neighbour(ifindex) => {
                self.number = ifindex;
                self.what = TO_NEIGHBOUR;
            }
            NextHop::Stack => self.what = TO_STACK,
        }
    }

    #[inline(always)]
    fn forwarding(&mut self, forwarding: Forwarding) {
        match forwarding {
            Forwarding::Pod(pod) => {
                self.pod = pod;
                self.what = TO_POD;
            }
            Forwarding::Neighbour(ifindex) => {
                self.number = ifindex;
                self.what = TO_NEIGHBOUR;
            }
            Forwarding::Stack => self.what = TO_STACK,
        }
    }

    #[inline(always)]
    fn verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Pass => self.what = PASS,
            Verdict::Drop(why) => {
                self.number = why as u32;
                self.what = DROP;
            }
            Verdict::Reject => self.what = REJECT,
            Verdict::Forward(pod) => {
                self.pod = pod;
                self.what = FORWARD;
            }
            Verdict::Translate(forwarding) => self.forwarding(forwarding),
        }
    }
}

/// FlowContext for a [`Work`]. Its size is part of the pinned maps, so it has some to spare.
pub(crate) type Scratch = [u64; 128];

/// A family's headers.
pub(super) trait Headers: Wide {
    /// What rewriting needs of the headers that were read.
    type View;
    /// The network header.
    type Header: Copy;
    /// Where a run works; nothing never happens.
    fn work() -> Option<&'static mut Work<Self>>;
    /// What this processor may still answer; nothing never happens.
    fn bucket() -> Option<&'static mut Bucket>;
    /// Reads the network header: addresses, protocol, device; nothing for what is cut short or is not of this family.
    fn parse_ends(skb: Skb, packet: &mut Packet<Self>, view: &mut Self::View) -> Option<()>;
    /// Reads the rest; nothing for what is cut short or cannot be understood: it passes. Says whether it is an ICMP
    /// error, so that [`Headers::parse_quoted`] has to go on.
    fn parse(skb: Skb, packet: &mut Packet<Self>, view: &mut Self::View) -> Option<bool>;
    /// Reads what an ICMP error quotes.
    fn parse_quoted(skb: Skb, packet: &mut Packet<Self>, view: &mut Self::View) -> Option<()>;
    /// Writes other addresses and ports, and with `hop` one hop less to live; nothing where that fails or the last
    /// hop is reached: the packet is dropped.
    fn rewrite(skb: Skb, view: &Self::View, packet: &Packet<Self>, to: &Tuple<Self>, hop: bool)
    -> Option<()>;
    /// The same for an ICMP error and for the packet that it quotes.
    fn rewrite_error(
        skb: Skb,
        view: &Self::View,
        packet: &Packet<Self>,
        to: &Tuple<Self>,
        hop: bool,
    ) -> Option<()>;
    /// Turns the packet into "port unreachable" for its sender.
    ///
    /// With an `mtu` into "too big" for that.
    fn refuse(skb: Skb, view: &Self::View, answer: &mut Answer<Self::Header>, mtu: u32) -> Option<()>;
    /// Where the transport header begins.
    fn transport(view: &Self::View) -> u32;
    /// Puts the addresses of a route's question.
    fn question(to: &Tuple<Self>) -> Route;
}

/// The part of a program that every packet runs through.
#[inline(always)]
pub(super) fn run<A: Headers>(skb: Skb, hook: Hook) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { ctx, view, stored, .. }) = A::work() else { return NEXT };
    // Of what a device hears that listens to everything, another node has the say.
    if (hook == Hook::Uplink && !skb.is_for_host()) || A::parse_ends(skb, &mut ctx.packet, view).is_none() {
        return NEXT;
    }
    if hook == Hook::Pod && forged(&Kernel, ctx) {
        return shoot(count::PACKET_DROPPED + Dropped::Forged as u32);
    }
    match A::parse(skb, &mut ctx.packet, view) {
        Some(false) => {}
        Some(true) if parse_quoted::<A>(skb.raw()) == 0 => {}
        _ => return NEXT,
    }
    match fast_path(&Kernel, hook, ctx, &mut stored.pod) {
        Some(next_hop) => stored.next_hop(next_hop),
        None => {
            let number = hook as u32;
            if refresh_known::<A>(number) != 0 {
                classify_new::<A>(skb.raw(), number);
                if hook != Hook::Egress && stored.what == BEGINS {
                    begin::<A>(skb.raw(), number);
                }
            }
        }
    }
    match stored.what {
        PASS => return NEXT,
        DROP => return shoot(count::PACKET_DROPPED + stored.number),
        REJECT => return refuse::<A>(skb.raw(), 0),
        FORWARD => {}
        what => {
            let hop = what == TO_NEIGHBOUR;
            if hop {
                stored.number = device::<A>(skb.raw(), stored.number);
                if stored.number & TOO_BIG != 0 {
                    return refuse::<A>(skb.raw(), stored.number & !TOO_BIG);
                }
            }
            let rewritten = if ctx.packet.part == Part::Error {
                rewrite_error::<A>(skb.raw(), u32::from(hop)) == 0
            } else {
                A::rewrite(skb, view, &ctx.packet, ctx.to(), hop).is_some()
            };
            if !rewritten {
                return shoot(count::PACKET_FAILED);
            }
        }
    }
    match stored.what {
        FORWARD | TO_POD => into(skb, &stored.pod),
        TO_NEIGHBOUR if stored.number != 0 => to_neighbour(stored.number),
        _ => NEXT,
    }
}

/// Counts a packet that vanishes.
#[inline(never)]
fn shoot(index: u32) -> i32 {
    bump(index);
    SHOT
}

/// Reads what an ICMP error quotes; 0 when that went well.
#[inline(never)]
fn parse_quoted<A: Headers>(skb: *mut __sk_buff) -> i32 {
    let Some(Work { ctx, view, .. }) = A::work() else { return 1 };
    i32::from(A::parse_quoted(Skb::at(skb), &mut ctx.packet, view).is_none())
}

/// What one packet a second needs: a function with a stack of its own. It works on the same memory. 0 where it has
/// the say.
#[inline(never)]
fn refresh_known<A: Headers>(hook: u32) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { ctx, stored, .. }) = A::work() else { return 1 };
    match refresh_flow(&Kernel, hook_of(hook), ctx, &mut stored.pod) {
        Some(next_hop) => {
            stored.next_hop(next_hop);
            0
        }
        None => 1,
    }
}

/// The same for what no entry knows.
#[inline(never)]
fn classify_new<A: Headers>(skb: *mut __sk_buff, hook: u32) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { ctx, stored, .. }) = A::work() else { return 0 };
    match classify(&Kernel, &Stack(skb), hook_of(hook), ctx) {
        Some(verdict) => stored.verdict(verdict),
        None => stored.what = BEGINS,
    }
    0
}

/// A connection's first packet.
#[inline(never)]
fn begin<A: Headers>(skb: *mut __sk_buff, hook: u32) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { ctx, stored, .. }) = A::work() else { return 0 };
    stored.verdict(open_flow(&Kernel, &Stack(skb), hook_of(hook), ctx));
    0
}

#[inline(always)]
fn hook_of(number: u32) -> Hook {
    match number {
        0 => Hook::Uplink,
        1 => Hook::Pod,
        _ => Hook::Egress,
    }
}

/// Answers "port unreachable", or "too big" for an `mtu`, unless too many were answered.
#[inline(never)]
fn refuse<A: Headers>(skb: *mut __sk_buff, mtu: u32) -> i32 {
    if !A::bucket().is_some_and(|bucket| bucket.take(now_ms())) {
        return shoot(count::PACKET_UNANSWERED);
    }
    bump(count::PACKET_REJECTED);
    let skb = Skb::at(skb);
    let Some(Work { view, answer, .. }) = A::work() else { return SHOT };
    match A::refuse(skb, view, answer, mtu) {
        Some(()) => skb.send_back(),
        None => SHOT,
    }
}

/// Rewrites an ICMP error with what it quotes; 0 when that went well.
#[inline(never)]
fn rewrite_error<A: Headers>(skb: *mut __sk_buff, hop: u32) -> i32 {
    let Some(Work { ctx, view, .. }) = A::work() else { return 1 };
    i32::from(A::rewrite_error(Skb::at(skb), view, &ctx.packet, ctx.to(), hop != 0).is_none())
}

/// An Ethernet header's addresses.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ends {
    dst: [u8; 6],
    src: [u8; 6],
}
// SAFETY: bytes.
unsafe impl Wire for Ends {}

#[inline(always)]
fn into(skb: Skb, pod: &LocalPod) -> i32 {
    const {
        assert!(offset_of!(LocalPod, mac) + 6 == offset_of!(LocalPod, host_mac) && size_of::<Ends>() == 12);
    };
    // SAFETY: both addresses, one behind the other, which is what `Ends` is; bytes have no alignment.
    let ends = unsafe { &*addr_of!(pod.mac).cast::<Ends>() };
    match skb.store(0, ends) {
        Some(()) => {
            // On a bridge it was addressed to another device, and would be so still when it comes out in the pod
            // (before Linux 6.15).
            skb.make_for_host();
            into_peer(pod.ifindex)
        }
        None => SHOT,
    }
}

/// Swaps the hardware addresses: the packet goes back.
#[inline(always)]
pub(super) fn turn_round(skb: Skb) -> Option<()> {
    let Ends { dst, src } = skb.load(0)?;
    skb.store(0, &Ends { dst: src, src: dst })
}

/// `struct bpf_fib_lookup`.
#[repr(C)]
pub(super) struct Route {
    pub(super) family: u8,
    pub(super) proto: u8,
    pub(super) src_port: u16,
    pub(super) dst_port: u16,
    /// The packet's size, of which 0 is not looked at; afterwards the size that fits.
    pub(super) total: u16,
    pub(super) ifindex: u32,
    pub(super) info: u32,
    pub(super) src: [u32; 4],
    pub(super) dst: [u32; 4],
    pub(super) rest: [u32; 4],
}

/// `BPF_FIB_LOOKUP_SKIP_NEIGH`: the neighbour is found when the packet is sent.
const SKIP_NEIGHBOUR: u32 = 1 << 2;

/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`.
const FRAGMENTATION_NEEDED: i64 = 8;
/// Added to the size that fits where a packet is larger. No device has such an index.
const TOO_BIG: u32 = 1 << 31;

/// The device by which the routes reach a translated packet's destination; `otherwise` where they name none; the size that
/// fits with [`TOO_BIG`].
#[inline(never)]
fn device<A: Headers>(skb: *mut __sk_buff, otherwise: u32) -> u32 {
    let Some(Work { ctx, view, .. }) = A::work() else { return 0 };
    let mut route = A::question(ctx.to());
    route.ifindex = ctx.packet.ifindex;
    if ctx.packet.part == Part::Whole {
        let packet = Skb::at(skb);
        // One that is cut is cut into packets of this size, with the shortest header of TCP.
        let size = match packet.gso_size() {
            0 => packet.len() - ETH,
            payload => payload + A::transport(view) - ETH + 20,
        };
        route.total = (size & 0xffff) as u16;
    }
    // SAFETY: `Route` has the layout and the size that the kernel wants, and lives over the call.
    let answer = unsafe {
        bpf_fib_lookup(skb.cast(), addr_of_mut!(route).cast(), size_of::<Route>() as i32, SKIP_NEIGHBOUR)
    };
    match answer {
        0 => route.ifindex,
        FRAGMENTATION_NEEDED => TOO_BIG | u32::from(route.total),
        _ => otherwise,
    }
}

/// Where a transport header's checksum lies in it, and how it is to be treated; none for what has no known one or for
/// a fragment without header.
#[inline(always)]
pub(super) fn checksum_of(proto: u8, part: &Part) -> Option<(u32, u64)> {
    if let Part::Later(_) = part {
        return None;
    }
    match proto {
        TCP => Some((16, 0)),
        UDP => Some((6, super::skb::ZERO_IS_NONE)),
        _ => None,
    }
}

/// Writes a packet's addresses and protocol, without ports. `src`: in the header that was read, with the destination's
/// address behind it.
#[inline(always)]
pub(super) fn put_ends<A: Headers>(packet: &mut Packet<A>, src: *const A, proto: u8) {
    const {
        assert!(offset_of!(Tuple<A>, dst) == size_of::<A>());
        assert!(offset_of!(Tuple<A>, src_port) + 2 == offset_of!(Tuple<A>, dst_port));
        assert!(offset_of!(Tuple<A>, proto) + 1 == offset_of!(Tuple<A>, pad));
    };
    let tuple = &mut packet.tuple;
    // SAFETY: both lie in this run's memory. Two ports are four bytes, and so are the protocol, which comes first in
    // memory, and the padding.
    unsafe {
        A::take_pair(src, addr_of_mut!(tuple.src));
        addr_of_mut!(tuple.src_port).cast::<u32>().write(0);
        addr_of_mut!(tuple.proto).cast::<u32>().write(u32::from(proto).to_le());
    }
}

/// Reads the ports, and of TCP the flags.
#[inline(always)]
pub(super) fn parse_ports<A>(skb: Skb, transport: u32, packet: &mut Packet<A>) -> Option<()> {
    let ports = if packet.tuple.proto == TCP {
        let segment: Segment = skb.load(transport)?;
        packet.tcp_flags = segment.flags;
        segment.ports
    } else if packet.tuple.proto == UDP {
        skb.load(transport)?
    } else {
        return Some(());
    };
    packet.tuple.src_port = ports.src;
    packet.tuple.dst_port = ports.dst;
    Some(())
}

/// Writes other ports, where they are others, into a transport header and its checksum.
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
    skb.store(transport, &Ports { src: to.src_port, dst: to.dst_port })
}

/// The first byte after the Ethernet header.
pub(super) const NETWORK: u32 = ETH;
