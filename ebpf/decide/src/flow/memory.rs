//! The tables of connections in memory: for tests.

use super::FlowMaps;
use crate::{Family, Header, Maps, memory::Tables};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, Chunk, ChunkKey, Config, Flow, FragmentKey, FragmentPorts, LocalPod,
    MemberKey, NodeAddress, Service, ServiceKey, Tuple, config,
};
use core::cell::RefCell;
use std::{
    collections::{HashMap, VecDeque},
    vec::Vec,
};

/// One family's tables of connections, with those of Services.
#[derive(Debug, Clone, Default)]
pub struct Flows<A> {
    /// The tables of Services, the clock and the dice.
    pub tables: Tables<A>,
    /// Connections.
    pub flows: RefCell<HashMap<Tuple<A>, Flow<A>>>,
    /// Ports of fragmented datagrams.
    pub fragments: RefCell<HashMap<FragmentKey<A>, FragmentPorts>>,
    /// The node's pods.
    pub pods: HashMap<A, LocalPod>,
    /// Flags and ports.
    pub config: Config,
    /// The address for masqueraded connections.
    pub masquerade: A,
    /// What the dice show next, before they are thrown.
    pub script: RefCell<VecDeque<u32>>,
    /// What connections were before each change, while somebody records.
    journal: RefCell<Option<Vec<Before<A>>>>,
}

/// What was before a change.
#[derive(Debug, Clone)]
enum Before<A> {
    Flow(Tuple<A>, Option<Flow<A>>),
    Fragment(FragmentKey<A>, Option<FragmentPorts>),
}

impl<A: Family> Flows<A> {
    /// Runs `what`; unless it says that it did well, connections, fragments and affinity are as before.
    pub fn attempt(&self, what: impl FnOnce(&Flows<A>) -> bool) -> bool {
        let affinity = self.tables.affinity.borrow().clone();
        *self.journal.borrow_mut() = Some(Vec::new());
        let well = what(self);
        let journal = self.journal.borrow_mut().take();
        if !well {
            *self.tables.affinity.borrow_mut() = affinity;
            for before in journal.into_iter().flatten().rev() {
                match before {
                    Before::Flow(key, value) => self.change(&key, value),
                    Before::Fragment(key, value) => self.change_fragment(&key, value),
                }
            }
        }
        well
    }

    fn change(&self, key: &Tuple<A>, value: Option<Flow<A>>) {
        let mut flows = self.flows.borrow_mut();
        let before = match value {
            Some(value) => flows.insert(*key, value),
            None => flows.remove(key),
        };
        if let Some(journal) = self.journal.borrow_mut().as_mut() {
            journal.push(Before::Flow(*key, before));
        }
    }

    fn change_fragment(&self, key: &FragmentKey<A>, value: Option<FragmentPorts>) {
        let mut fragments = self.fragments.borrow_mut();
        let before = match value {
            Some(value) => fragments.insert(*key, value),
            None => fragments.remove(key),
        };
        if let Some(journal) = self.journal.borrow_mut().as_mut() {
            journal.push(Before::Fragment(*key, before));
        }
    }
}

impl<A: Family> FlowMaps<A> for Flows<A> {
    fn flow(&self, key: &Tuple<A>, into: &mut Flow<A>) -> bool {
        match self.flows.borrow().get(key) {
            Some(flow) => {
                *into = *flow;
                true
            }
            None => false,
        }
    }

    fn insert(&self, key: &Tuple<A>, value: &Flow<A>) -> bool {
        let free = !self.flows.borrow().contains_key(key);
        if free {
            self.change(key, Some(*value));
        }
        free
    }

    fn touch(&self, key: &Tuple<A>, flags: u32, generation: u32, seen_s: u32) {
        let found = self.flows.borrow().get(key).copied();
        if let Some(flow) = found {
            self.change(key, Some(Flow { flags, generation, seen_s, ..flow }));
        }
    }

    fn remove(&self, key: &Tuple<A>) {
        self.change(key, None);
    }

    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }

    fn keep_fragment(&self, key: &FragmentKey<A>, value: &FragmentPorts) {
        self.change_fragment(key, Some(*value));
    }

    fn pod(&self, addr: &A) -> Option<LocalPod> {
        self.pods.get(addr).copied()
    }

    fn redirects(&self) -> bool {
        self.config.flags & config::REDIRECT != 0
    }

    fn masquerades_all(&self) -> bool {
        self.config.flags & config::MASQUERADE_ALL != 0
    }

    fn masquerade(&self) -> A {
        self.masquerade
    }

    fn ports(&self) -> [u16; 2] {
        self.config.masquerade_ports
    }
}

impl<A: Family> Maps<A> for Flows<A> {
    type Service = Service<A>;
    type Chunk = Chunk<A>;

    fn service(&self, key: &ServiceKey<A>) -> Option<Service<A>> {
        self.tables.service(key)
    }

    fn header(&self, at: Service<A>) -> Header {
        self.tables.header(at)
    }

    fn inline(&self, at: Service<A>, index: u32) -> Backend<A> {
        self.tables.inline(at, index)
    }

    fn chunk(&self, key: &ChunkKey) -> Option<Chunk<A>> {
        self.tables.chunk(key)
    }

    fn chunk_tag(&self, at: Chunk<A>) -> u32 {
        self.tables.chunk_tag(at)
    }

    fn chunk_backend(&self, at: Chunk<A>, index: u32) -> Backend<A> {
        self.tables.chunk_backend(at, index)
    }

    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity<A>> {
        self.tables.affinity(key)
    }

    fn stick(&self, key: &AffinityKey<A>, value: &Affinity<A>) {
        self.tables.stick(key, value);
    }

    fn member(&self, key: &MemberKey<A>) -> bool {
        self.tables.member(key)
    }

    fn node(&self, addr: &A) -> Option<NodeAddress> {
        self.tables.node(addr)
    }

    fn in_service_range(&self, addr: A) -> bool {
        self.tables.in_service_range(addr)
    }

    fn rand(&self) -> u32 {
        match self.script.borrow_mut().pop_front() {
            Some(next) => next,
            None => self.tables.rand(),
        }
    }

    fn now_s(&self) -> u32 {
        self.tables.now_s()
    }
}
