//! State of one address family: wanted ports, the mirror of the tables, and pending writes. The writes
//! themselves are in [`super::write`].

use super::{Difference, Ids, Named, StaleBackend, adopt::Adopted};
use crate::{
    Net, Notice, NoticeReason, TableError, Transport, WantedPort, compile::shown, tables::FamilyTables,
};
use berth_core::{
    ids::PodKey,
    time::{Boottime, Wall},
};
use berth_ebpf_abi::{
    Backend, CHUNK, Chunk, ChunkKey, INLINE, MemberKey, SERVING, Service, ServiceKey, Set, frontend, maps,
    tag,
};
use berth_ebpf_loader::Frontend;
use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

/// The Service that owns a port.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) service: PodKey,
    pub(super) uid: Arc<str>,
    pub(super) created: Wall,
}

impl Owner {
    fn notice(&self, why: NoticeReason) -> Notice {
        Notice { service: self.service.clone(), uid: Arc::clone(&self.uid), why }
    }
}

impl<A: Net> Port<A> {
    /// Notice for the owner of a port that is published in part.
    pub(super) fn cut_short(&self) -> Notice {
        let [cluster, local] = self.published();
        let wanted = &self.wanted;
        self.owner.notice(NoticeReason::CutShort {
            name: Arc::clone(&wanted.name),
            used: cluster.len().max(local.len()),
            endpoints: wanted.cluster.len().max(wanted.local.len()),
            affinity: wanted.affinity_s != 0,
        })
    }
}

/// Entries that do not fit into the tables.
#[derive(Debug)]
pub(super) struct Overflow<A> {
    /// Frontends without an entry. Their owners have a notice.
    pub(super) keys: HashSet<ServiceKey<A>>,
    /// Ports that are published in part.
    pub(super) ports: BTreeSet<u32>,
    /// Ports published in part whose owners have a notice.
    pub(super) told: BTreeSet<u32>,
    /// Free entries at the time the overflow was found: services, chunks, members.
    pub(super) room: [usize; 3],
}

impl<A> Default for Overflow<A> {
    fn default() -> Self {
        Overflow { keys: HashSet::new(), ports: BTreeSet::new(), told: BTreeSet::new(), room: [0; 3] }
    }
}

/// The id of a Service's port.
#[derive(Debug)]
pub(super) struct Numbered {
    id: u32,
    name: Arc<str>,
    transport: Transport,
    /// UID of the Service. A Service created again under the same name is a different one.
    uid: Arc<str>,
}

/// A Service port with its id's state.
#[derive(Debug)]
pub(super) struct Port<A> {
    pub(super) owner: Arc<Owner>,
    pub(super) wanted: WantedPort<A>,
    pub(super) generation: u32,
    /// The highest generation of any entry with this id. A failed sync may have left one above the published
    /// generation.
    pub(super) highest: u32,
    /// Backends that UDP clients may still use.
    pub(super) flows: Vec<Backend<A>>,
    /// Frontends, present and former, through which clients may have reached these backends.
    pub(super) ways: Vec<ServiceKey<A>>,
    /// Whether the port is published in part because the tables are full: only the first backends that fit
    /// into the Service value itself are published, without affinity.
    pub(super) reduced: bool,
}

impl<A: Net> Port<A> {
    /// The published sets: cluster, local.
    pub(super) fn published(&self) -> [&[Backend<A>]; 2] {
        let (cluster, local) = (self.wanted.cluster.as_slice(), self.wanted.local.as_slice());
        if !self.reduced {
            return [cluster, local];
        }
        // Local backends get at most half of the value, where a policy asks for them.
        let here = local.len().min(INLINE / 2);
        let room = INLINE.saturating_sub(here);
        [cluster.get(..room).unwrap_or(cluster), local.get(..here).unwrap_or(local)]
    }

    /// The ClusterIP frontend, which is the first frontend of the port.
    fn at_cluster_ip(&self) -> Option<ServiceKey<A>> {
        self.wanted.frontends.first().map(|(key, _)| *key)
    }

    fn affinity_s(&self) -> u32 {
        if self.reduced { 0 } else { self.wanted.affinity_s }
    }
}

/// A UDP key in the tables, with its id and backends.
#[derive(Debug)]
pub(super) struct UdpKey<A> {
    pub(super) key: ServiceKey<A>,
    pub(super) id: u32,
    pub(super) backends: Vec<Backend<A>>,
}

