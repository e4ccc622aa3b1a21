//! A connection's first packet: where its packets come from and go to from now on.

use super::{
    Class, Dropped, FlowMaps, Hook, Put, Room, Sockets, Verdict, Via, Way,
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

/// The last part of [`super::judge`]: writes a new connection down, to the backend in `room`, and translates its first
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
pub fn open<A: Family, M: FlowMaps<A>, S: Sockets<A>>(
    maps: &M,
    sockets: &S,
    hook: Hook,
    room: &mut Room<A>,
) -> Verdict {
    let kept = frontend::OUTSIDE_LOCAL | frontend::EXTERNAL;
    let client = room.packet.tuple.src;
    let masquerade = if room.backend & backend::HOST_NETWORK != 0 {
        false
    } else if hook == Hook::Pod {
        room.entry.to.dst == client || maps.masquerades_all()
    } else {
        room.frontend & kept != kept
    };
    room.entry.to.src = if masquerade { maps.masquerade() } else { client };
    if room.entry.to.src == A::ANY {
        return Verdict::Drop(Dropped::Address);
    }
    room.entry.to.src_port = room.packet.tuple.src_port;
    room.entry.to.proto = room.packet.tuple.proto;
    room.entry.to.pad = room.packet.tuple.pad;
    room.entry.flags = if masquerade { flow::MASQUERADE } else { 0 };
    room.entry.ifindex = if hook == Hook::Pod { 0 } else { room.packet.ifindex };
    room.entry.seen_s = maps.now_s();
    room.entry.since_s = room.entry.seen_s;
    let class = Class::first(room.packet.tuple.proto);
    if !make_room(maps, class, room, room.entry.seen_s) {
        maps.count(count::FLOW_REFUSED, class);
        return Verdict::Drop(Dropped::Full);
    }
    let [first, last] = maps.ports();
    let source_port = u16::from_be(room.packet.tuple.src_port);
    // The node's own sockets have the other ports of its address.
    room.keep = !masquerade || (first <= source_port && source_port <= last);
    room.claimed = false;
    maps.repeat(TRIES, |tried| {
        if tried != 0 || !room.keep {
            let [first, last] = maps.ports();
            let span = u32::from(last).saturating_sub(u32::from(first)) + 1;
            let port = u32::from(first) + scale(maps.rand(), span);
            room.entry.to.src_port = ((port & 0xffff) as u16).to_be();
        }
        room.claimed = claim(maps, sockets, class, room, tried >= CLOSED_TOO);
        room.claimed
    });
    if room.claimed { enter(maps, hook, class, room) } else { Verdict::Drop(Dropped::Ports) }
}

/// The answers' entry, as it must be.
#[inline(always)]
fn write_reply<A: Family>(room: &mut Room<A>) {
    room.other.to = reverse(&room.packet.tuple);
    room.other.flags = room.entry.flags | flow::REPLY;
    room.other.service = room.entry.service;
    room.other.generation = room.entry.generation;
    room.other.ifindex = room.entry.ifindex;
    room.other.seen_s = room.entry.seen_s;
    room.other.since_s = room.entry.since_s;
}

/// Writes the answers' entry, if no other connection holds its key.
#[inline(always)]
fn claim<A: Family, M: FlowMaps<A>, S: Sockets<A>>(
    maps: &M,
    sockets: &S,
    class: Class,
    room: &mut Room<A>,
    closed_too: bool,
) -> bool {
    room.back = reverse(&room.entry.to);
    // The node's own socket has the port towards this backend.
    if room.entry.flags & flow::MASQUERADE != 0 && sockets.connected(&room.back) {
        return false;
    }
    write_reply(room);
    let put = maps.insert(class, &room.back, &room.other);
    // An assured connection may hold the key too. It is looked for after the insertion: one that becomes assured
    // meanwhile is there before it leaves the table in which the insertion would have met it.
    let assured = |into: &mut _| class == Class::Unassured && maps.find(Class::Assured, &room.back, into);
    match put {
        Put::Done if !assured(&mut room.other) => return true,
        Put::Done => maps.remove(class, &room.back),
        Put::Exists if find(maps, &room.back, &mut room.other) => {}
        // It just went.
        Put::Exists => return maps.insert(class, &room.back, &room.other) == Put::Done,
        Put::Full => {
            evict(maps, class, room, room.entry.seen_s);
            return false;
        }
    }
    let (theirs, entry) = &mut room.theirs;
    // What an earlier connection with the same addresses and ports left is taken over.
    if !is_reverse(&room.other.to, &room.packet.tuple) {
        *theirs = reverse(&room.other.to);
        let mut flags = room.other.flags;
        let mut seen_s = room.other.seen_s;
        let paired = find(maps, theirs, entry) && is_reverse(&entry.to, &room.back);
        if paired {
            flags |= entry.flags;
            seen_s = seen_s.max(entry.seen_s);
        }
        let free =
            is_over(room.back.proto, flags, seen_s, room.entry.seen_s) || (closed_too && is_closed(flags));
        if !free {
            return false;
        }
        if paired {
            forget(maps, theirs);
        }
    }
    forget(maps, &room.back);
    write_reply(room);
    maps.insert(class, &room.back, &room.other) == Put::Done
}

/// Writes the entry of the client's packets. Where another processor was quicker, its choice holds.
#[inline(always)]
fn enter<A: Family, M: FlowMaps<A>>(maps: &M, hook: Hook, class: Class, room: &mut Room<A>) -> Verdict {
    let mut put = maps.insert(class, &room.packet.tuple, &room.entry);
    if put == Put::Full {
        evict(maps, class, room, room.entry.seen_s);
        put = maps.insert(class, &room.packet.tuple, &room.entry);
    }
    if put == Put::Full {
        maps.remove(class, &room.back);
        maps.count(count::FLOW_REFUSED, class);
        return Verdict::Drop(Dropped::Full);
    }
    if put == Put::Exists {
        if !find(maps, &room.packet.tuple, &mut room.entry) {
            return Verdict::Drop(Dropped::Ports);
        }
        if !is_reverse(&room.entry.to, &room.back) {
            forget(maps, &room.back);
        }
    }
    note_fragment(maps, room);
    Verdict::Translate(via(maps, hook, &room.entry))
}

/// How a translated packet goes on. A pod's entry is written to `pod`.
///
/// What bears an address of the node or of a Service as its source must not go up the stack, which would take it for
/// a forgery; so it is sent out by its device even where pods are reached through the stack.
#[inline(always)]
pub(super) fn way<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: Hook,
    entry: &Flow<A>,
    pod: &mut LocalPod,
) -> Way {
    if hook == Hook::Egress {
        return Way::Stack;
    }
    let reply = entry.flags & flow::REPLY != 0;
    if reply && entry.ifindex != 0 {
        return Way::Neighbour(entry.ifindex);
    }
    let foreign = entry.flags & (flow::REPLY | flow::MASQUERADE) != 0;
    if maps.take_pod(&entry.to.dst, pod) {
        if maps.redirects() && pod.flags & local_pod::DIRECT != 0 {
            Way::Pod
        } else if foreign {
            Way::Neighbour(pod.ifindex)
        } else {
            Way::Stack
        }
    } else if !reply && foreign {
        Way::Neighbour(0)
    } else {
        Way::Stack
    }
}

/// [`way`] with the pod.
#[inline(always)]
pub(super) fn via<A: Family, M: FlowMaps<A>>(maps: &M, hook: Hook, entry: &Flow<A>) -> Via {
    let mut pod = LocalPod::default();
    way(maps, hook, entry, &mut pod).with(pod)
}
