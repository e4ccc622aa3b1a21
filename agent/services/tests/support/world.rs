//! In-memory node and kernel for tests of the engine.

use super::{Fake, key};
use berth_core::{
    ids::{NodeName, PodKey, PodUid},
    model::{Endpoint, EndpointPort, EndpointSlice, Pod, QosClass, Service},
    status::{Phase, PodStatus},
};
use berth_ebpf_abi::{
    Chunk, ChunkKey, Client, Config, LocalPod, MemberKey, NodeAddress, PodDevice, Service as Value,
    ServiceKey, V4, V6,
};
use berth_ebpf_loader::{Role, StalePeer};
use berth_services::{
    Attachment, Cause, DatapathBackend, DatapathHealth, Device, Edit, Edits, FamilyTables, HostNetwork,
    HostNetworkConfig, KernelNetwork, Named, Net as _, NodeTables, Notice, ObservedPod, PodNetwork,
    ServiceInputs, Table, TableError, VethPair,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

/// Cookie of the host's network namespace.
pub(crate) const HOST: u64 = 1;

/// A table without checks.
#[derive(Debug)]
pub(crate) struct Plain<K, V>(pub(crate) BTreeMap<K, V>);

impl<K: Ord + Copy, V: Copy> Table<K, V> for Plain<K, V> {
    fn read(&mut self) -> Result<Vec<(K, V)>, TableError> {
        Ok(self.0.iter().map(|(k, v)| (*k, *v)).collect())
    }
    fn put(&mut self, entries: &[(K, V)]) -> Result<(), TableError> {
        self.0.extend(entries.iter().copied());
        Ok(())
    }
    fn delete(&mut self, keys: &[K]) -> Result<(), TableError> {
        self.0.retain(|k, _| !keys.contains(k));
        Ok(())
    }
    fn capacity(&self) -> usize {
        usize::MAX
    }
}

/// A list of objects that is replaced as a whole.
pub(crate) type Shared<T> = Arc<Vec<Arc<T>>>;

/// Damage done to the maps by another program. It takes effect at the engine's next read of the map.
#[derive(Debug, Default)]
pub(crate) struct Spoil {
    /// The IPv4 frontends are deleted.
    pub(crate) services: bool,
    /// A map of which the [`State`] shows no entry is cleared.
    pub(crate) maps: bool,
}

/// State that node and kernel share with the test.
#[derive(Debug, Default)]
pub(crate) struct State {
    // Inputs, set by the test.
    pub(crate) listed: bool,
    pub(crate) runtime: bool,
    pub(crate) services: Shared<Service>,
    pub(crate) slices: Shared<EndpointSlice>,
    pub(crate) wanted: Vec<PodUid>,
    pub(crate) pods: BTreeMap<PodUid, Option<ObservedPod>>,
    pub(crate) devices: BTreeMap<String, Device>,
    pub(crate) devices_told: bool,
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) networks: BTreeMap<PodUid, (u64, PodNetwork)>,
    pub(crate) refuse_open: bool,
    pub(crate) refuse_hooks: bool,
    pub(crate) shortcomings: Vec<String>,
    pub(crate) spoil: Spoil,
    // Effects of the engine.
    pub(crate) opened: usize,
    pub(crate) hooked: usize,
    pub(crate) attached: BTreeMap<u32, Role>,
    /// Attached devices, each with the number of table writes before it.
    pub(crate) attached_at: Vec<(u32, usize)>,
    pub(crate) ended: Vec<(BTreeSet<StalePeer>, Vec<PodUid>)>,
    /// The engine's record of stale backends, and the number of table writes before each change of the
    /// record.
    pub(crate) dead: HashSet<StalePeer>,
    pub(crate) noted_at: Vec<usize>,
    pub(crate) looked_at: usize,
    /// Services whose slices the engine asked for.
    pub(crate) made_for: Vec<PodKey>,
    pub(crate) zones: usize,
    pub(crate) files: usize,
    pub(crate) told: Vec<Notice>,
    pub(crate) health: DatapathHealth,
    /// The last published notices.
    pub(crate) notices: Vec<Notice>,
    pub(crate) clients: BTreeMap<u64, Client>,
    pub(crate) pods4: BTreeMap<V4, LocalPod>,
    pub(crate) pod_devices: BTreeMap<u32, PodDevice>,
    pub(crate) nodes4: BTreeMap<V4, NodeAddress>,
    pub(crate) configured: usize,
    pub(crate) masquerade4: Option<V4>,
    /// IPv4 frontends with the number of backends in their cluster set.
    pub(crate) frontends: BTreeMap<(IpAddr, u16), u16>,
    pub(crate) written: usize,
    /// Capacity of the table of IPv4 frontends.
    pub(crate) capacity: Option<usize>,
}

