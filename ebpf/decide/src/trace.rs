//! A decision with a record of its steps, which `berth trace` prints.

mod flow;

use crate::{Family, Header, Maps, flow::Class};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, ChunkKey, Flow, FragmentKey, FragmentPorts, LocalPod, MemberKey,
    NodeAddress, ServiceKey, Tuple,
};
use core::cell::RefCell;
use std::vec::Vec;

/// One read or write of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<A> {
    /// A lookup of a frontend.
    Service {
        /// Key of the lookup.
        key: ServiceKey<A>,
        /// Header of the value, if found.
        found: Option<Header>,
    },
    /// A read of an inline backend.
    Inline {
        /// Ordinal of the backend.
        index: u32,
        /// The backend that was read.
        backend: Backend<A>,
    },
    /// A lookup of a chunk.
    Chunk {
        /// Key of the lookup.
        key: ChunkKey,
        /// Whether the chunk exists.
        found: bool,
    },
    /// A read of a backend in a chunk.
    ChunkBackend {
        /// Ordinal of the backend in the chunk.
        index: u32,
        /// The backend that was read.
        backend: Backend<A>,
    },
    /// A lookup of the client's affinity.
    Affinity {
        /// Key of the lookup.
        key: AffinityKey<A>,
        /// The entry, if found.
        found: Option<Affinity<A>>,
    },
    /// A write of the client's affinity, which a trace does not carry out.
    Stick {
        /// The client and the Service port.
        key: AffinityKey<A>,
        /// The backend and the time of its use.
        value: Affinity<A>,
    },
    /// A lookup of a backend in its set.
    Member {
        /// Key of the lookup.
        key: MemberKey<A>,
        /// Whether the backend is in the set.
        found: bool,
    },
    /// A lookup of one of the node's own addresses.
    Node {
        /// The address.
        addr: A,
        /// The entry, if found.
        found: Option<NodeAddress>,
    },
    /// A comparison of an address with the Service ranges.
    Range {
        /// The address.
        addr: A,
        /// Whether the address lies in a range.
        found: bool,
    },
    /// The value changed during the read and is read once more.
    Changed,
    /// A lookup of a flow entry.
    Flow {
        /// Class of the table.
        class: Class,
        /// Key of the lookup.
        key: Tuple<A>,
        /// The entry, if found.
        found: Option<Flow<A>>,
    },
    /// A write of a new flow entry, which a trace does not carry out.
    Insert {
        /// Class of the table.
        class: Class,
        /// Key of the new entry.
        key: Tuple<A>,
        /// The new entry.
        value: Flow<A>,
        /// Whether the key was free.
        done: bool,
    },
    /// A change of a flow entry, which a trace does not carry out.
    Touch {
        /// Class of the table.
        class: Class,
        /// Key of the entry.
        key: Tuple<A>,
        /// New flags of the entry.
        flags: u32,
        /// Generation in which the backend was last found.
        generation: u32,
        /// Time of the last packet.
        seen_s: u32,
    },
    /// A removal of a flow entry, which a trace does not carry out.
    Remove {
        /// Class of the table.
        class: Class,
        /// Key of the entry.
        key: Tuple<A>,
    },
    /// A lookup of a fragmented datagram's ports.
    Fragment {
        /// Key of the lookup.
        key: FragmentKey<A>,
        /// The ports, if found.
        found: Option<FragmentPorts>,
    },
    /// A write of a fragmented datagram's ports, which a trace does not carry out.
    KeepFragment {
        /// Key of the datagram.
        key: FragmentKey<A>,
        /// Ports of the datagram.
        value: FragmentPorts,
    },
    /// A lookup of a local pod.
    Pod {
        /// Address of the pod.
        addr: A,
        /// The entry, if found.
        found: Option<LocalPod>,
    },
}

/// Class and key of a flow entry with its value; `None` if it was removed.
type Written<A> = (Class, Tuple<A>, Option<Flow<A>>);

/// Tables that record their use. Reads pass through; writes are only recorded.
#[derive(Debug)]
pub struct Trace<'m, A, M> {
    maps: &'m M,
    steps: RefCell<Vec<Step<A>>>,
    /// Flow entries as written so far, the last write of a key last.
    written: RefCell<Vec<Written<A>>>,
}

impl<'m, A, M> Trace<'m, A, M> {
    /// A trace without steps.
    pub fn new(maps: &'m M) -> Trace<'m, A, M> {
        Trace { maps, steps: RefCell::default(), written: RefCell::default() }
    }

    /// The recorded steps in order.
    pub fn steps(self) -> Vec<Step<A>> {
        self.steps.into_inner()
    }

    fn note(&self, step: Step<A>) {
        self.steps.borrow_mut().push(step);
    }
}

impl<A: Family, M: Maps<A>> Maps<A> for Trace<'_, A, M> {
    type Service = M::Service;
    type Chunk = M::Chunk;

    fn service(&self, key: &ServiceKey<A>) -> Option<M::Service> {
        let found = self.maps.service(key);
        self.note(Step::Service { key: *key, found: found.map(|at| self.maps.header(at)) });
        found
    }

    fn header(&self, at: M::Service) -> Header {
        self.maps.header(at)
    }

    fn inline(&self, at: M::Service, index: u32) -> Backend<A> {
        let backend = self.maps.inline(at, index);
        self.note(Step::Inline { index, backend });
        backend
    }

    fn unchanged(&self, key: &ServiceKey<A>, at: M::Service, tag: u32) -> bool {
        let unchanged = self.maps.unchanged(key, at, tag);
        if !unchanged {
            self.note(Step::Changed);
        }
        unchanged
    }

    fn chunk(&self, key: &ChunkKey) -> Option<M::Chunk> {
        let found = self.maps.chunk(key);
        self.note(Step::Chunk { key: *key, found: found.is_some() });
        found
    }

    fn chunk_tag(&self, at: M::Chunk) -> u32 {
        self.maps.chunk_tag(at)
    }

    fn chunk_backend(&self, at: M::Chunk, index: u32) -> Backend<A> {
        let backend = self.maps.chunk_backend(at, index);
        self.note(Step::ChunkBackend { index, backend });
        backend
    }

    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity<A>> {
        let found = self.maps.affinity(key);
        self.note(Step::Affinity { key: *key, found });
        found
    }

    fn set_affinity(&self, key: &AffinityKey<A>, value: &Affinity<A>) {
        self.note(Step::Stick { key: *key, value: *value });
    }

    fn member(&self, key: &MemberKey<A>) -> bool {
        let found = self.maps.member(key);
        self.note(Step::Member { key: *key, found });
        found
    }

    fn node(&self, addr: &A) -> Option<NodeAddress> {
        let found = self.maps.node(addr);
        self.note(Step::Node { addr: *addr, found });
        found
    }

    fn in_service_range(&self, addr: A) -> bool {
        let found = self.maps.in_service_range(addr);
        self.note(Step::Range { addr, found });
        found
    }

    fn rand(&self) -> u32 {
        self.maps.rand()
    }

    fn now_s(&self) -> u32 {
        self.maps.now_s()
    }
}
