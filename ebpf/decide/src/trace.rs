//! A decision with each of its steps written down: what `berth trace` shows.

mod flow;

use crate::{Family, Header, Maps, flow::Class};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, ChunkKey, Flow, FragmentKey, FragmentPorts, LocalPod, MemberKey,
    NodeAddress, ServiceKey, Tuple,
};
use core::cell::RefCell;
use std::vec::Vec;

/// One look into a table, or one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<A> {
    /// A way into a Service was looked for.
    Service {
        /// What was looked for.
        key: ServiceKey<A>,
        /// The head of its value.
        found: Option<Header>,
    },
    /// A backend of the Service's own value was read.
    Inline {
        /// Its ordinal.
        index: u32,
        /// The backend that was read.
        backend: Backend<A>,
    },
    /// A chunk was looked for.
    Chunk {
        /// What was looked for.
        key: ChunkKey,
        /// Whether it is there.
        found: bool,
    },
    /// A backend of the chunk was read.
    ChunkBackend {
        /// Its ordinal in the chunk.
        index: u32,
        /// The backend that was read.
        backend: Backend<A>,
    },
    /// Whom the client stays with was looked for.
    Affinity {
        /// What was looked for.
        key: AffinityKey<A>,
        /// What was found.
        found: Option<Affinity<A>>,
    },
    /// Whom the client stays with is written; a trace itself writes nothing.
    Stick {
        /// The client and the Service port.
        key: AffinityKey<A>,
        /// The backend and when the client was last sent to it.
        value: Affinity<A>,
    },
    /// Whether a backend is still in its set was looked for.
    Member {
        /// What was looked for.
        key: MemberKey<A>,
        /// Whether it is.
        found: bool,
    },
    /// One of the node's own addresses was looked for.
    Node {
        /// The address.
        addr: A,
        /// What was found.
        found: Option<NodeAddress>,
    },
    /// An address was compared with the Service ranges.
    Range {
        /// The address.
        addr: A,
        /// Whether it lies in one.
        found: bool,
    },
    /// The value changed while it was read, and is read once more.
    Changed,
    /// A direction's entry was looked for.
    Flow {
        /// In the table of this class.
        class: Class,
        /// What was looked for.
        key: Tuple<A>,
        /// What was found.
        found: Option<Flow<A>>,
    },
    /// An entry is written where none is; a trace itself writes nothing.
    Insert {
        /// In the table of this class.
        class: Class,
        /// The tuple of the new entry.
        key: Tuple<A>,
        /// The new entry.
        value: Flow<A>,
        /// Whether none was there.
        done: bool,
    },
    /// An entry is changed in place; a trace itself writes nothing.
    Touch {
        /// In the table of this class.
        class: Class,
        /// The tuple of the entry.
        key: Tuple<A>,
        /// Its new flags.
        flags: u32,
        /// The generation in which its backend was last found.
        generation: u32,
        /// When its last packet came.
        seen_s: u32,
    },
    /// An entry is removed; a trace itself writes nothing.
    Remove {
        /// In the table of this class.
        class: Class,
        /// The tuple of the entry.
        key: Tuple<A>,
    },
    /// The ports of a fragmented datagram were looked for.
    Fragment {
        /// What was looked for.
        key: FragmentKey<A>,
        /// What was found.
        found: Option<FragmentPorts>,
    },
    /// The ports of a fragmented datagram are written; a trace itself writes nothing.
    KeepFragment {
        /// The datagram.
        key: FragmentKey<A>,
        /// The datagram's ports.
        value: FragmentPorts,
    },
    /// A pod of this node was looked for.
    Pod {
        /// Its address.
        addr: A,
        /// What was found.
        found: Option<LocalPod>,
    },
}

/// A connection's class and key, and its entry where it was not removed.
type Written<A> = (Class, Tuple<A>, Option<Flow<A>>);

/// Tables whose uses are written down. Reads go through, writes do not.
#[derive(Debug)]
pub struct Trace<'m, A, M> {
    maps: &'m M,
    steps: RefCell<Vec<Step<A>>>,
    /// What the tables of connections would hold after the writes so far; none: removed.
    written: RefCell<Vec<Written<A>>>,
}

impl<'m, A, M> Trace<'m, A, M> {
    /// Nothing written down so far.
    pub fn new(maps: &'m M) -> Trace<'m, A, M> {
        Trace { maps, steps: RefCell::default(), written: RefCell::default() }
    }

    /// What was done, in order.
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
