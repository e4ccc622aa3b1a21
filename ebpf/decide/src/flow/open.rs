//! A connection's first packet: where its packets come from and go to from now on.

use super::{
    Dropped, FlowMaps, Hook, Packet, Verdict, Via,
    lifetime::{is_closed, is_over},
    reverse,
};
use crate::{Choice, Family, service::scale};
use berth_ebpf_abi::{Flow, Tuple, backend, flow, frontend};

/// So many source ports are tried.
const TRIES: u32 = 32;
/// From this try on, ports of closed connections are taken too: their answers may still be on the way.
const CLOSED_TOO: u32 = 8;

/// Writes a new connection down and translates its first packet.
///
/// The source is masqueraded (kube-proxy's rules, and where answers would not pass these programs):
/// - a pod's that is given itself: an answer from its own address would not be taken for one;
/// - a pod's with `masqueradeAll`;
/// - an outside client's, unless the traffic policy keeps its address.
///
/// Never towards the host's own network: there the answer goes through the stack, which must find the client's
/// address in it to send it out.
#[inline(always)]
pub(super) fn open<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: Hook,
    packet: &Packet<A>,
    tuple: &Tuple<A>,
    choice: &Choice<A>,
) -> Verdict<A> {
    let here = u32::from(choice.backend.flags) & u32::from(backend::LOCAL | backend::HOST_NETWORK);
    let masquerade = if here == u32::from(backend::LOCAL | backend::HOST_NETWORK) {
        false
    } else if hook == Hook::Pod {
        choice.backend.addr == tuple.src || maps.masquerades_all()
    } else {
        choice.frontend & (frontend::OUTSIDE_LOCAL | frontend::EXTERNAL)
            != frontend::OUTSIDE_LOCAL | frontend::EXTERNAL
    };
    let src = if masquerade { maps.masquerade() } else { tuple.src };
    if src == A::ANY {
        return Verdict::Drop(Dropped::Address);
    }
    let [first, last] = maps.ports();
    let mut forward = Flow {
        to: Tuple {
            src,
            dst: choice.backend.addr,
            src_port: tuple.src_port,
            dst_port: choice.backend.port,
            proto: tuple.proto,
            pad: [0; 3],
        },
        flags: if masquerade { flow::MASQUERADE } else { 0 },
        service: choice.service,
        generation: choice.generation,
        ifindex: if hook == Hook::Pod { 0 } else { packet.ifindex },
        seen_s: maps.now_s(),
    };
    let source_port = u16::from_be(tuple.src_port);
    // The node's own sockets have the other ports of its address.
    let mut keep = !masquerade || (first <= source_port && source_port <= last);
    let span = u32::from(last).saturating_sub(u32::from(first)) + 1;
    let mut tried = 0;
    while tried < TRIES {
        if !keep {
            let port = u32::from(first) + scale(maps.rand(), span);
            forward.to.src_port = ((port & 0xffff) as u16).to_be();
        }
        keep = false;
        if claim(maps, tuple, &forward, tried >= CLOSED_TOO) {
            return enter(maps, hook, tuple, &forward);
        }
        tried += 1;
    }
    Verdict::Drop(Dropped::Ports)
}

/// Writes the answers' entry, if no other connection holds its key.
#[inline(always)]
fn claim<A: Family, M: FlowMaps<A>>(maps: &M, tuple: &Tuple<A>, forward: &Flow<A>, closed_too: bool) -> bool {
    let back = reverse(&forward.to);
    let reply = Flow { to: reverse(tuple), flags: forward.flags | flow::REPLY, ..*forward };
    if maps.insert(&back, &reply) {
        return true;
    }
    let Some(holder) = maps.flow(&back) else {
        return maps.insert(&back, &reply);
    };
    if holder.to == reply.to {
        // Left of an earlier connection with the same addresses and ports.
        return maps.replace(&back, &reply);
    }
    let theirs = reverse(&holder.to);
    let other = maps.flow(&theirs);
    let flags = holder.flags | other.map_or(0, |other| other.flags);
    let seen_s = other.map_or(holder.seen_s, |other| other.seen_s.max(holder.seen_s));
    if is_over(tuple.proto, flags, seen_s, forward.seen_s) || (closed_too && is_closed(flags)) {
        if other.is_some_and(|other| reverse(&other.to) == back) {
            maps.remove(&theirs);
        }
        maps.remove(&back);
        return maps.insert(&back, &reply);
    }
    false
}

/// Writes the entry of the client's packets. Where another processor was quicker, its choice holds.
#[inline(always)]
fn enter<A: Family, M: FlowMaps<A>>(maps: &M, hook: Hook, tuple: &Tuple<A>, forward: &Flow<A>) -> Verdict<A> {
    let mut entry = *forward;
    if !maps.insert(tuple, forward) {
        let Some(earlier) = maps.flow(tuple) else {
            return Verdict::Drop(Dropped::Ports);
        };
        if earlier.to != forward.to {
            maps.remove(&reverse(&forward.to));
        }
        entry = earlier;
    }
    let via = via(maps, hook, &entry);
    Verdict::Translate { to: entry.to, via }
}

/// How a translated packet goes on.
///
/// What bears an address of the node or of a Service as its source must not go up the stack, which would take it for
/// a forgery; so it is sent out by its device even where pods are reached through the stack.
#[inline(always)]
pub(super) fn via<A: Family, M: FlowMaps<A>>(maps: &M, hook: Hook, entry: &Flow<A>) -> Via {
    if hook == Hook::Egress {
        return Via::Stack;
    }
    let reply = entry.flags & flow::REPLY != 0;
    if reply && entry.ifindex != 0 {
        return Via::Neighbour(entry.ifindex);
    }
    let foreign = reply || entry.flags & flow::MASQUERADE != 0;
    match maps.pod(&entry.to.dst) {
        Some(pod) if maps.redirects() => Via::Pod(pod),
        Some(pod) if foreign => Via::Neighbour(pod.ifindex),
        None if !reply && foreign => Via::Neighbour(0),
        _ => Via::Stack,
    }
}
