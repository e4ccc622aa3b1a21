//! Writes of a sync: the order that keeps readers consistent, and the treatment of full tables.
//!
//! New chunks and members are written first, then the Service values (each overwrite publishes a whole set),
//! then keys and members are deleted, and [`REST`] later the chunks that no value names any more.
//!
//! An entry that does not fit stops no other entry. A port whose chunks or members do not fit waits until the
//! deletions of the same sync have freed space, and at most once for chunks that still rest. Then only the
//! backends that fit into its Service value are published, without affinity. A frontend that does not fit is
//! left out, the newest Service's first. Owners get a notice in both cases. Once the tables have space, all
//! of it is published.

use super::{Outcome, REST, family::Family};
use crate::{Net, Notice, TableError, tables::FamilyTables};
use berth_core::time::Boottime;
use berth_ebpf_abi::{ChunkKey, MemberKey, ServiceKey};
use std::{
    collections::{BTreeSet, HashSet},
    mem,
};

/// Target of a sync's writes, with its result and its notices.
pub(super) struct Writing<'w, A: Net> {
    pub(super) tables: &'w mut dyn FamilyTables<A>,
    pub(super) clock: &'w dyn Fn() -> Boottime,
    pub(super) outcome: &'w mut Outcome,
    pub(super) notices: &'w mut Vec<Notice>,
}

impl<A: Net> Family<A> {
    /// Writes all due changes of the family.
    pub(super) fn carry_out(&mut self, to: &mut Writing<'_, A>) -> Result<(), TableError> {
        self.remove_rested(to)?;
        self.try_unfit(to);
        let mut short = self.fill(to)?;
        let mut unfit = self.publish(to, &short)?;
        self.remove(to, &short)?;
        if !short.is_empty() || !unfit.is_empty() {
            // The deletions may have freed space.
            self.pending = mem::take(&mut short);
            self.touched.extend(unfit.drain(..));
            short = self.fill(to)?;
            self.unfit.room = self.room(to);
            self.cut_short(&mut short);
            unfit = self.publish(to, &short)?;
            self.remove(to, &short)?;
        }
        self.pending.extend(short);
        self.tell_unfit(to, unfit);
        let due = self.resting.front().map(|(due, _)| *due);
        // Ports that are now published in part may have freed enough space to publish all of some port.
        let again = (self.has_unfit() && self.grew(to)).then(|| (to.clock)());
        to.outcome.due = [to.outcome.due, due, again].into_iter().flatten().min();
        Ok(())
    }

    fn has_unfit(&self) -> bool {
        !self.unfit.keys.is_empty() || !self.unfit.ports.is_empty()
    }

    /// Whether a table has more free entries than when the overflow was found.
    fn grew(&mut self, to: &mut Writing<'_, A>) -> bool {
        self.room(to).iter().zip(self.unfit.room).any(|(now, then)| *now > then)
    }

    /// Marks entries for writing that did not fit before and fit now.
    fn try_unfit(&mut self, to: &mut Writing<'_, A>) {
        if !self.has_unfit() || !self.grew(to) {
            return;
        }
        let room = self.room(to);
        self.unfit.room = room;
        if room.first().is_some_and(|services| *services > 0) {
            self.touched.extend(&self.unfit.keys);
        }
        let [_, mut chunk_room, mut member_room] = room;
        for id in self.unfit.ports.clone() {
            let Some(port) = self.ports.get_mut(&id).filter(|port| port.reduced) else { continue };
            port.reduced = false;
            let members = port.members(id);
            let chunk_count = port.published(id).chunk_keys().count();
            if chunk_count > chunk_room || members.len() > member_room {
                port.reduced = true;
                continue;
            }
            chunk_room = chunk_room.saturating_sub(chunk_count);
            member_room = member_room.saturating_sub(members.len());
            let members: HashSet<MemberKey<A>> = members.into_iter().collect();
            self.old_members.retain(|key| !members.contains(key));
            port.highest = port.highest.wrapping_add(1);
            port.generation = port.highest;
            self.pending.insert(id);
            self.touched.extend(port.wanted.frontends.iter().map(|(key, _)| *key));
        }
    }

