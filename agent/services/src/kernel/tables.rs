//! Tables in the kernel: the loader's maps as [`Table`]s.

use crate::{FamilyTables, NodeTables, Table, TableError};
use berth_ebpf_abi::{
    Chunk, ChunkKey, Client, Config, LocalPod, MemberKey, NodeAddress, PodDevice, Service, ServiceKey, V4, V6,
};
use berth_ebpf_loader::{Datapath, Map, Plain};

impl<K: Plain, V: Plain> Table<K, V> for Map<K, V> {
    fn read(&mut self) -> Result<Vec<(K, V)>, TableError> {
        self.entries().map_err(failed("read", self.name()))
    }

    fn put(&mut self, entries: &[(K, V)]) -> Result<(), TableError> {
        let done = match entries {
            // A single entry is the usual case and needs no lists.
            [(key, value)] => Map::put(self, key, value),
            entries => self.put_all(entries),
        };
        done.map_err(failed("put into", self.name()))
    }

    fn delete(&mut self, keys: &[K]) -> Result<(), TableError> {
        self.delete_all(keys).map(drop).map_err(failed("delete from", self.name()))
    }

    fn capacity(&self) -> usize {
        usize::try_from(self.max_entries()).unwrap_or(usize::MAX)
    }
}

fn failed(
    operation: &'static str,
    table: &'static str,
) -> impl FnOnce(berth_ebpf_loader::Error) -> TableError {
    move |source| TableError { operation, table, source: Box::new(source) }
}

impl FamilyTables<V4> for Datapath {
    fn services(&mut self) -> &mut dyn Table<ServiceKey<V4>, Service<V4>> {
        &mut self.service4
    }

    fn chunks(&mut self) -> &mut dyn Table<ChunkKey, Chunk<V4>> {
        &mut self.chunk4
    }

    fn members(&mut self) -> &mut dyn Table<MemberKey<V4>, u32> {
        &mut self.member4
    }
}

impl FamilyTables<V6> for Datapath {
    fn services(&mut self) -> &mut dyn Table<ServiceKey<V6>, Service<V6>> {
        &mut self.service6
    }

    fn chunks(&mut self) -> &mut dyn Table<ChunkKey, Chunk<V6>> {
        &mut self.chunk6
    }

    fn members(&mut self) -> &mut dyn Table<MemberKey<V6>, u32> {
        &mut self.member6
    }
}

impl NodeTables for Datapath {
    fn clients(&mut self) -> &mut dyn Table<u64, Client> {
        &mut self.client
    }

    fn pods4(&mut self) -> &mut dyn Table<V4, LocalPod> {
        &mut self.pod4
    }

    fn pods6(&mut self) -> &mut dyn Table<V6, LocalPod> {
        &mut self.pod6
    }

    fn pod_devices(&mut self) -> &mut dyn Table<u32, PodDevice> {
        &mut self.pod_device
    }

    fn nodes4(&mut self) -> &mut dyn Table<V4, NodeAddress> {
        &mut self.node4
    }

    fn nodes6(&mut self) -> &mut dyn Table<V6, NodeAddress> {
        &mut self.node6
    }

    fn config(&mut self) -> &mut dyn Table<u32, Config> {
        &mut self.config
    }
}