/// Wanted ports, mirror and pending writes of one family.
#[derive(Debug)]
pub(super) struct Family<A> {
    pub(super) ports: HashMap<u32, Port<A>>,
    /// Ports that want a key, the oldest first. The first port that may have the key holds it.
    pub(super) claims: HashMap<ServiceKey<A>, Vec<u32>>,
    /// Mirror of the tables.
    pub(super) services: HashMap<ServiceKey<A>, Service<A>>,
    pub(super) members: HashSet<MemberKey<A>>,
    pub(super) chunks: HashSet<ChunkKey>,
    /// Keys whose value may have changed.
    pub(super) touched: HashSet<ServiceKey<A>>,
    /// Ports whose chunks and members may not all be there.
    pub(super) pending: BTreeSet<u32>,
    /// Pending ports that have waited once for space that was about to become free.
    pub(super) waited: HashSet<u32>,
    pub(super) old_members: Vec<MemberKey<A>>,
    pub(super) old_chunks: Vec<ChunkKey>,
    pub(super) resting: VecDeque<(Boottime, ChunkKey)>,
    /// Entries that do not fit.
    pub(super) unfit: Overflow<A>,
    /// Capacity of the tables: services, chunks, members.
    pub(super) capacity: [usize; 3],
    /// Whether the mirror equals the tables.
    pub(super) synced: bool,
    /// Ports found in the tables at the last read that no port has claimed yet, by id.
    pub(super) adopted: HashMap<u32, Adopted<A>>,
    /// UDP keys found in the tables at the last read.
    pub(super) adopted_udp: Vec<UdpKey<A>>,
    /// Conflicts whose losing port has a notice: key and the port's id.
    told: HashSet<(ServiceKey<A>, u32)>,
}

impl<A> Default for Family<A> {
    fn default() -> Self {
        Family {
            ports: HashMap::new(),
            claims: HashMap::new(),
            services: HashMap::new(),
            members: HashSet::new(),
            chunks: HashSet::new(),
            touched: HashSet::new(),
            pending: BTreeSet::new(),
            waited: HashSet::new(),
            old_members: Vec::new(),
            old_chunks: Vec::new(),
            resting: VecDeque::new(),
            unfit: Overflow::default(),
            capacity: [0; 3],
            synced: false,
            adopted: HashMap::new(),
            adopted_udp: Vec::new(),
            told: HashSet::new(),
        }
    }
}

impl<A: Net> Family<A> {
    /// Resets the family, but keeps the record of notices already made.
    pub(super) fn forget(&mut self) {
        let (told, unfit) = (std::mem::take(&mut self.told), std::mem::take(&mut self.unfit));
        *self = Family { told, unfit, ..Family::default() };
    }

    /// Sets the ports of one Service, whose earlier ports are `before`. Returns the ids of the new ports.
    pub(super) fn set(
        &mut self,
        owner: &Arc<Owner>,
        mut before: Vec<Numbered>,
        wanted: Vec<WantedPort<A>>,
        ids: &mut Ids,
        stale: &mut Vec<StaleBackend>,
    ) -> Vec<Numbered> {
        let mut now = Vec::with_capacity(wanted.len());
        for port in wanted {
            let same =
                |n: &Numbered| n.name == port.name && n.transport == port.transport && n.uid == owner.uid;
            let numbered = match before.iter().position(same) {
                Some(at) => before.swap_remove(at),
                None => Numbered {
                    id: self.adoptable(&port, ids).unwrap_or_else(|| ids.fresh()),
                    name: Arc::clone(&port.name),
                    transport: port.transport,
                    uid: Arc::clone(&owner.uid),
                },
            };
            self.set_port(numbered.id, owner, port, stale);
            now.push(numbered);
        }
        for Numbered { id, .. } in before {
            self.remove_port(id, stale);
            ids.used.remove(&id);
        }
        now
    }

    /// The id that the tables already hold at one of the port's keys.
    fn adoptable(&self, port: &WantedPort<A>, ids: &mut Ids) -> Option<u32> {
        if self.adopted.is_empty() {
            return None;
        }
        let there = port.frontends.iter().filter_map(|(key, _)| self.services.get(key)).map(|s| s.id);
        let id = there.into_iter().find(|id| self.adopted.contains_key(id) && !ids.used.contains(id))?;
        ids.used.insert(id);
        Some(id)
    }

