//! Allocations of one network, and the choice of the next address. Pure.
//!
//! Addresses are kept in ordered maps and not in bitmaps: a /64 has no bitmap, the plugin starts
//! for each pod (a bitmap of a /8 would be 2 MiB to clear each time), and a node has hundreds of
//! pods, not millions.

use crate::{Key, RangeSet, Record};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
    time::Duration,
};

/// No address of a set is free, not even a quarantined one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no address left in {subnets}")]
pub struct Exhausted {
    /// The set's subnets.
    pub subnets: String,
}

/// Result of [`State::plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned {
    /// The key already has these addresses.
    Existing(Vec<IpAddr>),
    /// These addresses are free. They belong to the key once this record is written and applied.
    New(Record),
}

/// The allocations of one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    allocations: BTreeMap<Key, Vec<IpAddr>>,
    owned: BTreeMap<IpAddr, Key>,
    /// Released addresses that were not allocated again, with the time of the release in
    /// milliseconds on `CLOCK_BOOTTIME`.
    freed: BTreeMap<IpAddr, u64>,
    last: BTreeMap<usize, IpAddr>,
}

impl State {
    /// The addresses of each key.
    pub fn allocations(&self) -> impl Iterator<Item = (&Key, &[IpAddr])> {
        self.allocations.iter().map(|(key, addresses)| (key, addresses.as_slice()))
    }

    /// The addresses of one key.
    pub fn get(&self, key: &Key) -> Option<&[IpAddr]> {
        self.allocations.get(key).map(Vec::as_slice)
    }

    /// Applies a record. Any sequence of records is accepted. If a record contradicts earlier ones
    /// (an address already belongs to another key), the earlier owner keeps it and the result is
    /// `false`.
    pub fn apply(&mut self, record: &Record) -> bool {
        match record {
            Record::Header { .. } => true,
            Record::Allocate { key, addresses } => {
                let replaced = self.allocations.remove(key);
                for address in replaced.iter().flatten() {
                    self.owned.remove(address);
                }
                let mut kept = Vec::with_capacity(addresses.len());
                for (set, address) in addresses.iter().enumerate() {
                    if let Entry::Vacant(slot) = self.owned.entry(*address) {
                        slot.insert(key.clone());
                        kept.push(*address);
                    }
                    self.freed.remove(address);
                    self.last.insert(set, *address);
                }
                let whole = kept.len() == addresses.len();
                if !kept.is_empty() {
                    self.allocations.insert(key.clone(), kept);
                }
                whole && replaced.is_none_or(|old| old == *addresses)
            }
            Record::Release { key, at } => {
                for address in self.allocations.remove(key).into_iter().flatten() {
                    self.owned.remove(&address);
                    self.freed.insert(address, *at);
                }
                true
            }
            Record::Quarantine { address, since } => {
                let free = !self.owned.contains_key(address);
                if free {
                    self.freed.insert(*address, *since);
                }
                free
            }
            Record::Cursor { set, address } => {
                self.last.insert(*set, *address);
                true
            }
        }
    }

    /// Chooses addresses for the key, one from each set: the next free address after the last
    /// allocated one, round robin, so that an address stays unused as long as possible. An address
    /// released less than `quarantine` ago is chosen only if no other is left, the longest unused
    /// one first. `now` is in milliseconds on `CLOCK_BOOTTIME`.
    pub fn plan(
        &self,
        sets: &[RangeSet],
        key: &Key,
        now: u64,
        quarantine: Duration,
    ) -> Result<Planned, Exhausted> {
        if let Some(addresses) = self.get(key) {
            return Ok(Planned::Existing(addresses.to_vec()));
        }
        let rest = u64::try_from(quarantine.as_millis()).unwrap_or(u64::MAX);
        let addresses = sets
            .iter()
            .enumerate()
            .map(|(i, set)| self.next_free(i, set, now, rest).ok_or_else(|| exhausted(set)))
            .collect::<Result<_, _>>()?;
        Ok(Planned::New(Record::Allocate { key: key.clone(), addresses }))
    }

    /// Whether each set has a free address, including quarantined ones.
    pub fn has_room(&self, sets: &[RangeSet]) -> Result<(), Exhausted> {
        for (i, set) in sets.iter().enumerate() {
            self.next_free(i, set, u64::MAX, 0).ok_or_else(|| exhausted(set))?;
        }
        Ok(())
    }

    fn next_free(&self, set_index: usize, set: &RangeSet, now: u64, rest: u64) -> Option<IpAddr> {
        let resting = |a: &IpAddr| self.freed.get(a).is_some_and(|at| now.saturating_sub(*at) < rest);
        let free = |a: &IpAddr| !self.owned.contains_key(a) && !resting(a);
        let ranges = set.ranges();
        let last = self.last.get(&set_index).copied();
        let at = last.and_then(|a| ranges.iter().position(|r| r.contains(a)));
        let current = at.and_then(|i| ranges.get(i));
        let after = current.and_then(|r| r.upwards(last).find(free));
        // The ranges after the current one, then all from the first: the current range's lower part
        // comes last.
        let from = at.map_or(0, |i| i + 1);
        let around = || ranges.iter().skip(from).chain(ranges).find_map(|r| r.upwards(None).find(free));
        after.or_else(around).or_else(|| {
            let candidates = self.freed.iter().filter(|(a, _)| set.contains(**a));
            candidates.min_by_key(|(a, at)| (**at, **a)).map(|(a, _)| *a)
        })
    }

    /// The shortest journal (without header) with this state. Addresses whose `quarantine` is over
    /// are left out.
    pub fn to_records(&self, now: u64, quarantine: Duration) -> Vec<Record> {
        let rest = u64::try_from(quarantine.as_millis()).unwrap_or(u64::MAX);
        let held = self.allocations.iter();
        let held = held.map(|(key, a)| Record::Allocate { key: key.clone(), addresses: a.clone() });
        let resting = self.freed.iter().filter(|(_, at)| now.saturating_sub(**at) < rest);
        let resting = resting.map(|(a, at)| Record::Quarantine { address: *a, since: *at });
        held.chain(resting).chain(self.cursors()).collect()
    }

    /// The last allocated address of each set. Only this is kept across a boot.
    pub(crate) fn cursors(&self) -> impl Iterator<Item = Record> + '_ {
        self.last.iter().map(|(set, address)| Record::Cursor { set: *set, address: *address })
    }
}

fn exhausted(set: &RangeSet) -> Exhausted {
    let subnets: Vec<_> = set.ranges().iter().map(|r| r.subnet().to_string()).collect();
    Exhausted { subnets: subnets.join(", ") }
}
