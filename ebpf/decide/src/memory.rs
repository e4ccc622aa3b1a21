//! The tables of Services in memory, for tests and for decisions outside of the kernel.

use crate::{Family, Header, Maps};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, CHUNK, Chunk, ChunkKey, INLINE, MemberKey, NodeAddress, Prefix, Service,
    ServiceKey,
};
use core::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

/// Tables of one family. The clock stands still, and the random sequence is fixed until it is set.
#[derive(Debug, Clone, Default)]
pub struct Tables<A> {
    /// Service values by frontend: address, port and protocol.
    pub services: HashMap<ServiceKey<A>, Service<A>>,
    /// Chunks of Services with more backends than fit inline.
    pub chunks: HashMap<ChunkKey, Chunk<A>>,
    /// Backends of clients with affinity.
    pub affinity: RefCell<HashMap<AffinityKey<A>, Affinity<A>>>,
    /// Backends of Services with affinity, by set, and those that serve flows of UDP Services.
    pub members: HashSet<MemberKey<A>>,
    /// The node's own addresses.
    pub nodes: HashMap<A, NodeAddress>,
    /// The Service ranges.
    pub ranges: [Prefix; 2],
    /// State of the random generator (xorshift; 0 always gives 0).
    pub dice: Cell<u32>,
    /// Seconds of CLOCK_MONOTONIC.
    pub now_s: Cell<u32>,
}

impl<A: Family> Maps<A> for Tables<A> {
    type Service = Service<A>;
    type Chunk = Chunk<A>;

    fn service(&self, key: &ServiceKey<A>) -> Option<Service<A>> {
        self.services.get(key).copied()
    }

    fn header(&self, at: Service<A>) -> Header {
        Header::from(&at)
    }

    fn inline(&self, at: Service<A>, index: u32) -> Backend<A> {
        at.inline[index as usize % INLINE]
    }

    fn chunk(&self, key: &ChunkKey) -> Option<Chunk<A>> {
        self.chunks.get(key).copied()
    }

    fn chunk_tag(&self, at: Chunk<A>) -> u32 {
        at.tag
    }

    fn chunk_backend(&self, at: Chunk<A>, index: u32) -> Backend<A> {
        at.backends[index as usize % CHUNK]
    }

    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity<A>> {
        self.affinity.borrow().get(key).copied()
    }

    fn set_affinity(&self, key: &AffinityKey<A>, value: &Affinity<A>) {
        self.affinity.borrow_mut().insert(*key, *value);
    }

    fn member(&self, key: &MemberKey<A>) -> bool {
        self.members.contains(key)
    }

    fn node(&self, addr: &A) -> Option<NodeAddress> {
        self.nodes.get(addr).copied()
    }

    fn in_service_range(&self, addr: A) -> bool {
        self.ranges.iter().any(|range| addr.within(range))
    }

    fn rand(&self) -> u32 {
        let mut x = self.dice.get();
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.dice.set(x);
        x
    }

    fn now_s(&self) -> u32 {
        self.now_s.get()
    }
}
