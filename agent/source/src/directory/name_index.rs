//! Who of several wins a name. Pure.

use std::{collections::BTreeMap, collections::BTreeSet, sync::Arc};

/// The part of a file that an error is about, in the order in which errors are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FilePart {
    Problem,
    Warnings,
    Pods,
    ConfigMaps,
    Secrets,
    Services,
    Slices,
}

/// Where something stands in the directory; the first place wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectPlace {
    pub(super) file: Arc<str>,
    pub(super) part: FilePart,
    /// Which of its part it is.
    pub(super) number: usize,
}

/// All that is there by name, and which names changed.
#[derive(Debug)]
pub(super) struct NameIndex<K, T> {
    /// In order of the places; none is empty.
    by: BTreeMap<K, Vec<(ObjectPlace, T)>>,
    touched: BTreeSet<K>,
}

impl<K, T> Default for NameIndex<K, T> {
    fn default() -> Self {
        NameIndex { by: BTreeMap::new(), touched: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, T> NameIndex<K, T> {
    /// This stands there now.
    pub(super) fn put(&mut self, key: K, place: ObjectPlace, object: T) {
        // Names are seldom claimed twice.
        let all = self.by.entry(key.clone()).or_insert_with(|| Vec::with_capacity(1));
        match all.binary_search_by(|(there, _)| there.cmp(&place)) {
            Ok(at) => {
                if let Some(there) = all.get_mut(at) {
                    *there = (place, object);
                }
            }
            Err(at) => all.insert(at, (place, object)),
        }
        self.touched.insert(key);
    }

    /// It does not stand there any more.
    pub(super) fn take(&mut self, key: &K, place: &ObjectPlace) {
        let Some(all) = self.by.get_mut(key) else { return };
        all.retain(|(there, _)| there != place);
        if all.is_empty() {
            self.by.remove(key);
        }
        self.touched.insert(key.clone());
    }

    /// Who has the name.
    pub(super) fn first(&self, key: &K) -> Option<&(ObjectPlace, T)> {
        self.by.get(key)?.first()
    }

    /// Shows each name that changed since the last call with all that claim it, the winner first.
    pub(super) fn settle(&mut self, mut show: impl FnMut(&K, &[(ObjectPlace, T)])) {
        for key in std::mem::take(&mut self.touched) {
            show(&key, self.by.get(&key).map(Vec::as_slice).unwrap_or_default());
        }
    }
}
