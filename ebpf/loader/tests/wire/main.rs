//! The packet programs between namespaces: outside, node, two pods and another node's pod, over TCP and UDP,
//! IPv4 and IPv6. Each answer holds the client's address as the server saw it, and the client accepts answers
//! from the dialled address only.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

#[path = "../support/mod.rs"]
mod support;

mod flood;
#[path = "../packets/frame.rs"]
#[expect(dead_code, reason = "the test of packets uses the rest")]
mod frame;
mod namespace;
mod raw;
mod routes;

use berth_ebpf_abi::{
    Backend, Config, LocalPod, NodeAddress, PodDevice, Prefix, Service, ServiceKey, backend, config,
    frontend, local_pod, tag,
};
use berth_ebpf_loader::{Access, Datapath, DeviceRole, Map, OBJECT, Pins, Plain, attach_device, load};
use namespace::Namespace;
use nix::net::if_::if_nametoindex;
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

/// Time limit of one exchange.
const DEADLINE: Duration = Duration::from_secs(5);
/// Port of a server that counts the bytes it receives.
const SINK: u16 = 8081;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Addresses of a place in both families.
#[derive(Clone, Copy)]
struct Place {
    v4: [u8; 4],
    v6: u16,
}

impl Place {
    fn v4(self) -> IpAddr {
        IpAddr::from(self.v4)
    }

    fn v6(self) -> IpAddr {
        IpAddr::from([0xfd00, 0, 0, self.v6, 0, 0, 0, 1])
    }

    fn both(self) -> [IpAddr; 2] {
        [self.v4(), self.v6()]
    }
}

const NODE: Place = Place { v4: [192, 0, 2, 1], v6: 1 };
const OUTSIDE: Place = Place { v4: [192, 0, 2, 9], v6: 9 };
const OTHER: Place = Place { v4: [10, 2, 0, 1], v6: 0x21 };
const PODS: [Place; 2] = [Place { v4: [10, 1, 0, 1], v6: 0x11 }, Place { v4: [10, 1, 0, 2], v6: 0x12 }];
const VIP: Place = Place { v4: [10, 96, 0, 1], v6: 0x96 };

fn words4(addr: [u8; 4]) -> u32 {
    u32::from_ne_bytes(addr)
}

fn words6(place: u16) -> [u32; 4] {
    let IpAddr::V6(addr) = (Place { v4: [0; 4], v6: place }).v6() else { unreachable!() };
    let bytes = addr.octets();
    std::array::from_fn(|i| {
        u32::from_ne_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    })
}

/// A Service port of the test.
struct Way {
    /// Port at [`VIP`].
    port: u16,
    node_port: u16,
    flags: u32,
    backend: Option<(Place, u16, u16)>,
}

const LOCAL: u16 = backend::LOCAL;
const WAYS: [Way; 7] = [
    Way { port: 80, node_port: 30080, flags: 0, backend: Some((PODS[0], 8080, LOCAL)) },
    Way { port: 81, node_port: 30081, flags: frontend::OUTSIDE_LOCAL, backend: Some((PODS[0], 8080, LOCAL)) },
    Way { port: 82, node_port: 30082, flags: 0, backend: None },
    Way { port: 83, node_port: 30083, flags: 0, backend: Some((NODE, 9100, LOCAL | backend::HOST_NETWORK)) },
    Way { port: 84, node_port: 30084, flags: 0, backend: Some((OTHER, 8080, 0)) },
    // A backend at the node's address, from an EndpointSlice without a node name.
    Way { port: 85, node_port: 30085, flags: 0, backend: Some((NODE, 9100, backend::HOST_NETWORK)) },
    Way { port: 86, node_port: 30086, flags: 0, backend: Some((OTHER, SINK, 0)) },
];

