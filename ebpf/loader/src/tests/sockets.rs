//! Destruction of sockets in network namespaces.

use super::{Cgroup, Scratch, in_new_netns, kills, load::assert_iterators, scratch::ip};
use crate::{
    Access, Datapath, Error, Frontend, OBJECT, Pins, Prepared, Proto, Sizes, SocketRecords, StalePeer,
    attach, destroy_sockets, destroy_translated, detach, load, netns_cookie,
    pins::list,
    prepare,
    sys::{obj_get, obj_pin},
};
use berth_ebpf_abi::{Backend, Service, ServiceKey, frontend, tag};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{
    collections::HashSet,
    fs::{self, File},
    io::{ErrorKind, Read},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{fd::AsFd as _, unix::fs::symlink},
    path::Path,
    time::Duration,
};

const DEAD: &str = "127.0.0.2:5353";
const DEAD6: &str = "[::1]:5353";
const ALIVE: &str = "127.0.0.3:5353";

fn here() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

fn connected(from: &str, to: &str) -> UdpSocket {
    let socket = UdpSocket::bind(from).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    socket
}

fn is_destroyed(socket: &UdpSocket) -> bool {
    socket.peer_addr().is_err()
}

#[test]
fn udp_sockets_of_dead_peers_go_and_others_stay() {
    let dead: HashSet<SocketAddr> = [DEAD, DEAD6].map(|addr| addr.parse().unwrap()).into();
    in_new_netns(|| {
        let inside = here();
        let stale = [
            connected("0.0.0.0:0", DEAD),
            connected("127.0.0.1:0", DEAD),
            connected("[::]:0", "[::ffff:127.0.0.2]:5353"),
            connected("[::]:0", DEAD6),
        ];
        let other_port = connected("0.0.0.0:0", "127.0.0.2:5354");
        let kept = [connected("0.0.0.0:0", ALIVE), other_port, connected("[::]:0", "[::1]:5354")];
        let unconnected = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(destroy_sockets(&inside, Proto::Udp, &HashSet::new()).unwrap(), 0);
        assert_eq!(destroy_sockets(&inside, Proto::Tcp, &dead).unwrap(), 0);
        assert_eq!(destroy_sockets(&inside, Proto::Udp, &dead).unwrap(), 4);
        assert_eq!(destroy_sockets(&inside, Proto::Udp, &dead).unwrap(), 0);
        for socket in &stale {
            assert!(is_destroyed(socket), "{socket:?}");
            let aborted = socket.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(aborted.kind(), ErrorKind::ConnectionAborted);
            // The application may connect again.
            let anew = if socket.local_addr().unwrap().is_ipv4() { ALIVE } else { "[::1]:5354" };
            socket.connect(anew).unwrap();
        }
        assert!(!kept.iter().any(is_destroyed));
        unconnected.send_to(b"on", ALIVE).unwrap();
        // Sockets of another namespace are not touched.
        let stays = connected("0.0.0.0:0", DEAD);
        in_new_netns(|| {
            let elsewhere = connected("0.0.0.0:0", DEAD);
            assert_eq!(destroy_sockets(here(), Proto::Udp, &dead).unwrap(), 1);
            assert!(is_destroyed(&elsewhere));
        });
        assert!(!is_destroyed(&stays));
    });
}

#[test]
fn thousands_of_sockets_are_found() {
    in_new_netns(|| {
        let stale: Vec<UdpSocket> = (0..900).map(|_| connected("0.0.0.0:0", DEAD)).collect();
        let dead = HashSet::from([DEAD.parse().unwrap()]);
        assert_eq!(destroy_sockets(here(), Proto::Udp, &dead).unwrap(), stale.len());
        assert!(stale.iter().all(is_destroyed));
    });
}

