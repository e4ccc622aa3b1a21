//! The run of a packet program: parses the packet, gets the verdict of `berth-ebpf-decide`, and carries it
//! out. The same for both address families. Owns no state: the memory of a run is in [`super::work`].
//!
//! On failure: a packet that is not understood passes; a packet that cannot be rewritten is dropped and
//! counted.

use super::{
    NEXT, SHOT,
    answer::HardwareAddresses,
    headers::Headers,
    skb::{ETH, Skb, into_peer, to_neighbour},
    stack::Stack,
    work::{BEGINS, DROP, FORWARD, PASS, REJECT, TO_NEIGHBOUR, TO_POD, Work, bucket, work},
};
use crate::{
    kernel::{Kernel, now_ms},
    maps::bump,
};
use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_fib_lookup};
use berth_ebpf_abi::{LocalPod, count};
use berth_ebpf_decide::flow::{
    Dropped, FlowMaps, PacketHook, Part, classify, fast_path, forged, open_flow, refresh_flow,
};
use core::{
    mem::{offset_of, size_of},
    ptr::{addr_of, addr_of_mut},
};

/// Decides about a packet and acts: the part of a program that every packet runs.
#[inline(always)]
pub(super) fn run<A: Headers>(skb: Skb, hook: PacketHook) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { ctx, view, stored, .. }) = work::<A>() else { return NEXT };
    // A promiscuous uplink also receives packets for other nodes.
    if (hook == PacketHook::Uplink && !skb.is_for_host())
        || A::parse_ends(skb, &mut ctx.packet, view).is_none()
    {
        return NEXT;
    }
    if hook == PacketHook::Pod && forged(&Kernel, ctx) {
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
                if hook != PacketHook::Egress && stored.what == BEGINS {
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

/// Drops a packet and counts it.
#[inline(never)]
fn shoot(index: u32) -> i32 {
    bump(index);
    SHOT
}

/// Reads the headers that an ICMP error quotes; returns 0 on success.
#[inline(never)]
fn parse_quoted<A: Headers>(skb: *mut __sk_buff) -> i32 {
    let Some(Work { ctx, view, .. }) = work::<A>() else { return 1 };
    i32::from(A::parse_quoted(Skb::at(skb), &mut ctx.packet, view).is_none())
}

/// Slow path for a packet whose flow has an entry, at most one packet per second and flow. Not inlined, so
/// that it has a stack frame of its own. Returns 0 if it stored a verdict.
#[inline(never)]
fn refresh_known<A: Headers>(hook: u32) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { ctx, stored, .. }) = work::<A>() else { return 1 };
    match refresh_flow(&Kernel, hook_of(hook), ctx, &mut stored.pod) {
        Some(next_hop) => {
            stored.next_hop(next_hop);
            0
        }
        None => 1,
    }
}

/// Decides about a packet whose flow has no entry. Not inlined, likewise.
#[inline(never)]
fn classify_new<A: Headers>(skb: *mut __sk_buff, hook: u32) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { ctx, stored, .. }) = work::<A>() else { return 0 };
    match classify(&Kernel, &Stack(skb), hook_of(hook), ctx) {
        Some(verdict) => stored.verdict(verdict),
        None => stored.what = BEGINS,
    }
    0
}

/// Opens the flow of a connection's first packet. Not inlined, likewise.
#[inline(never)]
fn begin<A: Headers>(skb: *mut __sk_buff, hook: u32) -> i32
where
    Kernel: FlowMaps<A>,
{
    let Some(Work { ctx, stored, .. }) = work::<A>() else { return 0 };
    stored.verdict(open_flow(&Kernel, &Stack(skb), hook_of(hook), ctx));
    0
}

#[inline(always)]
fn hook_of(number: u32) -> PacketHook {
    match number {
        0 => PacketHook::Uplink,
        1 => PacketHook::Pod,
        _ => PacketHook::Egress,
    }
}

/// Answers a packet by "port unreachable", or with an `mtu` by "too big".
///
/// A processor answers 50 packets at once and 1,000 per second of each family (`flow::Bucket`), the limits of
/// the kernel's own answers. Packets above the limit are dropped and counted.
#[inline(never)]
fn refuse<A: Headers>(skb: *mut __sk_buff, mtu: u32) -> i32 {
    if !bucket::<A>().is_some_and(|bucket| bucket.take(now_ms())) {
        return shoot(count::PACKET_UNANSWERED);
    }
    bump(count::PACKET_REJECTED);
    let skb = Skb::at(skb);
    let Some(Work { view, answer, .. }) = work::<A>() else { return SHOT };
    match A::refuse(skb, view, answer, mtu) {
        Some(()) => skb.send_back(),
        None => SHOT,
    }
}

/// Rewrites an ICMP error and the packet that it quotes; returns 0 on success.
#[inline(never)]
fn rewrite_error<A: Headers>(skb: *mut __sk_buff, hop: u32) -> i32 {
    let Some(Work { ctx, view, .. }) = work::<A>() else { return 1 };
    i32::from(A::rewrite_error(Skb::at(skb), view, &ctx.packet, ctx.to(), hop != 0).is_none())
}

/// Hands a packet to a pod of this node.
#[inline(always)]
fn into(skb: Skb, pod: &LocalPod) -> i32 {
    const {
        assert!(offset_of!(LocalPod, mac) + 6 == offset_of!(LocalPod, host_mac));
        assert!(size_of::<HardwareAddresses>() == 12);
    };
    // SAFETY: the two addresses are adjacent, as in `HardwareAddresses`; bytes have no alignment.
    let ends = unsafe { &*addr_of!(pod.mac).cast::<HardwareAddresses>() };
    match skb.store(0, ends) {
        Some(()) => {
            // A packet from a bridge was addressed to another device. Without this change the pod would
            // receive it as such a packet (before Linux 6.15).
            skb.make_for_host();
            into_peer(pod.ifindex)
        }
        None => SHOT,
    }
}

/// `BPF_FIB_LOOKUP_SKIP_NEIGH`: the neighbour is looked up when the packet is sent.
const SKIP_NEIGHBOUR: u32 = 1 << 2;

/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`.
const FRAGMENTATION_NEEDED: i64 = 8;
/// Marks the result of [`device`] as an MTU. No device has such an index.
const TOO_BIG: u32 = 1 << 31;

/// Index of the device by which the routes reach a translated packet's destination, or `otherwise` if no
/// route exists. If the packet is larger than the route's MTU, the MTU with [`TOO_BIG`].
#[inline(never)]
fn device<A: Headers>(skb: *mut __sk_buff, otherwise: u32) -> u32 {
    let Some(Work { ctx, view, .. }) = work::<A>() else { return 0 };
    let mut route = A::route(ctx.to());
    route.ifindex = ctx.packet.ifindex;
    if ctx.packet.part == Part::Whole {
        let packet = Skb::at(skb);
        // A packet that will be segmented becomes packets of this size, with TCP's shortest header.
        let size = match packet.gso_size() {
            0 => packet.len() - ETH,
            payload => payload + A::transport(view) - ETH + 20,
        };
        route.total = (size & 0xffff) as u16;
    }
    // SAFETY: `FibLookup` has the kernel's layout and size, and lives over the call.
    let found = unsafe {
        let size = size_of_val(&route) as i32;
        bpf_fib_lookup(skb.cast(), addr_of_mut!(route).cast(), size, SKIP_NEIGHBOUR)
    };
    match found {
        0 => route.ifindex,
        FRAGMENTATION_NEEDED => TOO_BIG | u32::from(route.total),
        _ => otherwise,
    }
}
