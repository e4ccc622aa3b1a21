//! A connection's first packet: where its packets come from and go to from now on.

use super::{
    Class, Dropped, FlowContext, FlowMaps, Forwarding, Hook, NextHop, Put, Sockets, Verdict,
    class::{evict, find, forget, make_room},
    lifetime::{is_closed, is_over},
    note_fragment,
    packet::{is_reverse, reverse},
};
use crate::{Family, service::scale};
use berth_ebpf_abi::{Flow, LocalPod, backend, count, flow, frontend, local_pod};

/// So many source ports are tried, as nf_nat does: where nineteen of twenty are taken, one connection of seven hundred
/// finds none.
const TRIES: u32 = 128;
/// From this try on, ports of closed connections are taken too: their answers may still be on the way.
const CLOSED_TOO: u32 = 32;

/// The last part of [`super::decide_packet`]: writes a new connection down, to the backend in `ctx`, and translates its first
/// packet.
///
/// The source is masqueraded (kube-proxy's rules, and where answers would not pass these programs):
/// - a pod's that is given itself: an answer from its own address would not be taken for one;
/// - a pod's with `masqueradeAll`;
/// - an outside client's, unless the traffic policy keeps its address.
///
/// Never towards the host's own network, on whatever node its endpoint says it is: there the answer goes through the
/// stack, which must find the client's address in it to send it out.
#[inline(always)]
pub fn open_flow<A: Family, M: FlowMaps<A>, S: Sockets<A>>(
    maps: &M,
    sockets: &S,
    hook: Hook,
    ctx: &mut FlowContext<A>,
) -> Verdict {
    let kept = frontend::OUTSIDE_LOCAL | frontend::EXTERNAL;
    let client = ctx.packet.tuple.src;
    let masquerade = if ctx.backend & backend::HOST_NETWORK != 0 {
        false
    } else if hook == Hook::Pod {
        ctx.entry.to.dst == client || maps.masquerades_all()
    } else {
        ctx.frontend & kept != kept
    };
    ctx.entry.to.src = if masquerade { maps.masquerade() } else { client };
    if ctx.entry.to.src == A::ANY {
        return Verdict::Drop(Dropped::Address);
    }
    ctx.entry.to.src_port = ctx.packet.tuple.src_port;
    ctx.entry.to.proto = ctx.packet.tuple.proto;
    ctx.entry.to.pad = ctx.packet.tuple.pad;
    ctx.entry.flags = if masquerade { flow::MASQUERADE } else { 0 };
    ctx.entry.ifindex = if hook == Hook::Pod { 0 } else { ctx.packet.ifindex };
    ctx.entry.seen_s = maps.now_s();
    ctx.entry.since_s = ctx.entry.seen_s;
    let class = Class::first(ctx.packet.tuple.proto);
    if !make_room(maps, class, ctx, ctx.entry.seen_s) {
        maps.count(count::FLOW_REFUSED, class);
        return Verdict::Drop(Dropped::Full);
    }
    let [first, last] = maps.ports();
    let source_port = u16::from_be(ctx.packet.tuple.src_port);
    // The node's own sockets have the other ports of its address.
    ctx.keep = !masquerade || (first <= source_port && source_port <= last);
    ctx.claimed = false;
    maps.repeat(TRIES, |tried| {
        if tried != 0 || !ctx.keep {
            let [first, last] = maps.ports();
            let span = u32::from(last).saturating_sub(u32::from(first)) + 1;
            let port = u32::from(first) + scale(maps.rand(), span);
            ctx.entry.to.src_port = ((port & 0xffff) as u16).to_be();
        }
        ctx.claimed = claim(maps, sockets, class, ctx, tried >= CLOSED_TOO);
        ctx.claimed
    });
    if ctx.claimed { enter(maps, hook, class, ctx) } else { Verdict::Drop(Dropped::Ports) }
}

/// The answers' entry, as it must be.
#[inline(always)]
fn write_reply<A: Family>(ctx: &mut FlowContext<A>) {
    ctx.other.to = reverse(&ctx.packet.tuple);
    ctx.other.flags = ctx.entry.flags | flow::REPLY;
    ctx.other.service = ctx.entry.service;
    ctx.other.generation = ctx.entry.generation;
    ctx.other.ifindex = ctx.entry.ifindex;
    ctx.other.seen_s = ctx.entry.seen_s;
    ctx.other.since_s = ctx.entry.since_s;
}

