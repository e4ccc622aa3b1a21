//! Comparison of the tables with the wanted entries.

use crate::{Contents, Net};
use std::{collections::HashMap, fmt::Debug, hash::Hash};

/// A difference between the tables and the wanted entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The map's name.
    pub table: &'static str,
    /// The entry's key in readable form.
    pub key: String,
    /// `missing`, `differs` or `is too much`.
    pub what: &'static str,
}

/// The differences of the tables `there` from the wanted entries.
pub fn differences<A: Net>(wanted: &Contents<A>, there: &Contents<A>) -> Vec<Difference> {
    let mut found = Vec::new();
    let values = |contents: &Contents<A>| contents.services.iter().copied().collect();
    compare(A::TABLES.service, &values(wanted), &values(there), &mut found);
    compare(A::TABLES.chunk, &wanted.chunks, &there.chunks, &mut found);
    let members = |contents: &Contents<A>| contents.members.iter().map(|member| (*member, ())).collect();
    compare(A::TABLES.member, &members(wanted), &members(there), &mut found);
    found
}

fn compare<K: Eq + Hash + Debug, V: PartialEq>(
    table: &'static str,
    wanted: &HashMap<K, V>,
    there: &HashMap<K, V>,
    found: &mut Vec<Difference>,
) {
    let mut add = |key: &K, what| found.push(Difference { table, key: format!("{key:?}"), what });
    for (key, value) in wanted {
        match there.get(key) {
            None => add(key, "missing"),
            Some(other) if other != value => add(key, "differs"),
            Some(_) => {}
        }
    }
    there.keys().filter(|k| !wanted.contains_key(*k)).for_each(|k| add(k, "is too much"));
}
