//! In-memory tables that check every single write, and short builders of objects.

#![allow(dead_code, reason = "each test uses its part")]

use berth_core::{
    ids::{Namespace, PodKey, PodName},
    model::{Endpoint, EndpointPort, EndpointSlice, Protocol, Service, ServicePort, ServiceType},
    shared::Changes,
    time::Boottime,
};
use berth_ebpf_abi::{
    Backend, CHUNK, Chunk, ChunkKey, INLINE, MemberKey, SERVING, Service as Value, ServiceKey, V4, V6, tag,
};
use berth_services::{FamilyTables, Net, REST, Table, TableError, Transport};
use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

pub(crate) fn key(name: &str) -> PodKey {
    PodKey { namespace: Namespace::new("default").unwrap(), name: PodName::new(name).unwrap() }
}

/// The change that adds or replaces an object.
pub(crate) fn new<T>(object: impl Into<Arc<T>>) -> Changes<T> {
    Changes { now: vec![object.into()], ..Changes::default() }
}

/// The change that removes an object.
pub(crate) fn gone<T>(object: impl Into<Arc<T>>) -> Changes<T> {
    Changes { gone: vec![object.into()], ..Changes::default() }
}

pub(crate) fn service(name: &str, ip: &str, ports: &[(&str, Protocol, u16, Option<u16>)]) -> Service {
    let port = |(name, protocol, port, node_port): &(&str, Protocol, u16, Option<u16>)| ServicePort {
        node_port: *node_port,
        ..ServicePort::new(name, *protocol, *port)
    };
    Service {
        kind: ServiceType::NodePort,
        cluster_ips: ip.split(',').map(|ip| ip.parse().unwrap()).collect(),
        headless: false,
        ports: ports.iter().map(port).collect(),
        ..Service::new(key(name), format!("uid-{name}"))
    }
}

pub(crate) fn endpoint(address: &str, node: &str) -> Endpoint {
    let node = (!node.is_empty()).then(|| node.into());
    Endpoint { node, ..Endpoint::new(address.parse().unwrap()) }
}

pub(crate) fn slice(
    name: &str,
    of: &str,
    ports: &[(&str, Protocol, u16)],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        key: key(name),
        service: key(of),
        v6: endpoints.first().is_some_and(|e| e.address.is_ipv6()),
        ports: ports
            .iter()
            .map(|(name, protocol, port)| EndpointPort {
                name: (*name).into(),
                protocol: *protocol,
                port: *port,
            })
            .collect(),
        endpoints,
        triggered: None,
    }
}

/// The entry and the sets that a program reads at a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View<A: Ord> {
    pub(crate) frontend: u32,
    pub(crate) affinity_s: u32,
    pub(crate) cluster: BTreeSet<(A, u16)>,
    pub(crate) local: BTreeSet<(A, u16)>,
}

/// Counter of writes that lets only `left` more writes through, as if the agent were killed then.
#[derive(Debug, Default)]
pub(crate) struct Fuse {
    pub(crate) left: Cell<Option<usize>>,
    pub(crate) written: Cell<usize>,
}

impl Fuse {
    fn burn(&self) -> Result<(), TableError> {
        match self.left.get() {
            Some(0) => {
                Err(TableError { operation: "put into", table: "FAKE", source: "the agent is killed".into() })
            }
            Some(n) => {
                self.left.set(Some(n - 1));
                self.written.set(self.written.get() + 1);
                Ok(())
            }
            None => {
                self.written.set(self.written.get() + 1);
                Ok(())
            }
        }
    }
}

/// Whether the flows of a key are tracked: UDP keys, except bare addresses.
pub(crate) fn is_udp<A: Net>(key: &ServiceKey<A>) -> bool {
    key.proto == Transport::Udp.number() && key.port != 0
}

