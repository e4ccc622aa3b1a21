//! Tables of the kernel, as the [`TableReconciler`](crate::TableReconciler) uses them.

use crate::Net;
use berth_ebpf_abi::{Chunk, ChunkKey, MemberKey, Service, ServiceKey, V4, V6};

/// Failure of a table operation. A part of the batch may have been done.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {table}")]
pub struct TableError {
    /// `read`, `put into`, `delete from`.
    pub operation: &'static str,
    /// The map's name.
    pub table: &'static str,
    /// The cause.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// One map of the kernel. A batch is applied in order, one element after the other.
pub trait Table<K, V> {
    /// Reads all entries.
    fn read(&mut self) -> Result<Vec<(K, V)>, TableError>;

    /// Writes entries, over existing ones with the same key.
    fn put(&mut self, entries: &[(K, V)]) -> Result<(), TableError>;

    /// Deletes entries. A missing key is no error.
    fn delete(&mut self, keys: &[K]) -> Result<(), TableError>;

    /// Largest number of entries. An existing entry can be overwritten also in a full map.
    fn capacity(&self) -> usize;
}

/// The maps of one family.
pub trait FamilyTables<A: Net> {
    /// The Service values by frontend.
    fn services(&mut self) -> &mut dyn Table<ServiceKey<A>, Service<A>>;

    /// Backends of sets that do not fit into the Service value.
    fn chunks(&mut self) -> &mut dyn Table<ChunkKey, Chunk<A>>;

    /// Backends of ports with affinity, and backends that flows of UDP ports may keep.
    fn members(&mut self) -> &mut dyn Table<MemberKey<A>, u32>;
}

/// The maps of both families.
pub trait Tables: FamilyTables<V4> + FamilyTables<V6> {}

impl<T: FamilyTables<V4> + FamilyTables<V6>> Tables for T {}
