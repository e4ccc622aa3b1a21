//! Classes of flows: a flow in use is never evicted, and a flow that has just begun is not the next to go.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

use berth_ebpf_abi::{
    Addr, Backend, Config, Flow, NodeAddress, Service, ServiceKey, Tuple, V4, backend, config, count, flow,
    frontend, tag,
};
use berth_ebpf_decide::flow::{
    Class, Dropped, FlowContext, Packet, PacketHook, PacketVerdict, Part, TCP, UDP, collect, decide_packet,
    memory::Flows, reverse, tcp,
};
use std::collections::BTreeMap;

const NODE: V4 = addr(3, 1);
const POD: V4 = addr(1, 7);
const PORT: u16 = 30_080_u16.to_be();

const fn addr(net: u8, host: u8) -> V4 {
    u32::from_ne_bytes([10, net, 0, host])
}

/// A node with a TCP and a UDP node port, whose traffic policy keeps the clients' addresses.
struct Node(Flows<V4>);

impl Node {
    /// A node whose classes hold this many flows.
    fn new(udp: usize, unassured: usize, assured: usize) -> Node {
        let mut maps = Flows::<V4>::default();
        maps.config =
            Config { flags: config::REDIRECT, masquerade_ports: [1024, 29_999], ..Config::default() };
        maps.masquerade = NODE;
        maps.tables.dice.set(1);
        maps.tables.now_s.set(1_000_000);
        maps.tables.nodes.insert(NODE, NodeAddress { node_ports: 1 });
        maps.limits = BTreeMap::from([
            (Class::Udp, (2 * udp, udp)),
            (Class::Unassured, (2 * unassured, unassured)),
            (Class::Assured, (2 * assured, 0)),
        ]);
        for (id, proto) in [(1, TCP), (2, UDP)] {
            let mut service = Service {
                tag: tag(id, 1),
                id,
                generation: 1,
                frontend: frontend::HAS_ENDPOINTS
                    | frontend::EXTERNAL
                    | frontend::NODE_PORT
                    | frontend::OUTSIDE_LOCAL,
                counts: [1, 1],
                ..Service::default()
            };
            service.inline[0] = Backend { addr: POD, port: 8080_u16.to_be(), flags: backend::LOCAL };
            service.inline[1] = service.inline[0];
            maps.tables.services.insert(ServiceKey { addr: V4::ANY, port: PORT, proto, pad: 0 }, service);
        }
        Node(maps)
    }

    fn pass(&self, seconds: u32) {
        let now_s = &self.0.tables.now_s;
        now_s.set(now_s.get() + seconds);
    }

    /// Sends a packet; returns the verdict and the translated tuple.
    fn send(&self, hook: PacketHook, tuple: Tuple<V4>, tcp_flags: u8) -> (PacketVerdict, Tuple<V4>) {
        let mut ctx = FlowContext::default();
        ctx.packet = Packet { tuple, tcp_flags, part: Part::Whole, ifindex: 5 };
        let verdict = decide_packet(&self.0, hook, &mut ctx);
        (verdict, *ctx.to())
    }

    fn client(&self, tuple: Tuple<V4>, flags: u8) -> bool {
        matches!(self.send(PacketHook::Uplink, tuple, flags).0, PacketVerdict::Translate(_))
    }

    /// Whether the backend's answer carries the address that the client dialled.
    fn answer(&self, tuple: Tuple<V4>, flags: u8) -> bool {
        let back =
            Tuple { src: POD, dst: tuple.src, src_port: 8080_u16.to_be(), dst_port: tuple.src_port, ..tuple };
        let (verdict, to) = self.send(PacketHook::Pod, back, flags);
        matches!(verdict, PacketVerdict::Translate(_)) && to == reverse(&tuple)
    }

    fn handshake(&self, tuple: Tuple<V4>) -> bool {
        self.client(tuple, tcp::SYN)
            && self.answer(tuple, tcp::SYN | tcp::ACK)
            && self.client(tuple, tcp::ACK)
    }

    fn datagram(&self, tuple: Tuple<V4>) -> bool {
        self.client(tuple, 0) && self.answer(tuple, 0)
    }

    fn connections(&self, class: Class) -> usize {
        assert_eq!(self.0.len(class) % 2, 0, "half a connection in {class:?}");
        self.0.len(class) / 2
    }

    fn counted(&self, block: u32, class: Class) -> u64 {
        self.0.counters.borrow().get(&(block, class)).copied().unwrap_or_default()
    }
}

/// The client with this number.
fn tuple(proto: u8, number: u32) -> Tuple<V4> {
    let [a, b, c, d] = number.to_be_bytes();
    let src = u32::from_ne_bytes([20, a, b, 1]);
    Tuple { src, dst: NODE, src_port: u16::from_ne_bytes([c, d]), dst_port: PORT, proto, pad: [0; 3] }
}