/// The three maps of a family.
#[derive(Debug)]
pub(crate) struct Maps<A: Net> {
    pub(crate) services: HashMap<ServiceKey<A>, Value<A>>,
    pub(crate) chunks: HashMap<ChunkKey, Chunk<A>>,
    pub(crate) members: HashMap<MemberKey<A>, u32>,
    /// Views that readers may see from now on. Writes of other views fail the test.
    pub(crate) new: HashMap<ServiceKey<A>, View<A>>,
    /// Last time at which a generation was visible at any key.
    last_seen: HashMap<(u32, u32), Boottime>,
    pub(crate) watched: bool,
    /// Capacity of the maps: services, chunks, members.
    pub(crate) capacity: [usize; 3],
    clock: Rc<Cell<Duration>>,
    fuse: Rc<Fuse>,
}

impl<A: Net> Maps<A> {
    fn new(clock: &Rc<Cell<Duration>>, fuse: &Rc<Fuse>) -> Self {
        Maps {
            services: HashMap::new(),
            chunks: HashMap::new(),
            members: HashMap::new(),
            new: HashMap::new(),
            last_seen: HashMap::new(),
            watched: true,
            capacity: [usize::MAX; 3],
            clock: Rc::clone(clock),
            fuse: Rc::clone(fuse),
        }
    }

    fn now(&self) -> Boottime {
        Boottime(self.clock.get())
    }

    /// The sets as a program reads them. Panics where a part is missing.
    pub(crate) fn view(&self, value: &Value<A>) -> View<A> {
        assert_eq!(value.tag, tag(value.id, value.generation), "{value:?}");
        let [cluster, local] = value.counts.map(usize::from);
        let place = |b: &Backend<A>| (b.addr, u16::from_be(b.port));
        let (cluster, local) = if cluster + local <= INLINE {
            (
                value.inline[..cluster].iter().map(place).collect(),
                value.inline[cluster..cluster + local].iter().map(place).collect(),
            )
        } else {
            let set = |set: u32, count: usize| {
                let mut all = Vec::new();
                for index in 0..count.div_ceil(CHUNK) {
                    let at =
                        ChunkKey { id: value.id, generation: value.generation, set, index: index as u32 };
                    let chunk = self.chunks.get(&at).unwrap_or_else(|| panic!("a hole at {at:?}"));
                    assert_eq!(chunk.tag, value.tag);
                    let room = CHUNK.min(count - index * CHUNK);
                    assert_eq!(chunk.len as usize, room, "{at:?}");
                    all.extend(chunk.backends[..room].iter().map(place));
                }
                assert_eq!(all.len(), count);
                all.into_iter().collect()
            };
            (set(0, cluster), set(1, local))
        };
        View { frontend: value.frontend, affinity_s: value.affinity_s, cluster, local }
    }

    /// Checks the member entries that readers of the value need: for affinity of clients and for UDP flows.
    fn check_members(&self, udp: bool, value: &Value<A>, view: &View<A>) {
        let affinity = [(0, &view.cluster), (1, &view.local)].into_iter().filter(|_| value.affinity_s != 0);
        let flows = [(SERVING, &view.cluster), (SERVING, &view.local)].into_iter().filter(|_| udp);
        for (set, backends) in affinity.chain(flows) {
            for (addr, port) in backends {
                let member = MemberKey { id: value.id, addr: *addr, port: port.to_be(), set };
                assert!(self.members.contains_key(&member), "{member:?} of {value:?}");
            }
        }
    }

