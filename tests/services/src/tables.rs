//! The loader's maps as the Allocator's tables.

use berth_ebpf_abi::{Chunk, ChunkKey, MemberKey, Service, ServiceKey, V4, V6};
use berth_ebpf_loader::{Datapath, Map, Plain};
use berth_services::{FamilyTables, Table, TableError};

/// One map.
struct Handle<'a, K, V>(&'a Map<K, V>);

impl<K: Plain, V: Plain> Handle<'_, K, V> {
    fn failed(&self, operation: &'static str) -> impl Fn(berth_ebpf_loader::Error) -> TableError {
        let table = self.0.name();
        move |error| TableError { operation, table, source: Box::new(error) }
    }
}

impl<K: Plain, V: Plain> Table<K, V> for Handle<'_, K, V> {
    fn read(&mut self) -> Result<Vec<(K, V)>, TableError> {
        self.0.entries().map_err(self.failed("read"))
    }

    fn put(&mut self, entries: &[(K, V)]) -> Result<(), TableError> {
        self.0.put_all(entries).map_err(self.failed("put into"))
    }

    fn delete(&mut self, keys: &[K]) -> Result<(), TableError> {
        self.0.delete_all(keys).map(drop).map_err(self.failed("delete from"))
    }
}

/// The maps of one family.
struct Family<'a, A> {
    services: Handle<'a, ServiceKey<A>, Service<A>>,
    chunks: Handle<'a, ChunkKey, Chunk<A>>,
    members: Handle<'a, MemberKey<A>, u32>,
}

/// All of them.
pub struct KernelTables<'a> {
    v4: Family<'a, V4>,
    v6: Family<'a, V6>,
}

impl<'a> KernelTables<'a> {
    /// Over the maps of a data plane.
    pub fn new(maps: &'a Datapath) -> KernelTables<'a> {
        KernelTables {
            v4: Family {
                services: Handle(&maps.service4),
                chunks: Handle(&maps.chunk4),
                members: Handle(&maps.member4),
            },
            v6: Family {
                services: Handle(&maps.service6),
                chunks: Handle(&maps.chunk6),
                members: Handle(&maps.member6),
            },
        }
    }
}

impl FamilyTables<V4> for KernelTables<'_> {
    fn services(&mut self) -> &mut dyn Table<ServiceKey<V4>, Service<V4>> {
        &mut self.v4.services
    }

    fn chunks(&mut self) -> &mut dyn Table<ChunkKey, Chunk<V4>> {
        &mut self.v4.chunks
    }

    fn members(&mut self) -> &mut dyn Table<MemberKey<V4>, u32> {
        &mut self.v4.members
    }
}

impl FamilyTables<V6> for KernelTables<'_> {
    fn services(&mut self) -> &mut dyn Table<ServiceKey<V6>, Service<V6>> {
        &mut self.v6.services
    }

    fn chunks(&mut self) -> &mut dyn Table<ChunkKey, Chunk<V6>> {
        &mut self.v6.chunks
    }

    fn members(&mut self) -> &mut dyn Table<MemberKey<V6>, u32> {
        &mut self.v6.members
    }
}
