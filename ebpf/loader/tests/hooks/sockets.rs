//! What programs with sockets see.

use crate::node::{Node, cookie, in_netns, mapped, v4, v6};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, Client, MemberKey, NodeAddress, Service, ServiceKey, V4, V6, frontend,
    local_pod, tag,
};
use berth_ebpf_decide::testing::{Kind, Sample, TCP, UDP};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use std::{
    collections::HashSet,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

/// What everybody dials, network order.
const PORT: u16 = 80_u16.to_be();
/// Where everybody listens, network order.
const TARGET: u16 = 8080_u16.to_be();

fn key<A>(addr: A, proto: u8) -> ServiceKey<A> {
    ServiceKey { addr, port: PORT, proto, pad: 0 }
}

fn service<A: Sample>(id: u32, pods: &[u16]) -> Service<A> {
    let mut value = Service {
        tag: tag(id, 1),
        id,
        generation: 1,
        frontend: frontend::HAS_ENDPOINTS,
        counts: [u16::try_from(pods.len()).unwrap(), 0],
        ..Service::default()
    };
    for (place, pod) in value.inline.iter_mut().zip(pods) {
        *place = Backend { addr: A::nth(Kind::Pod, *pod), port: TARGET, flags: 0 };
    }
    value
}

fn vip<A: Sample>(n: u16) -> A {
    A::nth(Kind::Virtual, n)
}

/// Both families, both protocols: a Service on the first virtual address with this pod.
fn one_service(node: &Node, n: u16, pod: u16) {
    for proto in [TCP, UDP] {
        let id = u32::from(n) * 10 + u32::from(proto);
        node.maps.service4.put(&key(vip(n), proto), &service::<V4>(id, &[pod])).unwrap();
        node.maps.service6.put(&key(vip(n), proto), &service::<V6>(id, &[pod])).unwrap();
    }
}

/// The three ways of dialling the `n`th virtual address.
fn dialled(n: u16) -> [SocketAddr; 3] {
    [v4(vip(n), PORT), mapped(vip(n), PORT), v6(vip(n), PORT)]
}

fn udp(like: SocketAddr) -> UdpSocket {
    let any: SocketAddr =
        if like.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// Answers on the pod's own address; on both families.
fn echo(pod: u16) -> [UdpSocket; 2] {
    [v4(Sample::nth(Kind::Pod, pod), TARGET), v6(Sample::nth(Kind::Pod, pod), TARGET)]
        .map(|addr| UdpSocket::bind(addr).unwrap())
}

fn answer(servers: &[UdpSocket; 2], client: SocketAddr) {
    let server = &servers[usize::from(client.is_ipv6() && client.ip().to_canonical().is_ipv6())];
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut bytes = [0; 16];
    let (len, from) = server.recv_from(&mut bytes).unwrap();
    server.send_to(&bytes[..len], from).unwrap();
}

#[test]
fn a_connection_shows_the_address_that_was_dialled() {
    let node = Node::new();
    one_service(&node, 1, 5);
    in_netns(|| {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, u16::from_be(TARGET))).unwrap();
        for to in dialled(1) {
            let mut client = TcpStream::connect(to).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            assert_eq!(client.peer_addr().unwrap(), to);
            let pod = server.local_addr().unwrap().ip().to_canonical();
            let wanted = if to.ip().to_canonical().is_ipv4() {
                v4(Sample::nth(Kind::Pod, 5), TARGET)
            } else {
                v6(Sample::nth(Kind::Pod, 5), TARGET)
            };
            assert_eq!(pod, wanted.ip());
            client.write_all(b"through").unwrap();
            let mut bytes = [0; 7];
            server.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"through");
        }
    });
}

