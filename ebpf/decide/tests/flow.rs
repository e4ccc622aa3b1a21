//! Flows in memory: in any order of packets and changes, answers find their way back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

use berth_ebpf_abi::{
    Addr, Backend, Chunk, ChunkKey, Config, INLINE, LocalPod, MemberKey, NodeAddress, Prefix, SERVING,
    Service, ServiceKey, Tuple, V4, backend, config, flow, frontend, local_pod, tag,
};
use berth_ebpf_decide::flow::{
    Class, FlowContext, Forwarding, Packet, PacketHook, PacketVerdict, Part, TCP, UDP, collect,
    decide_packet, memory::Flows, reverse, tcp,
};
use proptest::prelude::*;

const VIP: V4 = addr(96, 1);
const NODE: V4 = addr(3, 1);
const NODE_PORT: u16 = 30_080_u16.to_be();
const PORTS: [u16; 2] = [20_000, 20_031];

const fn addr(net: u8, host: u8) -> V4 {
    u32::from_ne_bytes([10, net, 0, host])
}

fn a_backend(number: u8) -> Backend<V4> {
    match number % 3 {
        0 => Backend { addr: addr(1, number), port: 8080_u16.to_be(), flags: backend::LOCAL },
        1 => Backend { addr: addr(2, number), port: 8080_u16.to_be(), flags: 0 },
        _ => Backend { addr: NODE, port: 9100_u16.to_be(), flags: backend::LOCAL | backend::HOST_NETWORK },
    }
}

/// An event of a history.
#[derive(Debug, Clone)]
enum Event {
    /// A packet of a client: client, port, NodePort or ClusterIP, protocol and flags.
    Client { client: u8, port: u8, node_port: bool, proto: u8, flags: u8 },
    /// The backend of this flow answers.
    Answer { number: usize, flags: u8 },
    /// Seconds pass.
    Pass(u32),
    /// The Service gets these backends.
    Backends(Vec<u8>),
    /// The table evicts an entry.
    Evict(usize),
    /// The agent collects old flows.
    Collect,
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        4 => Just(tcp::ACK),
        3 => Just(tcp::SYN),
        1 => Just(tcp::FIN | tcp::ACK),
        1 => Just(tcp::RST),
    ]
}

fn event(evictions: u32) -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0..4_u8, 0..6_u8, any::<bool>(), prop_oneof![Just(TCP), Just(UDP)], flags()).prop_map(
            |(client, port, node_port, proto, flags)| Event::Client { client, port, node_port, proto, flags }
        ),
        6 => (any::<usize>(), prop_oneof![4 => flags(), 1 => Just(tcp::SYN | tcp::ACK)])
            .prop_map(|(number, flags)| Event::Answer { number, flags }),
        2 => prop_oneof![Just(1), Just(1), Just(15), Just(200), Just(100_000)].prop_map(Event::Pass),
        1 => prop::collection::vec(0..9_u8, 0..8).prop_map(Event::Backends),
        evictions => any::<usize>().prop_map(Event::Evict),
        1 => Just(Event::Collect),
    ]
}

struct Node {
    maps: Flows<V4>,
    generation: u32,
    backends: Vec<Backend<V4>>,
    /// Entries were evicted: their flows are complete again in the next second.
    evicted: bool,
}

impl Node {
    fn new(flags: u32) -> Node {
        let mut maps = Flows::<V4>::default();
        maps.config = Config { flags, masquerade_ports: PORTS, ..Config::default() };
        maps.masquerade = NODE;
        maps.tables.dice.set(1);
        maps.tables.now_s.set(1_000_000);
        maps.tables.ranges[0] = Prefix { net: [addr(96, 0), 0, 0, 0], mask: [addr(255, 0) | 0xff, 0, 0, 0] };
        maps.tables.nodes.insert(NODE, NodeAddress { node_ports: 1 });
        for number in 0..9 {
            let pod =
                LocalPod { ifindex: 10 + u32::from(number), flags: local_pod::DIRECT, ..LocalPod::default() };
            if a_backend(number).flags == backend::LOCAL {
                maps.pods.insert(addr(1, number), pod);
            }
        }
        let mut node = Node { maps, generation: 0, backends: Vec::new(), evicted: false };
        node.publish(&[0, 1, 2]);
        node
    }

