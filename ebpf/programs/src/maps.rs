//! The maps, with the names and types of `berth_ebpf_abi::maps`. Owns the programs' whole state.
//!
//! A hash that is not preallocated takes 16 bytes per slot at once and the rest as it fills; any other hash
//! and a queue take all of their memory at once. The sizes here are the defaults: the loader may set others.
//! With them all maps stay below 30 MB with 10,000 Services.
//!
//! A flow takes two entries of its table and one place in the table's queue, so the queue is full before the
//! table. The tables of UDP hold fewer flows than the node has ports towards one backend.

use crate::wide::Wide;
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, Queue},
};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Begun, Chunk, ChunkKey, Client, Config, Flow, FragmentKey, FragmentPorts,
    LocalPod, MemberKey, NodeAddress, PodDevice, Reverses, Service, ServiceKey, Tuple, V4, V6, count,
};

/// Flags of a map whose elements are allocated as they are written.
const LAZY: u32 = BPF_F_NO_PREALLOC;

macro_rules! hash {
    ($name:ident: $key:ty => $value:ty, $max:expr) => {
        #[map]
        pub(crate) static $name: HashMap<$key, $value> = HashMap::with_max_entries($max, LAZY);
    };
}

macro_rules! lru {
    ($name:ident: $key:ty => $value:ty, $max:expr) => {
        #[map]
        pub(crate) static $name: LruHashMap<$key, $value> = LruHashMap::with_max_entries($max, 0);
    };
}

macro_rules! queue {
    ($name:ident: $value:ty, $max:expr) => {
        #[map]
        pub(crate) static $name: Queue<$value> = Queue::with_max_entries($max, 0);
    };
}

hash!(SERVICE4: ServiceKey<V4> => Service<V4>, 131_072);
hash!(SERVICE6: ServiceKey<V6> => Service<V6>, 65_536);
hash!(CHUNK4: ChunkKey => Chunk<V4>, 65_536);
hash!(CHUNK6: ChunkKey => Chunk<V6>, 32_768);
hash!(MEMBER4: MemberKey<V4> => u32, 65_536);
hash!(MEMBER6: MemberKey<V6> => u32, 32_768);
hash!(CLIENT: u64 => Client, 4096);
hash!(NODE4: V4 => NodeAddress, 1024);
hash!(NODE6: V6 => NodeAddress, 1024);
hash!(POD4: V4 => LocalPod, 4096);
hash!(POD6: V6 => LocalPod, 4096);
hash!(POD_DEVICE: u32 => PodDevice, 4096);

hash!(ASSURED4: Tuple<V4> => Flow<V4>, 131_072);
hash!(ASSURED6: Tuple<V6> => Flow<V6>, 65_536);
hash!(UDP4: Tuple<V4> => Flow<V4>, 49_152);
hash!(UDP6: Tuple<V6> => Flow<V6>, 24_576);

/// Preallocated, because a flood of connections fills this table first.
#[map]
pub(crate) static UNASSURED4: HashMap<Tuple<V4>, Flow<V4>> = HashMap::with_max_entries(32_768, 0);
/// The same for IPv6.
#[map]
pub(crate) static UNASSURED6: HashMap<Tuple<V6>, Flow<V6>> = HashMap::with_max_entries(16_384, 0);

queue!(BEGUN_TCP4: Begun<V4>, 16_384);
queue!(BEGUN_TCP6: Begun<V6>, 8_192);
queue!(BEGUN_UDP4: Begun<V4>, 24_576);
queue!(BEGUN_UDP6: Begun<V6>, 12_288);

lru!(AFFINITY4: AffinityKey<V4> => Affinity<V4>, 16_384);
lru!(AFFINITY6: AffinityKey<V6> => Affinity<V6>, 8192);
lru!(STACK4: Tuple<V4> => u32, 4096);
lru!(STACK6: Tuple<V6> => u32, 2048);
lru!(FRAGMENT4: FragmentKey<V4> => FragmentPorts, 8192);
lru!(FRAGMENT6: FragmentKey<V6> => FragmentPorts, 4096);

#[btf_map]
pub(crate) static REVERSE4: SkStorage<Reverses<V4>> = SkStorage::new();
#[btf_map]
pub(crate) static REVERSE6: SkStorage<Reverses<V6>> = SkStorage::new();

#[map]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static COUNT: PerCpuArray<u64> = PerCpuArray::with_max_entries(count::LEN, 0);

/// Scratch memory of a run on one processor. The size is part of the pinned maps, so some of the memory is
/// spare.
pub(crate) type Scratch = [u64; 128];

/// Scratch memory of a run for an IPv4 packet.
#[map]
pub(crate) static SCRATCH4: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
/// Scratch memory of a run for an IPv6 packet.
#[map]
pub(crate) static SCRATCH6: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Address family with a socket storage of its own.
pub(crate) trait SocketStorage: Wide {
    /// Map of the translations that a socket remembers.
    fn storage() -> &'static SkStorage<Reverses<Self>>;
}

impl SocketStorage for V4 {
    #[inline(always)]
    fn storage() -> &'static SkStorage<Reverses<V4>> {
        &REVERSE4
    }
}

impl SocketStorage for V6 {
    #[inline(always)]
    fn storage() -> &'static SkStorage<Reverses<V6>> {
        &REVERSE6
    }
}

/// Adds one to a counter of [`count`].
#[inline(always)]
pub(crate) fn bump(index: u32) {
    if let Some(at) = COUNT.get_ptr_mut(index) {
        // SAFETY: the element of this CPU, to which no other CPU writes. A nested run may lose a count, which
        // is only shown to people.
        unsafe { at.write_volatile(at.read_volatile().wrapping_add(1)) };
    }
}
