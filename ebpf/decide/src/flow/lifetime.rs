//! How long a connection is remembered.

use super::{
    FlowContext, FlowMaps, TCP,
    class::{find, forget},
    packet::{is_reverse, reverse},
};
use crate::Family;
use berth_ebpf_abi::{Tuple, flow};

/// A reset connection (`nf_conntrack_tcp_timeout_close`).
const RESET_S: u32 = 10;
/// A TCP connection whose handshake is not done (`nf_conntrack_tcp_timeout_syn_recv`).
const OPENING_S: u32 = 60;
/// Both sides are done (`nf_conntrack_tcp_timeout_time_wait`).
const CLOSED_S: u32 = 120;
/// One side is done (kube-proxy's `--conntrack-tcp-timeout-close-wait`).
const HALF_CLOSED_S: u32 = 3600;
/// A TCP connection (kube-proxy's `--conntrack-tcp-timeout-established`).
const ESTABLISHED_S: u32 = 24 * 3600;
/// UDP, answered or not, until it is a stream (`nf_conntrack_udp_timeout`).
const UDP_S: u32 = 30;
/// A stream of UDP (`nf_conntrack_udp_timeout_stream`).
const UDP_STREAM_S: u32 = 120;
/// UDP with answers is a stream after this (`nf_conntrack`'s `stream_ts`).
const STREAM_AFTER_S: u32 = 2;

/// How long, in seconds after the last packet of either direction, a connection is remembered; `flags` are those of
/// both directions together.
#[inline(always)]
pub fn lifetime_s(proto: u8, flags: u32) -> u32 {
    let assured = flags & flow::ASSURED != 0;
    if proto != TCP {
        return if assured { UDP_STREAM_S } else { UDP_S };
    }
    if flags & flow::RESET != 0 {
        RESET_S
    } else if is_closed(flags) {
        CLOSED_S
    } else if !assured {
        OPENING_S
    } else if flags & (flow::FIN_CLIENT | flow::FIN_SERVER) != 0 {
        HALF_CLOSED_S
    } else {
        ESTABLISHED_S
    }
}

/// Whether no more data can come.
#[inline(always)]
pub(super) fn is_closed(flags: u32) -> bool {
    let both = flow::FIN_CLIENT | flow::FIN_SERVER;
    flags & flow::RESET != 0 || flags & both == both
}

/// Whether UDP with these flags in both directions together is a stream by now.
#[inline(always)]
pub(super) fn is_stream(flags: u32, since_s: u32, now_s: u32) -> bool {
    flags & flow::ANSWERED != 0 && now_s.saturating_sub(since_s) > STREAM_AFTER_S
}

/// Whether a connection's time is over.
#[inline(always)]
pub(super) fn is_over(proto: u8, flags: u32, seen_s: u32, now_s: u32) -> bool {
    now_s.saturating_sub(seen_s) > lifetime_s(proto, flags)
}

/// Removes both entries of a connection whose time is over, by the key of either; says whether it did. What a reader
/// of the table thought before is asked once more here, so a packet that came since saves its connection.
#[inline(always)]
pub fn collect<A: Family, M: FlowMaps<A>>(maps: &M, key: &Tuple<A>, ctx: &mut FlowContext<A>) -> bool {
    if !find(maps, key, &mut ctx.entry) {
        return false;
    }
    ctx.back = reverse(&ctx.entry.to);
    let mut flags = ctx.entry.flags;
    let mut seen_s = ctx.entry.seen_s;
    let paired = find(maps, &ctx.back, &mut ctx.other) && is_reverse(&ctx.other.to, key);
    if paired {
        flags |= ctx.other.flags;
        seen_s = seen_s.max(ctx.other.seen_s);
    }
    if !is_over(key.proto, flags, seen_s, maps.now_s()) {
        return false;
    }
    if paired {
        forget(maps, &ctx.back);
    }
    forget(maps, key);
    true
}
