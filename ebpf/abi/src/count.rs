//! Indices of the map `COUNT`: how often what happened.

/// The first index of the packet programs.
pub const PACKET: u32 = 8;
/// A packet was answered with "port unreachable".
pub const PACKET_REJECTED: u32 = PACKET;
/// A packet could not be rewritten, or had no hop left, and was dropped.
pub const PACKET_FAILED: u32 = PACKET + 1;
/// The first of the packets dropped by decision, by `berth_ebpf_decide::flow::Dropped` as a number.
pub const PACKET_DROPPED: u32 = PACKET + 2;
/// A packet that was refused was not answered: there were too many.
pub const PACKET_UNANSWERED: u32 = PACKET + 16;
/// Counters in the map.
pub const LEN: u32 = 32;
