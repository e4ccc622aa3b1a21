//! Random Services and clients, and a plain model of the verdicts: one generator for the tests on the host
//! and for those in the kernel.
//!
//! The model searches lists, and shares only the names of flags with the decision.

use crate::{ClientLocation, DropReason, Family, RejectReason, Verdict, memory::Tables};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, CHUNK, Chunk, ChunkKey, INLINE, MemberKey, NodeAddress, Prefix, SERVING,
    Service, ServiceKey, Set, V4, V6, backend, frontend, tag,
};
use std::{collections::HashMap, vec::Vec};

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Ports of generated Services, backends and NodePorts in host order; few, so that they coincide.
pub const PORTS: [u16; 8] = [53, 80, 443, 8080, 8081, 9090, 30_080, 30_081];

/// Kind of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An address of the Service range.
    Virtual,
    /// Address of a pod.
    Pod,
    /// A load balancer's or external address.
    External,
    /// Address of a node.
    Node,
    /// Any other address.
    Elsewhere,
}

/// A family whose addresses can be generated.
pub trait Sample: Family {
    /// The `n`th (of 65,536) address of a kind.
    fn nth(kind: Kind, n: u16) -> Self;
    /// A loopback address.
    fn loopback() -> Self;
    /// The range of [`Kind::Virtual`].
    fn range() -> Prefix;
}

impl Sample for V4 {
    fn nth(kind: Kind, n: u16) -> V4 {
        let [a, b] = match kind {
            Kind::Virtual => [10, 96],
            Kind::Pod => [10, 244],
            Kind::External => [198, 18],
            Kind::Node => [192, 168],
            Kind::Elsewhere => [203, 0],
        };
        let [c, d] = n.to_be_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    fn loopback() -> V4 {
        u32::from_ne_bytes([127, 0, 0, 1])
    }

    fn range() -> Prefix {
        Prefix {
            net: [u32::from_ne_bytes([10, 96, 0, 0]), 0, 0, 0],
            mask: [u32::from_ne_bytes([255, 255, 0, 0]), 0, 0, 0],
        }
    }
}

impl Sample for V6 {
    fn nth(kind: Kind, n: u16) -> V6 {
        let last = u32::from(n).to_be();
        let tag = match kind {
            Kind::Virtual => 0x96,
            Kind::Pod => 0x244,
            Kind::External => 0x198,
            Kind::Node => 0x192,
            Kind::Elsewhere => 0x203,
        };
        [0xfd00_0000_u32.to_be(), u32::to_be(tag), 0, last]
    }

    fn loopback() -> V6 {
        [0, 0, 0, 1_u32.to_be()]
    }

    fn range() -> Prefix {
        Prefix {
            net: [0xfd00_0000_u32.to_be(), 0x96_u32.to_be(), 0, 0],
            mask: [u32::MAX, u32::MAX, u32::MAX, 0xffff_0000_u32.to_be()],
        }
    }
}

/// A seeded random generator.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Creates a generator; a seed of 0 is replaced.
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number of 32 bits.
    pub fn throw(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 32).unwrap_or_default()
    }

    /// A number below `n`, which must not be 0.
    pub fn below(&mut self, n: u32) -> u32 {
        self.throw() % n
    }

    /// True with a probability of one in `n`.
    pub fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    /// An element of a list that is not empty.
    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.throw() as usize % list.len()]
    }

    fn small(&mut self, n: u32) -> u16 {
        u16::try_from(self.below(n)).unwrap_or_default()
    }
}

/// A frontend of a Service port.
#[derive(Debug, Clone)]
pub struct Way<A> {
    /// Key of the frontend.
    pub key: ServiceKey<A>,
    /// Bits of [`frontend`], without [`frontend::HAS_ENDPOINTS`].
    pub flags: u32,
}

/// A Service port.
#[derive(Debug, Clone)]
pub struct Port<A> {
    /// [`Service::id`].
    pub id: u32,
    /// [`Service::generation`].
    pub generation: u32,
    /// Backends, indexed by [`Set`].
    pub sets: [Vec<Backend<A>>; 2],
    /// Whether an endpoint exists, in a set or not.
    pub has_endpoints: bool,
    /// Timeout of affinity in seconds; 0 for none.
    pub affinity_s: u32,
    /// Frontends of the port.
    pub ways: Vec<Way<A>>,
}

