//! Ordered set of shared objects with cheap versions, and the changes from one version to the next. A copy of
//! the set shares everything but later changes, and a comparison of two versions costs their difference.
//!
//! The objects lie in chunks, in order of their names. A change copies the pointers of one chunk; a copy of
//! the set copies the pointers of the chunks.

use crate::{
    ids::PodKey,
    model::{EndpointSlice, Service},
};
use std::{collections::BTreeSet, fmt, sync::Arc};

/// Limit of the objects in one chunk.
const CHUNK: usize = 64;

/// An object with a namespace and a name.
pub trait Keyed {
    /// Namespace and name.
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

type Chunk<T> = Arc<Vec<Arc<T>>>;

/// Set of shared objects in order of their names.
pub struct Shared<T> {
    /// No chunk is empty. Names rise within a chunk and from one chunk to the next.
    chunks: Vec<Chunk<T>>,
    len: usize,
}

/// Difference between two versions of a set of objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes<T> {
    /// Objects of the earlier version whose name is gone.
    pub gone: Vec<Arc<T>>,
    /// Objects of the earlier version that another object of their name replaces.
    pub replaced: Vec<Arc<T>>,
    /// Objects that are new, or replace another one of their name.
    pub now: Vec<Arc<T>>,
}

impl<T> Default for Changes<T> {
    fn default() -> Self {
        Changes { gone: Vec::new(), replaced: Vec::new(), now: Vec::new() }
    }
}

impl<T> Changes<T> {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.now.is_empty()
    }

    /// The objects of the earlier version that are gone or replaced.
    pub fn before(&self) -> impl Iterator<Item = &Arc<T>> {
        self.gone.iter().chain(&self.replaced)
    }

    /// The same changes of objects that are parts of these.
    pub fn map<U>(&self, part: impl Fn(&T) -> Arc<U>) -> Changes<U> {
        let of = |objects: &[Arc<T>]| objects.iter().map(|o| part(o)).collect();
        Changes { gone: of(&self.gone), replaced: of(&self.replaced), now: of(&self.now) }
    }
}

impl<T: Keyed> Changes<T> {
    /// The names of all objects that are gone, new or replaced.
    pub fn keys(&self) -> impl Iterator<Item = &PodKey> {
        self.gone.iter().chain(&self.now).map(|object| object.key())
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared { chunks: Vec::new(), len: 0 }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared { chunks: self.chunks.clone(), len: self.len }
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<T> Shared<T> {
    /// The number of objects.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the set has no objects.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether both are one version: one is a copy of the other, and neither was changed since.
    pub fn is(&self, other: &Shared<T>) -> bool {
        let same = |(a, b): (&Chunk<T>, &Chunk<T>)| Arc::ptr_eq(a, b);
        self.chunks.len() == other.chunks.len() && self.chunks.iter().zip(&other.chunks).all(same)
    }

    /// The objects in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }
}

impl<T: Keyed> Shared<T> {
    /// The object of that name.
    pub fn get(&self, key: &PodKey) -> Option<&Arc<T>> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        chunk.get(find(chunk, key).ok()?)
    }

    /// Adds an object, or replaces the one that has its name.
    pub fn put(&mut self, object: Arc<T>) {
        let at = self.chunk_of(object.key());
        let Some(shared) = self.chunks.get_mut(at) else {
            self.len += 1;
            self.chunks.push(Arc::new(vec![object]));
            return;
        };
        let chunk = Arc::make_mut(shared);
        match find(chunk, object.key()) {
            Ok(there) => {
                if let Some(there) = chunk.get_mut(there) {
                    *there = object;
                }
            }
            Err(place) => {
                chunk.insert(place, object);
                self.len += 1;
                if chunk.len() > CHUNK {
                    let back = chunk.split_off(CHUNK / 2);
                    self.chunks.insert(at + 1, Arc::new(back));
                }
            }
        }
    }

    /// Removes the object of that name.
    pub fn remove(&mut self, key: &PodKey) {
        let at = self.chunk_of(key);
        let Some(shared) = self.chunks.get_mut(at) else { return };
        let Ok(there) = find(shared, key) else { return };
        let chunk = Arc::make_mut(shared);
        chunk.remove(there);
        self.len -= 1;
        let left = chunk.len();
        let next = self.chunks.get(at + 1).map(|next| next.len());
        if left == 0 {
            self.chunks.remove(at);
        } else if next.is_some_and(|next| left + next <= CHUNK / 2) {
            // Two nearly empty chunks become one.
            let next = self.chunks.remove(at + 1);
            if let Some(chunk) = self.chunks.get_mut(at) {
                Arc::make_mut(chunk).extend(next.iter().cloned());
            }
        }
    }

    /// The difference from an earlier version, by pointer, each list in order of names. Chunks that both share
    /// are skipped.
    pub fn changes_since(&self, before: &Shared<T>) -> Changes<T> {
        let mut old = before.without(self).peekable();
        let mut changes = Changes::default();
        for object in self.without(before) {
            let gone = std::iter::from_fn(|| old.next_if(|o| o.key() < object.key()));
            changes.gone.extend(gone.cloned());
            let earlier = old.next_if(|o| o.key() == object.key());
            if earlier.is_none_or(|earlier| !Arc::ptr_eq(earlier, object)) {
                changes.replaced.extend(earlier.cloned());
                changes.now.push(Arc::clone(object));
            }
        }
        changes.gone.extend(old.cloned());
        changes
    }

    /// The objects in chunks that the other version does not share.
    fn without<'a>(&'a self, other: &Shared<T>) -> impl Iterator<Item = &'a Arc<T>> {
        let shared: BTreeSet<*const Vec<Arc<T>>> = other.chunks.iter().map(Arc::as_ptr).collect();
        let own = self.chunks.iter().filter(move |chunk| !shared.contains(&Arc::as_ptr(chunk)));
        own.flat_map(|chunk| chunk.iter())
    }

    /// The chunk that has the name, or into which the name belongs. That chunk is missing only if there are no
    /// chunks.
    fn chunk_of(&self, key: &PodKey) -> usize {
        let after = |chunk: &Chunk<T>| chunk.first().is_some_and(|first| first.key() <= key);
        self.chunks.partition_point(after).saturating_sub(1)
    }
}

