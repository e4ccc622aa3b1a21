//! Connections that are translated packet by packet: what comes from outside, from pods whose sockets are left alone,
//! and raw packets.
//!
//! Owns the rules; the state is two entries a connection in the tables of connections, one for each direction, each the
//! other's reverse. Both are written before the first packet leaves, the answers' first and only where none is: so no
//! two connections ever share the answers' key, and an answer always finds its way back. In which table they are, and
//! what goes where one is full, says [`Class`].
//!
//! Invariants:
//! - An answer is shown as from the very address and port that the client dialled.
//! - A packet writes only its own direction's entry, at most once a second unless its state changes. Once a second it
//!   also looks for the other entry and puts it back where it is missing.
//! - A UDP flow asks once a second whether its backend still serves; where it does not, the flow is forgotten and the
//!   packet chooses anew. So does the SYN of a TCP connection whose Service has got other backends since its last.
//!
//! On failure: a packet in the middle of a TCP connection that no entry knows is left to the stack (it may be in
//! nf_conntrack since before these programs); any other chooses a backend; no free port is a drop, and so is a full
//! class. What becomes assured where that class is full is forgotten and left to the stack, which resets it.

pub mod checksum;
mod class;
mod lifetime;
mod limit;
mod maps;
#[cfg(feature = "std")]
pub mod memory;
mod open;
mod packet;

pub use class::{Class, Put};
pub use lifetime::{collect, lifetime_s};
pub use limit::Bucket;
pub use maps::{FlowMaps, Sockets};
pub use open::open;
pub use packet::{Dropped, Hook, Packet, Part, Room, TCP, UDP, Verdict, Via, Way, reverse, tcp};

use crate::{
    Aligned, Asked, Family, From, decide,
    service::{find, search, serves},
};
use berth_ebpf_abi::{FragmentKey, FragmentPorts, LocalPod, ServiceKey, flow, frontend, local_pod, tag};
use class::{Moved, find as find_flow, forget, reclass};
use lifetime::is_stream;
use packet::is_reverse;

/// Fragments of one datagram that are this far apart, in seconds, are not of one datagram (`ipfrag_time`).
const FRAGMENTS_S: u32 = 30;

/// Says what becomes of the packet in `room`, and writes down what the next ones of its connection need.
///
/// Its four parts are functions of their own in the kernel, where each has a small stack.
#[inline(always)]
pub fn judge<A: Family, M: FlowMaps<A> + Sockets<A>>(maps: &M, hook: Hook, room: &mut Room<A>) -> Verdict {
    if hook == Hook::Pod && forged(maps, room) {
        return Verdict::Drop(Dropped::Forged);
    }
    let mut pod = LocalPod::default();
    let way = glance(maps, hook, room, &mut pod).or_else(|| meet(maps, hook, room, &mut pod));
    if let Some(way) = way {
        return Verdict::Translate(way.with(pod));
    }
    choose(maps, maps, hook, room).unwrap_or_else(|| open(maps, maps, hook, room))
}

/// Whether a pod sends under an address that is not its own, as its device is known: what is looked at before anything
/// else. Of the packet its source and its device must be there. Writes whether what it sends may go past the stack.
#[inline(always)]
pub fn forged<A: Family, M: FlowMaps<A>>(maps: &M, room: &mut Room<A>) -> bool {
    room.direct = false;
    let Some(device) = maps.pod_device(room.packet.ifindex) else { return false };
    room.direct = device.flags & local_pod::DIRECT != 0;
    let src = room.packet.tuple.src;
    device.flags & local_pod::OWN_SOURCE != 0 && src != A::of_device(&device) && !src.is_of_the_link()
}

/// The quick part of [`judge`]: a packet of a connection that was looked at in this very second and does not change.
/// Nothing means that [`meet`] has the say. A pod's entry is written to `pod`.
#[inline(always)]
pub fn glance<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: Hook,
    room: &mut Room<A>,
    pod: &mut LocalPod,
) -> Option<Way> {
    let class = Class::common(room.packet.tuple.proto);
    if room.packet.part != Part::Whole || !maps.find(class, &room.packet.tuple, &mut room.entry) {
        return None;
    }
    let flags = room.entry.flags;
    let tcp_flags = room.packet.tcp_flags;
    let same = after(flags, room.packet.tuple.proto, tcp_flags) == flags && tcp_flags & tcp::SYN == 0;
    let met = hook != Hook::Egress || flags & flow::REPLY != 0;
    (same && met && maps.now_s() == room.entry.seen_s).then(|| open::way(maps, hook, &room.entry, pod))
}

