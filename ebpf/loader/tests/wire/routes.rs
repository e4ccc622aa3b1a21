//! The device and the MTU of outgoing packets, and ports of the node that belong to its own sockets.

use crate::{DEADLINE, NODE, Net, OUTSIDE, SINK, UDP, VIP, ask_udp, raw::Raw};
use nix::libc::EMSGSIZE;
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

/// Answers each connection with the number of received bytes.
pub(crate) fn take_all(place: IpAddr) {
    let listener = TcpListener::bind((place, SINK)).unwrap();
    // The thread ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let count = io::copy(&mut stream, &mut io::sink()).unwrap_or(0);
                // The client may be gone.
                let _sent = stream.write_all(count.to_string().as_bytes());
            });
        }
    });
}

/// Sends this many bytes to [`take_all`] and returns the number that arrived. The client closes first.
pub(crate) fn send_many(to: SocketAddr, bytes: usize) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(&vec![7; bytes])?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A backend behind a device with a smaller MTU: the client learns the MTU and sends smaller packets.
pub(crate) fn what_is_too_big_is_told(net: &Net) {
    const MANY: usize = 1_000_000;
    for mtu in [1500, 1400] {
        net.node.ip(&format!("link set up1 mtu {mtu}"));
        // The learned MTU belongs to a destination address, so UDP and TCP use different ones.
        for (node, vip) in NODE.both().into_iter().zip(VIP.both()) {
            let to = SocketAddr::new(node, 30084);
            let ask = || net.outside.run(move || ask_udp(to, 1420));
            let heard = ask().err().and_then(|e| e.raw_os_error());
            assert_eq!(heard, (mtu == 1400).then_some(EMSGSIZE), "udp to {to}");
            assert_eq!(ask().unwrap_or_else(|e| panic!("{mtu}, udp to {to}: {e}")), node.to_string());
            let to = SocketAddr::new(vip, 86);
            let came = net.outside.run(move || send_many(to, MANY));
            assert_eq!(came.unwrap_or_else(|e| panic!("{mtu}, tcp to {to}: {e}")), MANY.to_string());
        }
    }
}

/// A socket of the node, bound to the number of a UDP node port, asks outside and receives the answer.
pub(crate) fn own_socket(net: &Net) {
    for (node, outside) in NODE.both().into_iter().zip(OUTSIDE.both()) {
        let heard = net.node.run(move || {
            let socket = UdpSocket::bind((node, 30080)).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.connect((outside, 7777)).unwrap();
            socket.send(b"who am I").unwrap();
            let mut answer = [0; 64];
            socket.recv(&mut answer).map(|len| String::from_utf8_lossy(&answer[..len]).into_owned())
        });
        assert_eq!(heard.unwrap(), node.to_string());
    }
}

/// A datagram of the outside client arrives at the other uplink. The answer must leave by the uplink of the
/// route.
pub(crate) fn answers_go_by_them(net: &Net) {
    for (client, node) in OUTSIDE.both().into_iter().zip(NODE.both()) {
        let (client, node) = (SocketAddr::new(client, 5353), SocketAddr::new(node, 30080));
        let socket = net.outside.run(move || UdpSocket::bind(client).unwrap());
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        net.other.run(move || Raw::new().send(UDP, client, node, 0));
        let mut answer = [0; 64];
        let (len, from) =
            socket.recv_from(&mut answer).unwrap_or_else(|e| panic!("no answer of {node} comes by up0: {e}"));
        assert_eq!(from, node);
        assert_eq!(String::from_utf8_lossy(&answer[..len]), node.ip().to_string());
    }
}