    fn set_port(
        &mut self,
        id: u32,
        owner: &Arc<Owner>,
        wanted: WantedPort<A>,
        stale: &mut Vec<StaleBackend>,
    ) {
        let before = self.ports.remove(&id);
        let mut reduced = false;
        let adopted = self.adopted.remove(&id);
        let none = Vec::new();
        let (kept, highest, flows, came_by) = match (&before, &adopted) {
            (Some(port), _) => {
                let same = wanted.same_sets(&port.wanted.cluster, &port.wanted.local)
                    && wanted.serving == port.wanted.serving;
                reduced = same && port.reduced;
                if !same {
                    self.doom(id, port);
                }
                (same.then_some(port.generation), port.highest, &port.flows, &port.ways)
            }
            (None, Some(a)) => {
                let same = a.whole
                    && wanted.same_sets(&a.cluster, &a.local)
                    && serving(id, &wanted).iter().copied().collect::<HashSet<_>>() == a.serving;
                (same.then_some(a.generation), a.highest, &a.flows, &a.ways)
            }
            (None, None) => (None, 0, &none, &Vec::new()),
        };
        let generation = kept.unwrap_or_else(|| highest.wrapping_add(1));
        let highest = highest.max(generation);
        let udp = wanted.transport == Transport::Udp;
        let flows = if udp { flows_after(id, (flows, came_by), &wanted, stale) } else { Vec::new() };
        let ways = if udp { ways_after(came_by, &wanted) } else { Vec::new() };
        let port = Port { owner: Arc::clone(owner), wanted, generation, highest, flows, ways, reduced };
        if let Some(before) = &before {
            let members = published_members(id, &port);
            let kept: HashSet<&MemberKey<A>> = members.iter().collect();
            // Members that an earlier change marked for deletion may be wanted again.
            self.old_members.retain(|key| !kept.contains(key));
            self.old_members.extend(published_members(id, before).iter().filter(|m| !kept.contains(m)));
            let kept = &port.wanted.frontends;
            for (key, _) in before.wanted.frontends.iter().filter(|(k, _)| kept.iter().all(|(n, _)| n != k)) {
                self.unclaim(id, key);
            }
        }
        self.ports.insert(id, port);
        self.pending.insert(id);
        self.claim(id);
    }

    fn remove_port(&mut self, id: u32, stale: &mut Vec<StaleBackend>) {
        let Some(port) = self.ports.remove(&id) else { return };
        self.doom(id, &port);
        self.old_members.extend(published_members(id, &port));
        self.pending.remove(&id);
        self.waited.remove(&id);
        self.unfit.ports.remove(&id);
        for (key, _) in &port.wanted.frontends {
            self.unclaim(id, key);
        }
        self.told.retain(|(_, told)| *told != id);
        stale.extend(port.flows.iter().flat_map(|b| gone(id, b, &port.ways)));
    }

    pub(super) fn doom(&mut self, id: u32, port: &Port<A>) {
        self.old_chunks.extend(chunk_keys(id, port));
    }

    fn claim(&mut self, id: u32) {
        let Some(port) = self.ports.get(&id) else { return };
        for (key, _) in &port.wanted.frontends {
            let claims = self.claims.entry(*key).or_default();
            if !claims.contains(&id) {
                claims.push(id);
            }
            // Claims are in order of age. The creation time of a Service may have changed.
            let ports = &self.ports;
            if claims.len() > 1 {
                claims.sort_by_key(|id| ports.get(id).map(|p| (p.owner.created, &p.owner.uid, *id)));
            }
            self.touched.insert(*key);
            // The owner of the address may have changed, and with it the holders of its ports.
            let others = |id: &u32| ports.get(id).is_some_and(|p| p.owner.service != port.owner.service);
            if key.port == 0 && claims.iter().any(others) {
                self.touched.extend(claims.iter().filter_map(|id| ports.get(id)?.at_cluster_ip()));
            }
        }
    }

    fn unclaim(&mut self, id: u32, key: &ServiceKey<A>) {
        if let Some(claims) = self.claims.get_mut(key) {
            claims.retain(|c| *c != id);
            if key.port == 0 {
                self.touched.extend(claims.iter().filter_map(|id| self.ports.get(id)?.at_cluster_ip()));
            }
            if claims.is_empty() {
                self.claims.remove(key);
                self.unfit.keys.remove(key);
            }
        }
        self.told.remove(&(*key, id));
        self.touched.insert(*key);
    }