#[test]
fn tcp_connections_of_dead_peers_are_reset() {
    in_new_netns(|| {
        let listener = TcpListener::bind(DEAD).unwrap();
        let mut client = TcpStream::connect(DEAD).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let dead = HashSet::from([DEAD.parse().unwrap()]);
        assert_eq!(destroy_sockets(here(), Proto::Tcp, &dead).unwrap(), 1);
        assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
        assert_eq!(server.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        TcpStream::connect(DEAD).unwrap();
    });
}

const ONE: &str = "10.96.0.1:53";
const OTHER: &str = "10.96.0.2:53";
const ONE6: &str = "[fd00:96::1]:53";

/// Dials one backend through two Services and directly; then one of the Services loses the backend.
pub(super) fn dial(pins: &Pins, cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up");
    hide_kernel_types();
    let lost = |backend: &str, frontend: &str| {
        let frontend: SocketAddr = frontend.parse().unwrap();
        let frontend = Some(Frontend { address: Some(frontend.ip()), port: frontend.port() });
        [StalePeer { backend: backend.parse().unwrap(), frontend }]
    };
    let records = SocketRecords::open(pins).unwrap();
    let destroy = |proto, lost: &[StalePeer]| destroy_translated(here(), proto, lost, &records).unwrap();
    let one = [connected("0.0.0.0:0", ONE), connected("[::]:0", "[::ffff:10.96.0.1]:53")];
    let one6 = connected("[::]:0", ONE6);
    let other = [connected("0.0.0.0:0", OTHER), connected("[::]:0", "[::ffff:10.96.0.2]:53")];
    let direct = [connected("0.0.0.0:0", DEAD), connected("[::]:0", DEAD6)];
    assert_eq!(one[0].peer_addr().unwrap(), ONE.parse().unwrap(), "the hooks are there");
    assert_eq!(destroy(Proto::Udp, &lost(ALIVE, ONE)), 0);
    assert_eq!(destroy(Proto::Udp, &lost(DEAD, "10.96.0.3:53")), 0);
    assert_eq!(destroy(Proto::Udp, &lost(DEAD, ONE)), 2);
    assert!(one.iter().all(is_destroyed) && !other.iter().any(is_destroyed) && !is_destroyed(&one6));
    assert_eq!(destroy(Proto::Udp, &lost(DEAD6, ONE6)), 1);
    assert!(is_destroyed(&one6));
    // A socket that reconnects from one Service to another, both with this backend, belongs to the second.
    one[0].connect(ONE).unwrap();
    one[0].connect(OTHER).unwrap();
    assert_eq!(destroy(Proto::Udp, &lost(DEAD, ONE)), 0);
    assert_eq!(destroy(Proto::Udp, &lost(DEAD, OTHER)), 3);
    assert!(!direct.iter().any(is_destroyed));
    let listener = TcpListener::bind(DEAD).unwrap();
    let streams = [ONE, OTHER, DEAD].map(|to| TcpStream::connect(to).unwrap());
    assert_eq!(destroy(Proto::Tcp, &lost(DEAD, ONE)), 1);
    assert_eq!(streams.map(|stream| stream.peer_addr().is_ok()), [false, true, true]);
    drop(listener);
    // Thousands of sockets need more than one read of the iterator.
    let many: Vec<UdpSocket> = (0..2000).map(|_| connected("0.0.0.0:0", ONE)).collect();
    let kept: Vec<UdpSocket> = (0..2000).map(|_| connected("0.0.0.0:0", OTHER)).collect();
    assert_eq!(destroy(Proto::Udp, &lost(DEAD, ONE)), many.len());
    assert!(!kept.iter().any(is_destroyed));
}

/// Hides the kernel's types from this process: the destruction of sockets does not need them.
fn hide_kernel_types() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("none"), "/sys/kernel/btf", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    assert!(!Path::new("/sys/kernel/btf/vmlinux").exists());
}

