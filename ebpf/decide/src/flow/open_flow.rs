//! Opening of a flow by a connection's first packet: masquerade, source port and entries.

use super::{
    Class, Dropped, FlowContext, FlowMaps, PacketHook, PacketVerdict, Put, Sockets,
    class::{evict, find, forget, make_room},
    lifetime::{is_closed, is_over},
    next_hop::forwarding,
    note_fragment,
    packet::{is_reverse, reverse},
};
use crate::{Family, service::scale};
use berth_ebpf_abi::{backend, count, flow, frontend};

/// Number of source ports that are tried, as in nf_nat. With nineteen of twenty ports taken, one connection
/// of seven hundred finds none.
const TRIES: u32 = 128;
/// From this try on, ports of closed connections are also taken, although answers may still arrive.
const CLOSED_TOO: u32 = 32;

/// Last part of [`super::decide_packet`]: opens a flow to the backend in `ctx`, and translates the first
/// packet.
///
/// The source is masqueraded (by kube-proxy's rules, and where answers would not pass these programs):
/// - for a pod that is its own backend, because the pod would not accept an answer from its own address;
/// - for a pod with `masqueradeAll`;
/// - for a client from outside, unless the traffic policy keeps its address.
///
/// Packets to a host's own network are never masqueraded, whatever node the endpoint names: the answer passes
/// the stack, which needs the client's address to send the answer out.
#[inline(always)]
pub fn open_flow<A: Family, M: FlowMaps<A>, S: Sockets<A>>(
    maps: &M,
    sockets: &S,
    hook: PacketHook,
    ctx: &mut FlowContext<A>,
) -> PacketVerdict {
    let kept = frontend::OUTSIDE_LOCAL | frontend::EXTERNAL;
    let client = ctx.packet.tuple.src;
    let masquerade = if ctx.backend & backend::HOST_NETWORK != 0 {
        false
    } else if hook == PacketHook::Pod {
        ctx.entry.to.dst == client || maps.masquerades_all()
    } else {
        ctx.frontend & kept != kept
    };
    ctx.entry.to.src = if masquerade { maps.masquerade() } else { client };
    if ctx.entry.to.src == A::ANY {
        return PacketVerdict::Drop(Dropped::Address);
    }
    ctx.entry.to.src_port = ctx.packet.tuple.src_port;
    ctx.entry.to.proto = ctx.packet.tuple.proto;
    ctx.entry.to.pad = ctx.packet.tuple.pad;
    ctx.entry.flags = if masquerade { flow::MASQUERADE } else { 0 };
    ctx.entry.ifindex = if hook == PacketHook::Pod { 0 } else { ctx.packet.ifindex };
    ctx.entry.seen_s = maps.now_s();
    ctx.entry.since_s = ctx.entry.seen_s;
    let class = Class::first(ctx.packet.tuple.proto);
    if !make_room(maps, class, ctx, ctx.entry.seen_s) {
        maps.count(count::FLOW_REFUSED, class);
        return PacketVerdict::Drop(Dropped::Full);
    }
    let [first, last] = maps.ports();
    let source_port = u16::from_be(ctx.packet.tuple.src_port);
    // The ports outside the range belong to the node's own sockets.
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
    if ctx.claimed { enter(maps, hook, class, ctx) } else { PacketVerdict::Drop(Dropped::Ports) }
}

/// Fills in the entry of the answers.
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

/// Writes the entry of the answers, if no other flow holds its key.
#[inline(always)]
fn claim<A: Family, M: FlowMaps<A>, S: Sockets<A>>(
    maps: &M,
    sockets: &S,
    class: Class,
    ctx: &mut FlowContext<A>,
    closed_too: bool,
) -> bool {
    ctx.back = reverse(&ctx.entry.to);
    // A socket of the node uses this port towards this backend.
    if ctx.entry.flags & flow::MASQUERADE != 0 && sockets.connected(&ctx.back) {
        return false;
    }
    write_reply(ctx);
    let put = maps.insert(class, &ctx.back, &ctx.other);
    // An assured flow may hold the key too. The lookup follows the insertion: a flow that becomes assured
    // meanwhile is in the new table before it leaves the old one, where the insertion would fail.
    let assured = |into: &mut _| class == Class::Unassured && maps.find(Class::Assured, &ctx.back, into);
    match put {
        Put::Done if !assured(&mut ctx.other) => return true,
        Put::Done => maps.remove(class, &ctx.back),
        Put::Exists if find(maps, &ctx.back, &mut ctx.other) => {}
        // The entry was removed in between.
        Put::Exists => return maps.insert(class, &ctx.back, &ctx.other) == Put::Done,
        Put::Full => {
            evict(maps, class, ctx, ctx.entry.seen_s);
            return false;
        }
    }
    let (theirs, entry) = &mut ctx.theirs;
    // Remains of an earlier flow with the same addresses and ports are taken over.
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

/// Writes the entry of the client's packets. If another processor was faster, its choice stays.
#[inline(always)]
fn enter<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: PacketHook,
    class: Class,
    ctx: &mut FlowContext<A>,
) -> PacketVerdict {
    let mut put = maps.insert(class, &ctx.packet.tuple, &ctx.entry);
    if put == Put::Full {
        evict(maps, class, ctx, ctx.entry.seen_s);
        put = maps.insert(class, &ctx.packet.tuple, &ctx.entry);
    }
    if put == Put::Full {
        maps.remove(class, &ctx.back);
        maps.count(count::FLOW_REFUSED, class);
        return PacketVerdict::Drop(Dropped::Full);
    }
    if put == Put::Exists {
        if !find(maps, &ctx.packet.tuple, &mut ctx.entry) {
            return PacketVerdict::Drop(Dropped::Ports);
        }
        if !is_reverse(&ctx.entry.to, &ctx.back) {
            forget(maps, &ctx.back);
        }
    }
    note_fragment(maps, ctx);
    PacketVerdict::Translate(forwarding(maps, hook, &ctx.entry))
}
