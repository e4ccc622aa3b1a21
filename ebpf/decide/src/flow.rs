//! Connections that are translated packet by packet: what comes from outside, from pods whose sockets are left alone,
//! and raw packets.
//!
//! Owns the rules; the state is two entries a connection in the flow table, one for each direction, each the other's
//! reverse. Both are written before the first packet leaves, the answers' first and only where none is: so no two
//! connections ever share the answers' key, and an answer always finds its way back.
//!
//! Invariants:
//! - An answer is shown as from the very address and port that the client dialled.
//! - A packet writes only its own direction's entry, at most once a second unless its state changes. Once a second it
//!   also looks for the other entry and puts it back where the table evicted it.
//! - A UDP flow asks once a second whether its backend is still in a set of the Service, a TCP flow at each SYN; where
//!   it is not, the flow is forgotten and the packet chooses anew.
//!
//! On failure: a packet in the middle of a TCP connection that no entry knows is left to the stack (it may be in
//! nf_conntrack since before these programs); any other chooses a backend; no free port is a drop.

pub mod checksum;
mod lifetime;
mod maps;
mod open;
mod packet;

pub use lifetime::{collect, lifetime_s};
pub use maps::FlowMaps;
pub use packet::{Dropped, Hook, Packet, Part, TCP, UDP, Verdict, Via, reverse, tcp};

use crate::{Family, From, decide, service::find};
use berth_ebpf_abi::{
    Flow, FragmentKey, FragmentPorts, INLINE, MemberKey, ServiceKey, Set, Tuple, flow, tag,
};

/// Fragments of one datagram that are this far apart, in seconds, are not of one datagram (RFC 791 bounds it by the
/// time to live, Linux by `ipfrag_time`).
const FRAGMENTS_S: u32 = 30;

/// Says what becomes of a packet, and writes down what the next ones of its connection need.
#[inline(always)]
pub fn judge<A: Family, M: FlowMaps<A>>(maps: &M, hook: Hook, packet: &Packet<A>) -> Verdict<A> {
    let mut tuple = packet.tuple;
    if let Part::Later(id) = packet.part
        && let Some(ports) = maps.fragment(&fragment_key(&tuple, id))
        && maps.now_s().saturating_sub(ports.seen_s) < FRAGMENTS_S
    {
        tuple.src_port = ports.src_port;
        tuple.dst_port = ports.dst_port;
    }
    let verdict = match known(maps, hook, packet, &tuple) {
        Some(verdict) => verdict,
        None => unknown(maps, hook, packet, &tuple),
    };
    if let (Part::First(id), Verdict::Translate { .. }) = (packet.part, &verdict) {
        let ports =
            FragmentPorts { src_port: tuple.src_port, dst_port: tuple.dst_port, seen_s: maps.now_s() };
        maps.keep_fragment(&fragment_key(&tuple, id), &ports);
    }
    verdict
}

#[inline(always)]
fn fragment_key<A: Family>(tuple: &Tuple<A>, id: u32) -> FragmentKey<A> {
    FragmentKey { src: tuple.src, dst: tuple.dst, id, proto: u32::from(tuple.proto) }
}

