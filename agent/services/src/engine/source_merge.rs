//! Source merge: the objects of one kind from all sources, and the versions already passed on to the tables.
//! The cost of each step follows the size of its change.

use crate::Edit;
use berth_core::{
    ids::PodKey,
    model::{EndpointSlice, Service},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

/// Object with a namespace and a name.
pub(super) trait Keyed {
    fn key(&self) -> &PodKey;
}

impl Keyed for Service {
    fn key(&self) -> &PodKey {
        &self.key
    }
}

impl Keyed for EndpointSlice {
    fn key(&self) -> &PodKey {
        &self.key
    }
}

/// The versions of the object of one name.
#[derive(Debug)]
struct Held<T> {
    told: Option<Arc<T>>,
    /// The object of the highest source.
    now: Option<(usize, Arc<T>)>,
    /// Objects of lower sources; usually empty.
    hidden: Vec<(usize, Arc<T>)>,
}

/// Merged objects of all sources. Where several sources have an object of one name, the highest source wins.
#[derive(Debug)]
pub(super) struct SourceMerge<T> {
    held: BTreeMap<PodKey, Held<T>>,
    touched: BTreeSet<PodKey>,
}

/// Change of the object of one name.
#[derive(Debug)]
pub(super) struct Changed<T> {
    pub(super) key: PodKey,
    pub(super) before: Option<Arc<T>>,
    /// The present object; `None` where it is deleted.
    pub(super) now: Option<Arc<T>>,
}

impl<T> Default for SourceMerge<T> {
    fn default() -> Self {
        SourceMerge { held: BTreeMap::new(), touched: BTreeSet::new() }
    }
}

impl<T: Keyed> SourceMerge<T> {
    /// Takes an edit in. [`SourceMerge::settle`] passes it on.
    pub(super) fn apply(&mut self, edit: Edit<T>) {
        for key in edit.gone {
            if let Some(held) = self.held.get_mut(&key) {
                held.remove(edit.source);
                self.touched.insert(key);
            }
        }
        for object in edit.now {
            let key = object.key().clone();
            let new = || Held { told: None, now: None, hidden: Vec::new() };
            self.held.entry(key.clone()).or_insert_with(new).put(edit.source, object);
            self.touched.insert(key);
        }
    }

    /// The names whose object is new, changed or deleted since the last call. Deletions are returned only
    /// where `all` sources are known.
    pub(super) fn settle(&mut self, all: bool) -> Vec<Changed<T>> {
        let mut changed = Vec::new();
        for key in mem::take(&mut self.touched) {
            let Some(held) = self.held.get_mut(&key) else { continue };
            let now = held.now.as_ref().map(|(_, object)| object);
            match (&held.told, now) {
                (Some(told), Some(now)) if Arc::ptr_eq(told, now) => {}
                (_, Some(now)) => {
                    let now = Arc::clone(now);
                    let before = held.told.replace(Arc::clone(&now));
                    changed.push(Changed { key, before, now: Some(now) });
                }
                (Some(_), None) if !all => {
                    self.touched.insert(key);
                }
                (_, None) => {
                    let before = held.told.take();
                    self.held.remove(&key);
                    if before.is_some() {
                        changed.push(Changed { key, before, now: None });
                    }
                }
            }
        }
        changed
    }

    /// The object of that name, as last passed on.
    pub(super) fn get(&self, key: &PodKey) -> Option<&Arc<T>> {
        self.held.get(key)?.told.as_ref()
    }

    /// All objects as last passed on, in order of their names.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.held.values().filter_map(|held| held.told.as_deref())
    }
}

impl<T> Held<T> {
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

    fn edit(source: usize, gone: &[&str], now: &[(&str, u32)]) -> Edit<Object> {
        let now = now.iter().map(|(name, number)| Arc::new(Object(key(name), *number)));
        Edit { source, gone: gone.iter().map(|n| key(n)).collect(), now: now.collect() }
    }

    fn settle(merged: &mut SourceMerge<Object>, all: bool) -> Vec<(String, Option<u32>, Option<u32>)> {
        let number = |o: Option<Arc<Object>>| o.map(|o| o.1);
        let changed = merged.settle(all).into_iter();
        changed.map(|c| (c.key.name.to_string(), number(c.before), number(c.now))).collect()
    }

    #[test]
    fn the_highest_source_counts_and_what_it_hid_comes_back() {
        let mut merged = SourceMerge::default();
        merged.apply(edit(1, &[], &[("a", 1), ("b", 2)]));
        merged.apply(edit(0, &[], &[("a", 10)]));
        assert_eq!(settle(&mut merged, true), [("a".into(), None, Some(1)), ("b".into(), None, Some(2))]);
        merged.apply(edit(2, &[], &[("a", 20)]));
        assert_eq!(settle(&mut merged, true), [("a".into(), Some(1), Some(20))]);
        merged.apply(edit(1, &["a"], &[]));
        assert_eq!(settle(&mut merged, true), []);
        merged.apply(edit(2, &["a"], &[]));
        assert_eq!(settle(&mut merged, true), [("a".into(), Some(20), Some(10))]);
        merged.apply(edit(0, &["a"], &[]));
        assert_eq!(settle(&mut merged, true), [("a".into(), Some(10), None)]);
        assert_eq!(merged.all().map(|o| o.1).collect::<Vec<_>>(), [2]);
        merged.apply(edit(1, &["b"], &[]));
        settle(&mut merged, true);
        assert!(merged.held.is_empty());
    }

    #[test]
    fn what_is_absent_is_gone_only_where_all_is_known() {
        let mut merged = SourceMerge::default();
        merged.apply(edit(0, &[], &[("a", 1), ("b", 2)]));
        settle(&mut merged, true);
        merged.apply(edit(0, &["a", "b"], &[]));
        assert_eq!(settle(&mut merged, false), []);
        assert_eq!(merged.all().count(), 2);
        merged.apply(edit(0, &[], &[("b", 3)]));
        assert_eq!(settle(&mut merged, false), [("b".into(), Some(2), Some(3))]);
        assert_eq!(settle(&mut merged, true), [("a".into(), Some(1), None)]);
        assert_eq!(settle(&mut merged, true), []);
    }

    #[test]
    fn the_same_object_again_is_no_change() {
        let mut merged = SourceMerge::default();
        merged.apply(edit(0, &[], &[("a", 1)]));
        settle(&mut merged, true);
        let same = Arc::clone(merged.get(&key("a")).unwrap());
        merged.apply(Edit { source: 0, gone: vec![key("a")], now: vec![same] });
        assert_eq!(settle(&mut merged, true), []);
    }
}