fn publish<A: berth_ebpf_abi::Addr + Plain>(
    map: &Map<ServiceKey<A>, Service<A>>,
    ways: &[Way],
    addr: impl Fn(Place) -> A,
) {
    for (id, way) in (1..).zip(ways) {
        for proto in [TCP, UDP] {
            let id = id * 2 + u32::from(proto == UDP);
            let mut service = Service { tag: tag(id, 1), id, generation: 1, ..Service::default() };
            if let Some((place, port, flags)) = way.backend {
                service.inline[0] = Backend { addr: addr(place), port: port.to_be(), flags };
                let here = u16::from(flags & LOCAL != 0);
                service.inline[1] = service.inline[0];
                service.counts = [1, here];
                service.frontend = frontend::HAS_ENDPOINTS;
            }
            let key = ServiceKey { addr: addr(VIP), port: way.port.to_be(), proto, pad: 0 };
            map.put(&key, &service).unwrap();
            service.frontend |= way.flags | frontend::EXTERNAL | frontend::NODE_PORT;
            let key = ServiceKey { addr: A::ANY, port: way.node_port.to_be(), proto, pad: 0 };
            map.put(&key, &service).unwrap();
        }
    }
    let bare =
        Service { tag: tag(99, 1), id: 99, generation: 1, frontend: frontend::ADDRESS, ..Service::default() };
    map.put(&ServiceKey { addr: addr(VIP), port: 0, proto: 0, pad: 0 }, &bare).unwrap();
}

fn configure(maps: &Datapath, flags: u32) {
    let mut config = Config {
        flags,
        masquerade_ports: [1_024, 29_999],
        masquerade4: words4(NODE.v4),
        masquerade6: words6(NODE.v6),
        ..Config::default()
    };
    config.service4[0] =
        Prefix { net: [words4([10, 96, 0, 0]), 0, 0, 0], mask: [words4([255, 255, 0, 0]), 0, 0, 0] };
    let [a, b, ..] = words6(VIP.v6);
    config.service6[0] = Prefix { net: [a, b, 0, 0], mask: [u32::MAX, u32::MAX, 0, 0] };
    maps.config.put(&0, &config).unwrap();
}

/// Answers every client with the client's address.
fn serve(place: IpAddr, port: u16) {
    let tcp = TcpListener::bind((place, port)).unwrap();
    let udp = UdpSocket::bind((place, port)).unwrap();
    // The threads end with the test's process.
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_string();
            // The client may be gone.
            let _sent = stream.write_all(peer.as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut request = [0; 4096];
        loop {
            let (_, peer) = udp.recv_from(&mut request).unwrap();
            let _sent = udp.send_to(peer.ip().to_string().as_bytes(), peer);
        }
    });
}

fn ask_tcp(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A `size` above a device's MTU fragments the request.
fn ask_udp(to: SocketAddr, size: usize) -> std::io::Result<String> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    // A connected socket accepts answers from the dialled address only.
    socket.connect(to)?;
    socket.send(&vec![7; size])?;
    let mut answer = [0; 64];
    let len = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
}

struct Net {
    node: Namespace,
    outside: Namespace,
    other: Namespace,
    pods: [Namespace; 2],
}

const OURS: &str = "02:00:00:00:00:";

fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