/// All Services of a node.
#[derive(Debug, Clone)]
pub struct World<A> {
    /// The Service ports.
    pub ports: Vec<Port<A>>,
    /// The node's addresses.
    pub nodes: Vec<(A, NodeAddress)>,
    /// Whether a Service range is configured.
    pub range: bool,
    /// Affinity of clients, by [`Port::id`] and client.
    pub stuck: HashMap<(u32, A), Affinity<A>>,
    /// Seconds of CLOCK_MONOTONIC.
    pub now_s: u32,
}

/// A client's call.
#[derive(Debug, Clone, Copy)]
pub struct Dial<A> {
    /// The dialled key.
    pub key: ServiceKey<A>,
    /// Location of the client.
    pub from: ClientLocation<A>,
}

/// Allowed verdicts about a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected<A> {
    /// Exactly this verdict; never [`Verdict::To`].
    Exactly(Verdict<A>),
    /// The backend of the client's affinity.
    Stays(Backend<A>),
    /// Any of these backends.
    OneOf(Vec<Backend<A>>),
}

impl<A: Sample> World<A> {
    /// Generates a world whose ids begin at `first_id`.
    pub fn random(dice: &mut Dice, first_id: u32, now_s: u32) -> World<A> {
        let mut world = World {
            ports: Vec::new(),
            nodes: Vec::new(),
            range: !dice.one_in(8),
            stuck: HashMap::new(),
            now_s,
        };
        for n in 0..3 {
            world.nodes.push((A::nth(Kind::Node, n), NodeAddress { node_ports: u32::from(n != 2) }));
        }
        // The address of cluster DNS on the node, which lies in the Service range.
        world.nodes.push((A::nth(Kind::Virtual, 0), NodeAddress { node_ports: 0 }));
        let mut taken = std::collections::HashSet::new();
        for index in 0..dice.below(12) {
            let proto = dice.of(&[TCP, UDP]);
            let mut ways = Vec::new();
            let inside = if dice.one_in(3) { frontend::INSIDE_LOCAL } else { 0 };
            let outside = if dice.one_in(2) { frontend::OUTSIDE_LOCAL } else { 0 };
            let mut add = |addr: A, port: u16, flags: u32| {
                let key = ServiceKey { addr, port: port.to_be(), proto, pad: 0 };
                if taken.insert(key) {
                    ways.push(Way { key, flags });
                }
            };
            let cluster = A::nth(Kind::Virtual, dice.small(6) + 1);
            add(cluster, dice.of(&PORTS[..6]), inside);
            if dice.one_in(2) {
                add(
                    A::nth(Kind::External, dice.small(4)),
                    dice.of(&PORTS[..6]),
                    frontend::EXTERNAL | outside,
                );
            }
            if dice.one_in(2) {
                let flags = frontend::EXTERNAL | frontend::NODE_PORT | outside;
                add(A::ANY, dice.of(&PORTS[6..]), flags);
            }
            let size = dice.of(&[0, 1, 1, 2, 4, 5, 16, 17, 40]);
            let mut sets = [Vec::new(), Vec::new()];
            for n in 0..size {
                let local = dice.one_in(3);
                let backend = Backend {
                    addr: A::nth(Kind::Pod, n * 7 + dice.small(7)),
                    port: dice.of(&PORTS[3..6]).to_be(),
                    flags: if local { backend::LOCAL } else { 0 },
                };
                // A terminating local endpoint may be in the local set only.
                if !local || !dice.one_in(4) {
                    sets[Set::Cluster as usize].push(backend);
                }
                if local {
                    sets[Set::Local as usize].push(backend);
                }
            }
            let some = !sets[0].is_empty() || !sets[1].is_empty();
            let port = Port {
                id: first_id + index,
                generation: dice.throw(),
                has_endpoints: some || dice.one_in(3),
                affinity_s: if dice.one_in(3) { dice.of(&[100, 10_800]) } else { 0 },
                sets,
                ways,
            };
            world.stick_some(dice, &port);
            world.ports.push(port);
        }
        world
    }