#[test]
fn floods_end_nothing_that_is_in_use_and_keep_nobody_out() {
    let node = Node::new(64, 64, 64);
    let held: Vec<_> = (0..40).map(|number| tuple(TCP, number)).collect();
    assert!(held.iter().all(|one| node.handshake(*one)));
    for number in 1000..21_000 {
        // Datagrams, answered or not; and forged SYNs that the backend answers.
        assert!(node.client(tuple(UDP, number), 0));
        assert!(number % 3 == 0 || node.answer(tuple(UDP, number), 0));
        assert!(node.client(tuple(TCP, number), tcp::SYN));
        assert!(number % 3 == 0 || node.answer(tuple(TCP, number), tcp::SYN | tcp::ACK));
        if number.is_multiple_of(1000) {
            node.pass(1);
            // A new client during the flood.
            assert!(node.handshake(tuple(TCP, 900)), "{number}");
            assert!(
                node.client(tuple(TCP, 900), tcp::ACK | tcp::FIN) && node.answer(tuple(TCP, 900), tcp::FIN)
            );
            assert!(node.datagram(tuple(UDP, 900)), "{number}");
        }
    }
    assert!(held.iter().all(|one| node.client(*one, tcp::ACK) && node.answer(*one, tcp::ACK)));
    for class in [Class::Udp, Class::Unassured] {
        assert!(node.connections(class) <= 64, "{class:?}");
        assert!(node.counted(count::FLOW_EVICTED, class) > 19_000, "{class:?}");
        assert_eq!(node.counted(count::FLOW_REFUSED, class), 0, "{class:?}");
    }
    assert_eq!(node.connections(Class::Assured), 40);
}

/// In a class full of flows in use a new connection is refused, or its answer passes.
#[test]
fn what_just_began_is_never_the_next_to_go() {
    let node = Node::new(32, 32, 32);
    for round in 0..6 {
        for number in 0..32 {
            assert!(node.datagram(tuple(UDP, number)), "{round} {number}");
        }
        node.pass(1);
    }
    assert!((0..32).all(|number| node.0.entry(&tuple(UDP, number)).unwrap().flags & flow::ASSURED != 0));
    let (mut refused, mut let_in) = (0, 0);
    for number in 100..400 {
        match node.send(PacketHook::Uplink, tuple(UDP, number), 0).0 {
            PacketVerdict::Translate(_) => {
                let_in += 1;
                assert!(node.answer(tuple(UDP, number), 0), "{number}");
            }
            PacketVerdict::Drop(Dropped::Full) => refused += 1,
            other => panic!("{other:?}"),
        }
        // The streams in use stay in use.
        assert!(node.datagram(tuple(UDP, number % 32)));
    }
    assert_eq!((refused, let_in), (300, 0), "32 streams fill 32 places");
    assert_eq!(node.counted(count::FLOW_REFUSED, Class::Udp), 300);
    assert_eq!(node.counted(count::FLOW_EVICTED, Class::Udp), 0);
    // A stream can be evicted two minutes after its last packet.
    node.pass(121);
    assert!((500..600).all(|number| node.datagram(tuple(UDP, number))));
}

#[test]
fn a_full_class_of_connections_in_use_refuses_and_others_go_on() {
    let node = Node::new(16, 16, 16);
    assert!((0..16).all(|number| node.handshake(tuple(TCP, number))));
    let late = tuple(TCP, 20);
    assert!(node.client(late, tcp::SYN) && node.answer(late, tcp::SYN | tcp::ACK));
    // The packet is left to the stack, which knows no such connection and resets it.
    assert_eq!(node.send(PacketHook::Uplink, late, tcp::ACK).0, PacketVerdict::Pass);
    assert_eq!(node.0.entry(&late), None);
    assert_eq!(node.counted(count::FLOW_REFUSED, Class::Assured), 1);
    assert!(node.datagram(tuple(UDP, 1)));
    assert!((0..16).all(|number| node.client(tuple(TCP, number), tcp::ACK)));
    // A closed connection frees a place.
    assert!(node.client(tuple(TCP, 3), tcp::ACK | tcp::FIN));
    assert_eq!(node.connections(Class::Assured), 16, "half closed is in use");
    assert!(node.answer(tuple(TCP, 3), tcp::ACK | tcp::FIN));
    assert_eq!((node.connections(Class::Assured), node.connections(Class::Unassured)), (15, 1));
    assert!(node.client(tuple(TCP, 3), tcp::ACK) && node.answer(tuple(TCP, 3), tcp::ACK), "its last words");
    assert!(node.handshake(tuple(TCP, 21)));
    // So does a reset. A connection that continues after a reset is in use again.
    assert!(node.answer(tuple(TCP, 5), tcp::RST));
    assert_eq!(node.connections(Class::Assured), 15);
    assert!(node.answer(tuple(TCP, 5), tcp::ACK) && node.client(tuple(TCP, 5), tcp::ACK));
    assert_eq!(node.connections(Class::Assured), 16);
}

