//! A flow keeps its backend as long as that serves: through sockets and devices, and for any number of
//! endpoints.
//!
//! `BERTH_FLOWS` sets the number of flows, by default 100,000.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

use berth_ebpf_abi::{
    Addr, Backend, CHUNK, Chunk, ChunkKey, Config, INLINE, MemberKey, NodeAddress, SERVING, Service,
    ServiceKey, Set, Tuple, V4, V6, frontend, tag,
};
use berth_ebpf_decide::{
    ClientLocation, backend_hash,
    flow::{FlowContext, Packet, PacketHook, PacketVerdict, decide_packet, memory::Flows},
    socket::{Sent, Socket},
    testing::{Dice, Kind, Sample, UDP},
};
use std::collections::{BTreeSet, HashMap};

/// A UDP Service port with a virtual address and a node port.
struct Port<A> {
    id: u32,
    generation: u32,
    cluster: Vec<Backend<A>>,
    local: Vec<Backend<A>>,
    /// Backends of both sets, and those that only serve.
    serving: BTreeSet<(A, u16)>,
    affinity_s: u32,
    /// Policies of the virtual address and of the node port.
    policies: [u32; 2],
}

const DIALLED: u16 = 53_u16.to_be();
const TARGET: u16 = 5353_u16.to_be();

struct World<A> {
    dice: Dice,
    maps: Flows<A>,
    ports: Vec<Port<A>>,
}

fn node_port(id: u32) -> u16 {
    u16::try_from(30_000 + id).unwrap().to_be()
}

impl<A: Sample + Ord> World<A> {
    fn new(seed: u64) -> World<A> {
        let mut dice = Dice::new(seed);
        let mut maps = Flows::<A>::default();
        maps.config = Config { masquerade_ports: [1024, 29_999], ..Config::default() };
        maps.masquerade = A::nth(Kind::Node, 0);
        maps.tables.nodes.insert(A::nth(Kind::Node, 0), NodeAddress { node_ports: 1 });
        maps.tables.dice.set(dice.throw() | 1);
        maps.tables.now_s.set(1000);
        let mut world = World { dice, maps, ports: Vec::new() };
        for id in 1..=6 {
            let policies = [frontend::INSIDE_LOCAL, frontend::OUTSIDE_LOCAL];
            let policies = policies.map(|flag| if world.dice.one_in(4) { flag } else { 0 });
            let affinity_s = if world.dice.one_in(4) { 100 } else { 0 };
            let (cluster, local) = (Vec::new(), Vec::new());
            let serving = BTreeSet::new();
            let port = Port { id, generation: 0, cluster, local, serving, affinity_s, policies };
            world.ports.push(port);
            world.change(usize::try_from(id - 1).unwrap(), 3);
        }
        world
    }

    /// Adds and removes endpoints; some removed ones still serve. The order of writes is the reconciler's.
    fn change(&mut self, at: usize, churn: u32) {
        let size = self.dice.of(&[1, 2, 3, 4, 5, 6, 17, 40]);
        let port = &mut self.ports[at];
        let before = std::mem::take(&mut port.serving);
        let mut cluster: Vec<_> = port.cluster.drain(..).filter(|_| !self.dice.one_in(churn)).collect();
        while cluster.len() < size {
            // Services share pods.
            let addr = A::nth(Kind::Pod, u16::try_from(self.dice.below(60)).unwrap());
            if cluster.iter().all(|b| b.addr != addr) {
                cluster.push(Backend { addr, port: TARGET, flags: 0 });
            }
        }
        cluster.truncate(size);
        cluster.sort_by_key(|b| b.addr);
        // A terminating endpoint may be in the local set only.
        port.local = cluster.iter().copied().filter(|_| self.dice.one_in(3)).collect();
        if cluster.len() > 1 && self.dice.one_in(4) {
            let ending = cluster.remove(0);
            port.local.push(ending);
        }
        port.cluster = cluster;
        port.serving = port.cluster.iter().chain(&port.local).map(|b| (b.addr, b.port)).collect();
        let ends = before.into_iter().filter(|_| self.dice.one_in(2));
        port.serving.extend(ends.collect::<Vec<_>>());
        port.generation += 1;
        self.publish(at);
    }

