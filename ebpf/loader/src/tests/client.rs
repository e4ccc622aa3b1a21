//! Connections that run while programs are swapped.

use super::{Cgroup, Scratch, kills, other_build, scratch::ip};
use crate::{Access, Datapath, OBJECT, attach, load};
use berth_ebpf_abi::{Backend, Service, ServiceKey, frontend, tag};
use nix::sched::{CloneFlags, unshare};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const BACKEND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// A cgroup of this name below the client's cgroup makes the client end.
const ENOUGH: &str = "enough";
/// The client ends after this time even without the signal.
const PATIENCE: Duration = Duration::from_secs(120);
/// Number of swaps of the hooks, however long a busy machine takes for them.
const SWAPS: u8 = 8;

/// Dials the virtual address over TCP and UDP alternately until the signal to end. Succeeds only if every
/// answer came, from the right peer.
pub(super) fn run(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up");
    let tcp = TcpListener::bind((BACKEND, 8080)).unwrap();
    std::thread::spawn(move || {
        for peer in tcp.incoming() {
            peer.unwrap().write_all(b"tcp").unwrap();
        }
    });
    let udp = UdpSocket::bind((BACKEND, 8080)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 8];
        loop {
            let (len, peer) = udp.recv_from(&mut buffer).unwrap();
            udp.send_to(&buffer[..len], peer).unwrap();
        }
    });
    let service = SocketAddr::from((VIRTUAL, 80));
    let start = Instant::now();
    let mut rounds = 0;
    while !cgroup.join(ENOUGH).exists() {
        assert!(start.elapsed() < PATIENCE, "nobody ends this client");
        let mut stream = TcpStream::connect(service).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), service);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "tcp");
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(b"udp", service).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(socket.recv_from(&mut buffer).unwrap(), (3, service));
        rounds += 1;
    }
    assert!(rounds > 100, "{rounds}");
    println!("{rounds} rounds of TCP and UDP");
}

#[test]
fn no_connection_is_lost_while_programs_are_swapped() {
    let (scratch, cgroup) = (Scratch::new(), Cgroup::new());
    let pins = scratch.pins();
    load(&pins, OBJECT, |_| {}).unwrap();
    let datapath = Datapath::open(&pins, Access::Write).unwrap();
    let word = |ip: Ipv4Addr| u32::from_ne_bytes(ip.octets());
    for (id, proto) in [(1, 6), (2, 17)] {
        let mut service = Service {
            tag: tag(id, 1),
            id,
            generation: 1,
            frontend: frontend::HAS_ENDPOINTS,
            counts: [1, 0],
            ..Service::default()
        };
        service.inline[0] = Backend { addr: word(BACKEND), port: 8080_u16.to_be(), flags: 0 };
        let key = ServiceKey { addr: word(VIRTUAL), port: 80_u16.to_be(), proto, pad: 0 };
        datapath.service4.put(&key, &service).unwrap();
    }
    attach(&pins, cgroup.path()).unwrap();
    let mut client = kills::start("client", &pins, cgroup.path());
    for swap in 0..SWAPS {
        load(&pins, &other_build(swap), |_| {}).unwrap();
        assert_eq!(attach(&pins, cgroup.path()).unwrap().swapped, 8);
        assert_eq!(client.try_wait().unwrap(), None, "the client ended at swap {swap}");
    }
    let enough = cgroup.path().join(ENOUGH);
    fs::create_dir(&enough).unwrap();
    let ended = client.wait();
    fs::remove_dir(enough).unwrap();
    let ended = ended.unwrap();
    assert!(ended.success(), "{ended}");
}
