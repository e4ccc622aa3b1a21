//! Floods of connections that are never used again: they end no connection in use, and keep no new one out.
//! The default tables are so small that a few thousand connections fill them; `BERTH_FLOOD=1000000` uses a
//! node's tables.

use crate::{
    frame::{Net, frame},
    object,
    support::Scratch,
    world::{CLIENTS, NODES, PODS, Programs, configure, spec},
};
use berth_ebpf_abi::{
    Backend, Flow, LocalPod, NodeAddress, Service, ServiceKey, Tuple, V4, V6, backend, config, count,
    frontend, local_pod, tag,
};
use berth_ebpf_decide::flow::{Class, PacketHook, TCP, UDP, reverse, tcp};
use berth_ebpf_loader::{Access, CounterMap, Datapath, Map, Plain, Sizes, load_sized};

/// `TC_ACT_REDIRECT`.
const REDIRECT: u32 = 7;
/// Connections that stay in use.
const HELD: u32 = 200;

/// Number of connections of the flood, and the sizes of the tables.
fn size() -> (u32, Sizes) {
    match std::env::var("BERTH_FLOOD") {
        Ok(tuples) => (tuples.parse().unwrap(), Sizes::default()),
        Err(_) => {
            let sizes = Sizes { assured: [512; 2], unassured: [256; 2], udp: [256; 2], ..Sizes::default() };
            (3000, sizes)
        }
    }
}

struct Tables<'a, A> {
    service: &'a Map<ServiceKey<A>, Service<A>>,
    node: &'a Map<A, NodeAddress>,
    pod: &'a Map<A, LocalPod>,
    /// Tables of flows, indexed by [`Class`].
    flows: [&'a Map<Tuple<A>, Flow<A>>; 3],
    counters: &'a CounterMap,
}

#[test]
fn floods_end_no_ipv4_connection_in_use() {
    with(|maps, programs, sizes, tuples| {
        let tables = Tables::<V4> {
            service: &maps.service4,
            node: &maps.node4,
            pod: &maps.pod4,
            flows: [&maps.udp4, &maps.unassured4, &maps.assured4],
            counters: &maps.count,
        };
        flood(&tables, programs, [sizes.udp[0], sizes.unassured[0], sizes.assured[0]], tuples);
    });
}

#[test]
fn floods_end_no_ipv6_connection_in_use() {
    with(|maps, programs, sizes, tuples| {
        let tables = Tables::<V6> {
            service: &maps.service6,
            node: &maps.node6,
            pod: &maps.pod6,
            flows: [&maps.udp6, &maps.unassured6, &maps.assured6],
            counters: &maps.count,
        };
        flood(&tables, programs, [sizes.udp[1], sizes.unassured[1], sizes.assured[1]], tuples);
    });
}

fn with(run: impl FnOnce(&Datapath, &Programs, &Sizes, u32)) {
    let (tuples, sizes) = size();
    let scratch = Scratch::new();
    let pins = scratch.pins();
    load_sized(&pins, &object(), &sizes).unwrap();
    let maps = Datapath::open(&pins, Access::Write).unwrap();
    configure(&maps, config::REDIRECT, [20_000, 29_999]);
    run(&maps, &Programs::open(&pins), &sizes, tuples);
}

fn port(proto: u8) -> u16 {
    (30_000 + u16::from(proto)).to_be()
}

fn flood<A: Net + Plain>(tables: &Tables<'_, A>, programs: &Programs, limits: [u32; 3], tuples: u32) {
    let (node, pod) = (A::make(NODES, 1), A::make(PODS, 1));
    for proto in [TCP, UDP] {
        let id = u32::from(proto);
        let one = Backend { addr: pod, port: 8080_u16.to_be(), flags: backend::LOCAL };
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
        (service.inline[0], service.inline[1]) = (one, one);
        tables.service.put(&ServiceKey { addr: A::ANY, port: port(proto), proto, pad: 0 }, &service).unwrap();
    }
    tables.node.put(&node, &NodeAddress { node_ports: 1 }).unwrap();
    tables.pod.put(&pod, &LocalPod { ifindex: 1, flags: local_pod::DIRECT, ..LocalPod::default() }).unwrap();

    let client = |proto, number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        let (src, src_port) = (A::make(CLIENTS, a), u16::from_ne_bytes([b, c]));
        Tuple { src, dst: node, src_port, dst_port: port(proto), proto, pad: [0; 3] }
    };
    let send =
        |hook, tuple, flags| programs.at(hook).run(&frame(&spec(tuple, flags))).unwrap().value == REDIRECT;
    let asks = |tuple, flags| send(PacketHook::Uplink, tuple, flags);
    let answers = |tuple: Tuple<A>, flags| {
        let back = Tuple { src: pod, src_port: 8080_u16.to_be(), ..reverse(&tuple) };
        send(PacketHook::Pod, back, flags)
    };
    let opens = |tuple| {
        asks(tuple, tcp::SYN)
            && answers(tuple, tcp::SYN | tcp::ACK)
            && asks(tuple, tcp::ACK)
            && answers(tuple, tcp::ACK)
    };
    let held: Vec<_> = (0..HELD).map(|number| client(TCP, number)).collect();
    assert!(held.iter().all(|one| opens(*one)));
    for number in HELD..HELD + tuples {
        assert!(asks(client(UDP, number), 0), "{number}");
        assert!(asks(client(TCP, number), tcp::SYN), "{number}");
        // The backend answers half of the UDP sources, and all TCP sources.
        assert!(!number.is_multiple_of(2) || answers(client(UDP, number), 0), "{number}");
        assert!(answers(client(TCP, number), tcp::SYN | tcp::ACK), "{number}");
        if number.is_multiple_of(tuples / 10) {
            let late = client(TCP, 0xff_0000 + number / (tuples / 10));
            assert!(opens(late), "{number}");
            assert!(asks(late, tcp::FIN | tcp::ACK) && answers(late, tcp::FIN | tcp::ACK), "{number}");
        }
    }
    assert!(held.iter().all(|one| asks(*one, tcp::ACK) && answers(*one, tcp::ACK)));

    let sums = tables.counters.sums().unwrap();
    let counted =
        |block, class: Class| sums[usize::try_from(count::flow(block, class as u32, A::ICMP != 1)).unwrap()];
    for class in [Class::Udp, Class::Unassured, Class::Assured] {
        let (flows, limit) = (tables.flows[class as usize], limits[class as usize]);
        let entries = u64::try_from(flows.count().unwrap()).unwrap();
        assert_eq!(
            counted(count::FLOW_ENTERED, class) - counted(count::FLOW_LEFT, class),
            entries,
            "{class:?}"
        );
        assert!(entries <= u64::from(2 * limit), "{class:?}");
        assert_eq!(counted(count::FLOW_REFUSED, class), 0, "{class:?}");
        let evicted = counted(count::FLOW_EVICTED, class);
        println!("{class:?}: {entries} entries of {}, {evicted} evicted", 2 * limit);
        if class != Class::Assured {
            assert!(evicted >= u64::from(tuples.saturating_sub(limit)) * 9 / 10 - 20, "{class:?}: {evicted}");
        }
    }
    assert_eq!(tables.flows[Class::Assured as usize].count().unwrap(), 2 * HELD as usize);
}