    fn publish(&mut self, at: usize) {
        let port = &self.ports[at];
        let tables = &mut self.maps.tables;
        let (id, generation) = (port.id, port.generation);
        tables.members.retain(|member| member.id != id);
        let member = |(addr, port), set| MemberKey { id, addr, port, set };
        tables.members.extend(port.serving.iter().map(|at| member(*at, SERVING)));
        let sets = [(Set::Cluster, &port.cluster), (Set::Local, &port.local)];
        if port.affinity_s != 0 {
            for (set, backends) in sets {
                tables.members.extend(backends.iter().map(|b| member((b.addr, b.port), set as u16)));
            }
        }
        let counts = sets.map(|(_, set)| u16::try_from(set.len()).unwrap());
        let mut value = Service {
            tag: tag(id, generation),
            id,
            generation,
            affinity_s: port.affinity_s,
            counts,
            ..Service::default()
        };
        let all: Vec<_> = port.cluster.iter().chain(&port.local).copied().collect();
        tables.chunks.retain(|key, _| key.id != id);
        if all.len() <= INLINE {
            value.inline[..all.len()].copy_from_slice(&all);
        } else {
            for (set, backends) in sets {
                for (index, part) in (0..).zip(backends.chunks(CHUNK)) {
                    let len = u32::try_from(part.len()).unwrap();
                    let mut chunk = Chunk { tag: value.tag, len, ..Chunk::default() };
                    chunk.backends[..part.len()].copy_from_slice(part);
                    tables.chunks.insert(ChunkKey { id, generation, set: set as u32, index }, chunk);
                }
            }
        }
        let [inside, outside] = port.policies;
        let key = ServiceKey { addr: A::nth(Kind::Virtual, at_u16(id)), port: DIALLED, proto: UDP, pad: 0 };
        value.frontend = frontend::HAS_ENDPOINTS | inside;
        tables.services.insert(key, value);
        value.frontend = frontend::HAS_ENDPOINTS | frontend::EXTERNAL | frontend::NODE_PORT | outside;
        tables.services.insert(ServiceKey { addr: A::ANY, port: node_port(id), ..key }, value);
    }

    /// A dialled key: the virtual address or the node port.
    fn key(&mut self, id: u32) -> ServiceKey<A> {
        let (addr, port) = if self.dice.one_in(3) {
            (A::nth(Kind::Node, 0), node_port(id))
        } else {
            (A::nth(Kind::Virtual, at_u16(id)), DIALLED)
        };
        ServiceKey { addr, port, proto: UDP, pad: 0 }
    }

    fn client(&mut self) -> ClientLocation<A> {
        let addr = A::nth(Kind::Pod, u16::try_from(1000 + self.dice.below(5)).unwrap());
        match self.dice.below(3) {
            0 => ClientLocation::Host,
            1 => ClientLocation::Pod(addr),
            _ => ClientLocation::Outside(A::of_namespace(u64::from(self.dice.below(9)))),
        }
    }
}

fn at_u16(id: u32) -> u16 {
    u16::try_from(id).unwrap()
}

/// Counts of the flows of one Service port.
#[derive(Default)]
struct Tally {
    sent: u32,
    stayed: u32,
    moved: u32,
    only_serving: u32,
    many: u32,
}

impl<A: Sample + Ord> World<A> {
    /// Checks that a datagram of a flow may go to `to` after `before`.
    fn check(&self, id: u32, before: Option<(A, u16)>, to: (A, u16), tally: &mut Tally, what: &str) {
        let port = &self.ports[usize::try_from(id - 1).unwrap()];
        let in_sets = |at: (A, u16)| port.cluster.iter().chain(&port.local).any(|b| (b.addr, b.port) == at);
        tally.sent += 1;
        tally.many += u32::from(port.cluster.len() + port.local.len() > INLINE);
        match before {
            Some(before) if port.serving.contains(&before) => {
                assert_eq!(to, before, "{what} to Service {id} left a backend that serves");
                tally.stayed += 1;
                tally.only_serving += u32::from(!in_sets(before));
            }
            _ => {
                assert!(in_sets(to), "{what} to Service {id}: nobody is given {to:?}");
                tally.moved += u32::from(before.is_some());
            }
        }
    }

    /// Sockets that send to several addresses, with answers from the dialled address.
    fn sockets(&mut self, flows: u32, tally: &mut Tally) {
        let mut cookie = 1;
        let mut done = 0;
        while done < flows {
            let socket = Socket::new(self.client(), cookie);
            cookie += 1 + u64::from(self.dice.below(3));
            let mut at: HashMap<(A, u16), (A, u16)> = HashMap::new();
            let keys: Vec<_> = (0..1 + self.dice.below(5))
                .map(|_| {
                    let id = 1 + self.dice.below(6);
                    (id, self.key(id))
                })
                .collect();
            for _ in 0..keys.len() * 8 {
                if self.dice.one_in(5) {
                    let at = usize::try_from(self.dice.below(6)).unwrap();
                    self.change(at, 3);
                }
                let (id, key) = self.dice.of(&keys);
                match socket.send(&self.maps, &key) {
                    Sent::To(addr, port) => {
                        let before = at.insert((key.addr, key.port), (addr, port));
                        done += u32::from(before.is_none());
                        self.check(id, before, (addr, port), tally, "a socket");
                        assert_eq!(socket.shown(addr, port), (key.addr, key.port), "whom it dialled last");
                    }
                    // The policy leaves no backend, so the flow's backend, if any, is gone for now. Once it
                    // returns, the flow continues with it.
                    Sent::AsItIs | Sent::Failed(_) => {
                        let before = at.get(&(key.addr, key.port));
                        let serving = &self.ports[usize::try_from(id - 1).unwrap()].serving;
                        assert!(before.is_none_or(|before| !serving.contains(before)));
                    }
                }
            }
        }
    }

