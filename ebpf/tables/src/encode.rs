//! Encoding: the entries of a Service port in the tables, its values, its chunks and its members.

use crate::{
    Net,
    contents::{number, set_keys},
};
use berth_ebpf_abi::{
    Backend, CHUNK, Chunk, ChunkKey, INLINE, MemberKey, SERVING, Service, Set, frontend, tag,
};

/// A Service port as it is published, from which its entries are made.
#[derive(Debug, Clone, Copy)]
pub struct PublishedPort<'a, A> {
    /// [`Service::id`].
    pub id: u32,
    /// [`Service::generation`].
    pub generation: u32,
    /// Whether a usable endpoint exists anywhere.
    pub has_endpoints: bool,
    /// Seconds of client affinity, 0 for none.
    pub affinity_s: u32,
    /// The cluster set.
    pub cluster: &'a [Backend<A>],
    /// The local set.
    pub local: &'a [Backend<A>],
}

/// The value of a bare address, whose other ports are rejected.
pub fn address_value<A: Net>() -> Service<A> {
    Service { tag: tag(0, 0), frontend: frontend::ADDRESS, ..Service::default() }
}

impl<'a, A: Net> PublishedPort<'a, A> {
    /// The value of one frontend. `flags` are those of [`frontend`] without `HAS_ENDPOINTS`.
    pub fn value(&self, flags: u32) -> Service<A> {
        let has = if self.has_endpoints { frontend::HAS_ENDPOINTS } else { 0 };
        let count = |set: &[Backend<A>]| u16::try_from(set.len()).unwrap_or(u16::MAX);
        let mut service = Service {
            tag: tag(self.id, self.generation),
            id: self.id,
            generation: self.generation,
            frontend: flags | has,
            affinity_s: self.affinity_s,
            counts: [count(self.cluster), count(self.local)],
            inline: [Backend::default(); INLINE],
        };
        if self.fits_inline() {
            for (to, from) in service.inline.iter_mut().zip(self.cluster.iter().chain(self.local)) {
                *to = *from;
            }
        }
        service
    }

    /// The keys of the port's chunks.
    pub fn chunk_keys(self) -> impl Iterator<Item = ChunkKey> {
        let PublishedPort { id, generation, .. } = self;
        let sets = self.sets_in_chunks().into_iter();
        sets.flat_map(move |(set, backends)| set_keys(id, generation, set, backends.len()))
            .map(|(key, _)| key)
    }

    /// The port's chunks.
    pub fn chunks(self) -> impl Iterator<Item = (ChunkKey, Chunk<A>)> {
        let parts = self.sets_in_chunks().into_iter().flat_map(|(_, backends)| backends.chunks(CHUNK));
        self.chunk_keys().zip(parts).map(|(key, part)| {
            let mut backends = [Backend::default(); CHUNK];
            for (to, from) in backends.iter_mut().zip(part) {
                *to = *from;
            }
            let len = u32::try_from(part.len()).unwrap_or(0);
            (key, Chunk { tag: tag(key.id, key.generation), len, backends })
        })
    }

    /// The members of the sets, where the port has affinity.
    pub fn affinity_members(self) -> impl Iterator<Item = MemberKey<A>> {
        let sets = [(Set::Cluster, self.cluster), (Set::Local, self.local)].into_iter();
        sets.filter(move |_| self.affinity_s != 0)
            .flat_map(move |(set, backends)| backends.iter().map(move |b| member(self.id, b, number(set))))
    }

    fn fits_inline(&self) -> bool {
        self.cluster.len().saturating_add(self.local.len()) <= INLINE
    }

    fn sets_in_chunks(&self) -> [(Set, &'a [Backend<A>]); 2] {
        let [cluster, local] = if self.fits_inline() { [&[][..], &[]] } else { [self.cluster, self.local] };
        [(Set::Cluster, cluster), (Set::Local, local)]
    }
}

/// The members of the backends that flows of a UDP port may keep, each once.
pub fn serving_members<'b, A: Net>(
    id: u32,
    backends: impl Iterator<Item = &'b Backend<A>>,
) -> Vec<MemberKey<A>> {
    let mut members: Vec<MemberKey<A>> = backends.map(|b| member(id, b, SERVING)).collect();
    members.sort_unstable_by_key(|m| (m.addr, m.port));
    members.dedup();
    members
}

fn member<A: Net>(id: u32, backend: &Backend<A>, set: u16) -> MemberKey<A> {
    MemberKey { id, addr: backend.addr, port: backend.port, set }
}
