//! Set of a consumer: applies changes and returns their effects on the set.
//!
//! A list marks its objects; at the end of the list the unmarked objects are removed. So a list has no effect
//! on objects that it repeats, and needs no second copy of the set.

use super::{Change, Meta, ResourceVersion};
use std::collections::BTreeMap;

/// Namespace and name.
type Key = (Box<str>, Box<str>);

/// Objects by namespace and name.
#[derive(Debug)]
pub struct Store<T> {
    objects: BTreeMap<Key, Entry<T>>,
    /// Number of the list in progress, or of the last list.
    list: u64,
    /// Version of the last complete list.
    complete: Option<ResourceVersion>,
}

#[derive(Debug)]
struct Entry<T> {
    meta: Meta,
    /// `None` if the object exists and was never readable.
    item: Option<T>,
    /// Number of the last list with the object.
    list: u64,
}

/// Effect of a change on the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<T> {
    /// The object is new or has changed, and is in the set.
    Put(Meta),
    /// The object no longer exists. An object that was never readable has no last state.
    Removed(Meta, Option<T>),
}

impl<T> Default for Store<T> {
    fn default() -> Store<T> {
        Store { objects: BTreeMap::new(), list: 0, complete: None }
    }
}

impl<T> Store<T> {
    /// Applies a change. Returns no effect if the set has this version already.
    pub fn apply(&mut self, change: Change<T>) -> Vec<Effect<T>> {
        match change {
            Change::Begin => {
                self.list = self.list.saturating_add(1);
                Vec::new()
            }
            Change::Put(meta, item) => self.put(meta, Some(item)),
            Change::Unreadable(meta, _) => self.put(meta, None),
            Change::Gone(meta, item) => self.remove(meta, Some(item)),
            Change::UnreadableGone(meta) => self.remove(meta, None),
            Change::Complete(version) => {
                self.complete = Some(version);
                let list = self.list;
                let unmarked = self.objects.extract_if(.., |_, entry| entry.list != list);
                unmarked.map(|(_, entry)| Effect::Removed(entry.meta, entry.item)).collect()
            }
        }
    }

    fn put(&mut self, meta: Meta, item: Option<T>) -> Vec<Effect<T>> {
        let (key, list) = ((meta.namespace.clone(), meta.name.clone()), self.list);
        let Some(there) = self.objects.get_mut(&key) else {
            self.objects.insert(key, Entry { meta: meta.clone(), item, list });
            return vec![Effect::Put(meta)];
        };
        there.list = list;
        if there.meta == meta {
            return Vec::new();
        }
        let mut effects = Vec::new();
        if there.meta.uid == meta.uid {
            // An object that became unreadable keeps its last readable state.
            if item.is_none() {
                return effects;
            }
            there.item = item;
            there.meta = meta.clone();
        } else {
            let old = std::mem::replace(there, Entry { meta: meta.clone(), item, list });
            effects.push(Effect::Removed(old.meta, old.item));
        }
        effects.push(Effect::Put(meta));
        effects
    }

    fn remove(&mut self, meta: Meta, item: Option<T>) -> Vec<Effect<T>> {
        let key = (meta.namespace.clone(), meta.name.clone());
        match self.objects.get(&key) {
            // A late removal does not touch another object that has the name by now.
            Some(there) if there.meta.uid == meta.uid => {}
            _ => return Vec::new(),
        }
        let known = self.objects.remove(&key).and_then(|entry| entry.item);
        vec![Effect::Removed(meta, item.or(known))]
    }

    /// The object of this namespace and name, if it is readable.
    pub fn get(&self, namespace: &str, name: &str) -> Option<(&Meta, &T)> {
        let entry = self.objects.get(&(Box::from(namespace), Box::from(name)))?;
        Some((&entry.meta, entry.item.as_ref()?))
    }

    /// All readable objects, by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (&Meta, &T)> {
        self.objects.values().filter_map(|entry| Some((&entry.meta, entry.item.as_ref()?)))
    }

    /// Whether a list was ever complete. Before that, objects that are not in the set may exist.
    pub fn listed(&self) -> bool {
        self.complete.is_some()
    }

    /// Number of objects, including unreadable ones.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reflector::Bad;

    fn meta(name: &str, uid: &str, version: &str) -> Meta {
        Meta {
            namespace: "n".into(),
            name: name.into(),
            uid: uid.into(),
            resource_version: ResourceVersion::new(version).unwrap(),
        }
    }

    fn complete(version: &str) -> Change<u32> {
        Change::Complete(ResourceVersion::new(version).unwrap())
    }

    fn filled() -> Store<u32> {
        let mut store = Store::default();
        for change in
            [Change::Begin, Change::Put(meta("a", "1", "5"), 1), Change::Put(meta("b", "2", "6"), 2)]
        {
            store.apply(change);
        }
        assert!(!store.listed());
        assert_eq!(store.apply(complete("7")), []);
        assert!(store.listed());
        store
    }

    #[test]
    fn a_list_removes_what_it_lacks_at_its_end_only() {
        let mut store = filled();
        assert_eq!(store.apply(Change::Begin), []);
        assert_eq!(store.apply(Change::Put(meta("a", "1", "5"), 1)), [], "known already");
        assert_eq!(store.len(), 2);
        assert_eq!(store.apply(Change::Begin), [], "the list broke off");
        assert_eq!(store.apply(Change::Put(meta("b", "2", "6"), 2)), []);
        assert_eq!(store.apply(complete("9")), [Effect::Removed(meta("a", "1", "5"), Some(1))]);
        assert_eq!(store.iter().count(), 1);
    }

    #[test]
    fn another_object_of_the_same_name_is_a_removal_and_a_new_object() {
        let mut store = filled();
        assert_eq!(
            store.apply(Change::Put(meta("a", "9", "8"), 3)),
            [Effect::Removed(meta("a", "1", "5"), Some(1)), Effect::Put(meta("a", "9", "8"))]
        );
        assert_eq!(store.apply(Change::Gone(meta("a", "1", "9"), 1)), [], "a late word of the old one");
        assert_eq!(store.get("n", "a"), Some((&meta("a", "9", "8"), &3)));
    }

    #[test]
    fn an_object_that_becomes_unreadable_keeps_its_last_state() {
        let mut store = filled();
        let bad = |m| Change::Unreadable(m, Bad("odd".into()));
        assert_eq!(store.apply(bad(meta("a", "1", "8"))), []);
        assert_eq!(store.get("n", "a"), Some((&meta("a", "1", "5"), &1)));
        assert_eq!(store.apply(bad(meta("c", "3", "9"))), [Effect::Put(meta("c", "3", "9"))]);
        assert_eq!((store.get("n", "c"), store.len()), (None, 3));
        store.apply(Change::Begin);
        store.apply(bad(meta("c", "3", "9")));
        store.apply(bad(meta("a", "1", "8")));
        assert_eq!(store.apply(complete("10")), [Effect::Removed(meta("b", "2", "6"), Some(2))]);
        let gone = store.apply(Change::UnreadableGone(meta("a", "1", "11")));
        assert_eq!(gone, [Effect::Removed(meta("a", "1", "11"), Some(1))]);
    }
}