    fn publish(&mut self, numbers: &[u8]) {
        let count = (0..).zip(numbers).fold(0, |_, (index, _): (u16, _)| index + 1);
        self.generation += 1;
        self.backends = numbers.iter().map(|number| a_backend(*number)).collect();
        for (id, proto) in [(1, TCP), (2, UDP)] {
            let mut service = Service {
                tag: tag(id, self.generation),
                id,
                generation: self.generation,
                frontend: if numbers.is_empty() { 0 } else { frontend::HAS_ENDPOINTS },
                counts: [count, 0],
                ..Service::default()
            };
            if numbers.len() <= INLINE {
                service.inline[..numbers.len()].copy_from_slice(&self.backends);
            } else {
                let len = u32::from(count);
                let mut chunk = Chunk { tag: service.tag, len, ..Chunk::default() };
                chunk.backends[..numbers.len()].copy_from_slice(&self.backends);
                let key = ChunkKey { id, generation: self.generation, set: 0, index: 0 };
                self.maps.tables.chunks.insert(key, chunk);
            }
            if proto == UDP {
                self.maps.tables.members.clear();
                let member = |b: &Backend<V4>| MemberKey { id, addr: b.addr, port: b.port, set: SERVING };
                self.maps.tables.members.extend(self.backends.iter().map(member));
            }
            let key = ServiceKey { addr: VIP, port: 80_u16.to_be(), proto, pad: 0 };
            self.maps.tables.services.insert(key, service);
            service.frontend |= frontend::EXTERNAL | frontend::NODE_PORT;
            self.maps.tables.services.insert(ServiceKey { addr: V4::ANY, port: NODE_PORT, ..key }, service);
        }
    }

    fn send(&self, hook: PacketHook, tuple: Tuple<V4>, flags: u8) -> (PacketVerdict, Tuple<V4>) {
        let tcp_flags = if tuple.proto == TCP { flags } else { 0 };
        let mut ctx = FlowContext::default();
        ctx.packet = Packet { tuple, tcp_flags, part: Part::Whole, ifindex: 5 };
        let verdict = decide_packet(&self.maps, hook, &mut ctx);
        (verdict, *ctx.to())
    }

    fn forward(&self) -> Vec<Tuple<V4>> {
        let flows = self.maps.flows.borrow();
        let own = flows.iter().filter(|(_, flow)| flow.flags & flow::REPLY == 0);
        let mut keys: Vec<_> = own.map(|((_, key), _)| *key).collect();
        keys.sort_by_key(|key| (key.src, key.src_port, key.dst, key.proto));
        keys
    }

    /// A client dials. Clients 0 and 1 are outside, 2 and 3 are pods (3 is the pod of backend 0).
    fn client(&self, client: u8, port: u8, node_port: bool, proto: u8, flags: u8) {
        let inside = client >= 2;
        let src = match client {
            2 => addr(1, 200),
            3 => addr(1, 0),
            _ => addr(9, client),
        };
        let (dst, dst_port) = if node_port { (NODE, NODE_PORT) } else { (VIP, 80_u16.to_be()) };
        let src_port = (40_000 + u16::from(port)).to_be();
        let tuple = Tuple { src, dst, src_port, dst_port, proto, pad: [0; 3] };
        let before = self.maps.entry(&tuple);
        let (verdict, to) =
            self.send(if inside { PacketHook::Pod } else { PacketHook::Uplink }, tuple, flags);
        let PacketVerdict::Translate(via) = verdict else { return };
        let goes_to = |b: &Backend<V4>| b.addr == to.dst && b.port == to.dst_port;
        let changed = before.is_none_or(|before| before.to != to);
        // A new flow, and a UDP flow once a second, must use a current backend.
        let asked = before.is_none_or(|before| before.seen_s != self.maps.tables.now_s.get());
        if changed || (proto == UDP && asked) || (proto == TCP && flags & tcp::SYN != 0) {
            assert!(self.backends.iter().any(goes_to), "{tuple:?} to {to:?}");
        }
        assert_ne!(to.src, to.dst, "nobody answers himself");
        if via == Forwarding::Neighbour(0) {
            assert_eq!(to.src, NODE, "answers from elsewhere come back here");
        }
        // In any state of the flow an immediate answer carries the address that the client dialled.
        let (answer, shown) = self.send(PacketHook::Pod, reverse(&to), tcp::ACK);
        assert!(matches!(answer, PacketVerdict::Translate(_)), "{tuple:?} to {to:?}: {answer:?}");
        assert_eq!(shown, reverse(&tuple));
    }

    fn check(&self) {
        let flows = self.maps.flows.borrow();
        let forward = self.forward();
        for key in &forward {
            let entry = self.maps.entry(key).unwrap();
            let to = entry.to;
            match self.maps.entry(&reverse(&to)) {
                Some(reply) => {
                    let classes = [Class::of(key.proto, entry.flags), Class::of(key.proto, reply.flags)];
                    assert!(classes[0] == classes[1] || self.evicted, "{key:?} is in two classes");
                    assert!(entry.since_s == reply.since_s || self.evicted, "{entry:?} {reply:?}");
                    // A flow with an evicted entry may lose its key to another flow until its next packet.
                    let own = reply.to == reverse(key) || self.evicted;
                    assert!(own, "{key:?} and another have one key of answers");
                    assert_ne!(reply.flags & flow::REPLY, 0);
                }
                None => assert!(self.evicted, "{key:?} has no way back"),
            }
        }
        assert!(self.evicted || flows.len() == 2 * forward.len(), "an answer's entry without a connection");
    }
}