    /// Free entries in the tables: services, chunks, members.
    fn room(&mut self, to: &mut Writing<'_, A>) -> [usize; 3] {
        let tables = &mut to.tables;
        self.capacity =
            [tables.services().capacity(), tables.chunks().capacity(), tables.members().capacity()];
        let [services, chunks, members] = self.capacity;
        [
            services.saturating_sub(self.services.len()),
            chunks.saturating_sub(self.chunks.len()),
            members.saturating_sub(self.members.len()),
        ]
    }

    /// Fill level of each table: name, entries and capacity of services, chunks, members.
    pub(super) fn fill_level(&self) -> [(&'static str, usize, usize); 3] {
        let [services, chunks, members] = self.capacity;
        let names = A::TABLES;
        [
            (names.service, self.services.len(), services),
            (names.chunk, self.chunks.len(), chunks),
            (names.member, self.members.len(), members),
        ]
    }

    /// Writes chunks and members of pending ports. Returns the ports that do not fit.
    fn fill(&mut self, to: &mut Writing<'_, A>) -> Result<BTreeSet<u32>, TableError> {
        let [_, mut chunk_room, mut member_room] = self.room(to);
        let (mut short, mut new_chunks, mut new_members) = (BTreeSet::new(), Vec::new(), Vec::new());
        for id in mem::take(&mut self.pending) {
            let Some(port) = self.ports.get(&id) else { continue };
            let chunks: Vec<_> =
                port.published(id).chunks().filter(|(key, _)| !self.chunks.contains(key)).collect();
            let mut members = port.members(id);
            members.retain(|key| !self.members.contains(key));
            if chunks.len() > chunk_room || members.len() > member_room {
                short.insert(id);
                continue;
            }
            chunk_room = chunk_room.saturating_sub(chunks.len());
            member_room = member_room.saturating_sub(members.len());
            new_chunks.extend(chunks);
            new_members.extend(members.into_iter().map(|key| (key, 1)));
            self.waited.remove(&id);
        }
        put(&new_chunks, |e| to.tables.chunks().put(e), to.outcome)?;
        self.chunks.extend(new_chunks.into_iter().map(|(key, _)| key));
        put(&new_members, |e| to.tables.members().put(e), to.outcome)?;
        self.members.extend(new_members.into_iter().map(|(key, _)| key));
        Ok(short)
    }

    /// Switches ports to publication in part where they have waited once, or where no resting chunks will
    /// free space.
    fn cut_short(&mut self, short: &mut BTreeSet<u32>) {
        for id in short.clone() {
            if !self.resting.is_empty() && self.waited.insert(id) {
                continue;
            }
            short.remove(&id);
            let Some(port) = self.ports.get_mut(&id) else { continue };
            let there = port.members(id).into_iter().filter(|key| self.members.contains(key));
            self.old_members.extend(there);
            port.reduced = true;
            port.highest = port.highest.wrapping_add(1);
            port.generation = port.highest;
            self.unfit.ports.insert(id);
            self.waited.remove(&id);
            self.touched.extend(port.wanted.frontends.iter().map(|(key, _)| *key));
        }
    }

    /// Writes the values of touched keys and deletes keys that no port holds. Keys of the ports in `short`
    /// wait. Returns the new keys that do not fit.
    fn publish(
        &mut self,
        to: &mut Writing<'_, A>,
        short: &BTreeSet<u32>,
    ) -> Result<Vec<ServiceKey<A>>, TableError> {
        let (mut over, mut new, mut gone, mut later) = (Vec::new(), Vec::new(), Vec::new(), HashSet::new());
        for key in mem::take(&mut self.touched) {
            self.conflicts(&key, to.notices);
            if self.holder(&key).is_some_and(|id| short.contains(&id)) {
                later.insert(key);
                continue;
            }
            match (self.value(&key), self.services.get(&key)) {
                (Some(value), Some(there)) if value == *there => {}
                (Some(value), Some(_)) => over.push((key, value)),
                (Some(value), None) => new.push((key, value)),
                (None, Some(_)) => gone.push(key),
                (None, None) => {}
            }
        }
        self.touched = later;
        let [room, ..] = self.room(to);
        if new.len() > room {
            self.take_out(to, &mem::take(&mut gone))?;
            // Older Services come first, and ports come before bare addresses.
            let age = |key: &ServiceKey<A>| {
                let owner = self.holder(key).and_then(|id| self.ports.get(&id)).map(|p| &p.owner);
                (owner.map(|o| (o.created, o.uid.clone())), key.port == 0)
            };
            new.sort_by_cached_key(|(key, _)| age(key));
        }
        let [room, ..] = self.room(to);
        let unfit = new.split_off(new.len().min(room)).into_iter().map(|(key, _)| key).collect();
        over.extend(new);
        put(&over, |e| to.tables.services().put(e), to.outcome)?;
        for (key, _) in &over {
            self.unfit.keys.remove(key);
        }
        self.services.extend(over);
        self.take_out(to, &gone)?;
        Ok(unfit)
    }

    fn take_out(&mut self, to: &mut Writing<'_, A>, gone: &[ServiceKey<A>]) -> Result<(), TableError> {
        delete(gone, |k| to.tables.services().delete(k), to.outcome)?;
        for key in gone {
            self.services.remove(key);
        }
        Ok(())
    }

    /// Deletes members and chunks that no value names any more. Entries that the values of the ports in
    /// `short` still name stay. Chunks rest for [`REST`] before deletion.
    fn remove(&mut self, to: &mut Writing<'_, A>, short: &BTreeSet<u32>) -> Result<(), TableError> {
        let there = |key: &MemberKey<A>| self.members.contains(key);
        let (kept, mut gone): (Vec<_>, Vec<_>) =
            mem::take(&mut self.old_members).into_iter().partition(|key| short.contains(&key.id));
        gone.retain(there);
        delete(&gone, |k| to.tables.members().delete(k), to.outcome)?;
        for key in &gone {
            self.members.remove(key);
        }
        self.old_members = kept;

        let now = (to.clock)();
        let (kept, gone): (Vec<_>, Vec<_>) =
            mem::take(&mut self.old_chunks).into_iter().partition(|key: &ChunkKey| short.contains(&key.id));
        self.old_chunks = kept;
        self.resting.extend(gone.into_iter().map(|key| (now + REST, key)));
        self.remove_rested(to)
    }

    /// Deletes chunks whose rest is over: no reader can use them any more.
    fn remove_rested(&mut self, to: &mut Writing<'_, A>) -> Result<(), TableError> {
        if self.resting.is_empty() {
            return Ok(());
        }
        let now = (to.clock)();
        let rested = self.resting.partition_point(|(due, _)| *due <= now);
        let rested: Vec<ChunkKey> = self.resting.drain(..rested).map(|(_, key)| key).collect();
        delete(&rested, |k| to.tables.chunks().delete(k), to.outcome)?;
        for key in &rested {
            self.chunks.remove(key);
        }
        Ok(())
    }

    /// Records entries that do not fit, and makes a notice for each owner that has none yet.
    fn tell_unfit(&mut self, to: &mut Writing<'_, A>, unfit: Vec<ServiceKey<A>>) {
        for key in unfit {
            if self.unfit.keys.insert(key) {
                to.notices.extend(self.no_room(&key));
            }
        }
        let ports = &self.ports;
        self.unfit.ports.retain(|id| ports.get(id).is_some_and(|port| port.reduced));
        self.unfit.notified.retain(|id| self.unfit.ports.contains(id));
        // No notice is made while space is about to become free or an entry can be tried again.
        if self.resting.is_empty() && !self.grew(to) {
            for id in self.unfit.ports.difference(&self.unfit.notified) {
                to.notices.extend(self.ports.get(id).map(|port| port.cut_short(*id)));
            }
            self.unfit.notified.clone_from(&self.unfit.ports);
        }
    }
}

fn put<T>(
    entries: &[T],
    write: impl FnOnce(&[T]) -> Result<(), TableError>,
    outcome: &mut Outcome,
) -> Result<(), TableError> {
    outcome.put = outcome.put.saturating_add(entries.len());
    if entries.is_empty() { Ok(()) } else { write(entries) }
}

fn delete<T>(
    keys: &[T],
    write: impl FnOnce(&[T]) -> Result<(), TableError>,
    outcome: &mut Outcome,
) -> Result<(), TableError> {
    outcome.deleted = outcome.deleted.saturating_add(keys.len());
    if keys.is_empty() { Ok(()) } else { write(keys) }
}
