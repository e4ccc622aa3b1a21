//! In which table a connection is, and how it comes from one into another.
//!
//! As nf_conntrack tells assured connections from others, so do these tables, and each class has a budget of its own:
//! - [`Class::Assured`]: TCP whose handshake is done and that nobody closed. Nothing takes an entry's place. What
//!   does not fit is refused.
//! - [`Class::Unassured`]: TCP that begins, or that was closed or reset.
//! - [`Class::Udp`]: UDP. A stream (`flow::ASSURED`) gives its place to nothing either.
//!
//! The last two are kept in the order in which connections came: where one is full, the oldest goes, so a connection
//! that just began is never the next to go. Both entries of a connection are always in the same class, but for
//! the moments in which it moves: they are written to the new table before they go from the old one.

use super::{
    FlowContext, FlowMaps, TCP,
    lifetime::{is_closed, is_over},
    packet::{is_reverse, reverse, tcp},
};
use crate::Family;
use berth_ebpf_abi::{Begun, Flow, Tuple, count, flow};

/// So many of the oldest connections are looked at for one that may go.
const LOOKS: u32 = 16;

/// A class of connections: a table for each.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// UDP, and whatever is not TCP.
    Udp = 0,
    /// TCP that begins, or is over.
    Unassured = 1,
    /// TCP in use.
    Assured = 2,
}

impl Class {
    /// In which table an entry with these flags belongs.
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

    /// In which one a connection begins.
    #[inline(always)]
    pub fn first(proto: u8) -> Class {
        Class::of(proto, 0)
    }

    /// In which one nearly all packets find their connection.
    #[inline(always)]
    pub(super) fn common(proto: u8) -> Class {
        Class::of(proto, flow::ASSURED)
    }
}

/// What came of writing an entry where none is.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is written.
    Done = 0,
    /// There is one with that key.
    Exists = 1,
    /// The table is full, or there is no memory.
    Full = 2,
}

/// Finds a direction's entry in any class; says whether there is one.
///
/// A connection that becomes assured between the first two looks is found by the third.
#[inline(always)]
pub(super) fn find<A: Family, M: FlowMaps<A>>(maps: &M, key: &Tuple<A>, into: &mut Flow<A>) -> bool {
    if key.proto != TCP {
        return maps.find(Class::Udp, key, into);
    }
    maps.find(Class::Assured, key, into)
        || maps.find(Class::Unassured, key, into)
        || maps.find(Class::Assured, key, into)
}

/// Removes a direction's entry from whatever class it is in.
#[inline(always)]
pub(super) fn forget<A: Family, M: FlowMaps<A>>(maps: &M, key: &Tuple<A>) {
    if key.proto != TCP {
        maps.remove(Class::Udp, key);
        return;
    }
    maps.remove(Class::Unassured, key);
    maps.remove(Class::Assured, key);
}

/// Gives the connection of the packet in `ctx` the last place in the order of its class, for which the oldest
/// may have to go. Nothing but `room.theirs`, `room.oldest` and `room.spare` is changed.
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

/// Takes the oldest place of a class, and the connection that has it unless that is in use: a UDP stream goes to the end.
#[inline(always)]
pub(super) fn evict<A: Family, M: FlowMaps<A>>(maps: &M, class: Class, ctx: &mut FlowContext<A>, now_s: u32) {
    if !maps.dequeue(class, &mut ctx.oldest) {
        return;
    }
    let oldest = &ctx.oldest;
    let (back, entry) = &mut ctx.theirs;
    // One that went, or came into another class, has left its place behind.
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

/// What became of a connection that may change its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reclassified {
    /// It stays; the entry is not written.
    No,
    /// Both entries are written anew.
    Yes,
    /// Its class has no room, and it is forgotten.
    Refused,
}

/// Brings a TCP connection into the class that it belongs to after the packet in `ctx`, which leaves its direction
/// with `flags`. The other direction's entry must be in `room.other`.
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
    // Only the client's own packets assure: an answer to a forged SYN does not.
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
        // Another processor may have been quicker: then it is there.
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
    // One that is closed needs no memory: this packet is translated, and what may follow is nobody's.
    if wanted { Reclassified::Refused } else { Reclassified::Yes }
}
