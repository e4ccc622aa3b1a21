//! What the TableReconciler needs of the kernel.

use crate::Net;
use berth_ebpf_abi::{Chunk, ChunkKey, MemberKey, Service, ServiceKey, V4, V6};

/// A table refused. What of the batch was done before is unknown.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {table}")]
pub struct TableError {
    /// `read`, `put into`, `delete from`.
    pub operation: &'static str,
    /// The map's name.
    pub table: &'static str,
    /// NoticeReason.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// One map of the kernel. Batches are carried out in order, one element after the other.
pub trait Table<K, V> {
    /// Everything in it.
    fn read(&mut self) -> Result<Vec<(K, V)>, TableError>;

    /// Puts entries in, over those that are there.
    fn put(&mut self, entries: &[(K, V)]) -> Result<(), TableError>;

    /// Takes entries out; one that is not there is no error.
    fn delete(&mut self, keys: &[K]) -> Result<(), TableError>;

    /// How many entries it takes at most. One that is there already can be overwritten also where it is full.
    fn capacity(&self) -> usize;
}

/// The maps of one family.
pub trait FamilyTables<A: Net> {
    /// The Services.
    fn services(&mut self) -> &mut dyn Table<ServiceKey<A>, Service<A>>;

    /// Backends beyond those that lie inline.
    fn chunks(&mut self) -> &mut dyn Table<ChunkKey, Chunk<A>>;

    /// Backends of Services with affinity.
    fn members(&mut self) -> &mut dyn Table<MemberKey<A>, u32>;
}

/// The maps of both families.
pub trait Tables: FamilyTables<V4> + FamilyTables<V6> {}

impl<T: FamilyTables<V4> + FamilyTables<V6>> Tables for T {}