#[test]
fn answers_to_datagrams_come_from_the_address_that_was_dialled() {
    let node = Node::new();
    // Two Services share a backend; a third has its own.
    one_service(&node, 1, 5);
    one_service(&node, 2, 5);
    one_service(&node, 3, 6);
    in_netns(|| {
        let (five, six) = (echo(5), echo(6));
        let mut bytes = [0; 16];
        for way in 0..3 {
            let connected = udp(dialled(1)[way]);
            connected.connect(dialled(1)[way]).unwrap();
            assert_eq!(connected.peer_addr().unwrap(), dialled(1)[way]);
            for _ in 0..3 {
                connected.send(b"x").unwrap();
                answer(&five, dialled(1)[way]);
                assert_eq!(connected.recv_from(&mut bytes).unwrap(), (1, dialled(1)[way]));
            }
            let free = udp(dialled(1)[way]);
            for round in 0..40_u16 {
                let n = [1, 2, 3, 2, 1, 3][usize::from(round) % 6];
                let to = dialled(n)[way];
                free.send_to(b"yz", to).unwrap();
                answer(if n == 3 { &six } else { &five }, to);
                assert_eq!(free.recv_from(&mut bytes).unwrap(), (2, to), "round {round}");
            }
        }
    });
}

#[test]
fn a_socket_remembers_its_last_eight_backends() {
    let node = Node::new();
    for n in 1..=10 {
        one_service(&node, n, n);
    }
    in_netns(|| {
        let servers: Vec<_> = (1..=10).map(echo).collect();
        for way in 0..3 {
            let socket = udp(dialled(1)[way]);
            for n in 1..=10 {
                socket.send_to(&[u8::try_from(n).unwrap()], dialled(n)[way]).unwrap();
            }
            for n in 1..=10_u16 {
                answer(&servers[usize::from(n) - 1], dialled(n)[way]);
                let mut bytes = [0; 1];
                let (_, from) = socket.recv_from(&mut bytes).unwrap();
                let pod = match way {
                    0 => v4(Sample::nth(Kind::Pod, n), TARGET),
                    1 => mapped(Sample::nth(Kind::Pod, n), TARGET),
                    _ => v6(Sample::nth(Kind::Pod, n), TARGET),
                };
                // The two oldest are forgotten: their answers are shown as they are.
                assert_eq!(from, if n <= 2 { pod } else { dialled(n)[way] });
            }
        }
    });
}

#[test]
fn without_endpoints_and_on_unknown_ports_calls_are_refused_at_once() {
    let node = Node::new();
    for proto in [TCP, UDP] {
        let none4 = Service { frontend: 0, ..service::<V4>(1, &[]) };
        let none6 = Service { frontend: 0, ..service::<V6>(1, &[]) };
        node.maps.service4.put(&key(vip(1), proto), &none4).unwrap();
        node.maps.service6.put(&key(vip(1), proto), &none6).unwrap();
    }
    let bare = |frontend| Service { frontend, tag: tag(0, 0), ..Service::default() };
    node.maps
        .service4
        .put(&ServiceKey { addr: vip(1), ..ServiceKey::default() }, &bare(frontend::ADDRESS))
        .unwrap();
    let bare = Service { frontend: frontend::ADDRESS, tag: tag(0, 0), ..Service::default() };
    node.maps.service6.put(&ServiceKey { addr: vip(1), ..ServiceKey::default() }, &bare).unwrap();
    in_netns(|| {
        for dialled in dialled(1) {
            for to in [dialled, SocketAddr::new(dialled.ip(), 81)] {
                // Everything is local here: somebody listening at the address itself would be reached.
                let _there =
                    TcpListener::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), to.port())).unwrap();
                let refused = TcpStream::connect(to).map(drop).map_err(|e| e.kind());
                assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "{to}");
                let refused = udp(to).connect(to).map_err(|e| e.kind());
                assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "{to}");
                let refused = udp(to).send_to(b"x", to).map_err(|e| e.kind());
                assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "{to}");
                let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                let socket = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
                let refused = connect(socket.as_raw_fd(), &SockaddrStorage::from(to));
                assert_eq!(refused, Err(nix::errno::Errno::ECONNREFUSED), "{to}");
            }
        }
    });
}

