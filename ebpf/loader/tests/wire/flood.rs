//! Floods over devices: UDP and half-open TCP, every packet with a source of its own, while open connections
//! continue and new ones are opened. The clients are outside, and in a pod whose sockets have no hooks. Half
//! of the Services masquerade, the others keep the client's address; both families are covered.
//!
//! `BERTH_FLOOD=1000000` sets the number of packets of each kind and limits every connection to [`LONGEST`],
//! which needs a quiet machine.

use crate::{
    DEADLINE, LOCAL, NODE, Namespace, Net, OUTSIDE, PODS, Place, SINK, TCP, UDP, VIP, Way, node,
    raw::Raw,
    routes::{send_many, take_all},
};
use berth_ebpf_abi::{count, frontend};
use berth_ebpf_decide::flow::{Class, tcp};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Number of UDP and of TCP packets by default: more than the tables of new connections hold.
const DEFAULT: u32 = 50_000;
/// Connections that stay open.
const HELD: usize = 200;
/// Time limit of the long form for a round trip of an open connection, and for a new connection with its
/// answer.
const LONGEST: Duration = Duration::from_secs(1);

/// Port at which a pod echoes.
const ECHO: u16 = 8082;

const fn way(port: u16, flags: u32, backend: u16) -> Way {
    Way { port, node_port: 30_000 + port, flags, backend: Some((PODS[0], backend, LOCAL)) }
}

/// Services with an echoed datagram, a short connection and a long connection, each with and without
/// masquerade.
const WAYS: [Way; 6] = [
    way(80, 0, 8080),
    way(81, frontend::OUTSIDE_LOCAL, 8080),
    way(82, 0, SINK),
    way(83, frontend::OUTSIDE_LOCAL, SINK),
    way(90, 0, ECHO),
    way(91, frontend::OUTSIDE_LOCAL, ECHO),
];

/// Sends all received bytes back.
fn echo(place: IpAddr) {
    let listener = TcpListener::bind((place, ECHO)).unwrap();
    // The threads end with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
            });
        }
    });
}

/// Durations of successful exchanges, or the first failure.
type Times = Result<Vec<Duration>, String>;

/// Exchanges a byte on one connection after the other until the flood is over, and once more.
fn go_on(mut held: Vec<(SocketAddr, TcpStream)>, over: &AtomicBool) -> Times {
    let mut times = Vec::new();
    loop {
        let last = over.load(Ordering::Relaxed);
        for (number, (to, stream)) in (0..=255).cycle().zip(&mut held) {
            let (begun, mut byte) = (Instant::now(), [0]);
            stream
                .write_all(&[number])
                .and_then(|()| stream.read_exact(&mut byte))
                .map_err(|e| format!("an open connection to {to}: {e}"))?;
            assert_eq!(byte, [number], "{to}");
            times.push(begun.elapsed());
        }
        if last {
            return Ok(times);
        }
    }
}

/// Opens one connection after the other until the flood is over, and once more. The client closes first: a
/// server that closes first keeps the other end's port for a minute, and a masqueraded port used again within
/// it would need a second SYN.
fn open(targets: &[SocketAddr], over: &AtomicBool) -> Times {
    let mut times = Vec::new();
    loop {
        let last = over.load(Ordering::Relaxed);
        for to in targets {
            let begun = Instant::now();
            send_many(*to, 1).map_err(|e| format!("a new connection to {to}: {e}"))?;
            times.push(begun.elapsed());
        }
        if last {
            return Ok(times);
        }
    }
}

/// Addresses that a client dials: each Service over each family.
fn targets(at: &[(Place, u16)]) -> Vec<SocketAddr> {
    at.iter().flat_map(|(place, port)| place.both().map(|addr| SocketAddr::new(addr, *port))).collect()
}

/// A source address that no host has, with one of sixteen ports.
fn source(number: u32, v6: bool) -> SocketAddr {
    let port = 10_000 + u16::try_from(number % 16).unwrap();
    let [_, a, b, c] = (number / 16).to_be_bytes();
    let addr = if v6 {
        IpAddr::from([0xfd01, 0, 0, 0, 0, 0, u16::from(a), u16::from_be_bytes([b, c])])
    } else {
        IpAddr::from([198, 18 + a, b, c])
    };
    SocketAddr::new(addr, port)
}

