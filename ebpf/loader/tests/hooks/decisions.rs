//! Runs the generated cases of the host's tests through sockets: the kernel, the decision over tables in
//! memory and the plain model must give the same result.

use crate::node::{Node, cookie, in_netns, mapped, v4, v6};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, Chunk, ChunkKey, Client, MemberKey, NodeAddress, Service, ServiceKey, V4,
    V6,
};
use berth_ebpf_decide::{
    ClientLocation, RejectReason, Verdict, decide,
    memory::Tables,
    testing::{Dial, Dice, Expected, Kind, PORTS, Sample, TCP, World, client},
};
use berth_ebpf_loader::{Datapath, Map, Plain};
use nix::{
    libc,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
};
use std::{
    collections::HashMap,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

/// The kernel's maps of one family.
struct Maps<'n, A> {
    service: &'n Map<ServiceKey<A>, Service<A>>,
    chunk: &'n Map<ChunkKey, Chunk<A>>,
    affinity: &'n Map<AffinityKey<A>, Affinity<A>>,
    member: &'n Map<MemberKey<A>, u32>,
    node: &'n Map<A, NodeAddress>,
}

/// Result of a socket call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    To(SocketAddr),
    Refused,
    Unreachable,
}

/// Servers that listen on all addresses at the test's ports.
struct Servers {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Servers {
    fn new() -> Servers {
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let tcp = PORTS.map(|port| TcpListener::bind(any(port)).unwrap());
        let udp = PORTS.map(|port| UdpSocket::bind(any(port)).unwrap());
        for socket in &tcp {
            socket.set_nonblocking(true).unwrap();
        }
        for socket in &udp {
            socket.set_nonblocking(true).unwrap();
            setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true).unwrap();
        }
        Servers { tcp: tcp.into(), udp: udp.into() }
    }

    fn drain(&self) {
        for listener in &self.tcp {
            while let Ok((stream, _)) = listener.accept() {
                drop(stream);
            }
        }
    }

    /// Address at which the datagram arrived.
    fn receive(&self, number: u64) -> SocketAddr {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            for (socket, port) in self.udp.iter().zip(PORTS) {
                let mut bytes = [0; 8];
                let mut parts = [IoSliceMut::new(&mut bytes)];
                let mut space = nix::cmsg_space!(libc::in6_pktinfo);
                let got = recvmsg::<SockaddrStorage>(
                    socket.as_raw_fd(),
                    &mut parts,
                    Some(&mut space),
                    MsgFlags::MSG_DONTWAIT,
                );
                let Ok(got) = got else { continue };
                let to = got.cmsgs().unwrap().find_map(|message| match message {
                    ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr)),
                    _ => None,
                });
                if u64::from_ne_bytes(bytes) == number {
                    return (to.unwrap(), port).into();
                }
            }
        }
        panic!("datagram {number} came to nobody");
    }
}

/// The kinds of client call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum How {
    Tcp,
    UdpConnect,
    UdpSend,
}