impl Net {
    fn new() -> Net {
        let net = Net {
            node: Namespace::new(),
            outside: Namespace::new(),
            other: Namespace::new(),
            pods: [Namespace::new(), Namespace::new()],
        };
        let ends = [
            ("up0", &net.outside, OUTSIDE),
            ("up1", &net.other, OTHER),
            ("pod0", &net.pods[0], PODS[0]),
            ("pod1", &net.pods[1], PODS[1]),
        ];
        for (number, (name, far, place)) in (1_u8..).zip(ends) {
            let macs = (format!("{OURS}{:02x}", 2 * number), format!("{OURS}{:02x}", 2 * number + 1));
            net.node.connect(far, name, (&macs.0, &macs.1));
            for (family, addr, gateway, len) in
                [("-4", place.v4(), "169.254.1.1", 32), ("-6", place.v6(), "fe80::1", 128)]
            {
                // Without `nodad` the kernel withholds the address until its worker has run the detection of
                // duplicates.
                let dad = if family == "-6" { " nodad" } else { "" };
                far.ip(&format!("{family} addr add {addr}/{len} dev eth0{dad}"));
                far.ip(&format!("{family} neigh add {gateway} lladdr {} dev eth0 nud permanent", macs.0));
                far.ip(&format!("{family} route add {gateway} dev eth0"));
                far.ip(&format!("{family} route add default via {gateway} dev eth0"));
                net.node.ip(&format!("{family} route add {addr} dev {name}"));
                net.node.ip(&format!("{family} neigh add {addr} lladdr {} dev {name} nud permanent", macs.1));
            }
        }
        net.node.ip(&format!("-4 addr add {}/32 dev up0", NODE.v4()));
        net.node.ip(&format!("-6 addr add {}/128 dev up0 nodad", NODE.v6()));
        for (place, namespace, port) in [
            (PODS[0], &net.pods[0], 8080),
            (PODS[1], &net.pods[1], 8080),
            (OTHER, &net.other, 8080),
            (NODE, &net.node, 9100),
            (OUTSIDE, &net.outside, 7777),
        ] {
            for addr in place.both() {
                namespace.run(move || serve(addr, port));
            }
        }
        for addr in OTHER.both() {
            net.other.run(move || routes::take_all(addr));
        }
        net
    }

    fn attach(&self, pins: &Pins, maps: &Datapath) {
        let index = |name: &'static str| self.node.run(move || if_nametoindex(name).unwrap());
        for (name, role) in [
            ("up0", DeviceRole::Uplink),
            ("up1", DeviceRole::Uplink),
            ("pod0", DeviceRole::Pod),
            ("pod1", DeviceRole::Pod),
        ] {
            let (ifindex, pins) = (index(name), pins.clone());
            self.node.run(move || attach_device(&pins, ifindex, role).unwrap());
        }
        for (number, name, place) in [(3, "pod0", PODS[0]), (4, "pod1", PODS[1])] {
            let pod = LocalPod {
                ifindex: index(name),
                flags: local_pod::DIRECT | local_pod::OWN_SOURCE,
                mac: mac(2 * number + 1),
                host_mac: mac(2 * number),
            };
            maps.pod4.put(&words4(place.v4), &pod).unwrap();
            maps.pod6.put(&words6(place.v6), &pod).unwrap();
            let device = PodDevice { v4: words4(place.v4), v6: words6(place.v6), flags: pod.flags };
            maps.pod_device.put(&pod.ifindex, &device).unwrap();
        }
        let node = NodeAddress { node_ports: 1 };
        maps.node4.put(&words4(NODE.v4), &node).unwrap();
        maps.node6.put(&words6(NODE.v6), &node).unwrap();
    }
}

/// Asks `to` over TCP and UDP, and requires that the server saw the address `seen`.
#[track_caller]
fn sees(from: &Namespace, to: Place, port: u16, seen: Place) {
    for (to, seen) in to.both().into_iter().zip(seen.both()) {
        let to = SocketAddr::new(to, port);
        let answer = from.run(move || ask_tcp(to)).unwrap_or_else(|e| panic!("tcp to {to}: {e}"));
        assert_eq!(answer, seen.to_string(), "tcp to {to}");
        for size in [1, 3000] {
            let answer =
                from.run(move || ask_udp(to, size)).unwrap_or_else(|e| panic!("{size} by udp to {to}: {e}"));
            assert_eq!(answer, seen.to_string(), "{size} by udp to {to}");
        }
    }
}

/// Requires that both protocols are refused. TCP over IPv6 takes a second here, and so it does with nftables'
/// `reject` in place of these programs. A veth pair delivers at once, so the ICMP error arrives while
/// connect() holds the client's socket, and the kernel drops the error (`LockDroppedIcmps` in
/// `/proc/net/netstat` grows by one). The client sends its SYN again after a second (`TCPSynRetrans` grows by
/// one) and then receives the error. A blocking connect() over IPv4 behaves the same way; a polling one, as
/// here, does not.
#[track_caller]
fn refused(from: &Namespace, to: Place, port: u16) {
    for to in to.both() {
        let to = SocketAddr::new(to, port);
        let tcp = from.run(move || ask_tcp(to)).unwrap_err();
        assert_eq!(tcp.kind(), ErrorKind::ConnectionRefused, "tcp to {to}");
        let udp = from.run(move || ask_udp(to, 1)).unwrap_err();
        assert_eq!(udp.kind(), ErrorKind::ConnectionRefused, "udp to {to}");
    }
}

