//! Consistency of the tables with each other.

use crate::{
    Contents, Net,
    contents::{chunk_keys, number},
};
use berth_ebpf_abi::{ChunkKey, INLINE, MemberKey, SERVING, Service, ServiceKey, Set, frontend, tag};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Protocol number of UDP, `IPPROTO_UDP`.
const UDP: u8 = 17;

/// An inconsistency of the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inconsistency<A> {
    /// The value's tag does not fit its id and generation.
    ValueTag {
        /// The value's key.
        key: ServiceKey<A>,
        /// The value's id.
        id: u32,
        /// The value's generation.
        generation: u32,
    },
    /// An entry of a bare address without any Service port at this address.
    AddressWithoutPort(ServiceKey<A>),
    /// A ClusterIP's frontend without the entry of the bare address, so that other ports are not rejected.
    NoAddress(ServiceKey<A>),
    /// A backend inside of the value has no port.
    BackendWithoutPort(ServiceKey<A>),
    /// The frontends of one Service port have several generations.
    Generations {
        /// The id.
        id: u32,
        /// The generations.
        generations: BTreeSet<u32>,
    },
    /// A chunk that a value names is missing.
    ChunkMissing(ChunkKey),
    /// The chunk's tag does not fit its key.
    ChunkTag(ChunkKey),
    /// The chunk has another number of backends than its value says.
    ChunkLength {
        /// The chunk's key.
        key: ChunkKey,
        /// The number in the chunk.
        has: u32,
        /// The number by the value.
        wanted: usize,
    },
    /// A backend of the chunk has no port.
    ChunkBackendWithoutPort(ChunkKey),
    /// No value names the chunk.
    ChunkExcess(ChunkKey),
    /// A backend of a port with affinity, or of a UDP port, is no member.
    MemberMissing(MemberKey<A>),
    /// A member of a Service port that is none of its backends.
    MemberExcess(MemberKey<A>),
    /// A member with an id that no value has.
    MemberUnknown(MemberKey<A>),
}

/// The inconsistencies of the tables in themselves. `without_frontends`: ids of Service ports that other
/// Services' ports have taken all frontends from; their chunks and members stay in the tables without a value.
pub fn inconsistencies<A: Net>(
    contents: &Contents<A>,
    without_frontends: &BTreeSet<u32>,
) -> Vec<Inconsistency<A>> {
    let mut found = Vec::new();
    let expected = Expected::of(contents, &mut found);
    for (id, generations) in expected.generations.iter().filter(|(_, g)| g.len() > 1) {
        found.push(Inconsistency::Generations { id: *id, generations: generations.clone() });
    }
    for chunk in contents.chunks.keys() {
        if !expected.chunks.contains(chunk) && !without_frontends.contains(&chunk.id) {
            found.push(Inconsistency::ChunkExcess(*chunk));
        }
    }
    found.extend(expected.members.difference(&contents.members).copied().map(Inconsistency::MemberMissing));
    let known = |id: &u32| expected.generations.contains_key(id) || without_frontends.contains(id);
    let unknown = contents.members.iter().filter(|m| !known(&m.id));
    found.extend(unknown.copied().map(Inconsistency::MemberUnknown));
    let is_excess =
        |m: &&MemberKey<A>| expected.with_members.get(&m.id).is_some_and(|udp| m.set != SERVING || !udp);
    let excess = contents.members.difference(&expected.members).filter(is_excess);
    found.extend(excess.copied().map(Inconsistency::MemberExcess));
    found
}

/// The entries of other tables that follow from the values.
struct Expected<A> {
    /// The generations of each id's frontends; one in consistent tables.
    generations: BTreeMap<u32, BTreeSet<u32>>,
    chunks: HashSet<ChunkKey>,
    members: HashSet<MemberKey<A>>,
    /// The ids that have members, and whether one of their frontends is UDP. Beside the members of the sets
    /// such a port may have [`SERVING`] members for terminating endpoints, which are in no set.
    with_members: HashMap<u32, bool>,
}

impl<A: Net> Expected<A> {
    /// Collects the expected entries, and checks each value by itself on the way.
    fn of(contents: &Contents<A>, found: &mut Vec<Inconsistency<A>>) -> Expected<A> {
        let mut expected = Expected {
            generations: BTreeMap::new(),
            chunks: HashSet::new(),
            members: HashSet::new(),
            with_members: HashMap::new(),
        };
        let keys: HashSet<ServiceKey<A>> = contents.services.iter().map(|(key, _)| *key).collect();
        let with_ports: HashSet<A> = keys.iter().filter(|k| k.port != 0).map(|k| k.addr).collect();
        for (key, value) in &contents.services {
            let Service { id, generation, .. } = *value;
            if value.tag != tag(id, generation) {
                found.push(Inconsistency::ValueTag { key: *key, id, generation });
            }
            if value.frontend & frontend::ADDRESS != 0 {
                if !with_ports.contains(&key.addr) {
                    found.push(Inconsistency::AddressWithoutPort(*key));
                }
                continue;
            }
            let cluster_ip = value.frontend & (frontend::EXTERNAL | frontend::NODE_PORT) == 0;
            if cluster_ip && !keys.contains(&ServiceKey { addr: key.addr, ..ServiceKey::default() }) {
                found.push(Inconsistency::NoAddress(*key));
            }
            expected.generations.entry(id).or_default().insert(generation);
            expected.add_chunks(contents, value, found);
            let inline = value.counts.map(usize::from).into_iter().fold(0, usize::saturating_add);
            if inline <= INLINE && value.inline.iter().take(inline).any(|b| b.port == 0) {
                found.push(Inconsistency::BackendWithoutPort(*key));
            }
            expected.add_members(contents, key, value);
        }
        expected
    }

    fn add_chunks(&mut self, contents: &Contents<A>, value: &Service<A>, found: &mut Vec<Inconsistency<A>>) {
        for (key, wanted) in [Set::Cluster, Set::Local].into_iter().flat_map(|set| chunk_keys(value, set)) {
            match contents.chunks.get(&key) {
                None => found.push(Inconsistency::ChunkMissing(key)),
                Some(c) if c.tag != tag(key.id, key.generation) => found.push(Inconsistency::ChunkTag(key)),
                Some(c) if usize::try_from(c.len).ok() != Some(wanted) => {
                    found.push(Inconsistency::ChunkLength { key, has: c.len, wanted });
                }
                Some(c) if c.backends.iter().take(wanted).any(|b| b.port == 0) => {
                    found.push(Inconsistency::ChunkBackendWithoutPort(key));
                }
                Some(_) => {}
            }
            self.chunks.insert(key);
        }
    }

    fn add_members(&mut self, contents: &Contents<A>, key: &ServiceKey<A>, value: &Service<A>) {
        let udp = key.proto == UDP;
        let affinity = value.affinity_s != 0;
        if affinity || udp {
            *self.with_members.entry(value.id).or_default() |= udp;
        }
        for set in [Set::Cluster, Set::Local] {
            for b in contents.backends(value, set).into_iter().filter(|b| b.port != 0) {
                let member = MemberKey { id: value.id, addr: b.addr, port: b.port, set: number(set) };
                self.members.extend(affinity.then_some(member));
                self.members.extend(udp.then_some(MemberKey { set: SERVING, ..member }));
            }
        }
    }
}
