//! Objects by name, where several may claim the same one: the first in the directory has it. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The part of a file to which an object or error belongs, in the order in which errors are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FilePart {
    Problem,
    Warnings,
    Pods,
    ConfigMaps,
    Secrets,
    Services,
    Slices,
    Storage,
}

/// The place of an object in the directory. Of several objects with one name, that at the first place has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectPlace {
    pub(super) file: Arc<str>,
    pub(super) part: FilePart,
    /// The number of the object within its part.
    pub(super) number: usize,
}

/// Index of objects by name, with the names whose objects changed since the last settling.
#[derive(Debug)]
pub(super) struct NameIndex<K, T> {
    /// The objects of each name in order of their places; never empty.
    by_name: BTreeMap<K, Vec<(ObjectPlace, T)>>,
    /// Names whose objects changed.
    changed: BTreeSet<K>,
}

impl<K, T> Default for NameIndex<K, T> {
    fn default() -> Self {
        NameIndex { by_name: BTreeMap::new(), changed: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, T> NameIndex<K, T> {
    /// Puts an object at its place.
    pub(super) fn put(&mut self, key: K, place: ObjectPlace, object: T) {
        // A name seldom has more than one object.
        let all = self.by_name.entry(key.clone()).or_insert_with(|| Vec::with_capacity(1));
        match all.binary_search_by(|(there, _)| there.cmp(&place)) {
            Ok(at) => {
                if let Some(there) = all.get_mut(at) {
                    *there = (place, object);
                }
            }
            Err(at) => all.insert(at, (place, object)),
        }
        self.changed.insert(key);
    }

    /// Removes the object of that name at that place.
    pub(super) fn remove(&mut self, key: &K, place: &ObjectPlace) {
        let Some(all) = self.by_name.get_mut(key) else { return };
        all.retain(|(there, _)| there != place);
        if all.is_empty() {
            self.by_name.remove(key);
        }
        self.changed.insert(key.clone());
    }

    /// The object that has the name, with its place.
    pub(super) fn first(&self, key: &K) -> Option<&(ObjectPlace, T)> {
        self.by_name.get(key)?.first()
    }

    /// Calls `show` for each name that changed since the last call, with all its objects; the first one has
    /// the name.
    pub(super) fn settle(&mut self, mut show: impl FnMut(&K, &[(ObjectPlace, T)])) {
        for key in std::mem::take(&mut self.changed) {
            show(&key, self.by_name.get(&key).map(Vec::as_slice).unwrap_or_default());
        }
    }
}
