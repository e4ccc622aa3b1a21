//! What is done with a packet, whatever its family.

use super::{
    NEXT, SHOT,
    refuse::Answer,
    skb::{ETH, Skb, Wire, into_peer, to_neighbour},
};
use crate::{kernel::Kernel, maps::bump};
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use berth_ebpf_abi::{LocalPod, Tuple, count};
use berth_ebpf_decide::{
    Family,
    flow::{FlowMaps, Hook, Packet, Part, Room, Verdict, Via, judge},
};
use core::ptr::addr_of_mut;

/// What a run works on, in memory of its processor: a packet's program is not interrupted by another's.
pub(super) struct Work<A: Headers> {
    pub(super) room: Room<A>,
    pub(super) view: A::View,
    pub(super) answer: Answer<A::Header>,
}

/// Room for a [`Work`]. Its size is part of the pinned maps, so it has some to spare.
pub(crate) type Scratch = [u64; 64];

/// A family's headers.
pub(super) trait Headers: Family {
    /// What rewriting needs of the headers that were read.
    type View;
    /// The network header.
    type Header: Copy;
    /// Where a run works; nothing never happens.
    fn work() -> Option<&'static mut Work<Self>>;
    /// Reads the headers; nothing for what is cut short or cannot be understood: it passes.
    fn parse(skb: Skb, packet: &mut Packet<Self>, view: &mut Self::View) -> Option<()>;
    /// Writes other addresses and ports, and with `hop` one hop less to live; nothing where that fails or the last
    /// hop is reached: the packet is dropped.
    fn rewrite(skb: Skb, view: &Self::View, packet: &Packet<Self>, to: &Tuple<Self>, hop: bool)
    -> Option<()>;
    /// Turns the packet into "port unreachable" for its sender.
    fn refuse(skb: Skb, view: &Self::View, answer: &mut Answer<Self::Header>) -> Option<()>;
    /// Puts the addresses of a route's question.
    fn question(to: &Tuple<Self>) -> Route;
}

#[inline(always)]
pub(super) fn run<A: Headers>(skb: Skb, hook: Hook) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { room, view, answer }) = A::work() else { return NEXT };
    if A::parse(skb, &mut room.packet, view).is_none() {
        return NEXT;
    }
    match judge(&Kernel, hook, room) {
        Verdict::Pass => NEXT,
        Verdict::Drop(why) => {
            bump(count::PACKET_DROPPED + why as u32);
            SHOT
        }
        Verdict::Reject => {
            bump(count::PACKET_REJECTED);
            match A::refuse(skb, view, answer) {
                Some(()) => skb.send_back(),
                None => SHOT,
            }
        }
        Verdict::Forward(pod) => into(skb, &pod),
        Verdict::Translate(via) => {
            let hop = matches!(via, Via::Neighbour(_));
            if A::rewrite(skb, view, &room.packet, room.to(), hop).is_none() {
                bump(count::PACKET_FAILED);
                return SHOT;
            }
            match via {
                Via::Stack => NEXT,
                Via::Pod(pod) => into(skb, &pod),
                Via::Neighbour(0) => match device::<A>(skb, room.to()) {
                    Some(ifindex) => to_neighbour(ifindex),
                    None => NEXT,
                },
                Via::Neighbour(ifindex) => to_neighbour(ifindex),
            }
        }
    }
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
    match skb.store(0, &Ends { dst: pod.mac, src: pod.host_mac }) {
        Some(()) => into_peer(pod.ifindex),
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
    pub(super) total: u16,
    pub(super) ifindex: u32,
    pub(super) info: u32,
    pub(super) src: [u32; 4],
    pub(super) dst: [u32; 4],
    pub(super) rest: [u32; 4],
}

/// `BPF_FIB_LOOKUP_SKIP_NEIGH`: the neighbour is found when the packet is sent.
const SKIP_NEIGHBOUR: u32 = 1 << 2;

/// The device by which the routes reach a translated packet's destination; none where it is not forwarded.
#[inline(always)]
fn device<A: Headers>(skb: Skb, to: &Tuple<A>) -> Option<u32> {
    let mut route = A::question(to);
    route.ifindex = skb.ifindex();
    // SAFETY: `Route` has the layout and the size that the kernel wants, and lives over the call.
    let answer = unsafe {
        bpf_fib_lookup(skb.context(), addr_of_mut!(route).cast(), size_of::<Route>() as i32, SKIP_NEIGHBOUR)
    };
    (answer == 0).then_some(route.ifindex)
}

/// Where a transport header's checksum lies in it, and how it is to be treated; none for what has no known one or for
/// a fragment without header.
#[inline(always)]
pub(super) fn checksum_of(proto: u8, part: &Part) -> Option<(u32, u64)> {
    if let Part::Later(_) = part {
        return None;
    }
    match proto {
        berth_ebpf_decide::flow::TCP => Some((16, 0)),
        berth_ebpf_decide::flow::UDP => Some((6, super::skb::ZERO_IS_NONE)),
        _ => None,
    }
}

/// The first byte after the Ethernet header.
pub(super) const NETWORK: u32 = ETH;
