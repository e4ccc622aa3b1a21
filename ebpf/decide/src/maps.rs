//! Tables that a decision reads and writes.

use crate::Family;
use berth_ebpf_abi::{Affinity, AffinityKey, Backend, ChunkKey, MemberKey, NodeAddress, Service, ServiceKey};

/// The fields of a Service's value without its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// [`Service::tag`].
    pub tag: u32,
    /// [`Service::id`].
    pub id: u32,
    /// [`Service::generation`].
    pub generation: u32,
    /// [`Service::frontend`].
    pub frontend: u32,
    /// [`Service::affinity_s`].
    pub affinity_s: u32,
    /// [`Service::counts`].
    pub counts: [u16; 2],
}

impl<A> core::convert::From<&Service<A>> for Header {
    fn from(service: &Service<A>) -> Header {
        let Service { tag, id, generation, frontend, affinity_s, counts, .. } = *service;
        Header { tag, id, generation, frontend, affinity_s, counts }
    }
}

/// The tables of one address family, the clock and the random numbers.
///
/// A `Service` or `Chunk` is a reference to a value: in the kernel the memory may change while it is read.
/// Two are equal if they refer to the same memory (or, for copies, have the same value).
pub trait Maps<A: Family> {
    /// Reference to a Service's value.
    type Service: Copy + PartialEq;
    /// Reference to a chunk.
    type Chunk: Copy;

    /// Finds a frontend.
    fn service(&self, key: &ServiceKey<A>) -> Option<Self::Service>;
    /// Reads the header of a Service's value.
    fn header(&self, at: Self::Service) -> Header;
    /// Reads an inline backend of a Service's value; only the low two bits of `index` count.
    fn inline(&self, at: Self::Service, index: u32) -> Backend<A>;
    /// Copies an inline backend into memory aligned to eight bytes, so that the kernel's program copies an
    /// address in two steps instead of eight.
    #[inline(always)]
    fn take_inline(&self, at: Self::Service, index: u32, into: &mut Backend<A>) {
        *into = self.inline(at, index);
    }
    /// Whether the key still refers to the same value and the value still has this tag.
    #[inline(always)]
    fn unchanged(&self, key: &ServiceKey<A>, at: Self::Service, tag: u32) -> bool {
        self.service(key) == Some(at) && self.header(at).tag == tag
    }

    /// Finds a chunk of backends.
    fn chunk(&self, key: &ChunkKey) -> Option<Self::Chunk>;
    /// Reads the tag of a chunk.
    fn chunk_tag(&self, at: Self::Chunk) -> u32;
    /// Reads a backend of a chunk; only the low four bits of `index` count. An unused one has port 0.
    fn chunk_backend(&self, at: Self::Chunk, index: u32) -> Backend<A>;

    /// Copies a backend of a chunk, as [`Maps::take_inline`].
    #[inline(always)]
    fn take_chunk_backend(&self, at: Self::Chunk, index: u32, into: &mut Backend<A>) {
        *into = self.chunk_backend(at, index);
    }

    /// Reads the affinity of a client.
    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity<A>>;
    /// Copies the affinity of a client, as [`Maps::take_inline`]; returns whether one exists.
    #[inline(always)]
    fn take_affinity(&self, key: &AffinityKey<A>, into: &mut Affinity<A>) -> bool {
        match self.affinity(key) {
            Some(last) => {
                *into = last;
                true
            }
            None => false,
        }
    }
    /// Writes the affinity of a client. If the table is full, the client gets a new backend next time.
    fn set_affinity(&self, key: &AffinityKey<A>, value: &Affinity<A>);
    /// Whether a backend is in a set of a Service with affinity, or serves flows of a UDP Service.
    fn member(&self, key: &MemberKey<A>) -> bool;

    /// Returns the entry of one of the node's own addresses.
    fn node(&self, addr: &A) -> Option<NodeAddress>;
    /// The same as a number: 0 for none, 1 for one without node ports, 2 for one with node ports.
    #[inline(always)]
    fn node_number(&self, addr: &A) -> u32 {
        self.node(addr).map_or(0, |node| 1 + (node.node_ports & 1))
    }
    /// Whether an address lies in one of the Service ranges.
    fn in_service_range(&self, addr: A) -> bool;

    /// The number `N`, hidden from the compiler: for a known number it would copy the body of a loop for each
    /// value.
    #[inline(always)]
    fn number<const N: u32>(&self) -> u32 {
        N
    }
    /// The number, hidden from the compiler's knowledge about its value.
    #[inline(always)]
    fn opaque(&self, number: u32) -> u32 {
        number
    }
    /// The reference, hidden from the compiler, which would otherwise compute the address of each field
    /// before all loops and keep all of them.
    #[inline(always)]
    fn opaque_ref<'p, T>(&self, at: &'p mut T) -> &'p mut T {
        at
    }
    /// Sets an address aligned to eight bytes to [`berth_ebpf_abi::Addr::ANY`].
    #[inline(always)]
    fn clear(&self, addr: &mut A) {
        *addr = A::ANY;
    }

    /// A uniform random number of 32 bits.
    fn rand(&self) -> u32;
    /// Seconds of CLOCK_MONOTONIC.
    fn now_s(&self) -> u32;
}