/// Writes the answers' entry, if no other connection holds its key.
#[inline(always)]
fn claim<A: Family, M: FlowMaps<A>, S: Sockets<A>>(
    maps: &M,
    sockets: &S,
    class: Class,
    ctx: &mut FlowContext<A>,
    closed_too: bool,
) -> bool {
    ctx.back = reverse(&ctx.entry.to);
    // The node's own socket has the port towards this backend.
    if ctx.entry.flags & flow::MASQUERADE != 0 && sockets.connected(&ctx.back) {
        return false;
    }
    write_reply(ctx);
    let put = maps.insert(class, &ctx.back, &ctx.other);
    // An assured connection may hold the key too. It is looked for after the insertion: one that becomes assured
    // meanwhile is there before it leaves the table in which the insertion would have met it.
    let assured = |into: &mut _| class == Class::Unassured && maps.find(Class::Assured, &ctx.back, into);
    match put {
        Put::Done if !assured(&mut ctx.other) => return true,
        Put::Done => maps.remove(class, &ctx.back),
        Put::Exists if find(maps, &ctx.back, &mut ctx.other) => {}
        // It just went.
        Put::Exists => return maps.insert(class, &ctx.back, &ctx.other) == Put::Done,
        Put::Full => {
            evict(maps, class, ctx, ctx.entry.seen_s);
            return false;
        }
    }
    let (theirs, entry) = &mut ctx.theirs;
    // What an earlier connection with the same addresses and ports left is taken over.
    if !is_reverse(&ctx.other.to, &ctx.packet.tuple) {
        *theirs = reverse(&ctx.other.to);
        let mut flags = ctx.other.flags;
        let mut seen_s = ctx.other.seen_s;
        let paired = find(maps, theirs, entry) && is_reverse(&entry.to, &ctx.back);
        if paired {
            flags |= entry.flags;
            seen_s = seen_s.max(entry.seen_s);
        }
        let free =
            is_over(ctx.back.proto, flags, seen_s, ctx.entry.seen_s) || (closed_too && is_closed(flags));
        if !free {
            return false;
        }
        if paired {
            forget(maps, theirs);
        }
    }
    forget(maps, &ctx.back);
    write_reply(ctx);
    maps.insert(class, &ctx.back, &ctx.other) == Put::Done
}

/// Writes the entry of the client's packets. Where another processor was quicker, its choice holds.
#[inline(always)]
fn enter<A: Family, M: FlowMaps<A>>(maps: &M, hook: Hook, class: Class, ctx: &mut FlowContext<A>) -> Verdict {
    let mut put = maps.insert(class, &ctx.packet.tuple, &ctx.entry);
    if put == Put::Full {
        evict(maps, class, ctx, ctx.entry.seen_s);
        put = maps.insert(class, &ctx.packet.tuple, &ctx.entry);
    }
    if put == Put::Full {
        maps.remove(class, &ctx.back);
        maps.count(count::FLOW_REFUSED, class);
        return Verdict::Drop(Dropped::Full);
    }
    if put == Put::Exists {
        if !find(maps, &ctx.packet.tuple, &mut ctx.entry) {
            return Verdict::Drop(Dropped::Ports);
        }
        if !is_reverse(&ctx.entry.to, &ctx.back) {
            forget(maps, &ctx.back);
        }
    }
    note_fragment(maps, ctx);
    Verdict::Translate(forwarding(maps, hook, &ctx.entry))
}

/// How a translated packet goes on. A pod's entry is written to `pod`.
///
/// What bears an address of the node or of a Service as its source must not go up the stack, which would take it for
/// a forgery; so it is sent out by its device even where pods are reached through the stack.
#[inline(always)]
pub(super) fn next_hop<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: Hook,
    entry: &Flow<A>,
    pod: &mut LocalPod,
) -> NextHop {
    if hook == Hook::Egress {
        return NextHop::Stack;
    }
    let reply = entry.flags & flow::REPLY != 0;
    if reply && entry.ifindex != 0 {
        return NextHop::Neighbour(entry.ifindex);
    }
    let foreign = entry.flags & (flow::REPLY | flow::MASQUERADE) != 0;
    if maps.take_pod(&entry.to.dst, pod) {
        if maps.redirects() && pod.flags & local_pod::DIRECT != 0 {
            NextHop::Pod
        } else if foreign {
            NextHop::Neighbour(pod.ifindex)
        } else {
            NextHop::Stack
        }
    } else if !reply && foreign {
        NextHop::Neighbour(0)
    } else {
        NextHop::Stack
    }
}

/// [`way`] with the pod.
#[inline(always)]
pub(super) fn forwarding<A: Family, M: FlowMaps<A>>(maps: &M, hook: Hook, entry: &Flow<A>) -> Forwarding {
    let mut pod = LocalPod::default();
    next_hop(maps, hook, entry, &mut pod).with(pod)
}
