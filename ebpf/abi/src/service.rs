//! Services, their backends, affinity, and what a socket remembers of its translations.

/// So many backends lie in the Service's own value; more lie in chunks.
pub const INLINE: usize = 4;
/// Backends in a chunk.
pub const CHUNK: usize = 16;
/// Translations that one socket remembers.
pub const REVERSE: usize = 8;

/// What a client dials. A known address with an unknown port has the entry `{addr, 0, 0}` ([`frontend::ADDRESS`]);
/// a NodePort has `addr` = [`crate::Addr::ANY`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ServiceKey<A> {
    /// The virtual address.
    pub addr: A,
    /// The port, network order; 0 in the entry of the bare address.
    pub port: u16,
    /// `IPPROTO_TCP`, `IPPROTO_UDP`; 0 in the entry of the bare address.
    pub proto: u8,
    /// Always 0.
    pub pad: u8,
}

/// The two sets of backends of one Service port (KEP-2086, KEP-1860): which one a client gets follows from the
/// traffic policies and from where it sits.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Set {
    /// All usable endpoints of the cluster, topology applied.
    Cluster = 0,
    /// The usable endpoints on this node.
    Local = 1,
}

/// Flags of [`Service::frontend`]: what holds for this way in (ClusterIP, NodePort ...).
pub mod frontend {
    /// Clients on this node (pods and host) get the local set: a ClusterIP with internalTrafficPolicy Local.
    pub const INSIDE_LOCAL: u32 = 1;
    /// Clients from outside get the local set, and keep their address: externalTrafficPolicy Local.
    pub const OUTSIDE_LOCAL: u32 = 1 << 1;
    /// Reachable from outside the cluster: NodePort, load balancer address, external address.
    pub const EXTERNAL: u32 = 1 << 2;
    /// No Service port: the entry of a bare known address, whose other ports are refused.
    pub const ADDRESS: u32 = 1 << 3;
    /// Some endpoint exists somewhere: an empty set is a matter of policy and is dropped, not refused.
    pub const HAS_ENDPOINTS: u32 = 1 << 4;
    /// A NodePort's entry.
    pub const NODE_PORT: u32 = 1 << 5;
}

/// Flags of [`Backend::flags`].
pub mod backend {
    /// On this node.
    pub const LOCAL: u16 = 1;
    /// In the host's own network (its address is a node's).
    pub const HOST_NETWORK: u16 = 1 << 1;
}

/// One endpoint.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Backend<A> {
    /// Its address.
    pub addr: A,
    /// Its port, network order.
    pub port: u16,
    /// See [`backend`].
    pub flags: u16,
}

/// One way into a Service port. All ways into the same port share `id` and `generation`, hence chunks and affinity.
///
/// Inline when `counts[0] + counts[1] <= INLINE`: first the cluster set, then the local set. Else both are in chunks.
/// A reader copies the header, and takes what it read only if `tag` still fits: the memory of a replaced value may be
/// used anew below a reader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Service<A> {
    /// [`tag`] of `id` and `generation`.
    pub tag: u32,
    /// The Service port, unique while it lives and for a quarantine after.
    pub id: u32,
    /// Raised with every change of the backends.
    pub generation: u32,
    /// See [`frontend`].
    pub frontend: u32,
    /// Seconds of client affinity; 0: none.
    pub affinity_s: u32,
    /// Backends in the cluster set and in the local set.
    pub counts: [u16; 2],
    /// The backends, when all fit.
    pub inline: [Backend<A>; INLINE],
}

/// The check value of one generation's parts.
#[inline(always)]
pub const fn tag(id: u32, generation: u32) -> u32 {
    id.wrapping_mul(0x9e37_79b1) ^ generation ^ 0x5eb7_11ed
}

/// Where a chunk of backends lies.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ChunkKey {
    /// [`Service::id`].
    pub id: u32,
    /// [`Service::generation`].
    pub generation: u32,
    /// The [`Set`] as a number.
    pub set: u32,
    /// Ordinal of the backend / [`CHUNK`].
    pub index: u32,
}

/// Sixteen backends of one generation.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chunk<A> {
    /// [`tag`] of its key's id and generation.
    pub tag: u32,
    /// Backends that are used.
    pub len: u32,
    /// The backends.
    pub backends: [Backend<A>; CHUNK],
}

/// Whom a client stays with: by client address and Service port, whatever way it came in.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AffinityKey<A> {
    /// [`Service::id`].
    pub id: u32,
    /// The client's address: of the pod, of the outside client, or [`crate::Addr::ANY`] for the node itself.
    pub client: A,
}

/// The backend a client stays with.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Affinity<A> {
    /// The backend.
    pub backend: Backend<A>,
    /// When it was last chosen, in seconds of CLOCK_MONOTONIC; written at most once a second.
    pub seen_s: u32,
}

/// Says that a backend is in a set of a Service with affinity, or ([`SERVING`]) that the flows of a UDP Service may go on
/// with it: each new generation a translated flow asks that, and each datagram of a socket that is not connected.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MemberKey<A> {
    /// [`Service::id`].
    pub id: u32,
    /// The backend's address.
    pub addr: A,
    /// The backend's port, network order.
    pub port: u16,
    /// The [`Set`] as a number, or [`SERVING`].
    pub set: u16,
}

/// In [`MemberKey::set`]: every backend of a UDP Service that serves, be it in a set or in none. Who ends but still serves
/// (`conditions.serving`), or is ready and chosen no more, keeps the flows that it has and gets no new one.
pub const SERVING: u16 = 2;

/// One translation that a socket remembers: answers of `backend` are shown as from the virtual address, and datagrams to
/// that address go to `backend` for as long as it serves.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reverse<A> {
    /// The address the client dialled.
    pub addr: A,
    /// The address it was given.
    pub backend: A,
    /// The port the client dialled, network order.
    pub port: u16,
    /// The port it was given, network order.
    pub backend_port: u16,
}

/// All that a socket remembers; the oldest is overwritten. Of two entries with one backend the first is the one that was
/// dialled last.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reverses<A> {
    /// Where the next goes, modulo [`REVERSE`].
    pub next: u32,
    /// The translations; an unused one has port 0.
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