    /// Checks all entries after a complete sync.
    ///
    /// `hidden` are ids of ports that hold no key, because older Services hold them all. `serving` are the
    /// backends, besides those of its sets, that flows of a key may keep.
    pub(crate) fn check(&self, hidden: &BTreeSet<u32>, serving: &HashMap<ServiceKey<A>, BTreeSet<(A, u16)>>) {
        assert_eq!(self.services.len(), self.new.len(), "{:?}\n{:?}", self.services, self.new);
        let mut ids: HashMap<u32, (u32, u8)> = HashMap::new();
        for (key, value) in &self.services {
            let view = self.view(value);
            assert_eq!(Some(&view), self.new.get(key), "{key:?}");
            self.check_members(is_udp(key), value, &view);
            if key.port != 0 {
                let first = *ids.entry(value.id).or_insert((value.generation, key.proto));
                assert_eq!(first, (value.generation, key.proto), "one id, one generation");
            }
        }
        for member in self.members.keys().filter(|m| !hidden.contains(&m.id)) {
            let at = (member.addr, u16::from_be(member.port));
            assert!(
                self.services.iter().filter(|(_, v)| v.id == member.id).any(|(key, v)| {
                    let view = self.view(v);
                    match member.set {
                        0 => v.affinity_s > 0 && view.cluster.contains(&at),
                        1 => v.affinity_s > 0 && view.local.contains(&at),
                        _ => {
                            let only = serving.get(key).is_some_and(|only| only.contains(&at));
                            is_udp(key) && (view.cluster.contains(&at) || view.local.contains(&at) || only)
                        }
                    }
                }),
                "{member:?} is left over"
            );
        }
        for (key, only) in serving {
            let Some(value) = self.services.get(key).filter(|v| !hidden.contains(&v.id)) else { continue };
            for (addr, port) in only {
                let member = MemberKey { id: value.id, addr: *addr, port: port.to_be(), set: SERVING };
                assert!(self.members.contains_key(&member), "{member:?}: flows by {key:?} may go on with it");
            }
        }
    }

    /// The ids that no Service value names.
    pub(crate) fn hidden(&self, all: impl Iterator<Item = u32>) -> BTreeSet<u32> {
        all.filter(|id| self.services.values().all(|v| v.id != *id)).collect()
    }

    /// Checks that no unreferenced chunk is left.
    pub(crate) fn check_rested(&self, hidden: &BTreeSet<u32>) {
        for key in self.chunks.keys().filter(|k| !hidden.contains(&k.id)) {
            assert!(
                self.services.values().any(|v| (v.id, v.generation) == (key.id, key.generation)),
                "{key:?} is left over"
            );
        }
    }
}

/// The maps of both families, with their clock and their fuse.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) v4: Maps<V4>,
    pub(crate) v6: Maps<V6>,
    pub(crate) now: Rc<Cell<Duration>>,
    pub(crate) fuse: Rc<Fuse>,
}

impl Default for Fake {
    fn default() -> Self {
        let (now, fuse) = (Rc::default(), Rc::default());
        Fake { v4: Maps::new(&now, &fuse), v6: Maps::new(&now, &fuse), now, fuse }
    }
}

impl Fake {
    pub(crate) fn clock(&self) -> impl Fn() -> Boottime + use<> {
        let now = Rc::clone(&self.now);
        move || Boottime(now.get())
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.now.set(self.now.get() + time);
    }

    /// Maps that do not check single writes.
    pub(crate) fn unwatched() -> Fake {
        let mut fake = Fake::default();
        (fake.v4.watched, fake.v6.watched) = (false, false);
        fake
    }
}

impl FamilyTables<V4> for Fake {
    fn services(&mut self) -> &mut dyn Table<ServiceKey<V4>, Value<V4>> {
        &mut self.v4
    }
    fn chunks(&mut self) -> &mut dyn Table<ChunkKey, Chunk<V4>> {
        &mut self.v4
    }
    fn members(&mut self) -> &mut dyn Table<MemberKey<V4>, u32> {
        &mut self.v4
    }
}

impl FamilyTables<V6> for Fake {
    fn services(&mut self) -> &mut dyn Table<ServiceKey<V6>, Value<V6>> {
        &mut self.v6
    }
    fn chunks(&mut self) -> &mut dyn Table<ChunkKey, Chunk<V6>> {
        &mut self.v6
    }
    fn members(&mut self) -> &mut dyn Table<MemberKey<V6>, u32> {
        &mut self.v6
    }
}

/// Fails for a new key in a full map, as the kernel's hash map does. Existing keys can be overwritten.
fn full<K: Eq + std::hash::Hash, V>(map: &HashMap<K, V>, key: &K, capacity: usize) -> Result<(), TableError> {
    if map.len() < capacity || map.contains_key(key) {
        return Ok(());
    }
    let source = std::io::Error::from_raw_os_error(7).into();
    Err(TableError { operation: "put into", table: "FAKE", source })
}

impl<A: Net> Table<ServiceKey<A>, Value<A>> for Maps<A> {
    fn capacity(&self) -> usize {
        self.capacity[0]
    }