    /// The port that holds a key: the oldest claimant that may have it.
    pub(super) fn holder(&self, key: &ServiceKey<A>) -> Option<u32> {
        self.claims.get(key)?.iter().copied().find(|id| self.may_have(*id, key))
    }

    /// Whether the port may have the key. A ClusterIP with all of its ports belongs to the oldest Service
    /// that names it, as the API server rejects a second Service with the same ClusterIP.
    /// A claim by an external frontend is exempt.
    fn may_have(&self, id: u32, key: &ServiceKey<A>) -> bool {
        let Some((port, owner)) = self.ports.get(&id).zip(self.has_address(key)) else { return true };
        let is_external = |(k, flags): &(ServiceKey<A>, u32)| k == key && flags & frontend::EXTERNAL != 0;
        key.port == 0 || port.owner.service == owner.service || port.wanted.frontends.iter().any(is_external)
    }

    /// The Service that owns a key's address as its ClusterIP.
    fn has_address(&self, key: &ServiceKey<A>) -> Option<&Owner> {
        let bare = ServiceKey { port: 0, proto: 0, ..*key };
        Some(&self.ports.get(self.claims.get(&bare)?.first()?)?.owner)
    }

    /// The Service that holds a contended key, or that owns the key's address.
    fn held_by(&self, key: &ServiceKey<A>) -> Option<&Owner> {
        match self.holder(key) {
            Some(id) => self.ports.get(&id).map(|port| &*port.owner),
            None => self.has_address(key),
        }
    }

    /// The wanted value of a key.
    pub(super) fn value(&self, key: &ServiceKey<A>) -> Option<Service<A>> {
        let id = self.holder(key)?;
        if key.port == 0 {
            return Some(Service { tag: tag(0, 0), frontend: frontend::ADDRESS, ..Service::default() });
        }
        let port = self.ports.get(&id)?;
        let (_, flags) = port.wanted.frontends.iter().find(|(k, _)| k == key)?;
        Some(value(id, port, *flags))
    }

    /// Makes a notice for each port that wants a key which an older Service holds.
    pub(super) fn conflicts(&mut self, key: &ServiceKey<A>, notices: &mut Vec<Notice>) {
        // A bare address makes no notice of its own: the ports of the address do.
        let Some(claims) = self.claims.get(key).filter(|_| key.port != 0) else { return };
        let Some(by) = self.held_by(key).map(|owner| owner.service.clone()) else { return };
        let holder = self.holder(key);
        let transport = transport(key);
        for id in claims {
            let Some(loser) = self.ports.get(id) else { continue };
            if Some(*id) == holder {
                self.told.remove(&(*key, *id));
            } else if self.told.insert((*key, *id)) {
                let (address, port) = shown(key);
                let why = NoticeReason::Taken { address, port, transport, by: by.clone() };
                notices.push(loser.owner.notice(why));
            }
        }
    }

    /// Notices of all present conflicts and of entries that do not fit.
    pub(super) fn notices(&self) -> impl Iterator<Item = Notice> {
        let conflicts = self.told.iter().filter_map(|(key, id)| {
            let loser = self.ports.get(id)?;
            let by = self.held_by(key)?.service.clone();
            let (address, port) = shown(key);
            Some(loser.owner.notice(NoticeReason::Taken { address, port, transport: transport(key), by }))
        });
        let keys = self.unfit.keys.iter().filter_map(|key| self.no_room(key));
        let ports = self.unfit.told.iter().filter_map(|id| Some(self.ports.get(id)?.cut_short()));
        conflicts.chain(keys).chain(ports)
    }

    /// Notice for the owner of a frontend that does not fit.
    pub(super) fn no_room(&self, key: &ServiceKey<A>) -> Option<Notice> {
        let owner = &self.ports.get(&self.holder(key)?)?.owner;
        // A bare address only rejects other ports, so its absence needs no notice.
        let (address, port) = shown(key);
        let why = NoticeReason::NoRoom { address, port, transport: transport(key) };
        (key.port != 0).then(|| owner.notice(why))
    }