#[test]
fn an_answer_to_a_forged_syn_assures_nothing() {
    let node = Node::new(8, 8, 8);
    let forged = tuple(TCP, 1);
    assert!(node.client(forged, tcp::SYN) && node.answer(forged, tcp::SYN | tcp::ACK));
    assert!(node.client(forged, tcp::SYN) && node.answer(forged, tcp::SYN | tcp::ACK));
    assert_eq!((node.connections(Class::Assured), node.connections(Class::Unassured)), (0, 1));
    assert!(node.answer(forged, tcp::RST | tcp::ACK) && node.client(forged, tcp::ACK));
    assert_eq!(node.connections(Class::Assured), 0, "it was reset");
}

#[test]
fn udp_lives_as_long_as_in_nf_conntrack() {
    let gone_after = |prepare: &dyn Fn(&Node)| {
        let node = Node::new(8, 8, 8);
        prepare(&node);
        let mut seconds = 0;
        while !collect(&node.0, &tuple(UDP, 1), &mut FlowContext::default()) {
            node.pass(1);
            seconds += 1;
        }
        assert_eq!(node.connections(Class::Udp), 0);
        seconds
    };
    let one = tuple(UDP, 1);
    assert_eq!(gone_after(&|node| assert!(node.client(one, 0))), 31, "unanswered");
    assert_eq!(gone_after(&|node| assert!(node.datagram(one))), 31, "a question and its answer");
    let short = |node: &Node| {
        assert!(node.datagram(one));
        node.pass(2);
        assert!(node.datagram(one));
    };
    assert_eq!(gone_after(&short), 31, "two seconds");
    let stream = |node: &Node| {
        assert!(node.datagram(one));
        node.pass(3);
        assert!(node.datagram(one));
    };
    assert_eq!(gone_after(&stream), 121, "a stream");
    let one_way = |node: &Node| {
        assert!(node.client(one, 0));
        node.pass(20);
        assert!(node.client(one, 0));
    };
    assert_eq!(gone_after(&one_way), 31, "never answered");
    let told = |node: &Node| {
        assert!(node.datagram(one));
        node.pass(3);
        assert!(node.answer(one, 0));
    };
    assert_eq!(gone_after(&told), 121, "the server goes on");
}

/// No flow shares the key of its answers with a flow in use, also not across tables.
#[test]
fn no_two_connections_share_the_answers_key() {
    let mut node = Node::new(8, 8, 8);
    for service in node.0.tables.services.values_mut() {
        service.frontend &= !frontend::OUTSIDE_LOCAL;
    }
    node.0.config.masquerade_ports = [20_000, 20_001];
    let dial = |node: &Node, number: u32| {
        let (verdict, to) = node.send(PacketHook::Uplink, tuple(TCP, number), tcp::SYN);
        let back = reverse(&to);
        if matches!(verdict, PacketVerdict::Translate(_)) {
            node.send(PacketHook::Pod, back, tcp::SYN | tcp::ACK);
            node.send(PacketHook::Uplink, tuple(TCP, number), tcp::ACK);
        }
        (verdict, back)
    };
    let (one, other) = (dial(&node, 1).1, dial(&node, 2).1);
    assert_ne!(one, other);
    assert_eq!(node.connections(Class::Assured), 2);
    assert_eq!(dial(&node, 3).0, PacketVerdict::Drop(Dropped::Ports));
    for (back, number) in [(one, 1), (other, 2)] {
        let (_, shown) = node.send(PacketHook::Pod, back, tcp::ACK);
        assert_eq!(shown, reverse(&tuple(TCP, number)));
    }
    assert_eq!(node.connections(Class::Unassured), 0);
}

#[test]
fn a_place_is_worth_nothing_to_a_later_connection() {
    let node = Node::new(8, 4, 8);
    // The client's reopened connection has a place of its own among the others.
    assert!(node.client(tuple(TCP, 1), tcp::SYN));
    let flow: Flow<V4> = node.0.entry(&tuple(TCP, 1)).unwrap();
    assert!(node.answer(tuple(TCP, 1), tcp::RST | tcp::ACK));
    node.pass(12);
    assert!(collect(&node.0, &tuple(TCP, 1), &mut FlowContext::default()));
    assert!((2..5).all(|number| node.client(tuple(TCP, number), tcp::SYN)));
    assert!(node.client(tuple(TCP, 1), tcp::SYN));
    assert_ne!(node.0.entry(&tuple(TCP, 1)).unwrap().since_s, flow.since_s);
    for number in 10..12 {
        assert!(node.client(tuple(TCP, number), tcp::SYN));
        assert!(node.answer(tuple(TCP, 1), tcp::SYN | tcp::ACK), "{number}");
    }
}