#[test]
fn a_pod_that_opted_out_and_a_pod_at_its_own_loopback_are_left_alone() {
    let node = Node::new();
    one_service(&node, 1, 5);
    let any = |proto| ServiceKey { addr: 0, port: 30_080_u16.to_be(), proto, pad: 0 };
    let mut node_port = service::<V4>(9, &[5]);
    node_port.frontend |= frontend::NODE_PORT | frontend::EXTERNAL;
    node.maps.service4.put(&any(UDP), &node_port).unwrap();
    node.maps.node4.put(&V4::nth(Kind::Node, 0), &NodeAddress { node_ports: 1 }).unwrap();
    node.detach("getpeername4");
    in_netns(|| {
        let real = |to: SocketAddr| {
            let socket = udp(to);
            socket.connect(to).unwrap();
            socket.peer_addr().unwrap()
        };
        let pod = v4(V4::nth(Kind::Pod, 5), TARGET);
        let loopback: SocketAddr = (Ipv4Addr::LOCALHOST, 30_080).into();
        let own = v4(V4::nth(Kind::Node, 0), 30_080_u16.to_be());
        // The host.
        assert_eq!([real(dialled(1)[0]), real(loopback), real(own)], [pod, pod, pod]);
        // A pod: its loopback is no node's.
        let client = Client { v4: V4::nth(Kind::Pod, 1), ..Client::default() };
        node.maps.client.put(&cookie(), &client).unwrap();
        assert_eq!([real(dialled(1)[0]), real(loopback), real(own)], [pod, loopback, pod]);
        // A pod that opted out.
        let client = Client { flags: local_pod::NO_SOCKET_HOOKS, ..client };
        node.maps.client.put(&cookie(), &client).unwrap();
        assert_eq!([real(dialled(1)[0]), real(loopback), real(own)], [dialled(1)[0], loopback, own]);
    });
}

#[test]
fn each_pod_stays_with_its_own_backend_whatever_namespace_asks() {
    let node = Node::new();
    let pods = [1, 2, 3, 4];
    let mut value = service::<V4>(7, &pods);
    value.affinity_s = 1000;
    // By two ways in: the same Service port.
    for n in [1, 2] {
        node.maps.service4.put(&key(vip(n), UDP), &value).unwrap();
    }
    for pod in pods {
        let member = MemberKey { id: 7, addr: V4::nth(Kind::Pod, pod), port: TARGET, set: 0 };
        node.maps.member4.put(&member, &1).unwrap();
    }
    node.detach("getpeername4");
    let mut given = HashSet::new();
    thread::scope(|scope| {
        let clients: Vec<_> = (100..124_u16)
            .map(|number| {
                let node = &node;
                scope.spawn(move || {
                    in_netns(|| {
                        let v4 = V4::nth(Kind::Pod, number);
                        node.maps.client.put(&cookie(), &Client { v4, ..Client::default() }).unwrap();
                        let peers: HashSet<_> = (0..20)
                            .map(|round| {
                                let socket = udp(dialled(1)[0]);
                                socket.connect(dialled(1 + round % 2)[0]).unwrap();
                                socket.peer_addr().unwrap()
                            })
                            .collect();
                        assert_eq!(peers.len(), 1, "pod {number} came to {peers:?}");
                        let key = AffinityKey { id: 7, client: v4 };
                        let Affinity { backend, .. } = node.maps.affinity4.get(&key).unwrap().unwrap();
                        let peer = peers.into_iter().next().unwrap();
                        assert_eq!(peer, crate::node::v4(backend.addr, backend.port));
                        peer
                    })
                })
            })
            .collect();
        for client in clients {
            given.insert(client.join().unwrap());
        }
    });
    // That 24 pods come to fewer than three of four backends: less than one time in a million.
    assert!(given.len() >= 3, "{given:?}");
}
