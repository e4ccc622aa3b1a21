//! Garbage collection of one flow.

use super::{
    FlowContext, FlowMaps,
    class::{find, forget},
    lifetime::is_over,
    packet::{is_reverse, reverse},
};
use crate::Family;
use berth_ebpf_abi::Tuple;

/// Removes both entries of a flow whose lifetime is over, by the key of either. Returns whether it did. The
/// check is repeated here, so a packet after the agent's own check keeps the flow.
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