/// The thorough part of [`judge`]: any packet of a connection that has an entry, which is renewed. Nothing means that
/// [`choose`] has the say. A pod's entry is written to `pod`.
#[inline(always)]
pub fn meet<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: Hook,
    room: &mut Room<A>,
    pod: &mut LocalPod,
) -> Option<Way> {
    if let Part::Later(id) = room.packet.part
        && let Some(ports) = maps.fragment(&fragment_key(room, id))
        && maps.now_s().saturating_sub(ports.seen_s) < FRAGMENTS_S
    {
        room.packet.tuple.src_port = ports.src_port;
        room.packet.tuple.dst_port = ports.dst_port;
    }
    known(maps, hook, room).then(|| {
        note_fragment(maps, room);
        open::way(maps, hook, &room.entry, pod)
    })
}

/// Writes down the ports that a datagram's other fragments lack.
#[inline(always)]
fn note_fragment<A: Family, M: FlowMaps<A>>(maps: &M, room: &Room<A>) {
    if let Part::First(id) = room.packet.part {
        let (src_port, dst_port) = (room.packet.tuple.src_port, room.packet.tuple.dst_port);
        let ports = FragmentPorts { src_port, dst_port, seen_s: maps.now_s() };
        maps.keep_fragment(&fragment_key(room, id), &ports);
    }
}

#[inline(always)]
fn fragment_key<A: Family>(room: &Room<A>, id: u32) -> FragmentKey<A> {
    let tuple = &room.packet.tuple;
    FragmentKey { src: tuple.src, dst: tuple.dst, id, proto: u32::from(tuple.proto) }
}

/// Whether a packet's connection has an entry which holds.
#[inline(always)]
fn known<A: Family, M: FlowMaps<A>>(maps: &M, hook: Hook, room: &mut Room<A>) -> bool {
    if !find_flow(maps, &room.packet.tuple, &mut room.entry) {
        return false;
    }
    let reply = room.entry.flags & flow::REPLY != 0;
    if hook == Hook::Egress && !reply {
        return false;
    }
    if room.packet.part == Part::Error {
        return true;
    }
    let now_s = maps.now_s();
    let (proto, tcp_flags) = (room.packet.tuple.proto, room.packet.tcp_flags);
    let mut flags = after(room.entry.flags, proto, tcp_flags);
    let begins = proto == TCP && !reply && tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let moves = if room.entry.flags & flow::ASSURED != 0 {
        tcp_flags & (tcp::FIN | tcp::RST) != 0
    } else {
        !reply && tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::ACK
    };
    if begins || moves || now_s != room.entry.seen_s {
        if !renew(maps, room, begins, now_s) {
            return false;
        }
        if proto == TCP {
            match reclass(maps, room, flags, now_s) {
                Moved::No => {}
                Moved::Yes => return true,
                Moved::Refused => return false,
            }
        } else if is_stream(flags | room.other.flags, room.entry.since_s, now_s) {
            flags |= flow::ASSURED;
        }
    } else if flags == room.entry.flags {
        return true;
    }
    maps.touch(Class::of(proto, flags), &room.packet.tuple, flags, room.entry.generation, now_s);
    true
}

/// A direction's flags after one more of its packets.
#[inline(always)]
fn after(flags: u32, proto: u8, tcp_flags: u8) -> u32 {
    let reply = flags & flow::REPLY != 0;
    let mut flags = if reply { flags | flow::ANSWERED } else { flags };
    if proto == TCP {
        // A connection that goes on after a reset was not reset: the receiver found it outside of its window.
        flags &= !flow::RESET;
        if tcp_flags & tcp::RST != 0 {
            flags |= flow::RESET;
        }
        if tcp_flags & tcp::FIN != 0 {
            flags |= if reply { flow::FIN_SERVER } else { flow::FIN_CLIENT };
        }
    }
    flags
}

/// Checks a connection that was last checked in another second, or that seems to begin once more: the other direction
/// must be there or be put back, and a backend must still be one. Says whether it holds; where not, its entries are
/// gone.
#[inline(always)]
fn renew<A: Family, M: FlowMaps<A>>(maps: &M, room: &mut Room<A>, begins: bool, now_s: u32) -> bool {
    let reply = room.entry.flags & flow::REPLY != 0;
    let mut over = room.entry.flags & (flow::FIN_CLIENT | flow::RESET) != 0;
    room.back = reverse(&room.entry.to);
    let paired = if find_flow(maps, &room.back, &mut room.other) {
        over |= room.other.flags & flow::RESET != 0;
        is_reverse(&room.other.to, &room.packet.tuple)
    } else {
        room.other = room.entry;
        room.other.to = reverse(&room.packet.tuple);
        let both = flow::MASQUERADE | flow::ASSURED;
        room.other.flags = (room.entry.flags & both) | if reply { 0 } else { flow::REPLY };
        room.other.seen_s = now_s;
        let class = Class::of(room.back.proto, room.other.flags);
        maps.insert(class, &room.back, &room.other) == Put::Done
    };
    let asks = !reply && (begins || room.packet.tuple.proto == UDP);
    let holds = paired && !(begins && over) && (!asks || still_there(maps, room));
    if !holds {
        if paired {
            forget(maps, &room.back);
        }
        forget(maps, &room.packet.tuple);
    }
    holds
}

