//! Lifetimes of flows. Pure.

use super::TCP;
use berth_ebpf_abi::flow;

/// Lifetime of a reset TCP connection (`nf_conntrack_tcp_timeout_close`).
const RESET_S: u32 = 10;
/// Lifetime of a TCP connection in its handshake (`nf_conntrack_tcp_timeout_syn_recv`).
const OPENING_S: u32 = 60;
/// Lifetime of a TCP connection closed by both sides (`nf_conntrack_tcp_timeout_time_wait`).
const CLOSED_S: u32 = 120;
/// Lifetime after one side's FIN (kube-proxy's `--conntrack-tcp-timeout-close-wait`).
const HALF_CLOSED_S: u32 = 3600;
/// Lifetime of a TCP connection (kube-proxy's `--conntrack-tcp-timeout-established`).
const ESTABLISHED_S: u32 = 24 * 3600;
/// Lifetime of a UDP flow that is no stream, answered or not (`nf_conntrack_udp_timeout`).
const UDP_S: u32 = 30;
/// Lifetime of a UDP stream (`nf_conntrack_udp_timeout_stream`).
const UDP_STREAM_S: u32 = 120;
/// Age at which an answered UDP flow becomes a stream (`nf_conntrack`'s `stream_ts`).
const STREAM_AFTER_S: u32 = 2;

/// Lifetime of a flow in seconds after the last packet of either direction. `flags` are those of both
/// directions together.
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

/// Whether a connection is closed, so that no more data can come.
#[inline(always)]
pub(super) fn is_closed(flags: u32) -> bool {
    let both = flow::FIN_CLIENT | flow::FIN_SERVER;
    flags & flow::RESET != 0 || flags & both == both
}

/// Whether a UDP flow with these flags of both directions is a stream.
#[inline(always)]
pub(super) fn is_stream(flags: u32, since_s: u32, now_s: u32) -> bool {
    flags & flow::ANSWERED != 0 && now_s.saturating_sub(since_s) > STREAM_AFTER_S
}

/// Whether the lifetime of a flow is over.
#[inline(always)]
pub(super) fn is_over(proto: u8, flags: u32, seen_s: u32, now_s: u32) -> bool {
    now_s.saturating_sub(seen_s) > lifetime_s(proto, flags)
}
