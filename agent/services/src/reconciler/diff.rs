//! Differences between the tables and the wanted entries.

use super::{
    Difference,
    adopt::Contents,
    encode::{chunks, published_members},
    family::Family,
};
use crate::{Net, TableError, tables::FamilyTables};
use berth_ebpf_abi::{ChunkKey, MemberKey, maps};
use std::collections::{HashMap, HashSet};

impl<A: Net> Family<A> {
    /// Compares the family's tables with the wanted entries, for [`super::TableReconciler::check`].
    pub(super) fn check(&self, tables: &mut dyn FamilyTables<A>) -> Result<Vec<Difference>, TableError> {
        let names = if A::V6 {
            [maps::SERVICE6, maps::CHUNK6, maps::MEMBER6]
        } else {
            [maps::SERVICE4, maps::CHUNK4, maps::MEMBER4]
        };
        let [services, chunk_table, member_table] = names;
        let mut found = Vec::new();
        let wanted: HashMap<_, _> = self.claims.keys().filter_map(|k| Some((*k, self.value(k)?))).collect();
        compare(services, &wanted, tables.services().read()?, &mut found);
        let wanted: HashMap<_, _> = self.ports.iter().flat_map(|(id, p)| chunks(*id, p)).collect();
        let resting: HashSet<_> = self.resting.iter().map(|(_, key)| *key).collect();
        let there = tables.chunks().read()?.into_iter().filter(|(k, _)| !resting.contains(k));
        compare(chunk_table, &wanted, there.collect(), &mut found);
        let wanted: HashMap<_, _> =
            self.ports.iter().flat_map(|(id, p)| published_members(*id, p)).map(|m| (m, 1)).collect();
        compare(member_table, &wanted, tables.members().read()?, &mut found);
        Ok(found)
    }

    /// Makes the real contents of the tables the mirror. The next sync writes the entries that differ.
    /// Returns the number of entries that differ.
    pub(super) fn reconcile(&mut self, contents: Contents<A>) -> usize {
        let mut found: usize = 0;
        let services: HashMap<_, _> = contents.services.into_iter().collect();
        let mut other = |other: bool| found = found.saturating_add(usize::from(other));
        for key in services.keys().chain(self.services.keys().filter(|key| !services.contains_key(*key))) {
            let differs = services.get(key) != self.services.get(key);
            other(differs);
            if differs {
                self.touched.insert(*key);
            }
        }
        self.services = services;
        for (id, port) in &self.ports {
            for (key, chunk) in chunks(*id, port).filter(|(key, _)| self.chunks.contains(key)) {
                if contents.chunks.get(&key) != Some(&chunk) {
                    other(true);
                    self.pending.insert(*id);
                }
            }
        }
        let mut wanted: HashMap<ChunkKey, _> = HashMap::new();
        for id in &self.pending {
            wanted.extend(self.ports.get(id).into_iter().flat_map(|port| chunks(*id, port)));
        }
        let strange: Vec<ChunkKey> =
            contents.chunks.keys().filter(|key| !self.chunks.contains(key)).copied().collect();
        strange.iter().for_each(|_| other(true));
        // A chunk that differs counts as missing, so that the sync overwrites it.
        let whole =
            |key: &ChunkKey| wanted.get(key).is_none_or(|chunk| contents.chunks.get(key) == Some(chunk));
        self.chunks = contents.chunks.keys().filter(|key| whole(key)).copied().collect();
        self.old_chunks.extend(strange);
        let members: HashSet<MemberKey<A>> = contents.members.into_iter().map(|(key, _)| key).collect();
        for key in self.members.difference(&members) {
            other(true);
            self.pending.insert(key.id);
        }
        let strange: Vec<MemberKey<A>> = members.difference(&self.members).copied().collect();
        strange.iter().for_each(|_| other(true));
        self.members = members;
        self.old_members.extend(strange);
        found
    }
}

fn compare<K: Eq + std::hash::Hash + std::fmt::Debug, V: PartialEq>(
    table: &'static str,
    wanted: &HashMap<K, V>,
    there: Vec<(K, V)>,
    found: &mut Vec<Difference>,
) {
    let mut tell = |key: &K, what| found.push(Difference { table, key: format!("{key:?}"), what });
    let there: HashMap<K, V> = there.into_iter().collect();
    for (key, value) in wanted {
        match there.get(key) {
            None => tell(key, "missing"),
            Some(other) if other != value => tell(key, "differs"),
            Some(_) => {}
        }
    }
    there.keys().filter(|k| !wanted.contains_key(*k)).for_each(|k| tell(k, "is too much"));
}