/// Looks whether a flow's backend still serves, and notes the generation in which it does.
#[inline(always)]
fn still_there<A: Family, M: FlowMaps<A>>(maps: &M, room: &mut Room<A>) -> bool {
    let tuple = &room.packet.tuple;
    let key = ServiceKey { addr: tuple.dst, port: tuple.dst_port, proto: tuple.proto, pad: 0 };
    let mut key = Aligned(key);
    let mut search = search::DIALLED;
    let Some(at) = find(maps, &mut key, &mut search) else {
        return false;
    };
    let header = maps.header(at);
    if header.tag != tag(header.id, header.generation) {
        // It changes right now: asked again with the next second.
        return true;
    }
    if header.id != room.entry.service {
        return false;
    }
    if header.generation == room.entry.generation {
        return true;
    }
    let mut asked = Asked::default();
    asked.member.addr = room.entry.to.dst;
    asked.member.port = room.entry.to.dst_port;
    let found = serves(maps, &mut asked, header.id);
    if maps.header(at).tag != header.tag {
        return true;
    }
    room.entry.generation = header.generation;
    found
}

/// Whether the stack delivers, to a pod, what another pod of this node sent, and both may do without it: what pods send
/// each other goes past the stack, so it was sent to another address, and the stack gave it this one (a host port). Then
/// the answer must go by the stack too.
#[inline(always)]
fn of_stack<A: Family, M: FlowMaps<A>>(maps: &M, room: &Room<A>) -> bool {
    let direct = |flags: u32| flags & local_pod::DIRECT != 0;
    maps.redirects()
        && maps.pod_device(room.packet.ifindex).is_some_and(|device| direct(device.flags))
        && maps.pod(&room.packet.tuple.src).is_some_and(|pod| direct(pod.flags))
        && !maps.is_of_stack(&reverse(&room.packet.tuple))
}

/// The part of [`judge`] for what no entry knows. Nothing means that a connection begins and [`open`] has the say, with
/// what was chosen in `room`.
#[inline(always)]
pub fn choose<A: Family, M: FlowMaps<A>, S: Sockets<A>>(
    maps: &M,
    sockets: &S,
    hook: Hook,
    room: &mut Room<A>,
) -> Option<Verdict> {
    let tuple = &room.packet.tuple;
    if hook == Hook::Egress {
        // What the socket hooks leave alone for want of an endpoint, and what belongs to no Service.
        let leak = maps.in_service_range(tuple.dst);
        if !leak && of_stack(maps, room) {
            maps.note_of_stack(&reverse(&room.packet.tuple));
        }
        return Some(if leak { Verdict::Drop(Dropped::Leak) } else { Verdict::Pass });
    }
    // Fragments may belong to what the stack translated, and lack the ports that tell.
    let whole = !matches!(room.packet.part, Part::First(_) | Part::Later(_));
    if hook == Hook::Pod
        && room.direct
        && whole
        && maps.redirects()
        && let Some(pod) = maps.pod(&tuple.dst)
        && pod.flags & local_pod::DIRECT != 0
        && !maps.is_of_stack(tuple)
    {
        return Some(Verdict::Forward(pod));
    }
    let later = matches!(room.packet.part, Part::Later(_));
    let begins = room.packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    if room.packet.part == Part::Error || (tuple.proto == TCP && !later && !begins) {
        return Some(Verdict::Pass);
    }
    let key = ServiceKey { addr: tuple.dst, port: tuple.dst_port, proto: tuple.proto, pad: 0 };
    let from = if hook == Hook::Pod { From::Pod(tuple.src) } else { From::Outside(tuple.src) };
    match decide(maps, &key, from) {
        crate::Verdict::Pass => Some(Verdict::Pass),
        crate::Verdict::Drop(_) => Some(Verdict::Drop(Dropped::Service)),
        _ if later => Some(Verdict::Drop(Dropped::Fragment)),
        crate::Verdict::Reject(_) => Some(Verdict::Reject),
        // An answer to a socket of the node's own, whose port happens to be a node port.
        crate::Verdict::To(choice)
            if tuple.proto == UDP
                && hook == Hook::Uplink
                && choice.frontend & frontend::NODE_PORT != 0
                && sockets.connected(tuple) =>
        {
            Some(Verdict::Pass)
        }
        crate::Verdict::To(choice) => {
            room.entry.to.dst = choice.backend.addr;
            room.entry.to.dst_port = choice.backend.port;
            room.entry.service = choice.service;
            room.entry.generation = choice.generation;
            room.backend = choice.backend.flags;
            room.frontend = choice.frontend;
            None
        }
    }
}