/// Node and kernel of a test. Clones share one state.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    state: Arc<Mutex<State>>,
}

impl World {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // All callers are in one thread, so two guards at a time are a defect of the test.
        self.state.try_lock().unwrap()
    }

    pub(crate) fn node(&self) -> FakeNode {
        FakeNode { world: self.clone(), services: Shared::default(), slices: Shared::default() }
    }

    pub(crate) fn kernel(&self) -> FakeKernel {
        FakeKernel { world: self.clone(), asked: false }
    }
}

pub(crate) struct FakeNode {
    world: World,
    services: Shared<Service>,
    slices: Shared<EndpointSlice>,
}

impl ServiceInputs for FakeNode {
    fn edits(&mut self) -> Edits {
        let state = self.world.state();
        let services = Edit::between(0, &self.services, &state.services, Arc::clone, |s: &Service| &s.key);
        let slices = Edit::between(0, &self.slices, &state.slices, Arc::clone, |s: &EndpointSlice| &s.key);
        if services.is_some() {
            self.services = Arc::clone(&state.services);
        }
        if slices.is_some() {
            self.slices = Arc::clone(&state.slices);
        }
        Edits {
            listed: state.listed,
            services: services.into_iter().collect(),
            slices: slices.into_iter().collect(),
        }
    }

    fn wanted_pods(&self) -> Vec<PodUid> {
        self.world.state().wanted.clone()
    }

    fn pods(&self) -> BTreeMap<PodUid, Option<ObservedPod>> {
        self.world.state().pods.clone()
    }

    fn runtime_answers(&self) -> bool {
        self.world.state().runtime
    }

    /// One slice for each Service, with the addresses of the pods that have all labels of its selector.
    fn endpoints(
        &self,
        services: &[Arc<Service>],
        pods: &[&ObservedPod],
        before: &[Arc<EndpointSlice>],
    ) -> Vec<Arc<EndpointSlice>> {
        self.world.state().made_for.extend(services.iter().map(|s| s.key.clone()));
        let selecting = services.iter().filter(|s| !s.selector.is_empty());
        let made = selecting.map(|service| {
            let selected = |pod: &ObservedPod| {
                service.selector.iter().all(|(k, v)| pod.pod.labels.get(&**k).is_some_and(|l| **l == **v))
            };
            let addresses = pods.iter().filter(|p| selected(p)).flat_map(|p| &p.status.pod_ips);
            let endpoint = |address: &IpAddr| super::endpoint(&address.to_string(), "n");
            let endpoints: Vec<Endpoint> = addresses.map(endpoint).collect();
            let port = |p: &berth_core::model::ServicePort| EndpointPort {
                name: Arc::clone(&p.name),
                protocol: p.protocol,
                port: p.port,
            };
            EndpointSlice {
                key: key(&format!("{}-made", service.key.name)),
                service: service.key.clone(),
                v6: false,
                ports: service.ports.iter().map(port).collect(),
                endpoints,
                triggered: None,
            }
        });
        let kept = |slice: EndpointSlice| {
            before.iter().find(|old| ***old == slice).map_or_else(|| Arc::new(slice), Arc::clone)
        };
        made.filter(|s| !s.endpoints.is_empty()).map(kept).collect()
    }