    /// Packets of outside clients and of pods without socket hooks; a second passes after each change.
    fn packets(&mut self, flows: u32, tally: &mut Tally) {
        let mut number = 0_u32;
        let mut done = 0;
        while done < flows {
            let mut at: HashMap<Tuple<A>, (A, u16)> = HashMap::new();
            let tuples: Vec<_> = (0..20)
                .map(|_| {
                    number += 1;
                    let id = 1 + self.dice.below(6);
                    let key = self.key(id);
                    let hook = if self.dice.one_in(2) { PacketHook::Pod } else { PacketHook::Uplink };
                    let kind = if hook == PacketHook::Pod { Kind::Pod } else { Kind::Elsewhere };
                    let src = A::nth(kind, u16::try_from(1000 + number % 50_000).unwrap());
                    let src_port = u16::try_from(1024 + number / 50_000).unwrap().to_be();
                    let tuple =
                        Tuple { src, dst: key.addr, src_port, dst_port: key.port, proto: UDP, pad: [0; 3] };
                    (id, hook, tuple)
                })
                .collect();
            for _ in 0..160 {
                if self.dice.one_in(8) {
                    let at = usize::try_from(self.dice.below(6)).unwrap();
                    self.change(at, 3);
                    let now_s = &self.maps.tables.now_s;
                    now_s.set(now_s.get() + 1);
                }
                let (id, hook, tuple) = self.dice.of(&tuples);
                let mut ctx = FlowContext::default();
                ctx.packet = Packet { tuple, ifindex: 5, ..Packet::default() };
                let before = at.get(&tuple).copied();
                match decide_packet(&self.maps, hook, &mut ctx) {
                    PacketVerdict::Translate(_) => {
                        let to = (ctx.to().dst, ctx.to().dst_port);
                        at.insert(tuple, to);
                        done += u32::from(before.is_none());
                        self.check(id, before, to, tally, "a packet");
                    }
                    PacketVerdict::Drop(_) | PacketVerdict::Reject => {
                        at.remove(&tuple);
                        let serving = &self.ports[usize::try_from(id - 1).unwrap()].serving;
                        assert!(before.is_none_or(|before| !serving.contains(&before)));
                    }
                    other => panic!("{other:?}"),
                }
            }
            self.maps.flows.borrow_mut().clear();
        }
    }
}

fn flows() -> u32 {
    std::env::var("BERTH_FLOWS").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000)
}

/// Runs a quarter of all flows.
fn stay<A: Sample + Ord>(seed: u64, run: fn(&mut World<A>, u32, &mut Tally)) {
    let (all, mut done, mut tally) = (flows() / 4, 0, Tally::default());
    while done < all {
        let part = (all - done).min(2_000);
        run(&mut World::new(seed + u64::from(done)), part, &mut tally);
        done += part;
    }
    let Tally { sent, stayed, moved, only_serving, many } = tally;
    println!(
        "{done} flows: {sent} datagrams, {stayed} stayed, {only_serving} of them with one that only serves, {moved} moved, {many} by chunks"
    );
    assert!(stayed > sent / 4 && moved > sent / 100 && only_serving > sent / 100 && many > sent / 10);
}

#[test]
fn sockets_of_ipv4_stay() {
    stay::<V4>(1, World::sockets);
}

#[test]
fn sockets_of_ipv6_stay() {
    stay::<V6>(2, World::sockets);
}

#[test]
fn packets_of_ipv4_stay() {
    stay::<V4>(3, World::packets);
}

#[test]
fn packets_of_ipv6_stay() {
    stay::<V6>(4, World::packets);
}

#[test]
fn a_socket_that_has_forgotten_comes_to_the_same_backend_while_the_set_stands() {
    let mut world = World::<V4>::new(9);
    for cookie in 1..2000 {
        let key = ServiceKey { addr: V4::nth(Kind::Virtual, 1), port: DIALLED, proto: UDP, pad: 0 };
        let from = world.client();
        let [first, second] = [0, 1].map(|_| Socket::new(from, cookie).send(&world.maps, &key));
        assert!(matches!(first, Sent::To(..)) || first == second, "{first:?}");
        if world.ports[0].affinity_s == 0 {
            assert_eq!(first, second);
        }
    }
    assert_ne!(V4::ANY, V4::nth(Kind::Virtual, 1));
}

#[test]
fn sockets_are_spread_evenly_whatever_their_cookies_are() {
    for stride in [1, 2, 3, 21, 34, 55, 89, 4096, 1 << 32] {
        for backends in [2_u64, 3, 7, 40] {
            let mut hits = vec![0_u32; usize::try_from(backends).unwrap()];
            for n in 0..20_000 {
                let at = (u64::from(backend_hash(n * stride, 7)) * backends) >> 32;
                hits[usize::try_from(at).unwrap()] += 1;
            }
            let fair = 20_000 / u32::try_from(backends).unwrap();
            let even = hits.iter().all(|hits| hits.abs_diff(fair) < fair / 5);
            assert!(even, "stride {stride}, {backends} backends: {hits:?}");
        }
    }
}
