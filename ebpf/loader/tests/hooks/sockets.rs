//! Effects of the socket hooks that a program sees on its sockets.

use crate::node::{Node, cookie, in_netns, mapped, v4, v6};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, Chunk, ChunkKey, Client, MemberKey, NodeAddress, SERVING, Service,
    ServiceKey, V4, V6, frontend, local_pod, tag,
};
use berth_ebpf_decide::testing::{Kind, Sample, TCP, UDP};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use std::{
    collections::HashSet,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

/// Port of all Services, in network order.
const PORT: u16 = 80_u16.to_be();
/// Port of all backends, in network order.
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

/// Publishes a Service on the `n`th virtual address with this pod, for both families and protocols.
fn one_service(node: &Node, n: u16, pod: u16) {
    for proto in [TCP, UDP] {
        let id = u32::from(n) * 10 + u32::from(proto);
        node.maps.service4.put(&key(vip(n), proto), &service::<V4>(id, &[pod])).unwrap();
        node.maps.service6.put(&key(vip(n), proto), &service::<V6>(id, &[pod])).unwrap();
    }
}

/// The three ways to dial the `n`th virtual address: IPv4, mapped IPv4, IPv6.
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

/// Sockets on the pod's own address, for both families.
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
    // The first two Services share a backend; the third has its own.
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
                // The backends of the two oldest Services are forgotten, so their answers show the pod's
                // address.
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
        node.host_here();
        for dialled in dialled(1) {
            for to in [dialled, SocketAddr::new(dialled.ip(), 81)] {
                // Every address is local here: without the hook this listener would accept the connection.
                let _there =
                    TcpListener::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), to.port())).unwrap();
                let refused = TcpStream::connect(to).map(drop).map_err(|e| e.kind());
                assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "{to}");
                let connected = udp(to).connect(to).map_err(|e| e.kind());
                let known = to.port() == dialled.port();
                assert_eq!(connected, if known { Err(ErrorKind::ConnectionRefused) } else { Ok(()) }, "{to}");
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
fn loopback_node_ports_are_the_hosts_alone_and_a_pod_that_opted_out_is_left_alone() {
    let node = Node::new();
    one_service(&node, 1, 5);
    let mut node_port = service::<V4>(9, &[5]);
    node_port.frontend |= frontend::NODE_PORT | frontend::EXTERNAL;
    let any = ServiceKey { addr: 0, port: 30_080_u16.to_be(), proto: UDP, pad: 0 };
    node.maps.service4.put(&any, &node_port).unwrap();
    let mut node_port = service::<V6>(9, &[5]);
    node_port.frontend |= frontend::NODE_PORT | frontend::EXTERNAL;
    let any = ServiceKey { addr: [0; 4], port: 30_080_u16.to_be(), proto: UDP, pad: 0 };
    node.maps.service6.put(&any, &node_port).unwrap();
    node.maps.node4.put(&V4::nth(Kind::Node, 0), &NodeAddress { node_ports: 1 }).unwrap();
    node.detach("getpeername4");
    node.detach("getpeername6");
    in_netns(|| {
        let real = |to: SocketAddr| {
            let socket = udp(to);
            socket.connect(to).unwrap();
            socket.peer_addr().unwrap()
        };
        let pod = v4(V4::nth(Kind::Pod, 5), TARGET);
        let loopback: SocketAddr = (Ipv4Addr::LOCALHOST, 30_080).into();
        let loopback6: SocketAddr = (Ipv6Addr::LOCALHOST, 30_080).into();
        let own = v4(V4::nth(Kind::Node, 0), 30_080_u16.to_be());
        let come = || [real(dialled(1)[0]), real(loopback), real(own), real(loopback6)];
        // The namespace is unknown: a foreign container, or a pod that is just starting. Its loopback is not
        // the node's.
        assert_eq!(come(), [pod, loopback, pod, loopback6]);
        // Node ports do not answer at the IPv6 loopback, as with kube-proxy.
        node.host_here();
        assert_eq!(come(), [pod, pod, pod, loopback6]);
        let client = Client { v4: V4::nth(Kind::Pod, 1), ..Client::default() };
        node.maps.client.put(&cookie(), &client).unwrap();
        assert_eq!(come(), [pod, loopback, pod, loopback6]);
        let client = Client { flags: local_pod::NO_SOCKET_HOOKS, ..client };
        node.maps.client.put(&cookie(), &client).unwrap();
        assert_eq!(come(), [dialled(1)[0], loopback, own, loopback6]);
    });
}