fn run(flags: u32, events: Vec<Event>) {
    let mut node = Node::new(flags);
    for event in events {
        match event {
            Event::Client { client, port, node_port, proto, flags } => {
                node.client(client, port, node_port, proto, flags);
            }
            Event::Answer { number, flags } => {
                let forward = node.forward();
                if !forward.is_empty() {
                    let key = forward[number % forward.len()];
                    let to = node.maps.entry(&key).unwrap().to;
                    node.send(PacketHook::Pod, reverse(&to), flags);
                }
            }
            Event::Pass(seconds) => {
                let now_s = &node.maps.tables.now_s;
                now_s.set(now_s.get() + seconds);
            }
            Event::Backends(numbers) => node.publish(&numbers),
            Event::Evict(number) => {
                let mut keys: Vec<_> = node.maps.flows.borrow().keys().copied().collect();
                keys.sort_by_key(|(class, key)| {
                    (*class, key.src, key.src_port, key.dst, key.dst_port, key.proto)
                });
                if !keys.is_empty() {
                    node.maps.flows.borrow_mut().remove(&keys[number % keys.len()]);
                    node.evicted = true;
                    // The missing entry is noticed within a second.
                    node.maps.tables.now_s.set(node.maps.tables.now_s.get() + 1);
                }
            }
            Event::Collect => {
                let keys: Vec<_> = node.maps.flows.borrow().keys().map(|(_, key)| *key).collect();
                let mut ctx = FlowContext::default();
                for key in keys {
                    collect(&node.maps, &key, &mut ctx);
                }
            }
        }
        node.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn answers_find_their_way_back(
        direct in any::<bool>(),
        events in prop::collection::vec(event(0), 1..120),
    ) {
        run(if direct { config::REDIRECT } else { 0 }, events);
    }

    #[test]
    fn answers_find_their_way_back_from_a_table_that_forgets(
        events in prop::collection::vec(event(2), 1..120),
    ) {
        run(config::REDIRECT, events);
    }
}

#[test]
fn a_closed_connection_is_forgotten_in_time_and_a_living_one_is_not() {
    let node = Node::new(config::REDIRECT);
    let tuple = Tuple {
        src: addr(9, 1),
        dst: NODE,
        src_port: 40_000_u16.to_be(),
        dst_port: NODE_PORT,
        proto: TCP,
        pad: [0; 3],
    };
    let mut ctx = FlowContext::default();
    let age = |seconds| node.maps.tables.now_s.set(node.maps.tables.now_s.get() + seconds);
    let (_, to) = node.send(PacketHook::Uplink, tuple, tcp::SYN);
    age(60);
    assert!(!collect(&node.maps, &tuple, &mut ctx), "60 s unanswered");
    node.send(PacketHook::Pod, reverse(&to), tcp::SYN | tcp::ACK);
    age(60);
    assert!(!collect(&node.maps, &tuple, &mut ctx), "60 s without the handshake's end");
    node.send(PacketHook::Uplink, tuple, tcp::ACK);
    age(24 * 3600);
    assert!(!collect(&node.maps, &tuple, &mut ctx), "a day without a packet");
    node.send(PacketHook::Uplink, tuple, tcp::FIN | tcp::ACK);
    age(3600);
    assert!(!collect(&node.maps, &tuple, &mut ctx), "half closed");
    node.send(PacketHook::Pod, reverse(&to), tcp::FIN | tcp::ACK);
    age(120);
    assert!(!collect(&node.maps, &reverse(&to), &mut ctx), "closed, 120 s");
    age(1);
    assert!(collect(&node.maps, &reverse(&to), &mut ctx), "closed, 121 s");
    assert_eq!(node.maps.flows.borrow().len(), 0, "both directions");
}

#[test]
fn an_accepted_connection_of_the_stacks_is_not_taken_for_a_closed_one_with_the_same_ports() {
    let both = |node: &Node, tuple: Tuple<V4>, to: Tuple<V4>, flags| {
        node.send(PacketHook::Uplink, tuple, flags);
        node.send(PacketHook::Pod, reverse(&to), flags);
    };
    for (closing, later_s) in
        [(tcp::FIN | tcp::ACK, 0), (tcp::FIN | tcp::ACK, 5), (tcp::RST, 0), (tcp::RST, 5)]
    {
        let node = Node::new(config::REDIRECT);
        let tuple = Tuple {
            src: addr(9, 1),
            dst: NODE,
            src_port: 40_000_u16.to_be(),
            dst_port: NODE_PORT,
            proto: TCP,
            pad: [0; 3],
        };
        let (_, to) = node.send(PacketHook::Uplink, tuple, tcp::SYN);
        let accepted = || node.send(PacketHook::Pod, reverse(&to), tcp::SYN | tcp::ACK);
        // An accepted connection, and one that is accepted again because the client's answer was lost.
        for _ in 0..2 {
            assert_eq!(accepted().1, reverse(&tuple));
            node.maps.tables.now_s.set(node.maps.tables.now_s.get() + 1);
        }
        both(&node, tuple, to, tcp::ACK);
        assert!(matches!(accepted().0, PacketVerdict::Translate(_)), "in use");
        both(&node, tuple, to, closing);
        node.maps.tables.now_s.set(node.maps.tables.now_s.get() + later_s);
        assert_eq!(accepted().0, PacketVerdict::Pass, "{closing} {later_s}");
        assert!(node.maps.flows.borrow().is_empty(), "nothing is left of the closed one");
        // Dialled again through the programs, it is theirs.
        let (_, to) = node.send(PacketHook::Uplink, tuple, tcp::SYN);
        let answer = node.send(PacketHook::Pod, reverse(&to), tcp::SYN | tcp::ACK);
        assert_eq!(answer.1, reverse(&tuple));
    }
}

#[test]
fn what_belongs_to_no_connection_in_progress_is_left_to_the_stack() {
    let node = Node::new(config::REDIRECT);
    let tuple =
        Tuple { src: addr(9, 1), dst: NODE, src_port: 1, dst_port: NODE_PORT, proto: TCP, pad: [0; 3] };
    assert_eq!(node.send(PacketHook::Uplink, tuple, tcp::ACK).0, PacketVerdict::Pass);
    assert_eq!(
        node.send(PacketHook::Uplink, Tuple { dst: addr(7, 7), ..tuple }, tcp::SYN).0,
        PacketVerdict::Pass
    );
    assert_eq!(
        node.send(PacketHook::Uplink, Tuple { dst_port: 1, ..tuple }, tcp::SYN).0,
        PacketVerdict::Pass
    );
}

#[test]
fn an_answer_to_a_socket_of_the_nodes_own_is_no_services() {
    let mut node = Node::new(config::REDIRECT);
    let answer =
        Tuple { src: addr(9, 1), dst: NODE, src_port: 53, dst_port: NODE_PORT, proto: UDP, pad: [0; 3] };
    let of_tcp = Tuple { proto: TCP, ..answer };
    node.maps.sockets.extend([answer, of_tcp]);
    let translated =
        |tuple| matches!(node.send(PacketHook::Uplink, tuple, tcp::SYN).0, PacketVerdict::Translate(_));
    assert_eq!(node.send(PacketHook::Uplink, answer, 0).0, PacketVerdict::Pass);
    assert!(translated(Tuple { src_port: 54, ..answer }), "of another port");
    assert!(translated(of_tcp), "a SYN is no answer");
}

#[test]
fn a_port_that_a_socket_of_the_nodes_own_has_is_not_taken() {
    for spare in [20_000_u16, 20_007, 20_031] {
        let mut node = Node::new(config::REDIRECT);
        node.publish(&[1]);
        let Backend { addr: backend, port, .. } = a_backend(1);
        let towards = |own: u16| Tuple {
            src: backend,
            dst: NODE,
            src_port: port,
            dst_port: own.to_be(),
            proto: TCP,
            pad: [0; 3],
        };
        node.maps.sockets.extend((20_000..=20_031).filter(|own| *own != spare).map(towards));
        let tuple = Tuple {
            src: addr(9, 1),
            dst: NODE,
            src_port: 20_001_u16.to_be(),
            dst_port: NODE_PORT,
            proto: TCP,
            pad: [0; 3],
        };
        let (verdict, to) = node.send(PacketHook::Uplink, tuple, tcp::SYN);
        assert!(matches!(verdict, PacketVerdict::Translate(_)), "{verdict:?}");
        assert_eq!(u16::from_be(to.src_port), spare);
    }
}

#[test]
fn ports_towards_a_backend_are_found_until_nineteen_of_twenty_are_taken() {
    let mut node = Node::new(config::REDIRECT);
    node.maps.config.masquerade_ports = [20_000, 21_999];
    node.publish(&[1]);
    for number in 0..1_900_u16 {
        let tuple = Tuple {
            src: addr(9, 1),
            dst: NODE,
            src_port: (40_000 + number).to_be(),
            dst_port: NODE_PORT,
            proto: TCP,
            pad: [0; 3],
        };
        let (verdict, _) = node.send(PacketHook::Uplink, tuple, tcp::SYN);
        assert!(matches!(verdict, PacketVerdict::Translate(_)), "{number}: {verdict:?}");
    }
}
