//! Differences between the tables and the wanted entries.

use super::family::Family;
use crate::{Net, TableError, tables::FamilyTables};
use berth_ebpf_abi::{ChunkKey, MemberKey};
use berth_ebpf_tables::{Contents, Difference, differences};
use std::collections::HashMap;

impl<A: Net> Family<A> {
    /// Compares the family's tables with the wanted entries, for [`super::TableReconciler::check`].
    pub(super) fn check(&self, tables: &mut dyn FamilyTables<A>) -> Result<Vec<Difference>, TableError> {
        let ports = || self.ports.iter();
        let wanted = Contents {
            services: self.claims.keys().filter_map(|key| Some((*key, self.value(key)?))).collect(),
            chunks: ports().flat_map(|(id, port)| port.published(*id).chunks()).collect(),
            members: ports().flat_map(|(id, port)| port.members(*id)).collect(),
        };
        let mut there = read(tables)?;
        for (_, resting) in &self.resting {
            there.chunks.remove(resting);
        }
        Ok(differences(&wanted, &there))
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
            for (key, chunk) in port.published(*id).chunks().filter(|(key, _)| self.chunks.contains(key)) {
                if contents.chunks.get(&key) != Some(&chunk) {
                    other(true);
                    self.pending.insert(*id);
                }
            }
        }
        let mut wanted: HashMap<ChunkKey, _> = HashMap::new();
        for id in &self.pending {
            wanted.extend(self.ports.get(id).into_iter().flat_map(|port| port.published(*id).chunks()));
        }
        let strange: Vec<ChunkKey> =
            contents.chunks.keys().filter(|key| !self.chunks.contains(key)).copied().collect();
        strange.iter().for_each(|_| other(true));
        // A chunk that differs counts as missing, so that the sync overwrites it.
        let whole =
            |key: &ChunkKey| wanted.get(key).is_none_or(|chunk| contents.chunks.get(key) == Some(chunk));
        self.chunks = contents.chunks.keys().filter(|key| whole(key)).copied().collect();
        self.old_chunks.extend(strange);
        let members = contents.members;
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

/// Reads the tables of a family.
pub(super) fn read<A: Net>(tables: &mut dyn FamilyTables<A>) -> Result<Contents<A>, TableError> {
    Ok(Contents {
        services: tables.services().read()?,
        chunks: tables.chunks().read()?.into_iter().collect(),
        members: tables.members().read()?.into_iter().map(|(key, _)| key).collect(),
    })
}