/// Lets the node's stack translate its port 8088 to the first pod, as the plugin portmap does.
fn host_port(node: &Namespace) {
    let rule = |word, node: IpAddr, pod: IpAddr| {
        let to = SocketAddr::new(pod, 8080);
        format!(
            "add rule inet hp pre {word} daddr {node} meta l4proto {{ tcp, udp }} th dport 8088 dnat {word} to {to}"
        )
    };
    let rules = [
        "add table inet hp".to_owned(),
        "flush table inet hp".to_owned(),
        "add chain inet hp pre { type nat hook prerouting priority dstnat; }".to_owned(),
        rule("ip", NODE.v4(), PODS[0].v4()),
        rule("ip6", NODE.v6(), PODS[0].v6()),
    ];
    node.run(move || {
        for rule in rules {
            let done = std::process::Command::new("nft").arg(&rule).output().unwrap();
            assert!(done.status.success(), "nft {rule}: {}", String::from_utf8_lossy(&done.stderr));
        }
    });
}

/// A node with these Services, whose programs are attached to the devices of a network.
fn node(ways: &[Way]) -> (support::Scratch, Datapath, Net) {
    let scratch = support::Scratch::new();
    let pins = scratch.pins();
    let object = std::env::var_os("BERTH_OBJECT").map(|path| std::fs::read(path).unwrap());
    load(&pins, object.as_deref().unwrap_or(OBJECT), |_| ()).unwrap();
    let maps = Datapath::open(&pins, Access::Write).unwrap();
    publish(&maps.service4, ways, |place| words4(place.v4));
    publish(&maps.service6, ways, |place| words6(place.v6));
    configure(&maps, config::REDIRECT);
    let net = Net::new();
    net.attach(&pins, &maps);
    (scratch, maps, net)
}

#[test]
fn services_answer_whoever_passes_no_socket_hook() {
    let (_scratch, maps, net) = node(&WAYS);
    for flags in [config::REDIRECT, 0] {
        configure(&maps, flags);
        let [pod, client] = &net.pods;
        // NodePorts: masqueraded; with the client's address kept; without a backend; in the node's own
        // network; on another node's pod.
        sees(&net.outside, NODE, 30080, NODE);
        sees(&net.outside, NODE, 30081, OUTSIDE);
        refused(&net.outside, NODE, 30082);
        sees(&net.outside, NODE, 30083, OUTSIDE);
        sees(&net.outside, NODE, 30084, NODE);
        sees(&net.outside, NODE, 30085, OUTSIDE);
        // A ClusterIP that is routed to this node.
        sees(&net.outside, VIP, 80, NODE);
        // A client pod whose sockets have no hooks.
        sees(client, VIP, 80, PODS[1]);
        sees(client, VIP, 83, PODS[1]);
        sees(client, VIP, 84, PODS[1]);
        sees(client, NODE, 30080, PODS[1]);
        refused(client, VIP, 82);
        refused(client, VIP, 87);
        // A pod that reaches itself through the Service.
        sees(pod, VIP, 80, NODE);
        // Direct traffic between pods.
        sees(client, PODS[0], 8080, PODS[1]);
        routes::own_socket(&net);
        // The stack translates the node's port 8088, so the answer must go by the stack too.
        host_port(&net.node);
        sees(client, NODE, 8088, PODS[1]);
        sees(&net.outside, NODE, 8088, OUTSIDE);
        routes::answers_go_by_them(&net);
    }
    routes::what_is_too_big_is_told(&net);
}
