//! The decision core's tables over the pinned maps, read-only: writes do nothing. The trace around
//! them records what would be written.

use super::family::{MapFamily, by_class};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, Begun, CHUNK, Chunk, ChunkKey, Config, Flow, FragmentKey, FragmentPorts,
    INLINE, LocalPod, MemberKey, NodeAddress, PodDevice, Service, ServiceKey, Tuple, config,
};
use berth_ebpf_decide::{
    Header, Maps,
    flow::{Class, FlowMaps, Put, Sockets},
};
use berth_ebpf_loader::{Datapath, Error, Map, Plain};
use std::{
    cell::{Cell, RefCell},
    collections::hash_map::RandomState,
    hash::BuildHasher,
};

/// The pinned maps of one family.
pub(crate) struct Pinned<'d, A> {
    datapath: &'d Datapath,
    config: Config,
    now_s: u32,
    /// The first failed lookup; with one the decision is invalid.
    failed: RefCell<Option<Error>>,
    dice: Cell<u64>,
    family: std::marker::PhantomData<A>,
}

impl<'d, A: MapFamily> Pinned<'d, A> {
    /// Tables over these maps. `now_s`: CLOCK_MONOTONIC in seconds.
    pub(crate) fn new(datapath: &'d Datapath, now_s: u32) -> Result<Pinned<'d, A>, Error> {
        Ok(Pinned {
            datapath,
            config: datapath.config.get(&0)?.unwrap_or_default(),
            now_s,
            failed: RefCell::default(),
            dice: Cell::default(),
            family: std::marker::PhantomData,
        })
    }

    /// Ends the decisions.
    ///
    /// # Errors
    /// A lookup failed, so the decisions are invalid.
    pub(crate) fn finish(self) -> Result<(), Error> {
        self.failed.into_inner().map_or(Ok(()), Err)
    }

    fn get<K: Plain, V: Plain>(&self, map: &Map<K, V>, key: &K) -> Option<V> {
        map.get(key).unwrap_or_else(|e| {
            self.failed.borrow_mut().get_or_insert(e);
            None
        })
    }
}

impl<A: MapFamily> Maps<A> for Pinned<'_, A> {
    type Service = Service<A>;
    type Chunk = Chunk<A>;

    fn service(&self, key: &ServiceKey<A>) -> Option<Service<A>> {
        self.get(A::maps(self.datapath).service, key)
    }

    fn header(&self, at: Service<A>) -> Header {
        Header::from(&at)
    }

    fn inline(&self, at: Service<A>, index: u32) -> Backend<A> {
        element(&at.inline, index, INLINE)
    }

    fn chunk(&self, key: &ChunkKey) -> Option<Chunk<A>> {
        self.get(A::maps(self.datapath).chunk, key)
    }

    fn chunk_tag(&self, at: Chunk<A>) -> u32 {
        at.tag
    }

    fn chunk_backend(&self, at: Chunk<A>, index: u32) -> Backend<A> {
        element(&at.backends, index, CHUNK)
    }

    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity<A>> {
        self.get(A::maps(self.datapath).affinity, key)
    }

    fn set_affinity(&self, _: &AffinityKey<A>, _: &Affinity<A>) {}

    fn member(&self, key: &MemberKey<A>) -> bool {
        self.get(A::maps(self.datapath).member, key).is_some()
    }

    fn node(&self, addr: &A) -> Option<NodeAddress> {
        self.get(A::maps(self.datapath).node, addr)
    }

    fn in_service_range(&self, addr: A) -> bool {
        A::ranges(&self.config).iter().any(|range| addr.within(range))
    }

    fn rand(&self) -> u32 {
        // The hasher's keys are random, and each call hashes another number.
        self.dice.set(self.dice.get().wrapping_add(1));
        let [a, b, c, d, ..] = RandomState::new().hash_one(self.dice.get()).to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    fn now_s(&self) -> u32 {
        self.now_s
    }
}

/// The backend at an index modulo the length, as the eBPF programs compute it.
fn element<A: MapFamily>(backends: &[Backend<A>], index: u32, len: usize) -> Backend<A> {
    let index = usize::try_from(index).ok().and_then(|i| i.checked_rem(len));
    index.and_then(|i| backends.get(i)).copied().unwrap_or_default()
}

impl<A: MapFamily> Sockets<A> for Pinned<'_, A> {
    /// A trace begins with a connection that no socket of the node has.
    fn connected(&self, _: &Tuple<A>) -> bool {
        false
    }
}

impl<A: MapFamily> FlowMaps<A> for Pinned<'_, A> {
    fn find(&self, class: Class, key: &Tuple<A>, into: &mut Flow<A>) -> bool {
        let found = self.get(by_class(A::maps(self.datapath).flows, class), key);
        if let Some(entry) = found {
            *into = entry;
        }
        found.is_some()
    }

    fn insert(&self, _: Class, _: &Tuple<A>, _: &Flow<A>) -> Put {
        Put::Full
    }

    fn touch(&self, _: Class, _: &Tuple<A>, _: u32, _: u32, _: u32) {}

    fn remove(&self, _: Class, _: &Tuple<A>) {}

    fn enqueue(&self, _: Class, _: &Begun<A>) -> bool {
        false
    }

    fn dequeue(&self, _: Class, _: &mut Begun<A>) -> bool {
        false
    }

    fn count(&self, _: u32, _: Class) {}

    fn fragment(&self, _: &FragmentKey<A>) -> Option<FragmentPorts> {
        // Traced packets are not fragmented.
        None
    }

    fn keep_fragment(&self, _: &FragmentKey<A>, _: &FragmentPorts) {}

    fn pod(&self, addr: &A) -> Option<LocalPod> {
        self.get(A::maps(self.datapath).pod, addr)
    }

    fn pod_device(&self, ifindex: u32) -> Option<PodDevice> {
        self.get(&self.datapath.pod_device, &ifindex)
    }

    fn is_of_stack(&self, _: &Tuple<A>) -> bool {
        // Such connections are only between pods, to addresses of no Service.
        false
    }

    fn note_of_stack(&self, _: &Tuple<A>) {}

    fn redirects(&self) -> bool {
        self.config.flags & config::REDIRECT != 0
    }

    fn masquerades_all(&self) -> bool {
        self.config.flags & config::MASQUERADE_ALL != 0
    }

    fn masquerade(&self) -> A {
        A::masquerade(&self.config)
    }

    fn ports(&self) -> [u16; 2] {
        self.config.masquerade_ports
    }
}