    fn read(&mut self) -> Result<Vec<(ServiceKey<A>, Value<A>)>, TableError> {
        Ok(self.services.iter().map(|(k, v)| (*k, *v)).collect())
    }

    fn put(&mut self, entries: &[(ServiceKey<A>, Value<A>)]) -> Result<(), TableError> {
        for (key, value) in entries {
            self.fuse.burn()?;
            let now = self.now();
            let maps = &mut *self;
            if maps.watched {
                let view = maps.view(value);
                assert_eq!(maps.new.get(key), Some(&view), "{key:?}");
                maps.check_members(is_udp(key), value, &view);
            }
            full(&maps.services, key, maps.capacity[0])?;
            if let Some(old) = maps.services.insert(*key, *value) {
                maps.last_seen.insert((old.id, old.generation), now);
            }
        }
        Ok(())
    }

    fn delete(&mut self, keys: &[ServiceKey<A>]) -> Result<(), TableError> {
        for key in keys {
            self.fuse.burn()?;
            let now = self.now();
            let maps = &mut *self;
            assert!(!maps.watched || !maps.new.contains_key(key), "{key:?} is still wanted");
            if let Some(old) = maps.services.remove(key) {
                maps.last_seen.insert((old.id, old.generation), now);
            }
        }
        Ok(())
    }
}

impl<A: Net> Table<ChunkKey, Chunk<A>> for Maps<A> {
    fn capacity(&self) -> usize {
        self.capacity[1]
    }

    fn read(&mut self) -> Result<Vec<(ChunkKey, Chunk<A>)>, TableError> {
        Ok(self.chunks.iter().map(|(k, v)| (*k, *v)).collect())
    }

    fn put(&mut self, entries: &[(ChunkKey, Chunk<A>)]) -> Result<(), TableError> {
        for (key, chunk) in entries {
            self.fuse.burn()?;
            let maps = &mut *self;
            if maps.watched {
                let visible =
                    maps.services.values().any(|v| (v.id, v.generation) == (key.id, key.generation));
                assert!(!visible, "{key:?} is written below its readers");
            }
            full(&maps.chunks, key, maps.capacity[1])?;
            maps.chunks.insert(*key, *chunk);
        }
        Ok(())
    }

    fn delete(&mut self, keys: &[ChunkKey]) -> Result<(), TableError> {
        for key in keys {
            self.fuse.burn()?;
            let now = self.now();
            let maps = &mut *self;
            if maps.watched {
                let visible = maps.services.values().any(|v| {
                    (v.id, v.generation) == (key.id, key.generation) && {
                        usize::from(v.counts[0]) + usize::from(v.counts[1]) > INLINE
                    }
                });
                assert!(!visible, "{key:?} is deleted below its readers");
                if let Some(seen) = maps.last_seen.get(&(key.id, key.generation)) {
                    assert!(now.since(*seen) >= REST, "{key:?} is deleted below a slow reader");
                }
            }
            maps.chunks.remove(key);
        }
        Ok(())
    }
}

impl<A: Net> Table<MemberKey<A>, u32> for Maps<A> {
    fn capacity(&self) -> usize {
        self.capacity[2]
    }

    fn read(&mut self) -> Result<Vec<(MemberKey<A>, u32)>, TableError> {
        Ok(self.members.iter().map(|(k, v)| (*k, *v)).collect())
    }

    fn put(&mut self, entries: &[(MemberKey<A>, u32)]) -> Result<(), TableError> {
        for (key, value) in entries {
            self.fuse.burn()?;
            full(&self.members, key, self.capacity[2])?;
            self.members.insert(*key, *value);
        }
        Ok(())
    }

    fn delete(&mut self, keys: &[MemberKey<A>]) -> Result<(), TableError> {
        for key in keys {
            self.fuse.burn()?;
            let maps = &mut *self;
            maps.members.remove(key);
            if maps.watched {
                for (way, value) in maps.services.iter().filter(|(_, v)| v.id == key.id) {
                    maps.check_members(is_udp(way), value, &maps.view(value));
                }
            }
        }
        Ok(())
    }
}
