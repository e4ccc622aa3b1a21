//! Decoding: one reading of a family's tables, and the backends of a value in it.

use crate::Net;
use berth_ebpf_abi::{Backend, CHUNK, Chunk, ChunkKey, INLINE, MemberKey, Service, ServiceKey, Set, tag};
use std::collections::{HashMap, HashSet};

/// Contents of one family's tables.
#[derive(Debug, Clone)]
pub struct Contents<A> {
    /// The values by frontend.
    pub services: Vec<(ServiceKey<A>, Service<A>)>,
    /// The chunks of backends.
    pub chunks: HashMap<ChunkKey, Chunk<A>>,
    /// The members.
    pub members: HashSet<MemberKey<A>>,
}

/// The cluster set and the local set of a value.
pub type Sets<A> = (Vec<Backend<A>>, Vec<Backend<A>>);

impl<A> Default for Contents<A> {
    fn default() -> Self {
        Contents { services: Vec::new(), chunks: HashMap::new(), members: HashSet::new() }
    }
}

impl<A: Net> Contents<A> {
    /// Both sets of a value, or `None` where the value or one of its chunks is missing or torn.
    pub fn sets(&self, value: &Service<A>) -> Option<Sets<A>> {
        let whole = |(key, len): (ChunkKey, usize)| {
            let chunk = self.chunks.get(&key);
            chunk.is_some_and(|c| c.tag == value.tag && usize::try_from(c.len).is_ok_and(|n| n == len))
        };
        let both = [Set::Cluster, Set::Local].into_iter();
        let is_whole = value.tag == tag(value.id, value.generation)
            && both.flat_map(|set| chunk_keys(value, set)).all(whole);
        is_whole.then(|| (self.backends(value, Set::Cluster), self.backends(value, Set::Local)))
    }

    /// The backends of a value's set. Backends of missing chunks are left out.
    pub fn backends(&self, value: &Service<A>, set: Set) -> Vec<Backend<A>> {
        let [cluster, local] = value.counts.map(usize::from);
        let (before, count) = match set {
            Set::Cluster => (0, cluster),
            Set::Local => (cluster, local),
        };
        if is_inline(value) {
            return value.inline.into_iter().skip(before).take(count).collect();
        }
        let found = chunk_keys(value, set).filter_map(|(key, len)| Some((self.chunks.get(&key)?, len)));
        found.flat_map(|(chunk, len)| chunk.backends.into_iter().take(len)).collect()
    }
}

/// The keys of a set's chunks, each with its number of backends. Empty where the backends are in the value
/// itself.
pub fn chunk_keys<A>(value: &Service<A>, set: Set) -> impl Iterator<Item = (ChunkKey, usize)> + use<A> {
    let [cluster, local] = value.counts.map(usize::from);
    let count = match set {
        Set::Cluster => cluster,
        Set::Local => local,
    };
    set_keys(value.id, value.generation, set, if is_inline(value) { 0 } else { count })
}

fn is_inline<A>(value: &Service<A>) -> bool {
    let [cluster, local] = value.counts.map(usize::from);
    cluster.saturating_add(local) <= INLINE
}

/// The keys of the chunks of `count` backends, each with its number of backends.
pub(crate) fn set_keys(
    id: u32,
    generation: u32,
    set: Set,
    count: usize,
) -> impl Iterator<Item = (ChunkKey, usize)> {
    (0_u32..).zip((0..count).step_by(CHUNK)).map(move |(index, first)| {
        let key = ChunkKey { id, generation, set: u32::from(number(set)), index };
        (key, count.saturating_sub(first).min(CHUNK))
    })
}

/// The number of a set in keys.
pub(crate) const fn number(set: Set) -> u16 {
    match set {
        Set::Cluster => 0,
        Set::Local => 1,
    }
}
