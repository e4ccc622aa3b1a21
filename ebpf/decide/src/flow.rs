//! Decisions for packets: translation of connections whose sockets have no hook, which are those from
//! outside, those of pods without socket hooks, and raw packets.
//!
//! Owns the rules. A flow has two entries, one for each direction, each the reverse of the other. Both are
//! written before the first packet leaves, the entry of the answers first and only under a free key. So no
//! two flows share the key of their answers, and every answer finds its way back. [`Class`] decides about
//! their table and about full tables.
//!
//! Invariants:
//! - An answer carries the address and port that the client dialled.
//! - A packet writes the entry of its own direction only, at most once a second unless the state changes.
//!   Once a second it also restores a missing entry of the other direction.
//! - A UDP flow checks once a second whether its backend still serves. Otherwise the flow is removed, and the
//!   packet selects a new backend. So does a TCP connection's SYN after a change of the backends.
//!
//! On failure: a packet of an established TCP connection without an entry is left to the stack (nf_conntrack
//! may know the connection from before these programs); others select a backend. Without a free port or a
//! place in its class a packet is dropped. A flow that becomes assured in a full class is removed.

pub mod checksum;
mod class;
mod collect;
mod lifetime;
mod limit;
mod maps;
#[cfg(feature = "std")]
pub mod memory;
mod next_hop;
mod open_flow;
mod packet;

pub use class::{Class, Put};
pub use collect::collect;
pub use lifetime::lifetime_s;
pub use limit::Bucket;
pub use maps::{FlowMaps, Sockets};
pub use open_flow::open_flow;
pub use packet::{
    Dropped, FlowContext, Forwarding, NextHop, Packet, PacketHook, PacketVerdict, Part, TCP, UDP, reverse,
    tcp,
};

use crate::{
    Aligned, ClientLocation, Family, MemberQuery, decide,
    service::{find, search, serves},
};
use berth_ebpf_abi::{FragmentKey, FragmentPorts, LocalPod, ServiceKey, flow, frontend, local_pod, tag};
use class::{Reclassified, find as find_flow, forget, reclass};
use lifetime::{is_closed, is_stream};
use packet::is_reverse;

/// Maximum age of a first fragment in seconds for later fragments of the datagram (`ipfrag_time`).
const FRAGMENTS_S: u32 = 30;

/// Decides about the packet in `ctx`, and writes the flow state for the connection's next packets.
///
/// The kernel runs the four parts as separate functions, because each function's stack is small.
#[inline(always)]
pub fn decide_packet<A: Family, M: FlowMaps<A> + Sockets<A>>(
    maps: &M,
    hook: PacketHook,
    ctx: &mut FlowContext<A>,
) -> PacketVerdict {
    if hook == PacketHook::Pod && forged(maps, ctx) {
        return PacketVerdict::Drop(Dropped::Forged);
    }
    let mut pod = LocalPod::default();
    let next_hop = fast_path(maps, hook, ctx, &mut pod).or_else(|| refresh_flow(maps, hook, ctx, &mut pod));
    if let Some(next_hop) = next_hop {
        return PacketVerdict::Translate(next_hop.with(pod));
    }
    classify(maps, maps, hook, ctx).unwrap_or_else(|| open_flow(maps, maps, hook, ctx))
}

/// Whether a pod sends with a foreign source address, according to the entry of its device. Runs first and
/// needs the packet's source and device only. Sets `ctx.direct`: the packet may bypass the stack.
#[inline(always)]
pub fn forged<A: Family, M: FlowMaps<A>>(maps: &M, ctx: &mut FlowContext<A>) -> bool {
    ctx.direct = false;
    let Some(device) = maps.pod_device(ctx.packet.ifindex) else { return false };
    ctx.direct = device.flags & local_pod::DIRECT != 0;
    let src = ctx.packet.tuple.src;
    device.flags & local_pod::OWN_SOURCE != 0 && src != A::of_device(&device) && !src.is_of_the_link()
}