fn find<T: Keyed>(chunk: &[Arc<T>], key: &PodKey) -> Result<usize, usize> {
    chunk.binary_search_by(|object| object.key().cmp(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Namespace, PodName};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, PartialEq)]
    struct Object(PodKey, u32);

    impl Keyed for Object {
        fn key(&self) -> &PodKey {
            &self.0
        }
    }

    fn object(name: u32, value: u32) -> Arc<Object> {
        let (namespace, name) = (Namespace::new("n").unwrap(), PodName::new(format!("p{name:04}")).unwrap());
        Arc::new(Object(PodKey { namespace, name }, value))
    }

    /// The difference by comparing all objects.
    fn differences(
        before: &BTreeMap<PodKey, Arc<Object>>,
        now: &BTreeMap<PodKey, Arc<Object>>,
    ) -> Changes<Object> {
        let other = |(key, o): &(&PodKey, &Arc<Object>)| before.get(*key).is_none_or(|b| !Arc::ptr_eq(b, o));
        let gone = before.iter().filter(|(key, _)| !now.contains_key(*key));
        let changed = now.iter().filter(other).map(|(key, _)| key);
        Changes {
            gone: gone.map(|(_, o)| Arc::clone(o)).collect(),
            replaced: changed.filter_map(|key| before.get(key)).cloned().collect(),
            now: now.iter().filter(other).map(|(_, o)| Arc::clone(o)).collect(),
        }
    }

    proptest! {
        #[test]
        fn the_set_is_an_ordered_map_and_knows_its_changes(
            steps in prop::collection::vec((0..400_u32, any::<u32>(), 0..5_u8, any::<bool>()), 0..1500),
        ) {
            let (mut shared, mut model) = (Shared::default(), BTreeMap::new());
            let (mut kept, mut kept_model) = (shared.clone(), model.clone());
            for (name, value, what, keep) in steps {
                let new = object(name, value);
                if what == 0 {
                    shared.remove(new.key());
                    model.remove(new.key());
                } else {
                    shared.put(Arc::clone(&new));
                    model.insert(new.key().clone(), Arc::clone(&new));
                }
                prop_assert_eq!(shared.get(new.key()), model.get(new.key()));
                if keep && value % 16 == 0 {
                    prop_assert_eq!(shared.changes_since(&kept), differences(&kept_model, &model));
                    prop_assert!(kept.iter().eq(kept_model.values()), "a version does not change");
                    (kept, kept_model) = (shared.clone(), model.clone());
                }
            }
            prop_assert!(shared.iter().eq(model.values()));
            prop_assert_eq!(shared.len(), model.len());
            prop_assert!(shared.chunks.iter().all(|c| !c.is_empty() && c.len() <= CHUNK));
            let names: Vec<PodKey> = model.keys().cloned().collect();
            names.iter().for_each(|key| shared.remove(key));
            prop_assert!(shared.is_empty() && shared.chunks.is_empty());
        }
    }

    #[test]
    fn a_version_with_one_change_shares_all_but_one_chunk() {
        let mut shared = Shared::default();
        (0..10_000).for_each(|n| shared.put(object(n, 0)));
        let before = shared.clone();
        shared.put(object(5000, 1));
        let own = |a: &Shared<Object>, b: &Shared<Object>| a.without(b).count();
        assert!(own(&shared, &before) <= CHUNK && own(&before, &shared) <= CHUNK);
        assert_eq!(shared.changes_since(&before).now, [object(5000, 1)]);
    }

    #[test]
    fn changes_hold_only_objects_that_differ() {
        let all: Vec<Arc<Object>> = (1..6).map(|n| object(n, 0)).collect();
        let set = |objects: &[Arc<Object>]| {
            let mut set = Shared::default();
            objects.iter().for_each(|o| set.put(Arc::clone(o)));
            set
        };
        let changes = |now: &[Arc<Object>]| {
            let changes = set(now).changes_since(&set(&all));
            assert_eq!(changes.is_empty(), changes.keys().count() == 0);
            let [gone, replaced, now] = [&changes.gone, &changes.replaced, &changes.now]
                .map(|list| list.iter().map(|o| o.0.name.to_string()).collect::<Vec<_>>().join(" "));
            assert_eq!(changes.before().count(), changes.gone.len() + changes.replaced.len());
            (gone, replaced, now)
        };
        let names = |gone: &str, replaced: &str, now: &str| (gone.into(), replaced.into(), now.into());
        assert_eq!(changes(&all), names("", "", ""));
        let mut changed = all.clone();
        (changed[1], changed[3]) = (object(2, 0), object(4, 0));
        assert_eq!(changes(&changed), names("", "p0002 p0004", "p0002 p0004"), "by pointer, not by value");
        assert_eq!(changes(&all[1..]), names("p0001", "", ""));
        assert_eq!(changes(&[]), names("p0001 p0002 p0003 p0004 p0005", "", ""));
        let mut more = all.clone();
        more.insert(0, object(0, 0));
        more.remove(3);
        more[4] = object(9, 0);
        assert_eq!(changes(&more), names("p0003 p0005", "", "p0000 p0009"));
    }
}
