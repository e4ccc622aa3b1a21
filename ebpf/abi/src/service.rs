//! Frontends of Services, their backends, affinity, and the translations that a socket remembers.

/// Largest number of backends in a Service's own value; more backends are in chunks.
pub const INLINE: usize = 4;
/// Number of backends in a chunk.
pub const CHUNK: usize = 16;
/// Number of translations that a socket remembers.
pub const REVERSE: usize = 8;

/// Key of a frontend: the address and port that a client dials. Ports without a Service share the entry
/// `{addr, 0, 0}` of their address ([`frontend::ADDRESS`]). A NodePort has `addr` = [`crate::Addr::ANY`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ServiceKey<A> {
    /// Virtual address.
    pub addr: A,
    /// Port in network order; 0 in the entry of the bare address.
    pub port: u16,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`; 0 in the entry of the bare address.
    pub proto: u8,
    /// Padding, always 0.
    pub pad: u8,
}

/// The two sets of backends of a Service port (KEP-2086, KEP-1860). The traffic policies and the client's
/// location decide which set a client uses.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Set {
    /// All usable endpoints of the cluster, topology applied.
    Cluster = 0,
    /// The usable endpoints on this node.
    Local = 1,
}

/// Flags of [`Service::frontend`]: properties of one frontend (ClusterIP, NodePort and others).
pub mod frontend {
    /// Clients on this node use the local set: a ClusterIP with internalTrafficPolicy Local.
    pub const INSIDE_LOCAL: u32 = 1;
    /// Clients from outside use the local set and keep their address: externalTrafficPolicy Local.
    pub const OUTSIDE_LOCAL: u32 = 1 << 1;
    /// The frontend is reachable from outside the cluster: NodePort, load balancer or external address.
    pub const EXTERNAL: u32 = 1 << 2;
    /// The entry of a bare address without a Service port: connections to its other ports are refused.
    pub const ADDRESS: u32 = 1 << 3;
    /// The Service has endpoints, so a client without a usable one is dropped by policy instead of refused.
    pub const HAS_ENDPOINTS: u32 = 1 << 4;
    /// The frontend is a NodePort.
    pub const NODE_PORT: u32 = 1 << 5;
}

/// Flags of [`Backend::flags`].
pub mod backend {
    /// The backend is on this node.
    pub const LOCAL: u16 = 1;
    /// The backend is in a host's network, with a node's address.
    pub const HOST_NETWORK: u16 = 1 << 1;
}

/// An endpoint of a Service.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Backend<A> {
    /// Address of the backend.
    pub addr: A,
    /// Port of the backend in network order.
    pub port: u16,
    /// Bits of [`backend`].
    pub flags: u16,
}

/// Value of a frontend. Frontends of one Service port share `id` and `generation`, so chunks and affinity.
///
/// The backends are inline if `counts[0] + counts[1] <= INLINE`: first the cluster set, then the local set.
/// Otherwise both are in chunks. A reader copies the header and uses the copy only if `tag` still matches:
/// the kernel may reuse the memory of a replaced value during the read.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Service<A> {
    /// [`tag`] of `id` and `generation`.
    pub tag: u32,
    /// Id of the Service port, unique during its life and a quarantine afterwards.
    pub id: u32,
    /// Version of the backends, raised by each change of them.
    pub generation: u32,
    /// Bits of [`frontend`].
    pub frontend: u32,
    /// Timeout of client affinity in seconds; 0 for none.
    pub affinity_s: u32,
    /// Number of backends in the cluster set and in the local set.
    pub counts: [u16; 2],
    /// The backends, if all of them fit.
    pub inline: [Backend<A>; INLINE],
}

/// Check value of the parts of one generation.
#[inline(always)]
pub const fn tag(id: u32, generation: u32) -> u32 {
    id.wrapping_mul(0x9e37_79b1) ^ generation ^ 0x5eb7_11ed
}

/// Key of a chunk of backends.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ChunkKey {
    /// [`Service::id`].
    pub id: u32,
    /// [`Service::generation`].
    pub generation: u32,
    /// The [`Set`] as a number.
    pub set: u32,
    /// Ordinal of the backend divided by [`CHUNK`].
    pub index: u32,
}

/// Up to sixteen backends of one generation.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chunk<A> {
    /// [`tag`] of the id and generation in the key.
    pub tag: u32,
    /// Number of used backends.
    pub len: u32,
    /// The backends.
    pub backends: [Backend<A>; CHUNK],
}

/// Key of a client's affinity: client address and Service port, for all frontends together.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AffinityKey<A> {
    /// [`Service::id`].
    pub id: u32,
    /// Address of the pod or of the outside client; [`crate::Addr::ANY`] for the node itself.
    pub client: A,
}

/// Backend of a client with affinity.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Affinity<A> {
    /// The backend.
    pub backend: Backend<A>,
    /// Last use of the backend in seconds of CLOCK_MONOTONIC, written at most once a second.
    pub seen_s: u32,
}

/// Membership of a backend in a set of a Service with affinity, or ([`SERVING`]) in those that UDP flows may
/// keep. Flows check it once per generation, unconnected sockets for each datagram.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MemberKey<A> {
    /// [`Service::id`].
    pub id: u32,
    /// Address of the backend.
    pub addr: A,
    /// Port of the backend in network order.
    pub port: u16,
    /// The [`Set`] as a number, or [`SERVING`].
    pub set: u16,
}

/// [`MemberKey::set`] of each backend that serves a UDP Service, also of one in no set: a terminating backend
/// that serves (`conditions.serving`), or a ready one not selected, keeps its flows only.
pub const SERVING: u16 = 2;

/// A translation that a socket remembers: answers of `backend` are shown as from the virtual address, and
/// datagrams to the virtual address go to `backend` as long as `backend` serves.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reverse<A> {
    /// Address that the client dialled.
    pub addr: A,
    /// Address of the backend.
    pub backend: A,
    /// Port that the client dialled, in network order.
    pub port: u16,
    /// Port of the backend, in network order.
    pub backend_port: u16,
}

/// All translations that a socket remembers; a new one overwrites the oldest. Of two entries with the same
/// backend, the first is the one that was dialled last.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reverses<A> {
    /// Index of the next entry to write, modulo [`REVERSE`].
    pub next: u32,
    /// The translations. An unused entry has port 0.
    pub entries: [Reverse<A>; REVERSE],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{V4, V6};
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts_are_fixed_and_without_padding() {
        assert_eq!([size_of::<ServiceKey<V4>>(), size_of::<ServiceKey<V6>>()], [8, 20]);
        assert_eq!([size_of::<Backend<V4>>(), size_of::<Backend<V6>>()], [8, 20]);
        assert_eq!([size_of::<Service<V4>>(), size_of::<Service<V6>>()], [56, 104]);
        assert_eq!([offset_of!(Service<V4>, inline), offset_of!(Service<V6>, inline)], [24, 24]);
        assert_eq!(size_of::<ChunkKey>(), 16);
        assert_eq!([size_of::<Chunk<V4>>(), size_of::<Chunk<V6>>()], [136, 328]);
        assert_eq!([size_of::<AffinityKey<V4>>(), size_of::<AffinityKey<V6>>()], [8, 20]);
        assert_eq!([size_of::<Affinity<V4>>(), size_of::<Affinity<V6>>()], [12, 24]);
        assert_eq!([size_of::<MemberKey<V4>>(), size_of::<MemberKey<V6>>()], [12, 24]);
        assert_eq!([size_of::<Reverse<V4>>(), size_of::<Reverse<V6>>()], [12, 36]);
        assert_eq!([size_of::<Reverses<V4>>(), size_of::<Reverses<V6>>()], [100, 292]);
    }

    #[test]
    fn tags_of_neighbours_differ() {
        assert_ne!(tag(1, 2), tag(2, 1));
        assert_ne!(tag(7, 7), tag(7, 8));
        assert_ne!(tag(0, 0), 0);
    }
}
