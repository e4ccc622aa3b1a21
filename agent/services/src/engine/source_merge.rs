//! Source merge: the objects of one kind from all sources, and the versions already passed on to the tables.
//! The cost of each step follows the size of its change.

use berth_core::{
    ids::PodKey,
    shared::{Changes, Keyed},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

/// The versions of the object of one name.
#[derive(Debug)]
struct MergedObject<T> {
    reported: Option<Arc<T>>,
    /// The object of the highest source.
    now: Option<(usize, Arc<T>)>,
    /// Objects of lower sources; usually empty.
    hidden: Vec<(usize, Arc<T>)>,
}

/// Merged objects of all sources. Where several sources have an object of one name, the highest source wins.
#[derive(Debug)]
pub(super) struct SourceMerge<T> {
    held: BTreeMap<PodKey, MergedObject<T>>,
    touched: BTreeSet<PodKey>,
}

impl<T> Default for SourceMerge<T> {
    fn default() -> Self {
        SourceMerge { held: BTreeMap::new(), touched: BTreeSet::new() }
    }
}

impl<T: Keyed> SourceMerge<T> {
    /// Takes the changes of one source in. [`SourceMerge::settle`] passes them on.
    pub(super) fn apply(&mut self, source: usize, changes: Changes<T>) {
        for object in changes.gone {
            if let Some(held) = self.held.get_mut(object.key()) {
                held.remove(source);
                self.touched.insert(object.key().clone());
            }
        }
        for object in changes.now {
            let key = object.key().clone();
            let new = || MergedObject { reported: None, now: None, hidden: Vec::new() };
            self.held.entry(key.clone()).or_insert_with(new).put(source, object);
            self.touched.insert(key);
        }
    }

    /// The changes of the merged objects since the last call. Deletions are returned only where `all` sources
    /// are known.
    pub(super) fn settle(&mut self, all: bool) -> Changes<T> {
        let mut changes = Changes::default();
        for key in mem::take(&mut self.touched) {
            let Some(held) = self.held.get_mut(&key) else { continue };
            let now = held.now.as_ref().map(|(_, object)| object);
            match (&held.reported, now) {
                (Some(reported), Some(now)) if Arc::ptr_eq(reported, now) => {}
                (_, Some(now)) => {
                    changes.replaced.extend(held.reported.replace(Arc::clone(now)));
                    changes.now.push(Arc::clone(now));
                }
                (Some(_), None) if !all => {
                    self.touched.insert(key);
                }
                (_, None) => {
                    changes.gone.extend(held.reported.take());
                    self.held.remove(&key);
                }
            }
        }
        changes
    }

    /// The object of that name, as last passed on.
    pub(super) fn get(&self, key: &PodKey) -> Option<&Arc<T>> {
        self.held.get(key)?.reported.as_ref()
    }

    /// All objects as last passed on, in order of their names.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.held.values().filter_map(|held| held.reported.as_deref())
    }
}

impl<T> MergedObject<T> {
    fn put(&mut self, source: usize, object: Arc<T>) {
        self.hidden.retain(|(s, _)| *s != source);
        match &self.now {
            Some((there, _)) if *there > source => self.hidden.push((source, object)),
            Some((there, _)) if *there < source => self.hidden.extend(self.now.replace((source, object))),
            _ => self.now = Some((source, object)),
        }
    }

    fn remove(&mut self, source: usize) {
        self.hidden.retain(|(s, _)| *s != source);
        if self.now.as_ref().is_some_and(|(s, _)| *s == source) {
            let highest = self.hidden.iter().enumerate().max_by_key(|(_, (s, _))| *s).map(|(at, _)| at);
            self.now = highest.map(|at| self.hidden.swap_remove(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::{Namespace, PodName};

    #[derive(Debug)]
    struct Object(PodKey, u32);

    impl Keyed for Object {
        fn key(&self) -> &PodKey {
            &self.0
        }
    }

    fn key(name: &str) -> PodKey {
        PodKey { namespace: Namespace::new("n").unwrap(), name: PodName::new(name).unwrap() }
    }

    fn apply(merged: &mut SourceMerge<Object>, source: usize, gone: &[&str], now: &[(&str, u32)]) {
        let objects = |list: &[(&str, u32)]| -> Vec<_> {
            list.iter().map(|(name, number)| Arc::new(Object(key(name), *number))).collect()
        };
        let gone: Vec<(&str, u32)> = gone.iter().map(|name| (*name, 0)).collect();
        merged.apply(source, Changes { gone: objects(&gone), now: objects(now), ..Changes::default() });
    }

    /// The changes by name: the number before and now.
    fn settle(merged: &mut SourceMerge<Object>, all: bool) -> Vec<(String, Option<u32>, Option<u32>)> {
        let changes = merged.settle(all);
        let number = |list: &[Arc<Object>], key: &PodKey| list.iter().find(|o| o.0 == *key).map(|o| o.1);
        let before: Vec<Arc<Object>> = changes.before().cloned().collect();
        let mut keys: Vec<&PodKey> = changes.keys().collect();
        keys.sort();
        let of = |key: &PodKey| (key.name.to_string(), number(&before, key), number(&changes.now, key));
        keys.into_iter().map(of).collect()
    }

    #[test]
    fn the_highest_source_counts_and_what_it_hid_comes_back() {
        let mut merged = SourceMerge::default();
        apply(&mut merged, 1, &[], &[("a", 1), ("b", 2)]);
        apply(&mut merged, 0, &[], &[("a", 10)]);
        assert_eq!(settle(&mut merged, true), [("a".into(), None, Some(1)), ("b".into(), None, Some(2))]);
        apply(&mut merged, 2, &[], &[("a", 20)]);
        assert_eq!(settle(&mut merged, true), [("a".into(), Some(1), Some(20))]);
        apply(&mut merged, 1, &["a"], &[]);
        assert_eq!(settle(&mut merged, true), []);
        apply(&mut merged, 2, &["a"], &[]);
        assert_eq!(settle(&mut merged, true), [("a".into(), Some(20), Some(10))]);
        apply(&mut merged, 0, &["a"], &[]);
        assert_eq!(settle(&mut merged, true), [("a".into(), Some(10), None)]);
        assert_eq!(merged.all().map(|o| o.1).collect::<Vec<_>>(), [2]);
        apply(&mut merged, 1, &["b"], &[]);
        settle(&mut merged, true);
        assert!(merged.held.is_empty());
    }

    #[test]
    fn what_is_absent_is_gone_only_where_all_is_known() {
        let mut merged = SourceMerge::default();
        apply(&mut merged, 0, &[], &[("a", 1), ("b", 2)]);
        settle(&mut merged, true);
        apply(&mut merged, 0, &["a", "b"], &[]);
        assert_eq!(settle(&mut merged, false), []);
        assert_eq!(merged.all().count(), 2);
        apply(&mut merged, 0, &[], &[("b", 3)]);
        assert_eq!(settle(&mut merged, false), [("b".into(), Some(2), Some(3))]);
        assert_eq!(settle(&mut merged, true), [("a".into(), Some(1), None)]);
        assert_eq!(settle(&mut merged, true), []);
    }

    #[test]
    fn the_same_object_again_is_no_change() {
        let mut merged = SourceMerge::default();
        apply(&mut merged, 0, &[], &[("a", 1)]);
        settle(&mut merged, true);
        let same = Arc::clone(merged.get(&key("a")).unwrap());
        merged.apply(0, Changes { replaced: vec![Arc::clone(&same)], now: vec![same], ..Changes::default() });
        assert_eq!(settle(&mut merged, true), []);
    }
}
