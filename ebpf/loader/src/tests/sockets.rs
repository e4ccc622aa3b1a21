//! Sockets of namespaces.

use super::in_new_netns;
use crate::{Proto, destroy_sockets, netns_cookie};
use std::{
    collections::HashSet,
    fs::File,
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
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
        let doomed = [
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
        for socket in &doomed {
            assert!(is_destroyed(socket), "{socket:?}");
            let aborted = socket.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(aborted.kind(), ErrorKind::ConnectionAborted);
            // The application may connect anew.
            let anew = if socket.local_addr().unwrap().is_ipv4() { ALIVE } else { "[::1]:5354" };
            socket.connect(anew).unwrap();
        }
        assert!(!kept.iter().any(is_destroyed));
        unconnected.send_to(b"on", ALIVE).unwrap();
        // Another namespace's sockets are not touched.
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
        let doomed: Vec<UdpSocket> = (0..900).map(|_| connected("0.0.0.0:0", DEAD)).collect();
        let dead = HashSet::from([DEAD.parse().unwrap()]);
        assert_eq!(destroy_sockets(here(), Proto::Udp, &dead).unwrap(), doomed.len());
        assert!(doomed.iter().all(is_destroyed));
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
