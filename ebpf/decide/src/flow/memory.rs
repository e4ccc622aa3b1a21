//! The tables of flows in memory, for tests.

use super::{Class, FlowMaps, Put, Sockets};
use crate::{Family, Header, Maps, memory::Tables};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, Begun, Chunk, ChunkKey, Config, Flow, FragmentKey, FragmentPorts,
    LocalPod, MemberKey, NodeAddress, PodDevice, Service, ServiceKey, Tuple, config,
};
use core::cell::RefCell;
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    vec::Vec,
};

/// Entries of flows by class and key.
pub type ByClass<A> = HashMap<(Class, Tuple<A>), Flow<A>>;

/// Flow and Service tables of one family. The tables have no limits until a test sets them.
#[derive(Debug, Clone, Default)]
pub struct Flows<A> {
    /// The tables of Services, the clock and the random numbers.
    pub tables: Tables<A>,
    /// Entries of flows by class and key.
    pub flows: RefCell<ByClass<A>>,
    /// Order of arrival of each class.
    pub begun: RefCell<BTreeMap<Class, VecDeque<Begun<A>>>>,
    /// Capacity of each class: entries of the table, places in the order.
    pub limits: BTreeMap<Class, (usize, usize)>,
    /// Counters by block of [`berth_ebpf_abi::count`] and class.
    pub counters: RefCell<BTreeMap<(u32, Class), u64>>,
    /// Ports of fragmented datagrams.
    pub fragments: RefCell<HashMap<FragmentKey<A>, FragmentPorts>>,
    /// The node's pods by address.
    pub pods: HashMap<A, LocalPod>,
    /// The pods' devices by index.
    pub devices: HashMap<u32, PodDevice>,
    /// Packets that arrive for connected sockets of the node.
    pub sockets: HashSet<Tuple<A>>,
    /// Answers that must pass the stack.
    pub of_stack: RefCell<HashSet<Tuple<A>>>,
    /// Flags and ports of the configuration.
    pub config: Config,
    /// Source address of masqueraded connections.
    pub masquerade: A,
    /// Random numbers to return first.
    pub script: RefCell<VecDeque<u32>>,
    /// Earlier values of changed entries, while [`Flows::attempt`] records.
    journal: RefCell<Option<Vec<Before<A>>>>,
}

/// Value of an entry before a change.
#[derive(Debug, Clone)]
enum Before<A> {
    Flow(Class, Tuple<A>, Option<Flow<A>>),
    Fragment(FragmentKey<A>, Option<FragmentPorts>),
}

impl<A: Family> Flows<A> {
    /// Entry of a direction in any class.
    pub fn entry(&self, key: &Tuple<A>) -> Option<Flow<A>> {
        let flows = self.flows.borrow();
        [Class::Assured, Class::Unassured, Class::Udp]
            .iter()
            .find_map(|class| flows.get(&(*class, *key)).copied())
    }

    /// Writes an entry into the table of its class.
    pub fn set(&self, key: &Tuple<A>, flow: Flow<A>) {
        self.change(Class::of(key.proto, flow.flags), key, Some(flow));
    }

    /// Number of entries of a class.
    pub fn len(&self, class: Class) -> usize {
        self.flows.borrow().keys().filter(|(of, _)| *of == class).count()
    }

    /// Runs `what`. If it returns false, flows, fragments and affinity are restored; places that were taken
    /// from the order are not.
    pub fn attempt(&self, what: impl FnOnce(&Flows<A>) -> bool) -> bool {
        let affinity = self.tables.affinity.borrow().clone();
        *self.journal.borrow_mut() = Some(Vec::new());
        let well = what(self);
        let journal = self.journal.borrow_mut().take();
        if !well {
            *self.tables.affinity.borrow_mut() = affinity;
            for before in journal.into_iter().flatten().rev() {
                match before {
                    Before::Flow(class, key, value) => self.change(class, &key, value),
                    Before::Fragment(key, value) => self.change_fragment(&key, value),
                }
            }
        }
        well
    }

    fn change(&self, class: Class, key: &Tuple<A>, value: Option<Flow<A>>) {
        let mut flows = self.flows.borrow_mut();
        let before = match value {
            Some(value) => flows.insert((class, *key), value),
            None => flows.remove(&(class, *key)),
        };
        if let Some(journal) = self.journal.borrow_mut().as_mut() {
            journal.push(Before::Flow(class, *key, before));
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

impl<A: Family> Sockets<A> for Flows<A> {
    fn connected(&self, arriving: &Tuple<A>) -> bool {
        self.sockets.contains(arriving)
    }
}

impl<A: Family> FlowMaps<A> for Flows<A> {
    fn find(&self, class: Class, key: &Tuple<A>, into: &mut Flow<A>) -> bool {
        match self.flows.borrow().get(&(class, *key)) {
            Some(flow) => {
                *into = *flow;
                true
            }
            None => false,
        }
    }

    fn insert(&self, class: Class, key: &Tuple<A>, value: &Flow<A>) -> Put {
        if self.flows.borrow().contains_key(&(class, *key)) {
            return Put::Exists;
        }
        if self.limits.get(&class).is_some_and(|(entries, _)| self.len(class) >= *entries) {
            return Put::Full;
        }
        self.change(class, key, Some(*value));
        Put::Done
    }

    fn touch(&self, class: Class, key: &Tuple<A>, flags: u32, generation: u32, seen_s: u32) {
        let found = self.flows.borrow().get(&(class, *key)).copied();
        if let Some(flow) = found {
            self.change(class, key, Some(Flow { flags, generation, seen_s, ..flow }));
        }
    }

    fn remove(&self, class: Class, key: &Tuple<A>) {
        self.change(class, key, None);
    }

    fn enqueue(&self, class: Class, begun: &Begun<A>) -> bool {
        let mut all = self.begun.borrow_mut();
        let places = all.entry(class).or_default();
        let free = self.limits.get(&class).is_none_or(|(_, most)| places.len() < *most);
        if free {
            places.push_back(*begun);
        }
        free
    }

    fn dequeue(&self, class: Class, into: &mut Begun<A>) -> bool {
        let first = self.begun.borrow_mut().get_mut(&class).and_then(VecDeque::pop_front);
        if let Some(first) = first {
            *into = first;
        }
        first.is_some()
    }

    fn count(&self, block: u32, class: Class) {
        *self.counters.borrow_mut().entry((block, class)).or_default() += 1;
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

    fn pod_device(&self, ifindex: u32) -> Option<PodDevice> {
        self.devices.get(&ifindex).copied()
    }

    fn is_of_stack(&self, key: &Tuple<A>) -> bool {
        self.of_stack.borrow().contains(key)
    }

    fn note_of_stack(&self, key: &Tuple<A>) {
        self.of_stack.borrow_mut().insert(*key);
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

    fn set_affinity(&self, key: &AffinityKey<A>, value: &Affinity<A>) {
        self.tables.set_affinity(key, value);
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
