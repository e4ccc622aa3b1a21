//! Encoding: the entries of a Service port in the tables, its value, its chunks and its members.

use super::port::Port;
use crate::{Net, Transport, WantedPort};
use berth_ebpf_abi::{
    Backend, CHUNK, Chunk, ChunkKey, INLINE, MemberKey, SERVING, Service, Set, frontend, tag,
};

/// The value of one frontend of a port.
pub(super) fn value<A: Net>(id: u32, port: &Port<A>, flags: u32) -> Service<A> {
    let [cluster, local] = port.published();
    let has = if port.wanted.has_endpoints { frontend::HAS_ENDPOINTS } else { 0 };
    let count = |set: &[Backend<A>]| u16::try_from(set.len()).unwrap_or(u16::MAX);
    let mut service = Service {
        tag: tag(id, port.generation),
        id,
        generation: port.generation,
        frontend: flags | has,
        affinity_s: port.affinity_s(),
        counts: [count(cluster), count(local)],
        inline: [Backend::default(); INLINE],
    };
    if fits_inline(port) {
        for (to, from) in service.inline.iter_mut().zip(cluster.iter().chain(local)) {
            *to = *from;
        }
    }
    service
}

/// Whether the backends of both sets fit into the value itself.
fn fits_inline<A: Net>(port: &Port<A>) -> bool {
    let [cluster, local] = port.published();
    cluster.len().saturating_add(local.len()) <= INLINE
}

/// The sets that lie in chunks.
fn sets<A: Net>(port: &Port<A>) -> [(Set, &[Backend<A>]); 2] {
    let [cluster, local] = if fits_inline(port) { [&[][..], &[]] } else { port.published() };
    [(Set::Cluster, cluster), (Set::Local, local)]
}

/// The number of a set in keys.
pub(super) const fn number(set: Set) -> u16 {
    match set {
        Set::Cluster => 0,
        Set::Local => 1,
    }
}

/// The keys of a port's chunks.
pub(super) fn chunk_keys<A: Net>(id: u32, port: &Port<A>) -> impl Iterator<Item = ChunkKey> {
    let generation = port.generation;
    sets(port).into_iter().flat_map(move |(set, backends)| {
        let indices = 0..u32::try_from(backends.len().div_ceil(CHUNK)).unwrap_or(u32::MAX);
        indices.map(move |index| ChunkKey { id, generation, set: u32::from(number(set)), index })
    })
}

/// The chunks of a port.
pub(super) fn chunks<A: Net>(id: u32, port: &Port<A>) -> impl Iterator<Item = (ChunkKey, Chunk<A>)> {
    let parts = sets(port).into_iter().flat_map(|(_, backends)| backends.chunks(CHUNK));
    chunk_keys(id, port).zip(parts).map(|(key, part)| {
        let mut backends = [Backend::default(); CHUNK];
        for (to, from) in backends.iter_mut().zip(part) {
            *to = *from;
        }
        let len = u32::try_from(part.len()).unwrap_or(0);
        (key, Chunk { tag: tag(key.id, key.generation), len, backends })
    })
}

/// The member entries of a port as published.
pub(super) fn published_members<A: Net>(id: u32, port: &Port<A>) -> Vec<MemberKey<A>> {
    if port.reduced { Vec::new() } else { members(id, &port.wanted) }
}

/// The wanted member entries of a port: the backends of its sets where it has affinity, and the backends that
/// UDP flows may keep.
fn members<A: Net>(id: u32, wanted: &WantedPort<A>) -> Vec<MemberKey<A>> {
    let mut members = serving(id, wanted);
    if wanted.affinity_s != 0 {
        members.extend(wanted.cluster.iter().map(|b| member(id, b, number(Set::Cluster))));
        members.extend(wanted.local.iter().map(|b| member(id, b, number(Set::Local))));
    }
    members
}

/// Member entries of the backends that flows of a UDP port may keep, each once: the backends of its sets and
/// those that only serve.
pub(super) fn serving<A: Net>(id: u32, wanted: &WantedPort<A>) -> Vec<MemberKey<A>> {
    if wanted.transport != Transport::Udp {
        return Vec::new();
    }
    let all = wanted.cluster.iter().chain(&wanted.local).chain(&wanted.serving);
    let mut members: Vec<MemberKey<A>> = all.map(|b| member(id, b, SERVING)).collect();
    members.sort_unstable_by_key(|m| (m.addr, m.port));
    members.dedup();
    members
}

fn member<A: Net>(id: u32, backend: &Backend<A>, set: u16) -> MemberKey<A> {
    MemberKey { id, addr: backend.addr, port: backend.port, set }
}