    fn publish_names<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Service>,
        _slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Result<(), Cause> {
        let count = services.count();
        let mut state = self.world.state();
        state.zones += 1;
        assert_eq!(count, state.services.len());
        Ok(())
    }

    fn publish_ids(
        &mut self,
        _ids: impl Iterator<Item = Named>,
        _next_id: u32,
        notices: impl Iterator<Item = Notice>,
    ) -> Result<(), Cause> {
        let mut state = self.world.state();
        state.files += 1;
        state.notices = notices.collect();
        Ok(())
    }

    fn tell(&mut self, notice: &Notice) {
        self.world.state().told.push(notice.clone());
    }

    fn health(&mut self, health: &DatapathHealth) {
        self.world.state().health = health.clone();
    }
}

pub(crate) struct FakeKernel {
    world: World,
    asked: bool,
}

/// The tables. Their relevant contents are copied into the [`State`] after each write.
pub(crate) struct FakeMaps {
    world: World,
    tables: Fake,
    clients: Shown<u64, Client>,
    pods4: Shown<V4, LocalPod>,
    pods6: Plain<V6, LocalPod>,
    pod_devices: Shown<u32, PodDevice>,
    nodes4: Shown<V4, NodeAddress>,
    nodes6: Plain<V6, NodeAddress>,
    config: Shown<u32, Config>,
}

/// Copies a table's contents into the state.
type Show<K, V> = fn(&mut State, &BTreeMap<K, V>);

struct Shown<K, V> {
    table: Plain<K, V>,
    world: World,
    show: Show<K, V>,
    /// Whether the state holds no entry of the table.
    gone: fn(&State) -> bool,
}

impl<K: Ord + Copy, V: Copy> Table<K, V> for Shown<K, V> {
    fn read(&mut self) -> Result<Vec<(K, V)>, TableError> {
        let state = self.world.state();
        if state.spoil.maps && (self.gone)(&state) {
            self.table.0.clear();
        }
        self.table.read()
    }
    fn put(&mut self, entries: &[(K, V)]) -> Result<(), TableError> {
        self.table.put(entries)?;
        (self.show)(&mut self.world.state(), &self.table.0);
        Ok(())
    }
    fn delete(&mut self, keys: &[K]) -> Result<(), TableError> {
        self.table.delete(keys)?;
        (self.show)(&mut self.world.state(), &self.table.0);
        Ok(())
    }
    fn capacity(&self) -> usize {
        self.table.capacity()
    }
}

impl FakeMaps {
    fn new(world: &World) -> FakeMaps {
        fn shown<K: Ord + Copy, V: Copy>(
            world: &World,
            there: BTreeMap<K, V>,
            show: Show<K, V>,
            gone: fn(&State) -> bool,
        ) -> Shown<K, V> {
            Shown { table: Plain(there), world: world.clone(), show, gone }
        }
        let (clients, pods4, pod_devices, nodes4) = {
            let state = world.state();
            let (pods4, pod_devices) = (state.pods4.clone(), state.pod_devices.clone());
            (state.clients.clone(), pods4, pod_devices, state.nodes4.clone())
        };
        FakeMaps {
            world: world.clone(),
            tables: Fake::unwatched(),
            clients: shown(
                world,
                clients,
                |state, all| state.clients.clone_from(all),
                |s| s.clients.is_empty(),
            ),
            pods4: shown(world, pods4, |state, all| state.pods4.clone_from(all), |s| s.pods4.is_empty()),
            pods6: Plain(BTreeMap::new()),
            pod_devices: shown(
                world,
                pod_devices,
                |state, all| state.pod_devices.clone_from(all),
                |s| s.pod_devices.is_empty(),
            ),
            nodes4: shown(world, nodes4, |state, all| state.nodes4.clone_from(all), |s| s.nodes4.is_empty()),
            nodes6: Plain(BTreeMap::new()),
            config: shown(
                world,
                BTreeMap::new(),
                |state, all| {
                    state.configured += 1;
                    state.masquerade4 = all.values().next().map(|config| config.masquerade4);
                },
                |s| s.masquerade4.is_none(),
            ),
        }
    }
}