    fn stick_some(&mut self, dice: &mut Dice, port: &Port<A>) {
        for n in 0..4 {
            let client = if n == 3 { A::ANY } else { A::nth(Kind::Pod, n) };
            let set = &port.sets[dice.below(2) as usize];
            if port.affinity_s == 0 || set.is_empty() || dice.one_in(2) {
                continue;
            }
            // New, of some age, or too old. Ages near the limit are avoided, because the kernel's clock runs.
            let age = dice.of(&[0, 1, port.affinity_s - 50, port.affinity_s + 50]);
            let backend = match dice.below(4) {
                // A backend that no longer exists.
                0 => Backend { addr: A::nth(Kind::Pod, 60_000), port: 1_u16.to_be(), flags: 0 },
                _ => dice.of(set),
            };
            self.stuck.insert((port.id, client), Affinity { backend, seen_s: self.now_s.wrapping_sub(age) });
        }
    }

    /// Generates a client's call.
    pub fn dial(&self, dice: &mut Dice) -> Dial<A> {
        let from = match dice.below(3) {
            0 => ClientLocation::Host,
            1 => ClientLocation::Pod(A::nth(Kind::Pod, dice.small(3))),
            _ => ClientLocation::Outside(A::nth(Kind::Pod, dice.small(3))),
        };
        let ways: Vec<_> = self.ports.iter().flat_map(|port| port.ways.iter().map(|way| way.key)).collect();
        let mut key = if ways.is_empty() || dice.one_in(8) {
            let addr =
                A::nth(dice.of(&[Kind::Virtual, Kind::External, Kind::Elsewhere, Kind::Node]), dice.small(8));
            ServiceKey { addr, port: dice.of(&PORTS).to_be(), proto: dice.of(&[TCP, UDP]), pad: 0 }
        } else {
            dice.of(&ways)
        };
        if key.addr == A::ANY || dice.one_in(16) {
            let node = A::nth(Kind::Node, dice.small(4));
            key.addr = dice.of(&[node, node, node, A::loopback(), A::ANY]);
        }
        if dice.one_in(12) {
            key.port = dice.of(&PORTS).to_be();
        }
        Dial { key, from }
    }

    /// The same world as tables.
    pub fn tables(&self) -> Tables<A> {
        let mut tables = Tables { nodes: self.nodes.iter().copied().collect(), ..Tables::default() };
        tables.now_s.set(self.now_s);
        if self.range {
            tables.ranges[1] = A::range();
        }
        for port in &self.ports {
            let tag = tag(port.id, port.generation);
            let counts = [0, 1].map(|set| u16::try_from(port.sets[set].len()).unwrap_or_default());
            let all: Vec<_> = port.sets.concat();
            let mut value = Service {
                tag,
                id: port.id,
                generation: port.generation,
                affinity_s: port.affinity_s,
                counts,
                ..Service::default()
            };
            if all.len() <= INLINE {
                value.inline[..all.len()].copy_from_slice(&all);
            } else {
                for (set, index, backends) in [0_u32, 1].into_iter().flat_map(|set| {
                    (0..)
                        .zip(port.sets[set as usize].chunks(CHUNK))
                        .map(move |(index, part)| (set, index, part))
                }) {
                    let mut chunk = Chunk {
                        tag,
                        len: u32::try_from(backends.len()).unwrap_or_default(),
                        ..Chunk::default()
                    };
                    chunk.backends[..backends.len()].copy_from_slice(backends);
                    let key = ChunkKey { id: port.id, generation: port.generation, set, index };
                    tables.chunks.insert(key, chunk);
                }
            }
            for way in &port.ways {
                value.frontend = way.flags | if port.has_endpoints { frontend::HAS_ENDPOINTS } else { 0 };
                tables.services.insert(way.key, value);
                if way.flags & frontend::EXTERNAL == 0 {
                    let bare = ServiceKey { port: 0, proto: 0, ..way.key };
                    let value = Service {
                        tag: berth_ebpf_abi::tag(0, 0),
                        frontend: frontend::ADDRESS,
                        ..Service::default()
                    };
                    tables.services.insert(bare, value);
                }
            }
            if port.ways.iter().any(|way| way.key.proto == UDP) {
                let serving = port.sets.iter().flatten().map(|b| (b.addr, b.port));
                let member =
                    |(addr, port_number)| MemberKey { id: port.id, addr, port: port_number, set: SERVING };
                tables.members.extend(serving.map(member));
            }
            if port.affinity_s != 0 {
                for set in 0..2_u16 {
                    tables.members.extend(port.sets[usize::from(set)].iter().map(|b| MemberKey {
                        id: port.id,
                        addr: b.addr,
                        port: b.port,
                        set,
                    }));
                }
            }
        }
        for (&(id, client), &value) in &self.stuck {
            tables.affinity.get_mut().insert(AffinityKey { id, client }, value);
        }
        tables
    }

