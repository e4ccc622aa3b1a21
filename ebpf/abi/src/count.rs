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
/// The first index of the tables of connections, in blocks of eight: [`flow`] gives the place in a block.
pub const FLOW: u32 = 32;
/// An entry was written. Less [`FLOW_LEFT`] it is how many there are: two a connection.
pub const FLOW_ENTERED: u32 = FLOW;
/// An entry was removed, for whatever reason.
pub const FLOW_LEFT: u32 = FLOW + 8;
/// A connection whose time was not over was removed for a newer one.
pub const FLOW_EVICTED: u32 = FLOW + 16;
/// A connection was refused because its class had no room.
pub const FLOW_REFUSED: u32 = FLOW + 24;
/// Counters in the map.
pub const LEN: u32 = 64;

/// The counter of a class of connections (`berth_ebpf_decide::flow::Class` as a number) in a block.
#[inline(always)]
pub const fn flow(block: u32, class: u32, v6: bool) -> u32 {
    block + (class & 3) + if v6 { 4 } else { 0 }
}