fn dial(how: How, to: SocketAddr, servers: &Servers, number: u64) -> Came {
    let udp = || {
        let any: SocketAddr =
            if to.is_ipv4() { ([0; 4], 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        UdpSocket::bind(any).unwrap()
    };
    let done = match how {
        How::Tcp => TcpStream::connect(to).and_then(|stream| {
            // A reset avoids TIME_WAIT, because the ports are needed again.
            setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            stream.peer_addr()
        }),
        How::UdpConnect => {
            let socket = udp();
            socket.connect(to).and_then(|()| socket.peer_addr())
        }
        How::UdpSend => udp().send_to(&number.to_ne_bytes(), to).map(|_| servers.receive(number)),
    };
    servers.drain();
    match done {
        Ok(peer) => Came::To(peer),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Came::Refused,
        Err(e) if e.kind() == io::ErrorKind::HostUnreachable => Came::Unreachable,
        Err(e) => panic!("{how:?} to {to}: {e}"),
    }
}

/// The address with a mapped IPv4 address in its IPv4 form, for comparison.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn agrees<A: Sample + Plain>(
    worlds: u64,
    seed: u64,
    maps_of: for<'n> fn(&'n Datapath) -> Maps<'n, A>,
    show: fn(A, u16) -> SocketAddr,
    as_client: fn(A) -> Client,
) {
    let node = Node::new();
    // With the hook the socket would show the address that was dialled.
    node.detach("getpeername4");
    node.detach("getpeername6");
    let maps = maps_of(&node.maps);
    in_netns(|| {
        let servers = Servers::new();
        let cookie = cookie();
        let mut seen: HashMap<(How, &str), u32> = HashMap::new();
        let mut number = 0;
        for index in 0..worlds {
            let mut dice = Dice::new(seed + index);
            let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap().tv_sec();
            let first_id = u32::try_from(index).unwrap() * 100 + 1;
            // An entry may be older than the machine's uptime, because ages are differences.
            let mut world = World::<A>::random(&mut dice, first_id, u32::try_from(now).unwrap());
            world.range = true;
            let mut tables = world.tables();
            tables.dice.set(dice.throw() | 1);
            fill(&maps, &tables);
            let unknown = ClientLocation::Outside(A::of_namespace(cookie));
            for from in [
                ClientLocation::Host,
                ClientLocation::Pod(A::nth(Kind::Pod, 0)),
                ClientLocation::Pod(A::nth(Kind::Pod, 1)),
                unknown,
            ] {
                match from {
                    ClientLocation::Host => node.host_here(),
                    ClientLocation::Pod(addr) => node.maps.client.put(&cookie, &as_client(addr)).unwrap(),
                    ClientLocation::Outside(_) => {
                        node.maps.client.delete(&cookie).unwrap();
                    }
                }
                for _ in 0..60 {
                    number += 1;
                    let case = Dial { from, ..world.dial(&mut dice) };
                    let how = match (case.key.proto, dice.below(3)) {
                        (TCP, _) => How::Tcp,
                        (_, 0) => How::UdpSend,
                        _ => How::UdpConnect,
                    };
                    let to = show(case.key.addr, case.key.port);
                    let came = dial(how, to, &servers, number);
                    let expected = world.expected(&case);
                    let verdict = decide(&tables, &case.key, case.from);
                    let wrong = || {
                        format!(
                            "world {index}, {how:?}, {case:?} ({to}): came {came:?}, expected {expected:?}, in memory {verdict:?}"
                        )
                    };
                    let selection = |set: &[Backend<A>]| {
                        let one = set.iter().find(|b| came_to(came, show(b.addr, b.port)));
                        *one.unwrap_or_else(|| panic!("{}", wrong()))
                    };
                    // The kernel treats the unspecified address as loopback.
                    let own = if case.key.addr == A::ANY { A::loopback() } else { case.key.addr };
                    let kind = match (&expected, verdict) {
                        (Expected::Exactly(Verdict::Pass), Verdict::Pass) => {
                            assert!(came_to(came, show(own, case.key.port)), "{}", wrong());
                            "pass"
                        }
                        (Expected::Exactly(Verdict::Drop(_)), Verdict::Drop(_))
                            if from == ClientLocation::Host =>
                        {
                            // A connect() of a datagram socket sends nothing that could fail.
                            if how == How::UdpConnect {
                                assert!(came_to(came, show(own, case.key.port)), "{}", wrong());
                            } else {
                                assert_eq!(came, Came::Unreachable, "{}", wrong());
                            }
                            "drop"
                        }
                        (Expected::Exactly(Verdict::Drop(_)), Verdict::Drop(_)) => {
                            assert!(came_to(came, show(own, case.key.port)), "{}", wrong());
                            "drop"
                        }
                        (Expected::Exactly(Verdict::Reject(_)), Verdict::Reject(why)) => {
                            // A datagram's socket receives no refusal of the device. On the host the hook
                            // itself refuses what would need an endpoint.
                            let host = from == ClientLocation::Host;
                            let refused = match how {
                                How::Tcp => true,
                                How::UdpSend => host,
                                How::UdpConnect => host && why == RejectReason::NoEndpoints,
                            };
                            if refused {
                                assert_eq!(came, Came::Refused, "{}", wrong());
                            } else {
                                assert!(came_to(came, show(own, case.key.port)), "{}", wrong());
                            }
                            "reject"
                        }
                        (Expected::Stays(backend), Verdict::To(choice)) => {
                            selection(&[*backend]);
                            assert_eq!(choice.backend, *backend, "{}", wrong());
                            world.selection(&case, choice.service, *backend);
                            "stays"
                        }
                        (Expected::OneOf(set), Verdict::To(choice)) => {
                            let backend = selection(set);
                            // Kernel and memory drew different random numbers. Both continue with the
                            // kernel's choice.
                            world.selection(&case, choice.service, backend);
                            let key = AffinityKey { id: choice.service, client: client(&case) };
                            if let Some(last) = tables.affinity.get_mut().get_mut(&key) {
                                last.backend = backend;
                            }
                            "one of"
                        }
                        _ => panic!("{}", wrong()),
                    };
                    *seen.entry((how, kind)).or_default() += 1;
                }
            }
            empty(&maps, &tables);
        }
        println!("{seen:?}");
        for how in [How::Tcp, How::UdpConnect, How::UdpSend] {
            for kind in ["pass", "drop", "reject", "stays", "one of"] {
                assert!(
                    seen.get(&(how, kind)).is_some_and(|n| *n > 50),
                    "too few of {how:?} {kind}: {seen:?}"
                );
            }
        }
        assert_eq!(number, worlds * 240);
    });
}

