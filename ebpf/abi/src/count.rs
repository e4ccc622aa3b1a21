//! Indices of the map `COUNT`: how often what happened.

/// A socket's call ended with ECONNREFUSED.
pub const SOCKET_REJECTED: u32 = 0;
/// A socket's call was left as it is, for its packets to be dropped.
pub const SOCKET_LEFT: u32 = 1;
/// The first index of the packet programs.
pub const PACKET: u32 = 8;
/// Counters in the map.
pub const LEN: u32 = 32;
