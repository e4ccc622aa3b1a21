//! In-memory maps of the kernel.

use super::{State, World};
use crate::support::Fake;
use berth_ebpf_abi::{
    Chunk, ChunkKey, Client, Config, LocalPod, MemberKey, NodeAddress, PodDevice, Service as Value,
    ServiceKey, V4, V6,
};
use berth_services::{FamilyTables, Net as _, NodeTables, Table, TableError};
use std::collections::BTreeMap;

/// A table without checks.
#[derive(Debug)]
struct Plain<K, V>(BTreeMap<K, V>);

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
    pub(super) fn new(world: &World) -> FakeMaps {
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