    /// The meaning of the family's ids, for [`super::TableReconciler::names`].
    pub(super) fn names(&self) -> impl Iterator<Item = Named> {
        self.ports.iter().map(|(id, port)| Named {
            id: *id,
            v6: A::V6,
            service: port.owner.service.clone(),
            port: Arc::clone(&port.wanted.name),
            transport: port.wanted.transport,
            frontends: port.wanted.frontends.iter().map(|(key, _)| shown(key)).collect(),
        })
    }

    /// Compares the family's tables with the wanted entries, for [`super::TableReconciler::check`].
    pub(super) fn check(&self, tables: &mut dyn FamilyTables<A>) -> Result<Vec<Difference>, TableError> {
        let names = if A::V6 {
            [maps::SERVICE6, maps::CHUNK6, maps::MEMBER6]
        } else {
            [maps::SERVICE4, maps::CHUNK4, maps::MEMBER4]
        };
        let [services, chunk_table, member_table] = names;
        let mut found = Vec::new();
        let wanted: HashMap<_, _> = self.claims.keys().filter_map(|k| Some((*k, self.value(k)?))).collect();
        compare(services, &wanted, tables.services().read()?, &mut found);
        let wanted: HashMap<_, _> = self.ports.iter().flat_map(|(id, p)| chunks(*id, p)).collect();
        let resting: HashSet<_> = self.resting.iter().map(|(_, key)| *key).collect();
        let there = tables.chunks().read()?.into_iter().filter(|(k, _)| !resting.contains(k));
        compare(chunk_table, &wanted, there.collect(), &mut found);
        let wanted: HashMap<_, _> =
            self.ports.iter().flat_map(|(id, p)| published_members(*id, p)).map(|m| (m, 1)).collect();
        compare(member_table, &wanted, tables.members().read()?, &mut found);
        Ok(found)
    }
}

fn compare<K: Eq + std::hash::Hash + std::fmt::Debug, V: PartialEq>(
    table: &'static str,
    wanted: &HashMap<K, V>,
    there: Vec<(K, V)>,
    found: &mut Vec<Difference>,
) {
    let mut tell = |key: &K, what| found.push(Difference { table, key: format!("{key:?}"), what });
    let there: HashMap<K, V> = there.into_iter().collect();
    for (key, value) in wanted {
        match there.get(key) {
            None => tell(key, "missing"),
            Some(other) if other != value => tell(key, "differs"),
            Some(_) => {}
        }
    }
    there.keys().filter(|k| !wanted.contains_key(*k)).for_each(|k| tell(k, "is too much"));
}

/// A stale backend, once for each frontend through which clients reached it.
pub(super) fn gone<A: Net>(
    id: u32,
    backend: &Backend<A>,
    ways: &[ServiceKey<A>],
) -> impl Iterator<Item = StaleBackend> {
    let (address, port) = (backend.addr.ip(), u16::from_be(backend.port));
    ways.iter().map(move |key| {
        let (dialled, front_port) = shown(key);
        let frontend = Frontend { address: (key.addr != A::ANY).then_some(dialled), port: front_port };
        StaleBackend { address, port, service: id, frontend }
    })
}

/// Frontends through which clients may have come after a change; clients never come through a bare address. A
/// removed frontend stays in the list, because its clients are not notified. At worst the next holder of that
/// frontend loses sockets, and these connect again.
fn ways_after<A: Net>(before: &[ServiceKey<A>], wanted: &WantedPort<A>) -> Vec<ServiceKey<A>> {
    let mut ways = before.to_vec();
    let now = wanted.frontends.iter().map(|(key, _)| *key).filter(|key| key.port != 0);
    ways.extend(now.filter(|key| !before.contains(key)));
    ways
}

/// Backends that clients may still use after a change. The others become stale.
fn flows_after<A: Net>(
    id: u32,
    (before, ways): (&[Backend<A>], &[ServiceKey<A>]),
    wanted: &WantedPort<A>,
    stale: &mut Vec<StaleBackend>,
) -> Vec<Backend<A>> {
    let place = |b: &Backend<A>| (b.addr, b.port);
    let mut now: Vec<Backend<A>> = wanted.cluster.iter().chain(&wanted.local).copied().collect();
    now.sort_unstable_by_key(place);
    now.dedup_by_key(|b| place(b));
    let chosen = now.len();
    for b in before {
        if now.get(..chosen).is_some_and(|c| c.binary_search_by_key(&place(b), place).is_ok()) {
            continue;
        }
        if wanted.serving.iter().any(|s| place(s) == place(b)) {
            now.push(*b);
        } else {
            stale.extend(gone(id, b, ways));
        }
    }
    now
}