#[test]
fn damaged_iterators_are_told_and_made_anew() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    assert!(matches!(SocketRecords::open(&pins), Err(Error::OpenPin { .. })), "nothing was loaded");
    load(&pins, OBJECT, |_| {}).unwrap();
    if !assert_iterators(&pins) {
        return;
    }
    let nowhere = || prepare(&pins, Path::new("/nowhere"), &Sizes::default(), Duration::from_secs(60));
    assert_eq!(nowhere().unwrap(), Prepared::Adopted);
    let names = || list(&pins.iterators()).unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(), ["REVERSE4-1", "REVERSE6-1"]);

    // Another object in the place of the iterator.
    let pin = pins.iterators().join("REVERSE6-1");
    fs::remove_file(&pin).unwrap();
    let program = obj_get(&pins.programs().join("connect4"), false).unwrap();
    obj_pin(program.as_fd(), &pin).unwrap();
    assert!(matches!(SocketRecords::open(&pins), Err(Error::OpenPin { .. })));
    // No iterator at all: an earlier build with the same programs created none.
    fs::remove_file(&pin).unwrap();
    assert!(matches!(SocketRecords::open(&pins), Err(Error::OpenPin { .. })));
    assert!(matches!(nowhere(), Err(Error::Child { op: "start", .. })), "not taken for complete");
    symlink("of an earlier version", pins.iterators().join("REVERSE4-0")).unwrap();
    load(&pins, OBJECT, |_| {}).unwrap();
    SocketRecords::open(&pins).unwrap();
    assert_eq!(names(), ["REVERSE4-1", "REVERSE6-1"]);

    // A kernel without iterators: the reason stands in their place, and no further load follows.
    in_new_netns(|| {
        hide_kernel_types();
        load(&pins, OBJECT, |_| {}).unwrap();
    });
    assert_eq!(names(), ["without-1"]);
    let Err(Error::OpenPin { source, .. }) = SocketRecords::open(&pins) else { panic!("there is none") };
    assert!(source.to_string().contains("vmlinux"), "{source}");
    assert_eq!(nowhere().unwrap(), Prepared::Adopted);
    detach(&pins).unwrap();
    assert!(!pins.root().exists());
}

#[test]
fn only_sockets_that_came_through_the_service_go() {
    let (scratch, cgroup) = (Scratch::new(), Cgroup::new());
    let pins = scratch.pins();
    load(&pins, OBJECT, |_| {}).unwrap();
    if !assert_iterators(&pins) {
        return;
    }
    let datapath = Datapath::open(&pins, Access::Write).unwrap();
    let ids = [(1, ONE, 17), (2, OTHER, 17), (3, ONE, 6), (4, OTHER, 6), (5, ONE6, 17)];
    let port = 5353_u16.to_be();
    for (id, frontend, proto) in ids {
        let (head, counts) = (frontend::HAS_ENDPOINTS, [1, 0]);
        let frontend: SocketAddr = frontend.parse().unwrap();
        let tag = tag(id, 1);
        match frontend.ip() {
            IpAddr::V4(addr) => {
                let addr = u32::from_ne_bytes(addr.octets());
                let mut service =
                    Service { tag, id, generation: 1, frontend: head, counts, ..Service::default() };
                let backend = u32::from_ne_bytes([127, 0, 0, 2]);
                service.inline[0] = Backend { addr: backend, port, flags: 0 };
                let key = ServiceKey { addr, port: frontend.port().to_be(), proto, pad: 0 };
                datapath.service4.put(&key, &service).unwrap();
            }
            IpAddr::V6(addr) => {
                let octets = addr.octets();
                let addr = [0, 4, 8, 12].map(|at| u32::from_ne_bytes(octets[at..at + 4].try_into().unwrap()));
                let mut service =
                    Service { tag, id, generation: 1, frontend: head, counts, ..Service::default() };
                service.inline[0] = Backend { addr: [0, 0, 0, 1_u32.to_be()], port, flags: 0 };
                let key = ServiceKey { addr, port: frontend.port().to_be(), proto, pad: 0 };
                datapath.service6.put(&key, &service).unwrap();
            }
        }
    }
    attach(&pins, cgroup.path()).unwrap();
    let ended = kills::start("dial", &pins, cgroup.path()).wait().unwrap();
    assert!(ended.success(), "{ended}");
}

#[test]
fn each_namespace_has_one_cookie() {
    let (mine, again) = (netns_cookie(here()).unwrap(), netns_cookie(here()).unwrap());
    assert_eq!(mine, again);
    let other = in_new_netns(|| {
        let inside = here();
        let cookies = [netns_cookie(&inside).unwrap(), netns_cookie(&inside).unwrap()];
        assert_eq!(cookies[0], cookies[1]);
        cookies[0]
    });
    assert_ne!(mine, other);
    assert!(netns_cookie(File::open("/dev/null").unwrap()).is_err());
}
