//! A node without an agent, in its own network namespace, with `berth dns` and upstreams.

use super::{line, query};
use berth_core::{ids::NodeName, roots::Roots};
use berth_dns::{Client, Publisher, Status};
use berth_harness::wait;
use hickory_proto::{
    op::Message,
    rr::{RData, Record, RecordType, rdata::A},
};
use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};
use tempfile::TempDir;

pub(crate) const DNS: &str = "10.96.0.10";
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A node without an agent, in the network namespace of this thread.
pub(crate) struct Node {
    pub(crate) dir: TempDir,
    pub(crate) roots: Roots,
    pub(crate) address: IpAddr,
}

impl Node {
    pub(crate) fn new(address: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let name = NodeName::new("n").unwrap();
        let resolv_conf = dir.path().join("etc/resolv.conf");
        let roots = Roots { resolv_conf, ..Roots::below(dir.path(), name, "berth-dns-test") };
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        let node = Node { dir, roots, address: address.parse().unwrap() };
        node.upstreams(&[]);
        node
    }

    pub(crate) fn upstreams(&self, servers: &[&str]) {
        let text: String = servers.iter().map(|s| format!("nameserver {s}\n")).collect();
        berth_sys::fs::write_atomic(&self.roots.resolv_conf, text.as_bytes(), 0o644).unwrap();
    }

    pub(crate) fn publish(&self, zone: berth_dns::Zone) {
        assert!(Publisher::open(&self.roots).unwrap().publish(zone).unwrap());
    }

    pub(crate) fn start(&self) -> Running {
        let exe = std::env::current_exe().unwrap();
        let serve = exe.parent().and_then(|p| p.parent()).unwrap().join("examples/serve");
        let child = Command::new(serve).arg(self.dir.path()).arg(self.address.to_string()).spawn().unwrap();
        let running = Running(child);
        let pid = running.0.id();
        wait::until("berth dns is active", PATIENCE, || self.status().is_some_and(|s| s.pid == pid)).unwrap();
        running
    }

    pub(crate) fn status(&self) -> Option<Status> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Client::new(self.roots.dns_socket()).status()).ok()
    }

    pub(crate) fn ask(&self, message: &Message) -> std::io::Result<Message> {
        self.ask_within(message, Duration::from_secs(7))
    }

    pub(crate) fn ask_within(&self, message: &Message, within: Duration) -> std::io::Result<Message> {
        let socket = UdpSocket::bind(if self.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect((self.address, 53))?;
        socket.set_read_timeout(Some(within))?;
        socket.send(&message.to_vec().unwrap())?;
        let mut buffer = [0; 4096];
        let n = socket.recv(&mut buffer)?;
        Ok(Message::from_vec(&buffer[..n]).unwrap())
    }

    pub(crate) fn ask_tcp(&self, message: &Message) -> Message {
        let mut stream = TcpStream::connect((self.address, 53)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        send_framed(&mut stream, &message.to_vec().unwrap());
        Message::from_vec(&read_framed(&mut stream).unwrap()).unwrap()
    }

    pub(crate) fn line(&self, name: &str, kind: RecordType) -> String {
        line(&self.ask(&query(name, kind)).unwrap())
    }
}

pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) fn send_framed(stream: &mut TcpStream, wire: &[u8]) {
    stream.write_all(&u16::try_from(wire.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(wire).unwrap();
}

pub(crate) fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut wire = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut wire)?;
    Ok(wire)
}

/// An upstream at this address that answers as configured and counts questions by UDP.
pub(crate) fn upstream(
    address: &str,
    answer: impl Fn(&Message, bool) -> Vec<Vec<u8>> + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let (asked, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
    let udp = UdpSocket::bind((address, 53)).unwrap();
    let tcp = TcpListener::bind((address, 53)).unwrap();
    let (count, by_udp) = (Arc::clone(&asked), Arc::clone(&answer));
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, from)) = udp.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::SeqCst);
            let message = Message::from_vec(&buffer[..n]).unwrap();
            for wire in by_udp(&message, false) {
                udp.send_to(&wire, from).unwrap();
            }
        }
    });
    thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let Ok(wire) = read_framed(&mut stream) else { continue };
            let message = Message::from_vec(&wire).unwrap();
            for wire in answer(&message, true) {
                send_framed(&mut stream, &wire);
            }
        }
    });
    asked
}

pub(crate) fn response(question: &Message, ttl: u32, address: [u8; 4]) -> Message {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.queries = question.queries.clone();
    let name = question.queries[0].name().clone();
    message.add_answer(Record::from_rdata(name, ttl, RData::A(A(address.into()))));
    message
}

pub(crate) fn good(ttl: u32, address: [u8; 4]) -> impl Fn(&Message, bool) -> Vec<Vec<u8>> {
    move |question, _| vec![response(question, ttl, address).to_vec().unwrap()]
}
