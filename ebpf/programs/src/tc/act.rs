//! What is done with a packet, whatever its family.

use super::{
    NEXT, SHOT,
    refuse::Answer,
    skb::{ETH, Skb, Wire, into_peer, to_neighbour},
};
use crate::{kernel::Kernel, maps::bump};
use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_fib_lookup};
use berth_ebpf_abi::{LocalPod, Tuple, count};
use berth_ebpf_decide::{
    Family,
    flow::{FlowMaps, Hook, Packet, Part, Room, Verdict, Via, glance, open, ponder},
};
use core::ptr::addr_of_mut;

/// What a run works on, in memory of its processor: a packet's program is not interrupted by another's.
pub(super) struct Work<A: Headers> {
    pub(super) room: Room<A>,
    pub(super) view: A::View,
    pub(super) answer: Answer<A::Header>,
    said: Said,
    /// What a collection removed.
    pub(super) removed: u32,
}

/// A verdict in memory, or that there is none yet. Not the enum itself: its copy has bytes that mean nothing in some variants, which the verifier
/// refuses to see stored.
struct Said {
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

impl Said {
    #[inline(always)]
    fn via(&mut self, via: Via) {
        match via {
            Via::Pod(pod) => {
                self.pod = pod;
                self.what = TO_POD;
            }
            Via::Neighbour(ifindex) => {
                self.number = ifindex;
                self.what = TO_NEIGHBOUR;
            }
            Via::Stack => self.what = TO_STACK,
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
            Verdict::Translate(via) => self.via(via),
        }
    }
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
    /// The same for an ICMP error and for the packet that it quotes.
    fn rewrite_error(
        skb: Skb,
        view: &Self::View,
        packet: &Packet<Self>,
        to: &Tuple<Self>,
        hop: bool,
    ) -> Option<()>;
    /// Turns the packet into "port unreachable" for its sender.
    fn refuse(skb: Skb, view: &Self::View, answer: &mut Answer<Self::Header>) -> Option<()>;
    /// Puts the addresses of a route's question.
    fn question(to: &Tuple<Self>) -> Route;
}

/// The part of a program that every packet runs through.
#[inline(always)]
pub(super) fn run<A: Headers>(skb: Skb, hook: Hook) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { room, view, said, .. }) = A::work() else { return NEXT };
    if A::parse(skb, &mut room.packet, view).is_none() {
        return NEXT;
    }
    match glance(&Kernel, hook, room) {
        Some(via) => said.via(via),
        None => {
            consider::<A>(hook as u32);
            if hook != Hook::Egress && said.what == BEGINS {
                begin::<A>(hook as u32);
            }
        }
    }
    match said.what {
        PASS => return NEXT,
        DROP => {
            bump(count::PACKET_DROPPED + said.number);
            return SHOT;
        }
        REJECT => return refuse::<A>(skb.raw()),
        FORWARD => return into(skb, &said.pod),
        _ => {}
    }
    let hop = said.what == TO_NEIGHBOUR;
    let rewritten = if room.packet.part == Part::Error {
        rewrite_error::<A>(skb.raw(), u32::from(hop)) == 0
    } else {
        A::rewrite(skb, view, &room.packet, room.to(), hop).is_some()
    };
    if !rewritten {
        bump(count::PACKET_FAILED);
        return SHOT;
    }
    match said.what {
        TO_POD => into(skb, &said.pod),
        TO_NEIGHBOUR => {
            let ifindex = if said.number == 0 { device::<A>(skb.raw()) } else { said.number };
            if ifindex == 0 { NEXT } else { to_neighbour(ifindex) }
        }
        _ => NEXT,
    }
}

/// What few packets need: a function with a stack of its own. It works on the same memory.
#[inline(never)]
fn consider<A: Headers>(hook: u32) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { room, said, .. }) = A::work() else { return 0 };
    match ponder(&Kernel, hook_of(hook), room) {
        Some(verdict) => said.verdict(verdict),
        None => said.what = BEGINS,
    }
    0
}

/// A connection's first packet.
#[inline(never)]
fn begin<A: Headers>(hook: u32) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { room, said, .. }) = A::work() else { return 0 };
    said.verdict(open(&Kernel, hook_of(hook), room));
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

/// Answers "port unreachable".
#[inline(never)]
fn refuse<A: Headers>(skb: *mut __sk_buff) -> i32 {
    bump(count::PACKET_REJECTED);
    let skb = Skb::at(skb);
    let Some(Work { view, answer, .. }) = A::work() else { return SHOT };
    match A::refuse(skb, view, answer) {
        Some(()) => skb.send_back(),
        None => SHOT,
    }
}

/// Rewrites an ICMP error with what it quotes; 0 when that went well.
#[inline(never)]
fn rewrite_error<A: Headers>(skb: *mut __sk_buff, hop: u32) -> i32 {
    let Some(Work { room, view, .. }) = A::work() else { return 1 };
    i32::from(A::rewrite_error(Skb::at(skb), view, &room.packet, room.to(), hop != 0).is_none())
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

/// The device by which the routes reach a translated packet's destination; 0 where it is not forwarded.
#[inline(never)]
fn device<A: Headers>(skb: *mut __sk_buff) -> u32 {
    let Some(Work { room, .. }) = A::work() else { return 0 };
    let mut route = A::question(room.to());
    route.ifindex = room.packet.ifindex;
    // SAFETY: `Route` has the layout and the size that the kernel wants, and lives over the call.
    let answer = unsafe {
        bpf_fib_lookup(skb.cast(), addr_of_mut!(route).cast(), size_of::<Route>() as i32, SKIP_NEIGHBOUR)
    };
    if answer == 0 { route.ifindex } else { 0 }
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