fn came_to(came: Came, to: SocketAddr) -> bool {
    matches!(came, Came::To(peer) if plain(peer) == plain(to))
}

fn fill<A: Sample + Plain>(maps: &Maps<'_, A>, tables: &Tables<A>) {
    tables.chunks.iter().for_each(|(k, v)| maps.chunk.put(k, v).unwrap());
    tables.members.iter().for_each(|k| maps.member.put(k, &1).unwrap());
    tables.nodes.iter().for_each(|(k, v)| maps.node.put(k, v).unwrap());
    tables.affinity.borrow().iter().for_each(|(k, v)| maps.affinity.put(k, v).unwrap());
    tables.services.iter().for_each(|(k, v)| maps.service.put(k, v).unwrap());
}

fn empty<A: Sample + Plain>(maps: &Maps<'_, A>, tables: &Tables<A>) {
    for key in tables.services.keys() {
        assert!(maps.service.delete(key).unwrap());
    }
    for key in tables.chunks.keys() {
        assert!(maps.chunk.delete(key).unwrap());
    }
    for key in &tables.members {
        assert!(maps.member.delete(key).unwrap());
    }
    // The kernel evicts from a map that fills up over the worlds, and may choose an entry of the present world.
    let stuck: Vec<_> = maps.affinity.entries().unwrap().into_iter().map(|(key, _)| key).collect();
    maps.affinity.delete_all(&stuck).unwrap();
}

fn maps4(maps: &Datapath) -> Maps<'_, V4> {
    Maps {
        service: &maps.service4,
        chunk: &maps.chunk4,
        affinity: &maps.affinity4,
        member: &maps.member4,
        node: &maps.node4,
    }
}

fn maps6(maps: &Datapath) -> Maps<'_, V6> {
    Maps {
        service: &maps.service6,
        chunk: &maps.chunk6,
        affinity: &maps.affinity6,
        member: &maps.member6,
        node: &maps.node6,
    }
}

#[test]
fn ipv4_sockets_agree_with_the_model() {
    agrees::<V4>(200, 10, maps4, v4, |v4| Client { v4, ..Client::default() });
}

#[test]
fn ipv6_sockets_that_speak_ipv4_agree_with_the_model() {
    agrees::<V4>(200, 20, maps4, mapped, |v4| Client { v4, ..Client::default() });
}

#[test]
fn ipv6_sockets_agree_with_the_model() {
    agrees::<V6>(200, 30, maps6, v6, |v6| Client { v6, ..Client::default() });
}
