//! Handles of all maps of one schema.

use crate::{CounterMap, Map, Pins, Result};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Chunk, ChunkKey, Client, Config, Flow, FragmentKey, FragmentPorts, LocalPod,
    MemberKey, NodeAddress, PodDevice, Service, ServiceKey, Tuple, V4, V6, maps,
};

/// Access of a handle to its maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Look up and list, for the command line.
    Read,
    /// Write too, for the agent.
    Write,
}

/// Handles by the map names in [`berth_ebpf_abi::maps`]. Socket storage has no handle: only the programs
/// access it.
#[derive(Debug)]
#[allow(missing_docs, reason = "the abi crate describes each map by the same name")]
pub struct Datapath {
    pub service4: Map<ServiceKey<V4>, Service<V4>>,
    pub service6: Map<ServiceKey<V6>, Service<V6>>,
    pub chunk4: Map<ChunkKey, Chunk<V4>>,
    pub chunk6: Map<ChunkKey, Chunk<V6>>,
    pub affinity4: Map<AffinityKey<V4>, Affinity<V4>>,
    pub affinity6: Map<AffinityKey<V6>, Affinity<V6>>,
    pub member4: Map<MemberKey<V4>, u32>,
    pub member6: Map<MemberKey<V6>, u32>,
    pub client: Map<u64, Client>,
    pub node4: Map<V4, NodeAddress>,
    pub node6: Map<V6, NodeAddress>,
    pub pod4: Map<V4, LocalPod>,
    pub pod6: Map<V6, LocalPod>,
    pub pod_device: Map<u32, PodDevice>,
    pub assured4: Map<Tuple<V4>, Flow<V4>>,
    pub assured6: Map<Tuple<V6>, Flow<V6>>,
    pub unassured4: Map<Tuple<V4>, Flow<V4>>,
    pub unassured6: Map<Tuple<V6>, Flow<V6>>,
    pub udp4: Map<Tuple<V4>, Flow<V4>>,
    pub udp6: Map<Tuple<V6>, Flow<V6>>,
    pub fragment4: Map<FragmentKey<V4>, FragmentPorts>,
    pub fragment6: Map<FragmentKey<V6>, FragmentPorts>,
    pub config: Map<u32, Config>,
    pub count: CounterMap,
}

impl Datapath {
    /// Opens the maps of this program's own schema.
    ///
    /// # Errors
    /// A map is missing (nothing was loaded yet) or has other key or value sizes.
    pub fn open(pins: &Pins, access: Access) -> Result<Datapath> {
        let (dir, read_only) = (&pins.maps(), access == Access::Read);
        Ok(Datapath {
            service4: Map::open(dir, maps::SERVICE4, read_only)?,
            service6: Map::open(dir, maps::SERVICE6, read_only)?,
            chunk4: Map::open(dir, maps::CHUNK4, read_only)?,
            chunk6: Map::open(dir, maps::CHUNK6, read_only)?,
            affinity4: Map::open(dir, maps::AFFINITY4, read_only)?,
            affinity6: Map::open(dir, maps::AFFINITY6, read_only)?,
            member4: Map::open(dir, maps::MEMBER4, read_only)?,
            member6: Map::open(dir, maps::MEMBER6, read_only)?,
            client: Map::open(dir, maps::CLIENT, read_only)?,
            node4: Map::open(dir, maps::NODE4, read_only)?,
            node6: Map::open(dir, maps::NODE6, read_only)?,
            pod4: Map::open(dir, maps::POD4, read_only)?,
            pod6: Map::open(dir, maps::POD6, read_only)?,
            pod_device: Map::open(dir, maps::POD_DEVICE, read_only)?,
            assured4: Map::open(dir, maps::ASSURED4, read_only)?,
            assured6: Map::open(dir, maps::ASSURED6, read_only)?,
            unassured4: Map::open(dir, maps::UNASSURED4, read_only)?,
            unassured6: Map::open(dir, maps::UNASSURED6, read_only)?,
            udp4: Map::open(dir, maps::UDP4, read_only)?,
            udp6: Map::open(dir, maps::UDP6, read_only)?,
            fragment4: Map::open(dir, maps::FRAGMENT4, read_only)?,
            fragment6: Map::open(dir, maps::FRAGMENT6, read_only)?,
            config: Map::open(dir, maps::CONFIG, read_only)?,
            count: CounterMap::open(dir, maps::COUNT, read_only)?,
        })
    }
}
