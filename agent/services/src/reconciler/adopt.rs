//! Adoption of table entries that an earlier agent, or an earlier failed sync, left behind.

use super::{
    Ids, StaleBackend,
    encode::{chunk_keys, number, published_members},
    family::Family,
    port::{Adopted, UdpKey},
    stale::{flows_of_key, stale_backends},
};
use crate::{Net, TableError, Transport, tables::FamilyTables};
use berth_ebpf_abi::{
    Backend, CHUNK, Chunk, ChunkKey, INLINE, MemberKey, SERVING, Service, ServiceKey, Set, tag,
};
use std::{
    collections::{HashMap, HashSet},
    slice,
};

/// Contents of the tables of a family.
#[derive(Debug)]
pub(super) struct Contents<A> {
    pub(super) services: Vec<(ServiceKey<A>, Service<A>)>,
    pub(super) chunks: HashMap<ChunkKey, Chunk<A>>,
    pub(super) members: Vec<(MemberKey<A>, u32)>,
}

impl<A: Net> Contents<A> {
    pub(super) fn read(tables: &mut dyn FamilyTables<A>) -> Result<Contents<A>, TableError> {
        let services = tables.services().read()?;
        let chunks = tables.chunks().read()?.into_iter().collect();
        Ok(Contents { services, chunks, members: tables.members().read()? })
    }
}

impl<A: Net> Family<A> {
    /// Makes the contents the mirror and keeps the found ports by id until ports claim them. The caller sets
    /// all ports again.
    pub(super) fn adopt(&mut self, contents: Contents<A>, ids: &mut Ids) {
        let Contents { services, chunks, members } = contents;
        let mut adopted: HashMap<u32, Adopted<A>> = HashMap::new();
        let mut udp = Vec::new();
        for (key, service) in services.iter().filter(|(key, _)| key.port != 0) {
            let entry = adopted.entry(service.id).or_default();
            let sets = sets(service, &chunks);
            if key.proto == Transport::Udp.number()
                && let Some((cluster, local)) = &sets
            {
                let backends = cluster.iter().chain(local).copied().collect();
                udp.push(UdpKey { key: *key, id: service.id, backends });
            }
            if service.generation >= entry.generation {
                entry.generation = service.generation;
                entry.whole = sets.is_some();
                (entry.cluster, entry.local) = sets.unwrap_or_default();
            }
            entry.highest = entry.highest.max(service.generation);
        }
        for key in chunks.keys() {
            ids.seen(key.id);
            if let Some(entry) = adopted.get_mut(&key.id) {
                entry.highest = entry.highest.max(key.generation);
            }
        }
        for (key, _) in members.iter().filter(|(key, _)| key.set == SERVING) {
            if let Some(entry) = adopted.get_mut(&key.id) {
                entry.serving.insert(*key);
            }
        }
        adopted.keys().for_each(|id| ids.seen(*id));
        // After a failed sync ports already have ids. Their generations, flows and frontends, which the
        // tables do not hold, are kept.
        for (id, port) in self.ports.drain() {
            let entry = adopted.entry(id).or_default();
            entry.highest = entry.highest.max(port.highest);
            entry.flows.extend(port.flows);
            entry.client_frontends.extend(port.client_frontends);
        }
        self.forget();
        self.adopted = adopted;
        self.adopted_udp = udp;
        self.touched = services.iter().map(|(key, _)| *key).collect();
        self.services = services.into_iter().collect();
        self.chunks = chunks.into_keys().collect();
        self.members = members.into_iter().map(|(key, _)| key).collect();
    }

    /// Finishes the adoption after all ports are set: marks unclaimed chunks and members for deletion and
    /// collects stale backends.
    pub(super) fn settle(&mut self, stale: &mut Vec<StaleBackend>) {
        for (id, left) in self.adopted.drain() {
            stale.extend(left.flows.iter().flat_map(|b| stale_backends(id, b, &left.client_frontends)));
        }
        // The port that holds a key now decides whether the key's earlier backends are stale, whatever its
        // id.
        for UdpKey { key, id, backends } in std::mem::take(&mut self.adopted_udp) {
            let port = self.holder(&key).and_then(|id| self.ports.get_mut(&id));
            stale.extend(
                flows_of_key(port, &backends)
                    .iter()
                    .flat_map(|b| stale_backends(id, b, slice::from_ref(&key))),
            );
        }
        let chunks: HashSet<ChunkKey> = self.ports.iter().flat_map(|(id, p)| chunk_keys(*id, p)).collect();
        self.old_chunks.extend(self.chunks.iter().filter(|key| !chunks.contains(key)));
        let members: HashSet<MemberKey<A>> =
            self.ports.iter().flat_map(|(id, p)| published_members(*id, p)).collect();
        self.old_members.extend(self.members.iter().filter(|key| !members.contains(key)));
    }
}

/// The cluster set and the local set.
type Sets<A> = (Vec<Backend<A>>, Vec<Backend<A>>);

/// The sets of a Service value, or `None` where the value or one of its chunks is missing or torn.
fn sets<A: Net>(service: &Service<A>, chunks: &HashMap<ChunkKey, Chunk<A>>) -> Option<Sets<A>> {
    if service.tag != tag(service.id, service.generation) {
        return None;
    }
    let [cluster, local] = service.counts.map(usize::from);
    let all = cluster.checked_add(local)?;
    if all <= INLINE {
        return Some((service.inline.get(..cluster)?.to_vec(), service.inline.get(cluster..all)?.to_vec()));
    }
    let set = |set, count: usize| {
        let mut backends = Vec::with_capacity(count);
        for index in 0..u32::try_from(count.div_ceil(CHUNK)).ok()? {
            let set = u32::from(number(set));
            let key = ChunkKey { id: service.id, generation: service.generation, set, index };
            let chunk = chunks.get(&key).filter(|c| c.tag == service.tag)?;
            backends.extend(chunk.backends.get(..usize::try_from(chunk.len).ok()?)?);
        }
        (backends.len() == count).then_some(backends)
    };
    Some((set(Set::Cluster, cluster)?, set(Set::Local, local)?))
}
