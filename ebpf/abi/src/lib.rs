//! Keys and values of the kernel maps: the one language of the eBPF programs, the loader and the Service tables.
//!
//! Owns no state. Everything is `repr(C)`, without implicit padding, and the same on both sides; sizes and offsets are
//! held by tests. Addresses and ports are in **network byte order** as they stand in a packet, counts and ids in the
//! host's. A change of any meaning here raises [`SCHEMA`], which is part of the pin path: maps of another schema are
//! refused, never adopted.
#![no_std]

mod addr;
mod conntrack;
pub mod count;
mod node;
mod service;

pub use addr::{Addr, V4, V6};
pub use conntrack::{Begun, Flow, FragmentKey, FragmentPorts, Tuple, flow};
pub use node::{Client, Config, LocalPod, NodeAddress, PodDevice, Prefix, client, config, local_pod};
pub use service::{
    Affinity, AffinityKey, Backend, CHUNK, Chunk, ChunkKey, INLINE, MemberKey, REVERSE, Reverse, Reverses,
    SERVING, Service, ServiceKey, Set, backend, frontend, tag,
};

/// The version of everything in this crate.
pub const SCHEMA: u32 = 2;

/// The names of the maps, as in the object and in the pin directory (`<bpffs>/<schema>/maps/<NAME>`).
pub mod maps {
    /// `ServiceKey<V4> -> Service<V4>`, hash, not preallocated.
    pub const SERVICE4: &str = "SERVICE4";
    /// `ServiceKey<V6> -> Service<V6>`, hash, not preallocated.
    pub const SERVICE6: &str = "SERVICE6";
    /// `ChunkKey -> Chunk<V4>`, hash, not preallocated.
    pub const CHUNK4: &str = "CHUNK4";
    /// `ChunkKey -> Chunk<V6>`, hash, not preallocated.
    pub const CHUNK6: &str = "CHUNK6";
    /// `AffinityKey<V4> -> Affinity<V4>`, LRU hash.
    pub const AFFINITY4: &str = "AFFINITY4";
    /// `AffinityKey<V6> -> Affinity<V6>`, LRU hash.
    pub const AFFINITY6: &str = "AFFINITY6";
    /// `MemberKey<V4> -> u32` (unused, 1): by set, the backends of the Services with affinity; and those that the flows of
    /// each UDP Service may go on with ([`crate::SERVING`]); hash, not preallocated.
    pub const MEMBER4: &str = "MEMBER4";
    /// `MemberKey<V6> -> u32`, likewise.
    pub const MEMBER6: &str = "MEMBER6";
    /// Socket storage: `Reverses<V4>` of AF_INET sockets, and of AF_INET6 sockets that speak IPv4 (v4-mapped).
    pub const REVERSE4: &str = "REVERSE4";
    /// Socket storage: `Reverses<V6>` of AF_INET6 sockets.
    pub const REVERSE6: &str = "REVERSE6";
    /// `u64` netns cookie `-> Client`: the host and the pods, by network namespace; hash, not preallocated.
    pub const CLIENT: &str = "CLIENT";
    /// `V4 -> NodeAddress`: the node's own addresses; hash, not preallocated.
    pub const NODE4: &str = "NODE4";
    /// `V6 -> NodeAddress`, likewise.
    pub const NODE6: &str = "NODE6";
    /// `V4 -> LocalPod`: the pods of this node by address; hash, not preallocated.
    pub const POD4: &str = "POD4";
    /// `V6 -> LocalPod`, likewise.
    pub const POD6: &str = "POD6";
    /// `u32` index of a device `-> PodDevice`: the pods of this node by the host's side of their veth pairs; hash, not
    /// preallocated.
    pub const POD_DEVICE: &str = "POD_DEVICE";
    /// `Tuple<V4> -> u32` (unused, 1), LRU hash: answers between pods of this node that belong to what the stack translated.
    pub const STACK4: &str = "STACK4";
    /// `Tuple<V6> -> u32`, likewise.
    pub const STACK6: &str = "STACK6";
    /// `Tuple<V4> -> Flow<V4>`, hash, not preallocated: TCP connections in use, each twice, once a direction.
    pub const ASSURED4: &str = "ASSURED4";
    /// `Tuple<V6> -> Flow<V6>`, likewise.
    pub const ASSURED6: &str = "ASSURED6";
    /// `Tuple<V4> -> Flow<V4>`, hash: TCP connections that begin or are over, likewise.
    pub const UNASSURED4: &str = "UNASSURED4";
    /// `Tuple<V6> -> Flow<V6>`, likewise.
    pub const UNASSURED6: &str = "UNASSURED6";
    /// `Tuple<V4> -> Flow<V4>`, hash, not preallocated: what is not TCP, likewise.
    pub const UDP4: &str = "UDP4";
    /// `Tuple<V6> -> Flow<V6>`, likewise.
    pub const UDP6: &str = "UDP6";
    /// `Begun<V4>`, queue: the order in which connections came into [`UNASSURED4`].
    pub const BEGUN_TCP4: &str = "BEGUN_TCP4";
    /// `Begun<V6>`, likewise of [`UNASSURED6`].
    pub const BEGUN_TCP6: &str = "BEGUN_TCP6";
    /// `Begun<V4>`, likewise of [`UDP4`].
    pub const BEGUN_UDP4: &str = "BEGUN_UDP4";
    /// `Begun<V6>`, likewise of [`UDP6`].
    pub const BEGUN_UDP6: &str = "BEGUN_UDP6";
    /// `FragmentKey<V4> -> FragmentPorts`, LRU hash.
    pub const FRAGMENT4: &str = "FRAGMENT4";
    /// `FragmentKey<V6> -> FragmentPorts`, LRU hash.
    pub const FRAGMENT6: &str = "FRAGMENT6";
    /// `u32 0 -> Config`, array of one.
    pub const CONFIG: &str = "CONFIG";
    /// `u32 reason -> u64`, per-CPU array: how often each verdict was given.
    pub const COUNT: &str = "COUNT";
}
