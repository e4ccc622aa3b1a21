//! Indices of the counters in the map `COUNT`.

/// First index of the packet programs' counters.
pub const PACKET: u32 = 8;
/// Packets answered with "port unreachable".
pub const PACKET_REJECTED: u32 = PACKET;
/// Packets dropped because they could not be rewritten or had no hop left.
pub const PACKET_FAILED: u32 = PACKET + 1;
/// First counter of packets dropped by decision, plus `berth_ebpf_decide::flow::Dropped` as a number.
pub const PACKET_DROPPED: u32 = PACKET + 2;
/// Refused packets that were dropped without an answer, because the limit of answers was reached.
pub const PACKET_UNANSWERED: u32 = PACKET + 16;
/// First index of the flow tables' counters, in blocks of eight; [`flow`] computes the index.
pub const FLOW: u32 = 32;
/// Entries written. Minus [`FLOW_LEFT`] this is the number of entries, two for each connection.
pub const FLOW_ENTERED: u32 = FLOW;
/// Entries removed for any reason.
pub const FLOW_LEFT: u32 = FLOW + 8;
/// Connections removed before the end of their lifetime to make room for a newer one.
pub const FLOW_EVICTED: u32 = FLOW + 16;
/// Connections refused because their class was full.
pub const FLOW_REFUSED: u32 = FLOW + 24;
/// Number of counters in the map.
pub const LEN: u32 = 64;

/// Counter of a class (`berth_ebpf_decide::flow::Class` as a number) in a block.
#[inline(always)]
pub const fn flow(block: u32, class: u32, v6: bool) -> u32 {
    block + (class & 3) + if v6 { 4 } else { 0 }
}