/// Publishes the first two virtual addresses as one UDP Service. `selection` is the set for new clients;
/// `serving` are the pods that existing clients may keep.
fn publish(node: &Node, generation: u32, selection: &[u16], serving: &[u16]) {
    fn of<A: Sample>(generation: u32, selection: &[u16]) -> (Service<A>, Chunk<A>) {
        let few = if selection.len() > 4 { &[] } else { selection };
        let mut value = Service { tag: tag(7, generation), generation, ..service::<A>(7, few) };
        value.counts = [u16::try_from(selection.len()).unwrap(), 0];
        let len = u32::try_from(selection.len()).unwrap();
        let mut chunk = Chunk { tag: value.tag, len, ..Chunk::default() };
        for (place, pod) in chunk.backends.iter_mut().zip(selection) {
            *place = Backend { addr: A::nth(Kind::Pod, *pod), port: TARGET, flags: 0 };
        }
        (value, chunk)
    }
    let chunk = ChunkKey { id: 7, generation, set: 0, index: 0 };
    let ((four, chunk4), (six, chunk6)) = (of::<V4>(generation, selection), of::<V6>(generation, selection));
    node.maps.chunk4.put(&chunk, &chunk4).unwrap();
    node.maps.chunk6.put(&chunk, &chunk6).unwrap();
    for pod in 0..40 {
        let four = MemberKey { id: 7, addr: V4::nth(Kind::Pod, pod), port: TARGET, set: SERVING };
        let six = MemberKey { id: 7, addr: V6::nth(Kind::Pod, pod), port: TARGET, set: SERVING };
        if serving.contains(&pod) {
            node.maps.member4.put(&four, &1).unwrap();
            node.maps.member6.put(&six, &1).unwrap();
        } else {
            node.maps.member4.delete(&four).unwrap();
            node.maps.member6.delete(&six).unwrap();
        }
    }
    for n in [1, 2] {
        node.maps.service4.put(&key(vip(n), UDP), &four).unwrap();
        node.maps.service6.put(&key(vip(n), UDP), &six).unwrap();
    }
}

/// Sends a datagram and returns the number of the pod that received it. The answer must come from the dialled
/// address.
fn sent(socket: &UdpSocket, to: SocketAddr, servers: &[[UdpSocket; 2]]) -> usize {
    socket.send_to(b"q", to).unwrap();
    let family = usize::from(to.ip().to_canonical().is_ipv6());
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut bytes = [0; 4];
    loop {
        for (pod, server) in servers.iter().enumerate() {
            server[family].set_nonblocking(true).unwrap();
            if let Ok((len, from)) = server[family].recv_from(&mut bytes) {
                server[family].send_to(&bytes[..len], from).unwrap();
                assert_eq!(socket.recv_from(&mut bytes).unwrap(), (len, to), "who answers");
                return pod;
            }
        }
        assert!(Instant::now() < deadline, "a datagram to {to} came to nobody");
    }
}

#[test]
fn a_socket_stays_with_its_backend_while_that_serves() {
    let node = Node::new();
    in_netns(|| {
        let servers: Vec<_> = (0..40).map(echo).collect();
        let mut generation = 0;
        let mut publish = |selection: &[u16], serving: &[u16]| {
            generation += 1;
            publish(&node, generation, selection, serving);
        };
        let (all, few): (Vec<u16>, Vec<u16>) = ((0..16).collect(), (0..4).collect());
        for (selection, way) in
            [&all, &few].into_iter().flat_map(|selection| (0..3).map(move |way| (selection, way)))
        {
            publish(selection, selection);
            let sockets: Vec<UdpSocket> = (0..24).map(|_| udp(dialled(1)[way])).collect();
            let at: Vec<usize> =
                sockets.iter().map(|socket| sent(socket, dialled(1)[way], &servers)).collect();
            let different: HashSet<_> = at.iter().collect();
            assert!(different.len() > selection.len() / 3, "24 sockets came to {different:?}");
            // Other backends replace the old ones, which only serve existing clients. Through the second
            // address the sockets choose new backends; each answer comes from the address that was dialled.
            let other: Vec<u16> = (20..20 + u16::try_from(selection.len()).unwrap()).collect();
            let both: Vec<u16> = selection.iter().chain(&other).copied().collect();
            publish(&other, &both);
            for (socket, before) in sockets.iter().zip(&at) {
                let by_two = sent(socket, dialled(2)[way], &servers);
                for _ in 0..3 {
                    assert_eq!(sent(socket, dialled(1)[way], &servers), *before);
                    assert_eq!(sent(socket, dialled(2)[way], &servers), by_two);
                }
            }
            publish(&other, &other);
            for socket in &sockets {
                let now = sent(socket, dialled(1)[way], &servers);
                assert!(now >= 20, "{now} does not serve any more");
                assert_eq!(sent(socket, dialled(1)[way], &servers), now);
            }
        }
    });
}