/// Fast path of [`decide_packet`]: a packet whose flow was checked in this second and does not change.
/// Returns `None` if [`refresh_flow`] must decide. The pod's entry is written to `pod`.
#[inline(always)]
pub fn fast_path<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: PacketHook,
    ctx: &mut FlowContext<A>,
    pod: &mut LocalPod,
) -> Option<NextHop> {
    let class = Class::common(ctx.packet.tuple.proto);
    if ctx.packet.part != Part::Whole || !maps.find(class, &ctx.packet.tuple, &mut ctx.entry) {
        return None;
    }
    let flags = ctx.entry.flags;
    let tcp_flags = ctx.packet.tcp_flags;
    let same = after(flags, ctx.packet.tuple.proto, tcp_flags) == flags && tcp_flags & tcp::SYN == 0;
    let met = hook != PacketHook::Egress || flags & flow::REPLY != 0;
    (same && met && maps.now_s() == ctx.entry.seen_s).then(|| next_hop::next_hop(maps, hook, &ctx.entry, pod))
}

/// Slow path of [`decide_packet`]: any packet whose flow has an entry, which is refreshed. Returns `None` if
/// [`classify`] must decide. The pod's entry is written to `pod`.
#[inline(always)]
pub fn refresh_flow<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: PacketHook,
    ctx: &mut FlowContext<A>,
    pod: &mut LocalPod,
) -> Option<NextHop> {
    if let Part::Later(id) = ctx.packet.part
        && let Some(ports) = maps.fragment(&fragment_key(ctx, id))
        && maps.now_s().saturating_sub(ports.seen_s) < FRAGMENTS_S
    {
        ctx.packet.tuple.src_port = ports.src_port;
        ctx.packet.tuple.dst_port = ports.dst_port;
    }
    known(maps, hook, ctx).then(|| {
        note_fragment(maps, ctx);
        next_hop::next_hop(maps, hook, &ctx.entry, pod)
    })
}

/// Stores the ports of a first fragment for the datagram's other fragments.
#[inline(always)]
fn note_fragment<A: Family, M: FlowMaps<A>>(maps: &M, ctx: &FlowContext<A>) {
    if let Part::First(id) = ctx.packet.part {
        let (src_port, dst_port) = (ctx.packet.tuple.src_port, ctx.packet.tuple.dst_port);
        let ports = FragmentPorts { src_port, dst_port, seen_s: maps.now_s() };
        maps.keep_fragment(&fragment_key(ctx, id), &ports);
    }
}

#[inline(always)]
fn fragment_key<A: Family>(ctx: &FlowContext<A>, id: u32) -> FragmentKey<A> {
    let tuple = &ctx.packet.tuple;
    FragmentKey { src: tuple.src, dst: tuple.dst, id, proto: u32::from(tuple.proto) }
}

/// Whether the packet's flow has a valid entry. Refreshes the entry.
#[inline(always)]
fn known<A: Family, M: FlowMaps<A>>(maps: &M, hook: PacketHook, ctx: &mut FlowContext<A>) -> bool {
    if !find_flow(maps, &ctx.packet.tuple, &mut ctx.entry) {
        return false;
    }
    let reply = ctx.entry.flags & flow::REPLY != 0;
    if hook == PacketHook::Egress && !reply {
        return false;
    }
    if ctx.packet.part == Part::Error {
        return true;
    }
    let now_s = maps.now_s();
    let (proto, tcp_flags) = (ctx.packet.tuple.proto, ctx.packet.tcp_flags);
    let mut flags = after(ctx.entry.flags, proto, tcp_flags);
    let begins = proto == TCP && tcp_flags & tcp::SYN != 0 && reply == (tcp_flags & tcp::ACK != 0);
    let moves = if ctx.entry.flags & flow::ASSURED != 0 {
        tcp_flags & (tcp::FIN | tcp::RST) != 0
    } else {
        !reply && tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::ACK
    };
    let closes = flow::FIN_SERVER | flow::RESET;
    if (begins && (!reply || ctx.entry.flags & closes != 0)) || moves || now_s != ctx.entry.seen_s {
        if !renew(maps, ctx, begins, now_s) {
            return false;
        }
        if proto == TCP {
            match reclass(maps, ctx, flags, now_s) {
                Reclassified::No => {}
                Reclassified::Yes => return true,
                Reclassified::Refused => return false,
            }
        } else if is_stream(flags | ctx.other.flags, ctx.entry.since_s, now_s) {
            flags |= flow::ASSURED;
        }
    } else if flags == ctx.entry.flags {
        return true;
    }
    maps.touch(Class::of(proto, flags), &ctx.packet.tuple, flags, ctx.entry.generation, now_s);
    true
}