impl Table<ServiceKey<V4>, Value<V4>> for FakeMaps {
    fn read(&mut self) -> Result<Vec<(ServiceKey<V4>, Value<V4>)>, TableError> {
        let mut state = self.world.state();
        if std::mem::take(&mut state.spoil.services) {
            self.tables.v4.services.clear();
            state.frontends.clear();
        }
        self.tables.v4.read()
    }
    fn put(&mut self, entries: &[(ServiceKey<V4>, Value<V4>)]) -> Result<(), TableError> {
        let mut state = self.world.state();
        state.written += entries.len();
        for (key, value) in entries {
            state.frontends.insert((key.addr.ip(), u16::from_be(key.port)), value.counts[0]);
        }
        self.tables.v4.put(entries)
    }
    fn delete(&mut self, keys: &[ServiceKey<V4>]) -> Result<(), TableError> {
        let mut state = self.world.state();
        state.written += keys.len();
        for key in keys {
            state.frontends.remove(&(key.addr.ip(), u16::from_be(key.port)));
        }
        self.tables.v4.delete(keys)
    }
    fn capacity(&self) -> usize {
        self.world.state().capacity.unwrap_or(usize::MAX)
    }
}

impl FamilyTables<V4> for FakeMaps {
    fn services(&mut self) -> &mut dyn Table<ServiceKey<V4>, Value<V4>> {
        self
    }
    fn chunks(&mut self) -> &mut dyn Table<ChunkKey, Chunk<V4>> {
        &mut self.tables.v4
    }
    fn members(&mut self) -> &mut dyn Table<MemberKey<V4>, u32> {
        &mut self.tables.v4
    }
}

impl FamilyTables<V6> for FakeMaps {
    fn services(&mut self) -> &mut dyn Table<ServiceKey<V6>, Value<V6>> {
        &mut self.tables.v6
    }
    fn chunks(&mut self) -> &mut dyn Table<ChunkKey, Chunk<V6>> {
        &mut self.tables.v6
    }
    fn members(&mut self) -> &mut dyn Table<MemberKey<V6>, u32> {
        &mut self.tables.v6
    }
}

impl NodeTables for FakeMaps {
    fn clients(&mut self) -> &mut dyn Table<u64, Client> {
        &mut self.clients
    }
    fn pods4(&mut self) -> &mut dyn Table<V4, LocalPod> {
        &mut self.pods4
    }
    fn pod_devices(&mut self) -> &mut dyn Table<u32, PodDevice> {
        &mut self.pod_devices
    }

    fn pods6(&mut self) -> &mut dyn Table<V6, LocalPod> {
        &mut self.pods6
    }
    fn nodes4(&mut self) -> &mut dyn Table<V4, NodeAddress> {
        &mut self.nodes4
    }
    fn nodes6(&mut self) -> &mut dyn Table<V6, NodeAddress> {
        &mut self.nodes6
    }
    fn config(&mut self) -> &mut dyn Table<u32, Config> {
        &mut self.config
    }
}

impl DatapathBackend for FakeKernel {
    type Maps = FakeMaps;

    fn open(&mut self) -> Result<FakeMaps, Cause> {
        let mut state = self.world.state();
        state.opened += 1;
        if state.refuse_open {
            return Err("no BPF file system".into());
        }
        drop(state);
        Ok(FakeMaps::new(&self.world))
    }

    fn shortcomings(&mut self, _maps: &FakeMaps) -> Vec<String> {
        self.world.state().shortcomings.clone()
    }