#[test]
fn two_addresses_of_one_backend_keep_it_each() {
    let node = Node::new();
    in_netns(|| {
        let servers: Vec<_> = (0..40).map(echo).collect();
        for way in 0..3 {
            // Both addresses choose backend 3. Afterwards the set holds another backend, which a new choice
            // would take.
            publish(&node, u32::try_from(way).unwrap() * 2 + 1, &[3], &[3]);
            let socket = udp(dialled(1)[way]);
            for n in [1, 2, 1, 2, 2, 1] {
                assert_eq!(sent(&socket, dialled(n)[way], &servers), 3);
            }
            publish(&node, u32::try_from(way).unwrap() * 2 + 2, &[4], &[3, 4]);
            for n in [2, 1, 1, 2, 1] {
                assert_eq!(sent(&socket, dialled(n)[way], &servers), 3, "address {n}");
            }
        }
    });
}

#[test]
fn a_datagram_without_an_endpoint_is_the_devices_to_refuse_but_on_the_host() {
    let node = Node::new();
    let none = Service { frontend: 0, ..service::<V4>(1, &[]) };
    node.maps.service4.put(&key(vip(1), UDP), &none).unwrap();
    in_netns(|| {
        let to = dialled(1)[0];
        let sends = || udp(to).send_to(b"x", to).map_err(|e| e.kind());
        let connects = || udp(to).connect(to).map_err(|e| e.kind());
        assert_eq!((sends(), connects()), (Ok(1), Ok(())), "a container of somebody else");
        let client = Client { v4: V4::nth(Kind::Pod, 1), ..Client::default() };
        node.maps.client.put(&cookie(), &client).unwrap();
        assert_eq!((sends(), connects()), (Ok(1), Ok(())), "a pod");
        node.host_here();
        let refused = ErrorKind::ConnectionRefused;
        assert_eq!((sends(), connects()), (Err(refused), Err(refused)));
    });
}

#[test]
fn the_host_reaches_no_address_of_the_range_that_no_service_has() {
    let node = Node::new();
    in_netns(|| {
        for to in dialled(9) {
            // Every address is local here: without the hook this listener would accept the connection.
            let _there = TcpListener::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), to.port())).unwrap();
            assert!(TcpStream::connect(to).is_ok(), "a container of somebody else may have it");
            node.host_here();
            let gone = Err(ErrorKind::HostUnreachable);
            assert_eq!(TcpStream::connect(to).map(drop).map_err(|e| e.kind()), gone, "{to}");
            // It sends nothing that could fail.
            assert!(udp(to).connect(to).is_ok(), "{to}");
            assert_eq!(udp(to).send_to(b"x", to).map(drop).map_err(|e| e.kind()), gone, "{to}");
            node.maps.client.delete(&cookie()).unwrap();
        }
    });
}

#[test]
fn without_memory_for_a_socket_its_connection_is_made_all_the_same() {
    let node = Node::new();
    one_service(&node, 1, 5);
    in_netns(|| {
        node.host_here();
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, u16::from_be(TARGET))).unwrap();
        // The limit is per namespace since kernel 6.7; older kernels show no such file in a namespace.
        std::fs::write("/proc/sys/net/core/optmem_max", "0").unwrap();
        for to in dialled(1) {
            let client = TcpStream::connect(to).unwrap();
            let (server, _) = listener.accept().unwrap();
            let pod = server.local_addr().unwrap().ip().to_canonical();
            assert_eq!(client.peer_addr().unwrap().ip().to_canonical(), pod, "it shows the backend");
        }
    });
}

#[test]
fn each_pod_stays_with_its_own_backend_whatever_namespace_asks() {
    let node = Node::new();
    let pods = [1, 2, 3, 4];
    let mut value = service::<V4>(7, &pods);
    value.affinity_s = 1000;
    // Two frontends of the same Service port.
    for n in [1, 2] {
        node.maps.service4.put(&key(vip(n), UDP), &value).unwrap();
    }
    for pod in pods {
        let member = MemberKey { id: 7, addr: V4::nth(Kind::Pod, pod), port: TARGET, set: 0 };
        node.maps.member4.put(&member, &1).unwrap();
    }
    node.detach("getpeername4");
    let mut selection = HashSet::new();
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
            selection.insert(client.join().unwrap());
        }
    });
    // 24 pods reach fewer than three of four backends with a probability below one in a million.
    assert!(selection.len() >= 3, "{selection:?}");
}