/// Flags of a direction after one more packet.
#[inline(always)]
fn after(flags: u32, proto: u8, tcp_flags: u8) -> u32 {
    let reply = flags & flow::REPLY != 0;
    let mut flags = if reply { flags | flow::ANSWERED } else { flags };
    if proto == TCP {
        // A packet after a reset shows that the receiver ignored the reset as outside of its window.
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

/// Checks a flow whose last check was in another second, or whose packet starts a connection again. A missing
/// entry of the other direction is restored, and the backend must still serve. Returns false after the
/// entries of an invalid flow are removed.
///
/// A closed flow is invalid where its backend accepts a connection: the client's packet did not open it, or the
/// flow would be a new one. So the stack has translated the client to the flow's source port, and the answer is
/// the stack's.
#[inline(always)]
fn renew<A: Family, M: FlowMaps<A>>(maps: &M, ctx: &mut FlowContext<A>, begins: bool, now_s: u32) -> bool {
    let reply = ctx.entry.flags & flow::REPLY != 0;
    let mut over = ctx.entry.flags & (flow::FIN_CLIENT | flow::RESET) != 0;
    ctx.back = reverse(&ctx.entry.to);
    let paired = if find_flow(maps, &ctx.back, &mut ctx.other) {
        over |= if reply {
            is_closed(ctx.entry.flags | ctx.other.flags)
        } else {
            ctx.other.flags & flow::RESET != 0
        };
        is_reverse(&ctx.other.to, &ctx.packet.tuple)
    } else {
        ctx.other = ctx.entry;
        ctx.other.to = reverse(&ctx.packet.tuple);
        let both = flow::MASQUERADE | flow::ASSURED;
        ctx.other.flags = (ctx.entry.flags & both) | if reply { 0 } else { flow::REPLY };
        ctx.other.seen_s = now_s;
        let class = Class::of(ctx.back.proto, ctx.other.flags);
        maps.insert(class, &ctx.back, &ctx.other) == Put::Done
    };
    let asks = !reply && (begins || ctx.packet.tuple.proto == UDP);
    let holds = paired && !(begins && over) && (!asks || backend_still_serves(maps, ctx));
    if !holds {
        if paired {
            forget(maps, &ctx.back);
        }
        forget(maps, &ctx.packet.tuple);
    }
    holds
}

/// Whether a flow's backend still serves. Stores the generation of the check in the entry.
#[inline(always)]
fn backend_still_serves<A: Family, M: FlowMaps<A>>(maps: &M, ctx: &mut FlowContext<A>) -> bool {
    let tuple = &ctx.packet.tuple;
    let key = ServiceKey { addr: tuple.dst, port: tuple.dst_port, proto: tuple.proto, pad: 0 };
    let mut key = Aligned(key);
    let mut search = search::DIALLED;
    let Some(at) = find(maps, &mut key, &mut search) else {
        return false;
    };
    let header = maps.header(at);
    if header.tag != tag(header.id, header.generation) {
        // The value is being replaced: the check is repeated in the next second.
        return true;
    }
    if header.id != ctx.entry.service {
        return false;
    }
    if header.generation == ctx.entry.generation {
        return true;
    }
    let mut asked = MemberQuery::default();
    asked.member.addr = ctx.entry.to.dst;
    asked.member.port = ctx.entry.to.dst_port;
    let found = serves(maps, &mut asked, header.id);
    if maps.header(at).tag != header.tag {
        return true;
    }
    ctx.entry.generation = header.generation;
    found
}

/// Whether the stack translated a packet between two pods that both may bypass the stack. Direct packets do
/// not pass the stack, so this one was sent to another address, which the stack translated (a host port). The
/// answers must then pass the stack as well.
#[inline(always)]
fn of_stack<A: Family, M: FlowMaps<A>>(maps: &M, ctx: &FlowContext<A>) -> bool {
    let direct = |flags: u32| flags & local_pod::DIRECT != 0;
    maps.redirects()
        && maps.pod_device(ctx.packet.ifindex).is_some_and(|device| direct(device.flags))
        && maps.pod(&ctx.packet.tuple.src).is_some_and(|pod| direct(pod.flags))
        && !maps.is_of_stack(&reverse(&ctx.packet.tuple))
}

/// Part of [`decide_packet`] for packets without a flow. Returns `None` if the packet starts a connection:
/// [`open_flow`] must decide, with the selected backend in `ctx`.
#[inline(always)]
pub fn classify<A: Family, M: FlowMaps<A>, S: Sockets<A>>(
    maps: &M,
    sockets: &S,
    hook: PacketHook,
    ctx: &mut FlowContext<A>,
) -> Option<PacketVerdict> {
    let tuple = &ctx.packet.tuple;
    if hook == PacketHook::Egress {
        // A packet for a Service range: the socket hooks passed it without an endpoint or a Service.
        let leak = maps.in_service_range(tuple.dst);
        if !leak && of_stack(maps, ctx) {
            maps.note_of_stack(&reverse(&ctx.packet.tuple));
        }
        return Some(if leak { PacketVerdict::Drop(Dropped::Leak) } else { PacketVerdict::Pass });
    }
    // A fragment may belong to a connection that the stack translates, and lacks the ports to check.
    let whole = !matches!(ctx.packet.part, Part::First(_) | Part::Later(_));
    if hook == PacketHook::Pod
        && ctx.direct
        && whole
        && maps.redirects()
        && let Some(pod) = maps.pod(&tuple.dst)
        && pod.flags & local_pod::DIRECT != 0
        && !maps.is_of_stack(tuple)
    {
        return Some(PacketVerdict::Forward(pod));
    }
    let later = matches!(ctx.packet.part, Part::Later(_));
    let begins = ctx.packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    if ctx.packet.part == Part::Error || (tuple.proto == TCP && !later && !begins) {
        return Some(PacketVerdict::Pass);
    }
    let key = ServiceKey { addr: tuple.dst, port: tuple.dst_port, proto: tuple.proto, pad: 0 };
    let from = if hook == PacketHook::Pod {
        ClientLocation::Pod(tuple.src)
    } else {
        ClientLocation::Outside(tuple.src)
    };
    match decide(maps, &key, from) {
        crate::Verdict::Pass => Some(PacketVerdict::Pass),
        crate::Verdict::Drop(_) => Some(PacketVerdict::Drop(Dropped::Service)),
        _ if later => Some(PacketVerdict::Drop(Dropped::Fragment)),
        crate::Verdict::Reject(_) => Some(PacketVerdict::Reject),
        // An answer to a socket of the node whose port has the number of a node port.
        crate::Verdict::To(choice)
            if tuple.proto == UDP
                && hook == PacketHook::Uplink
                && choice.frontend & frontend::NODE_PORT != 0
                && sockets.connected(tuple) =>
        {
            Some(PacketVerdict::Pass)
        }
        crate::Verdict::To(choice) => {
            ctx.entry.to.dst = choice.backend.addr;
            ctx.entry.to.dst_port = choice.backend.port;
            ctx.entry.service = choice.service;
            ctx.entry.generation = choice.generation;
            ctx.backend = choice.backend.flags;
            ctx.frontend = choice.frontend;
            None
        }
    }
}
