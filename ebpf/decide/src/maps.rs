//! What a decision reads and writes.

use crate::Family;
use berth_ebpf_abi::{Affinity, AffinityKey, Backend, ChunkKey, MemberKey, NodeAddress, Service, ServiceKey};

/// A Service's value without its backends.
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

/// The tables of one address family, and the clock and the dice.
///
/// A `Service` or `Chunk` is where a value lies, not the value: in the kernel the memory may get other content while
/// it is read. Two of them are equal when they are the same place (or, for copies, the same value).
pub trait Maps<A: Family> {
    /// Where a Service's value lies.
    type Service: Copy + PartialEq;
    /// Where a chunk lies.
    type Chunk: Copy;

    /// Finds a way into a Service.
    fn service(&self, key: &ServiceKey<A>) -> Option<Self::Service>;
    /// Reads the head of its value.
    fn header(&self, at: Self::Service) -> Header;
    /// Reads a backend of its value; only the low two bits of `index` count.
    fn inline(&self, at: Self::Service, index: u32) -> Backend<A>;
    /// The same into a place that is there and aligned to eight bytes: in the kernel an address is copied in two steps
    /// then, not in eight.
    #[inline(always)]
    fn take_inline(&self, at: Self::Service, index: u32, into: &mut Backend<A>) {
        *into = self.inline(at, index);
    }
    /// Whether the key still leads to the place where it led before, and the tag there is still this.
    #[inline(always)]
    fn unchanged(&self, key: &ServiceKey<A>, at: Self::Service, tag: u32) -> bool {
        self.service(key) == Some(at) && self.header(at).tag == tag
    }

    /// Finds a chunk of backends.
    fn chunk(&self, key: &ChunkKey) -> Option<Self::Chunk>;
    /// Reads its tag.
    fn chunk_tag(&self, at: Self::Chunk) -> u32;
    /// Reads a backend of it; only the low four bits of `index` count. An unused one has port 0.
    fn chunk_backend(&self, at: Self::Chunk, index: u32) -> Backend<A>;

    /// The same into a place, as above.
    #[inline(always)]
    fn take_chunk_backend(&self, at: Self::Chunk, index: u32, into: &mut Backend<A>) {
        *into = self.chunk_backend(at, index);
    }

    /// Reads whom a client stays with.
    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity<A>>;
    /// The same into a place, as above; says whether there is one.
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
    /// Writes whom a client stays with. A full table is no error: the client is then given a backend anew.
    fn set_affinity(&self, key: &AffinityKey<A>, value: &Affinity<A>);
    /// Whether a backend is in a set of a Service with affinity, or serves flows of a UDP Service.
    fn member(&self, key: &MemberKey<A>) -> bool;

    /// One of the node's own addresses.
    fn node(&self, addr: &A) -> Option<NodeAddress>;
    /// The same as a number: 0, none; 1, one without node ports; 2, one with them.
    #[inline(always)]
    fn node_number(&self, addr: &A) -> u32 {
        self.node(addr).map_or(0, |node| 1 + (node.node_ports & 1))
    }
    /// Whether an address lies in one of the Service ranges.
    fn in_service_range(&self, addr: A) -> bool;

    /// The number `N`, which the compiler does not see: in the kernel it would write a loop's body once for each value
    /// that it knows.
    #[inline(always)]
    fn number<const N: u32>(&self) -> u32 {
        N
    }
    /// The same number, of which the compiler knows nothing any more.
    #[inline(always)]
    fn opaque(&self, number: u32) -> u32 {
        number
    }
    /// The same place, likewise: the compiler would compute the address of each field once, before all loops, and keep
    /// them all.
    #[inline(always)]
    fn opaque_ref<'p, T>(&self, at: &'p mut T) -> &'p mut T {
        at
    }
    /// Makes an address [`berth_ebpf_abi::Addr::ANY`]; it lies where eight bytes may be written at once.
    #[inline(always)]
    fn clear(&self, addr: &mut A) {
        *addr = A::ANY;
    }

    /// A random number, uniform over all of its range.
    fn rand(&self) -> u32;
    /// Seconds of CLOCK_MONOTONIC.
    fn now_s(&self) -> u32;
}