fn value<A: Net>(id: u32, port: &Port<A>, flags: u32) -> Service<A> {
    let [cluster, local] = port.published();
    let has = if port.wanted.has_endpoints { frontend::HAS_ENDPOINTS } else { 0 };
    let count = |set: &[Backend<A>]| u16::try_from(set.len()).unwrap_or(u16::MAX);
    let mut service = Service {
        tag: tag(id, port.generation),
        id,
        generation: port.generation,
        frontend: flags | has,
        affinity_s: port.affinity_s(),
        counts: [count(cluster), count(local)],
        inline: [Backend::default(); INLINE],
    };
    if fits_inline(port) {
        for (to, from) in service.inline.iter_mut().zip(cluster.iter().chain(local)) {
            *to = *from;
        }
    }
    service
}

fn fits_inline<A: Net>(port: &Port<A>) -> bool {
    let [cluster, local] = port.published();
    cluster.len().saturating_add(local.len()) <= INLINE
}

fn sets<A: Net>(port: &Port<A>) -> [(Set, &[Backend<A>]); 2] {
    let [cluster, local] = if fits_inline(port) { [&[][..], &[]] } else { port.published() };
    [(Set::Cluster, cluster), (Set::Local, local)]
}

/// The number of a set in keys.
pub(super) const fn number(set: Set) -> u16 {
    match set {
        Set::Cluster => 0,
        Set::Local => 1,
    }
}

pub(super) fn chunk_keys<A: Net>(id: u32, port: &Port<A>) -> impl Iterator<Item = ChunkKey> {
    let generation = port.generation;
    sets(port).into_iter().flat_map(move |(set, backends)| {
        let indices = 0..u32::try_from(backends.len().div_ceil(CHUNK)).unwrap_or(u32::MAX);
        indices.map(move |index| ChunkKey { id, generation, set: u32::from(number(set)), index })
    })
}

pub(super) fn chunks<A: Net>(id: u32, port: &Port<A>) -> impl Iterator<Item = (ChunkKey, Chunk<A>)> {
    let parts = sets(port).into_iter().flat_map(|(_, backends)| backends.chunks(CHUNK));
    chunk_keys(id, port).zip(parts).map(|(key, part)| {
        let mut backends = [Backend::default(); CHUNK];
        for (to, from) in backends.iter_mut().zip(part) {
            *to = *from;
        }
        let len = u32::try_from(part.len()).unwrap_or(0);
        (key, Chunk { tag: tag(key.id, key.generation), len, backends })
    })
}

/// The member entries of a port as published.
pub(super) fn published_members<A: Net>(id: u32, port: &Port<A>) -> Vec<MemberKey<A>> {
    if port.reduced { Vec::new() } else { members(id, &port.wanted) }
}

fn transport<A>(key: &ServiceKey<A>) -> Transport {
    if key.proto == Transport::Udp.number() { Transport::Udp } else { Transport::Tcp }
}

/// The wanted member entries of a port: the backends of its sets where it has affinity, and the backends that
/// UDP flows may keep.
pub(super) fn members<A: Net>(id: u32, wanted: &WantedPort<A>) -> Vec<MemberKey<A>> {
    let mut members = serving(id, wanted);
    if wanted.affinity_s != 0 {
        members.extend(wanted.cluster.iter().map(|b| member(id, b, number(Set::Cluster))));
        members.extend(wanted.local.iter().map(|b| member(id, b, number(Set::Local))));
    }
    members
}

/// Member entries of the backends that flows of a UDP port may keep, each once: the backends of its sets and
/// those that only serve.
fn serving<A: Net>(id: u32, wanted: &WantedPort<A>) -> Vec<MemberKey<A>> {
    if wanted.transport != Transport::Udp {
        return Vec::new();
    }
    let all = wanted.cluster.iter().chain(&wanted.local).chain(&wanted.serving);
    let mut members: Vec<MemberKey<A>> = all.map(|b| member(id, b, SERVING)).collect();
    members.sort_unstable_by_key(|m| (m.addr, m.port));
    members.dedup();
    members
}

fn member<A: Net>(id: u32, backend: &Backend<A>, set: u16) -> MemberKey<A> {
    MemberKey { id, addr: backend.addr, port: backend.port, set }
}