/// The verdict of the connection's own entry; nothing where there is none, or where it no longer holds.
#[inline(always)]
fn known<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: Hook,
    packet: &Packet<A>,
    tuple: &Tuple<A>,
) -> Option<Verdict<A>> {
    let entry = maps.flow(tuple)?;
    let reply = entry.flags & flow::REPLY != 0;
    if hook == Hook::Egress && !reply {
        return None;
    }
    if packet.part != Part::Error {
        let now_s = maps.now_s();
        let flags = after(entry.flags, tuple.proto, packet.tcp_flags);
        let begins = tuple.proto == TCP && !reply && packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        if begins || now_s != entry.seen_s {
            let generation = renew(maps, tuple, &entry, begins, now_s)?;
            maps.touch(tuple, flags, generation, now_s);
        } else if flags != entry.flags {
            maps.touch(tuple, flags, entry.generation, now_s);
        }
    }
    let via = open::via(maps, hook, &entry);
    Some(Verdict::Translate { to: entry.to, via })
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
/// must be there or be put back, and a backend must still be one. Gives the generation in which it was found; where
/// nothing, both entries are gone.
#[inline(always)]
fn renew<A: Family, M: FlowMaps<A>>(
    maps: &M,
    tuple: &Tuple<A>,
    entry: &Flow<A>,
    begins: bool,
    now_s: u32,
) -> Option<u32> {
    let reply = entry.flags & flow::REPLY != 0;
    let back = reverse(&entry.to);
    let home = reverse(tuple);
    let mut over = entry.flags & (flow::FIN_CLIENT | flow::RESET) != 0;
    let paired = match maps.flow(&back) {
        Some(other) => {
            over |= other.flags & flow::RESET != 0;
            other.to == home
        }
        None => {
            let flags = (entry.flags & flow::MASQUERADE) | if reply { 0 } else { flow::REPLY };
            maps.insert(&back, &Flow { to: home, flags, seen_s: now_s, ..*entry })
        }
    };
    let found = if !paired || (begins && over) {
        None
    } else if !reply && (begins || tuple.proto == UDP) {
        still_there(maps, tuple, entry)
    } else {
        Some(entry.generation)
    };
    if found.is_none() {
        if paired {
            maps.remove(&back);
        }
        maps.remove(tuple);
    }
    found
}

/// Looks for a flow's backend in the sets of its Service, and gives the generation in which it is there.
#[inline(always)]
fn still_there<A: Family, M: FlowMaps<A>>(maps: &M, tuple: &Tuple<A>, entry: &Flow<A>) -> Option<u32> {
    let key = ServiceKey { addr: tuple.dst, port: tuple.dst_port, proto: tuple.proto, pad: 0 };
    let (_, at) = find(maps, &key, From::Outside(tuple.src)).ok()?;
    let header = maps.header(at);
    if header.tag != tag(header.id, header.generation) {
        // It changes right now: asked again with the next second.
        return Some(entry.generation);
    }
    if header.id != entry.service {
        return None;
    }
    if header.generation == entry.generation {
        return Some(entry.generation);
    }
    let [cluster, here] = header.counts;
    let count = u32::from(cluster) + u32::from(here);
    let mut found = false;
    if count <= INLINE as u32 {
        let mut index = 0;
        while index < INLINE as u32 {
            let backend = maps.inline(at, index);
            found |= index < count && backend.addr == entry.to.dst && backend.port == entry.to.dst_port;
            index += 1;
        }
    } else {
        let mut member = MemberKey {
            id: header.id,
            addr: entry.to.dst,
            port: entry.to.dst_port,
            set: Set::Cluster as u16,
        };
        found = maps.member(&member);
        if !found {
            member.set = Set::Local as u16;
            found = maps.member(&member);
        }
    }
    if maps.header(at).tag != header.tag {
        return Some(entry.generation);
    }
    found.then_some(header.generation)
}

/// The verdict for what no entry knows.
#[inline(always)]
fn unknown<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: Hook,
    packet: &Packet<A>,
    tuple: &Tuple<A>,
) -> Verdict<A> {
    if hook == Hook::Egress {
        // What the socket hooks leave alone for want of an endpoint, and what belongs to no Service.
        let leak = maps.in_service_range(tuple.dst);
        return if leak { Verdict::Drop(Dropped::Leak) } else { Verdict::Pass };
    }
    if hook == Hook::Pod
        && maps.redirects()
        && let Some(pod) = maps.pod(&tuple.dst)
    {
        return Verdict::Forward(pod);
    }
    let later = matches!(packet.part, Part::Later(_));
    let begins = packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    if packet.part == Part::Error || (tuple.proto == TCP && !later && !begins) {
        return Verdict::Pass;
    }
    let key = ServiceKey { addr: tuple.dst, port: tuple.dst_port, proto: tuple.proto, pad: 0 };
    let from = if hook == Hook::Pod { From::Pod(tuple.src) } else { From::Outside(tuple.src) };
    match decide(maps, &key, from) {
        crate::Verdict::Pass => Verdict::Pass,
        crate::Verdict::Drop(_) => Verdict::Drop(Dropped::Service),
        _ if later => Verdict::Drop(Dropped::Fragment),
        crate::Verdict::Reject(_) => Verdict::Reject,
        crate::Verdict::To(choice) => open::open(maps, hook, packet, tuple, &choice),
    }
}