/// Sends both floods. The answers are routed to a blackhole.
fn flood(net: &Net, packets: u32) -> Duration {
    let (via4, via6) = (OUTSIDE.v4(), OUTSIDE.v6());
    net.node.ip(&format!("-4 route add 198.18.0.0/15 via {via4} dev up0 onlink"));
    net.node.ip(&format!("-6 route add fd01::/64 via {via6} dev up0 onlink"));
    net.outside.ip("-4 route add blackhole 198.18.0.0/15");
    net.outside.ip("-6 route add blackhole fd01::/64");
    let begun = Instant::now();
    net.outside.run(move || {
        let raw = Raw::new();
        for number in 0..packets {
            let v6 = number % 2 == 1;
            let kept = u16::try_from(number / 2 % 2).unwrap();
            let to = |port| SocketAddr::new(NODE.both()[usize::from(v6)], port + kept);
            raw.send(UDP, source(number, v6), to(30_080), 0);
            raw.send(TCP, source(number, v6), to(30_082), tcp::SYN);
        }
    });
    begun.elapsed()
}

#[test]
fn floods_end_no_connection_in_use_and_keep_no_new_one_out() {
    let given = std::env::var("BERTH_FLOOD").ok();
    let packets = given.as_ref().map_or(DEFAULT, |packets| packets.parse().unwrap());
    let (_scratch, maps, net) = node(&WAYS);
    for addr in PODS[0].both() {
        net.pods[0].run(move || {
            echo(addr);
            take_all(addr);
        });
    }
    let [_, pod] = &net.pods;
    let mut held = Vec::new();
    for (from, at) in [(&net.outside, [(NODE, 30_090), (NODE, 30_091)]), (pod, [(VIP, 90), (VIP, 91)])] {
        let streams = from.run(move || {
            let all = targets(&at).into_iter().cycle().take(HELD / 2);
            all.map(|to| (to, TcpStream::connect_timeout(&to, DEADLINE).unwrap())).collect::<Vec<_>>()
        });
        held.extend(streams);
    }
    for (_, stream) in &held {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    let over = Arc::new(AtomicBool::new(false));
    // A thread that is started in a namespace stays in it.
    let opening = |from: &Namespace, at: [(Place, u16); 2]| -> JoinHandle<Times> {
        let over = Arc::clone(&over);
        from.run(move || thread::spawn(move || open(&targets(&at), &over)))
    };
    let going_on = {
        let over = Arc::clone(&over);
        thread::spawn(move || go_on(held, &over))
    };
    let clients = [
        ("open connections", going_on),
        ("new ones from outside", opening(&net.outside, [(NODE, 30_082), (NODE, 30_083)])),
        ("new ones of a pod", opening(pod, [(VIP, 82), (VIP, 83)])),
    ];
    let took = flood(&net, packets);
    over.store(true, Ordering::Relaxed);
    println!("{packets} datagrams and {packets} half-open connections in {took:.1?}");
    for (what, client) in clients {
        let mut times = client.join().unwrap().unwrap();
        times.sort_unstable();
        let (all, longest) = (times.len(), times[times.len() - 1]);
        println!(
            "{what}: {all}, p50 {:.2?}, p99 {:.2?}, longest {longest:.2?}",
            times[all / 2],
            times[all * 99 / 100]
        );
        assert!(given.is_none() || longest <= LONGEST, "{what}: {longest:?}");
    }

    let sums = maps.count.sums().unwrap();
    for v6 in [false, true] {
        let counted = |block, class| sums[usize::try_from(count::flow(block, class as u32, v6)).unwrap()];
        for class in [Class::Udp, Class::Unassured, Class::Assured] {
            assert_eq!(counted(count::FLOW_REFUSED, class), 0, "{class:?}");
        }
        for class in [Class::Udp, Class::Unassured] {
            // Each packet of half of the floods makes two entries.
            let entered = counted(count::FLOW_ENTERED, class);
            assert!(entered >= u64::from(packets) * 9 / 10, "{class:?}: only {entered} entries");
        }
    }
}
