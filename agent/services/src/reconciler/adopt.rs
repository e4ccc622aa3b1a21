//! Adoption of table entries that an earlier agent, or an earlier failed sync, left behind.

use super::{
    Ids, StaleBackend,
    family::Family,
    port::{Adopted, UdpKey},
    stale::{flows_of_key, stale_backends},
};
use crate::{Net, Transport};
use berth_ebpf_abi::{ChunkKey, MemberKey, SERVING};
use berth_ebpf_tables::Contents;
use std::{
    collections::{HashMap, HashSet},
    slice,
};

impl<A: Net> Family<A> {
    /// Makes the contents the mirror and keeps the found ports by id until ports claim them. The caller sets
    /// all ports again.
    pub(super) fn adopt(&mut self, contents: Contents<A>, ids: &mut Ids) {
        let mut adopted: HashMap<u32, Adopted<A>> = HashMap::new();
        let mut udp = Vec::new();
        for (key, service) in contents.services.iter().filter(|(key, _)| key.port != 0) {
            let entry = adopted.entry(service.id).or_default();
            let sets = contents.sets(service);
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
        for key in contents.chunks.keys() {
            ids.seen(key.id);
            if let Some(entry) = adopted.get_mut(&key.id) {
                entry.highest = entry.highest.max(key.generation);
            }
        }
        for key in contents.members.iter().filter(|key| key.set == SERVING) {
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
        let Contents { services, chunks, members } = contents;
        self.touched = services.iter().map(|(key, _)| *key).collect();
        self.services = services.into_iter().collect();
        self.chunks = chunks.into_keys().collect();
        self.members = members;
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
        let chunks: HashSet<ChunkKey> =
            self.ports.iter().flat_map(|(id, p)| p.published(*id).chunk_keys()).collect();
        self.old_chunks.extend(self.chunks.iter().filter(|key| !chunks.contains(key)));
        let members: HashSet<MemberKey<A>> = self.ports.iter().flat_map(|(id, p)| p.members(*id)).collect();
        self.old_members.extend(self.members.iter().filter(|key| !members.contains(key)));
    }
}