    /// Allowed verdicts about a client.
    pub fn expected(&self, dial: &Dial<A>) -> Expected<A> {
        use Expected::Exactly;
        let ServiceKey { addr, port, proto, .. } = dial.key;
        let by = |addr: A| {
            let found = self.ports.iter().flat_map(|p| p.ways.iter().map(move |way| (p, way)));
            found
                .filter(|(_, way)| way.key.addr == addr && way.key.port == port && way.key.proto == proto)
                .last()
        };
        let own = addr == A::ANY || addr == A::loopback();
        let known = |way: &&Way<A>| way.flags & frontend::EXTERNAL == 0 && way.key.addr == addr;
        let found = if own {
            // Only at IPv4's loopback, as in kube-proxy.
            if dial.from == ClientLocation::Host && A::LOOPBACK_NODE_PORTS { by(A::ANY) } else { None }
        } else if let Some(found) = by(addr) {
            Some(found)
        } else if self.range && (0..64).any(|n| A::nth(Kind::Virtual, n) == addr) {
            return Exactly(if self.ports.iter().flat_map(|port| &port.ways).any(|way| known(&way)) {
                Verdict::Reject(RejectReason::UnknownPort)
            } else if self.nodes.iter().any(|(node, _)| *node == addr) {
                Verdict::Pass
            } else {
                Verdict::Drop(DropReason::NoSuchService)
            });
        } else if self.nodes.iter().any(|(node, value)| *node == addr && value.node_ports == 1) {
            by(A::ANY)
        } else {
            None
        };
        let Some((port, way)) = found else { return Exactly(Verdict::Pass) };
        let from_outside =
            matches!(dial.from, ClientLocation::Outside(_)) && way.flags & frontend::EXTERNAL != 0;
        let local =
            way.flags & if from_outside { frontend::OUTSIDE_LOCAL } else { frontend::INSIDE_LOCAL } != 0;
        let set = &port.sets[usize::from(local)];
        if set.is_empty() {
            return Exactly(if port.has_endpoints {
                Verdict::Drop(DropReason::Policy)
            } else {
                Verdict::Reject(RejectReason::NoEndpoints)
            });
        }
        if let Some(last) = self.stuck.get(&(port.id, client(dial)))
            && port.affinity_s != 0
            && self.now_s.wrapping_sub(last.seen_s) < port.affinity_s
            && set.iter().any(|b| b.addr == last.backend.addr && b.port == last.backend.port)
        {
            return Expected::Stays(last.backend);
        }
        Expected::OneOf(set.clone())
    }

    /// Records the backend that a client got.
    pub fn selection(&mut self, dial: &Dial<A>, service: u32, backend: Backend<A>) {
        if self.ports.iter().any(|port| port.id == service && port.affinity_s != 0) {
            self.stuck.insert((service, client(dial)), Affinity { backend, seen_s: self.now_s });
        }
    }
}

/// Address of a client in its affinity.
pub fn client<A: Sample>(dial: &Dial<A>) -> A {
    match dial.from {
        ClientLocation::Host => A::ANY,
        ClientLocation::Pod(addr) | ClientLocation::Outside(addr) => addr,
    }
}