    fn attach_hooks(&mut self, _look: bool) -> Result<(), Cause> {
        let mut state = self.world.state();
        if state.refuse_hooks {
            return Err("no cgroup".into());
        }
        state.hooked += 1;
        Ok(())
    }

    fn host_network(&mut self) -> Option<Arc<HostNetwork>> {
        let mut state = self.world.state();
        let told = std::mem::take(&mut state.devices_told) || !std::mem::replace(&mut self.asked, true);
        let cfg = HostNetworkConfig {
            node_ips: state.node_ips.clone(),
            whole_machine: true,
            ..HostNetworkConfig::default()
        };
        let kernel = KernelNetwork { devices: state.devices.clone(), routes: Vec::new() };
        told.then(|| Arc::new(HostNetwork::choose(&cfg, &kernel)))
    }

    fn attached(&mut self) -> Result<BTreeMap<u32, Option<Role>>, Cause> {
        Ok(self.world.state().attached.iter().map(|(index, role)| (*index, Some(*role))).collect())
    }

    fn attach(&mut self, devices: &[(u32, Role)]) -> Vec<(u32, Role, Attachment)> {
        let mut state = self.world.state();
        state.attached.extend(devices.iter().copied());
        let written = state.written;
        state.attached_at.extend(devices.iter().map(|(index, _)| (*index, written)));
        devices.iter().map(|(index, role)| (*index, *role, Attachment::Done)).collect()
    }

    fn detach(&mut self, index: u32) -> Result<(), Cause> {
        self.world.state().attached.remove(&index).map(drop).ok_or_else(|| "not attached".into())
    }

    fn host_cookie(&self) -> Result<u64, Cause> {
        Ok(HOST)
    }

    fn network_inode(&self, pod: &PodUid) -> Result<u64, Cause> {
        let mut state = self.world.state();
        state.looked_at += 1;
        state.networks.get(pod).map(|(inode, _)| *inode).ok_or_else(|| "no network".into())
    }

    fn network(&self, pod: &PodUid) -> Result<PodNetwork, Cause> {
        self.world.state().networks.get(pod).map(|(_, network)| *network).ok_or_else(|| "no network".into())
    }

    fn end_sockets(&mut self, dead: &HashSet<StalePeer>, pods: &mut dyn Iterator<Item = &PodUid>) -> usize {
        self.world.state().ended.push((dead.iter().copied().collect(), pods.cloned().collect()));
        0
    }

    fn record_stale(&mut self, dead: &HashSet<StalePeer>) -> Result<(), Cause> {
        let mut state = self.world.state();
        state.dead.clone_from(dead);
        let written = state.written;
        state.noted_at.push(written);
        Ok(())
    }

    fn recorded_stale(&mut self) -> Result<HashSet<StalePeer>, Cause> {
        Ok(self.world.state().dead.clone())
    }

    fn collect_flows(&mut self, _maps: &FakeMaps) -> Result<bool, Cause> {
        Ok(false)
    }
}

pub(crate) fn uid(name: &str) -> PodUid {
    PodUid::new(name).unwrap()
}

/// A running pod with one label `app`.
pub(crate) fn pod(name: &str, app: &str, ip: &str) -> ObservedPod {
    let pod = Pod {
        labels: [("app".to_owned(), app.to_owned())].into(),
        ..Pod::new(uid(name), key(name), NodeName::new("n").unwrap())
    };
    let status = PodStatus {
        pod_ips: vec![ip.parse().unwrap()],
        ..PodStatus::new(Phase::Running, QosClass::BestEffort)
    };
    ObservedPod { pod: Arc::new(pod), status: Arc::new(status) }
}

/// A pod's network behind that device of the host.
pub(crate) fn network(inode: u64, host_index: u32) -> (u64, PodNetwork) {
    let pair = VethPair { host_index, host_mac: [2; 6], pod_mac: [4; 6], ours: true };
    (inode, PodNetwork { cookie: inode * 10, pair: Some(pair), clear: true })
}
