//! Keys and values of the kernel maps, shared by the eBPF programs, the loader and the Service tables.
//!
//! Owns no state. All types are `repr(C)`, without implicit padding, and the same on both sides; tests check
//! sizes and offsets. Addresses and ports are in **network byte order** as in a packet, counts and ids in the
//! host's order. A change of any meaning raises [`SCHEMA`], which is part of the pin path: maps of another
//! schema are refused, never adopted.
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

/// Version of all types and meanings in this crate.
pub const SCHEMA: u32 = 2;

/// Names of the maps in the object and in the pin directory (`<bpffs>/<schema>/maps/<NAME>`).
pub mod maps {
    /// `ServiceKey<V4> -> Service<V4>`, hash, not preallocated: the frontends.
    pub const SERVICE4: &str = "SERVICE4";
    /// `ServiceKey<V6> -> Service<V6>`, hash, not preallocated: the frontends.
    pub const SERVICE6: &str = "SERVICE6";
    /// `ChunkKey -> Chunk<V4>`, hash, not preallocated: backends that do not fit into a Service's value.
    pub const CHUNK4: &str = "CHUNK4";
    /// `ChunkKey -> Chunk<V6>`, hash, not preallocated: backends that do not fit into a Service's value.
    pub const CHUNK6: &str = "CHUNK6";
    /// `AffinityKey<V4> -> Affinity<V4>`, LRU hash: the backends of clients with affinity.
    pub const AFFINITY4: &str = "AFFINITY4";
    /// `AffinityKey<V6> -> Affinity<V6>`, LRU hash: the backends of clients with affinity.
    pub const AFFINITY6: &str = "AFFINITY6";
    /// `MemberKey<V4> -> u32` (unused, 1), hash, not preallocated: the backends of Services with affinity, by
    /// set; and the backends that existing flows of a UDP Service may keep ([`crate::SERVING`]).
    pub const MEMBER4: &str = "MEMBER4";
    /// `MemberKey<V6> -> u32`, as [`MEMBER4`].
    pub const MEMBER6: &str = "MEMBER6";
    /// Socket storage: `Reverses<V4>` of AF_INET sockets, and of AF_INET6 sockets for mapped addresses.
    pub const REVERSE4: &str = "REVERSE4";
    /// Socket storage: `Reverses<V6>` of AF_INET6 sockets.
    pub const REVERSE6: &str = "REVERSE6";
    /// `u64` netns cookie `-> Client`, hash, not preallocated: host and pods by network namespace.
    pub const CLIENT: &str = "CLIENT";
    /// `V4 -> NodeAddress`, hash, not preallocated: the node's own addresses.
    pub const NODE4: &str = "NODE4";
    /// `V6 -> NodeAddress`, as [`NODE4`].
    pub const NODE6: &str = "NODE6";
    /// `V4 -> LocalPod`, hash, not preallocated: the pods of this node by address.
    pub const POD4: &str = "POD4";
    /// `V6 -> LocalPod`, as [`POD4`].
    pub const POD6: &str = "POD6";
    /// `u32` device index `-> PodDevice`, hash, not preallocated: the pods of this node by the host's end of
    /// their veth pairs.
    pub const POD_DEVICE: &str = "POD_DEVICE";
    /// `Tuple<V4> -> u32` (unused, 1), LRU hash: answers between local pods that must pass the stack.
    pub const STACK4: &str = "STACK4";
    /// `Tuple<V6> -> u32`, as [`STACK4`].
    pub const STACK6: &str = "STACK6";
    /// `Tuple<V4> -> Flow<V4>`, hash, not preallocated: TCP connections in use, an entry per direction.
    pub const ASSURED4: &str = "ASSURED4";
    /// `Tuple<V6> -> Flow<V6>`, as [`ASSURED4`].
    pub const ASSURED6: &str = "ASSURED6";
    /// `Tuple<V4> -> Flow<V4>`, hash: TCP connections in their handshake or closed, an entry per direction.
    pub const UNASSURED4: &str = "UNASSURED4";
    /// `Tuple<V6> -> Flow<V6>`, as [`UNASSURED4`].
    pub const UNASSURED6: &str = "UNASSURED6";
    /// `Tuple<V4> -> Flow<V4>`, hash, not preallocated: flows of UDP, an entry per direction.
    pub const UDP4: &str = "UDP4";
    /// `Tuple<V6> -> Flow<V6>`, as [`UDP4`].
    pub const UDP6: &str = "UDP6";
    /// `Begun<V4>`, queue: the connections of [`UNASSURED4`] in their order of arrival.
    pub const BEGUN_TCP4: &str = "BEGUN_TCP4";
    /// `Begun<V6>`, queue: the same for [`UNASSURED6`].
    pub const BEGUN_TCP6: &str = "BEGUN_TCP6";
    /// `Begun<V4>`, queue: the same for [`UDP4`].
    pub const BEGUN_UDP4: &str = "BEGUN_UDP4";
    /// `Begun<V6>`, queue: the same for [`UDP6`].
    pub const BEGUN_UDP6: &str = "BEGUN_UDP6";
    /// `FragmentKey<V4> -> FragmentPorts`, LRU hash: ports of fragmented datagrams.
    pub const FRAGMENT4: &str = "FRAGMENT4";
    /// `FragmentKey<V6> -> FragmentPorts`, LRU hash: ports of fragmented datagrams.
    pub const FRAGMENT6: &str = "FRAGMENT6";
    /// `u32 0 -> Config`, array of one: the configuration.
    pub const CONFIG: &str = "CONFIG";
    /// `u32 -> u64`, per-CPU array: the counters of [`crate::count`].
    pub const COUNT: &str = "COUNT";
}
