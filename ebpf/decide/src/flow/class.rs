//! Classes of flows: the table of a flow, and the moves between tables.
//!
//! The classes follow nf_conntrack's division into assured and other connections. Each has its own budget:
//! - [`Class::Assured`]: TCP after the handshake and before the close. No entry is evicted; in a full class a
//!   connection is refused.
//! - [`Class::Unassured`]: TCP connections in their handshake, closed or reset.
//! - [`Class::Udp`]: UDP flows. Streams (`flow::ASSURED`) are not evicted.
//!
//! The last two classes keep their flows in order of arrival and evict the oldest, never one that has just
//! begun. Both entries of a flow are in one class, except during a move: it writes the new ones before it
//! removes the old.

use super::{
    FlowContext, FlowMaps, TCP,
    lifetime::{is_closed, is_over},
    packet::{is_reverse, reverse, tcp},
};
use crate::Family;
use berth_ebpf_abi::{Begun, Flow, Tuple, count, flow};

/// Number of the oldest flows that are checked for one to evict.
const LOOKS: u32 = 16;

/// A class of flows, each with a table of its own.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// UDP and all other protocols except TCP.
    Udp = 0,
    /// TCP connections in their handshake, closed or reset.
    Unassured = 1,
    /// TCP connections in use.
    Assured = 2,
}

impl Class {
    /// Class of an entry with these flags.
    #[inline(always)]
    pub fn of(proto: u8, flags: u32) -> Class {
        if proto != TCP {
            Class::Udp
        } else if flags & flow::ASSURED != 0 {
            Class::Assured
        } else {
            Class::Unassured
        }
    }

    /// Class in which a flow begins.
    #[inline(always)]
    pub fn first(proto: u8) -> Class {
        Class::of(proto, 0)
    }

    /// Class in which nearly all packets find their flow.
    #[inline(always)]
    pub(super) fn common(proto: u8) -> Class {
        Class::of(proto, flow::ASSURED)
    }
}

/// Result of writing an entry under a free key.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The entry is written.
    Done = 0,
    /// The key has an entry already.
    Exists = 1,
    /// The table is full, or no memory is available.
    Full = 2,
}

/// Finds the entry of a direction in any class; returns whether one exists.
///
/// The third lookup finds a connection that becomes assured between the first two.
#[inline(always)]
pub(super) fn find<A: Family, M: FlowMaps<A>>(maps: &M, key: &Tuple<A>, into: &mut Flow<A>) -> bool {
    if key.proto != TCP {
        return maps.find(Class::Udp, key, into);
    }
    maps.find(Class::Assured, key, into)
        || maps.find(Class::Unassured, key, into)
        || maps.find(Class::Assured, key, into)
}

/// Removes the entry of a direction from any class.
#[inline(always)]
pub(super) fn forget<A: Family, M: FlowMaps<A>>(maps: &M, key: &Tuple<A>) {
    if key.proto != TCP {
        maps.remove(Class::Udp, key);
        return;
    }
    maps.remove(Class::Unassured, key);
    maps.remove(Class::Assured, key);
}

/// Places the packet's flow at the end of its class's order; the oldest flows may be evicted for it. Changes
/// only `ctx.theirs`, `ctx.oldest` and `ctx.spare`.
#[inline(always)]
pub(super) fn make_room<A: Family, M: FlowMaps<A>>(
    maps: &M,
    class: Class,
    ctx: &mut FlowContext<A>,
    now_s: u32,
) -> bool {
    let mut placed = false;
    maps.repeat(LOOKS, |_| {
        ctx.oldest = Begun { key: ctx.packet.tuple, since_s: now_s };
        if maps.enqueue(class, &ctx.oldest) {
            placed = true;
            return true;
        }
        evict(maps, class, ctx, now_s);
        false
    });
    placed
}

/// Evicts the oldest flow of a class. A UDP stream in use is moved to the end of the order instead.
#[inline(always)]
pub(super) fn evict<A: Family, M: FlowMaps<A>>(maps: &M, class: Class, ctx: &mut FlowContext<A>, now_s: u32) {
    if !maps.dequeue(class, &mut ctx.oldest) {
        return;
    }
    let oldest = &ctx.oldest;
    let (back, entry) = &mut ctx.theirs;
    // The flow has ended or changed its class, and only its place was left.
    if !maps.find(class, &oldest.key, entry) || entry.since_s != oldest.since_s {
        return;
    }
    *back = reverse(&entry.to);
    let mut flags = entry.flags;
    let mut seen_s = entry.seen_s;
    let paired = maps.find(class, back, &mut ctx.spare) && is_reverse(&ctx.spare.to, &oldest.key);
    if paired {
        flags |= ctx.spare.flags;
        seen_s = seen_s.max(ctx.spare.seen_s);
    }
    if !is_closed(flags) && !is_over(oldest.key.proto, flags, seen_s, now_s) {
        if flags & flow::ASSURED != 0 && maps.enqueue(class, oldest) {
            return;
        }
        maps.count(count::FLOW_EVICTED, class);
    }
    if paired {
        maps.remove(class, back);
    }
    maps.remove(class, &oldest.key);
}

/// Result of a possible change of class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reclassified {
    /// The class stays the same, and no entry was written.
    No,
    /// Both entries were written with their new class.
    Yes,
    /// The new class is full, and the flow was removed.
    Refused,
}

/// Moves a TCP flow to the class that it has after the packet in `ctx`, which leaves its direction with
/// `flags`. Needs the entry of the other direction in `ctx.other`.
#[inline(always)]
pub(super) fn reclass<A: Family, M: FlowMaps<A>>(
    maps: &M,
    ctx: &mut FlowContext<A>,
    flags: u32,
    now_s: u32,
) -> Reclassified {
    let closed = is_closed(flags | ctx.other.flags);
    let assured = flags & flow::ASSURED != 0;
    let answered = ctx.other.flags & flow::ANSWERED != 0;
    // Only packets of the client assure a connection: an answer to a forged SYN must not.
    let done = flags & flow::REPLY == 0
        && answered
        && ctx.packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::ACK;
    let wanted = !closed && (assured || done);
    if wanted == assured {
        return Reclassified::No;
    }
    let (from, to) =
        if wanted { (Class::Unassured, Class::Assured) } else { (Class::Assured, Class::Unassured) };
    let bit = if wanted { flow::ASSURED } else { 0 };
    let mut fits = wanted || make_room(maps, Class::Unassured, ctx, now_s);
    if fits {
        ctx.entry.flags = flags & !flow::ASSURED | bit;
        ctx.entry.seen_s = now_s;
        ctx.entry.since_s = now_s;
        ctx.other.flags = ctx.other.flags & !flow::ASSURED | bit;
        ctx.other.since_s = now_s;
        // `Exists` is fine: another processor has written the entry first.
        fits = maps.insert(to, &ctx.back, &ctx.other) != Put::Full
            && maps.insert(to, &ctx.packet.tuple, &ctx.entry) != Put::Full;
    }
    maps.remove(from, &ctx.packet.tuple);
    maps.remove(from, &ctx.back);
    if fits {
        return Reclassified::Yes;
    }
    maps.remove(to, &ctx.back);
    maps.count(count::FLOW_REFUSED, to);
    // A closed flow needs no entry: this packet is translated, and later ones are left to the stack.
    if wanted { Reclassified::Refused } else { Reclassified::Yes }
}
