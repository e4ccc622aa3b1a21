//! The server in a network namespace of its own, asked over its sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails says so by a panic"
)]

mod common;

use berth_core::{ids::NodeName, roots::Roots};
use berth_dns::{Client, PodNames, Publisher, Status, address};
use berth_harness::wait;
use common::{line, query, service, with_edns, zone};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType, rdata::A},
};
use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::net::{UnixListener, UnixStream},
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const DNS: &str = "10.96.0.10";
const PATIENCE: Duration = Duration::from_secs(10);

/// A node without an agent, in the network namespace of this thread.
struct Node {
    dir: TempDir,
    roots: Roots,
    address: IpAddr,
}

impl Node {
    fn new(address: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let name = NodeName::new("n").unwrap();
        let resolv_conf = dir.path().join("etc/resolv.conf");
        let roots = Roots { resolv_conf, ..Roots::below(dir.path(), name, "berth-dns-test") };
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        let node = Node { dir, roots, address: address.parse().unwrap() };
        node.upstreams(&[]);
        node
    }

    fn upstreams(&self, servers: &[&str]) {
        let text: String = servers.iter().map(|s| format!("nameserver {s}\n")).collect();
        berth_sys::fs::write_atomic(&self.roots.resolv_conf, text.as_bytes(), 0o644).unwrap();
    }

    fn publish(&self, zone: berth_dns::Zone) {
        assert!(Publisher::open(&self.roots).unwrap().publish(zone).unwrap());
    }

    fn start(&self) -> Running {
        let exe = std::env::current_exe().unwrap();
        let serve = exe.parent().and_then(|p| p.parent()).unwrap().join("examples/serve");
        let child = Command::new(serve).arg(self.dir.path()).arg(self.address.to_string()).spawn().unwrap();
        let running = Running(child);
        let pid = running.0.id();
        wait::until("berth dns is in charge", PATIENCE, || self.status().is_some_and(|s| s.pid == pid))
            .unwrap();
        running
    }

    fn status(&self) -> Option<Status> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Client::new(self.roots.dns_socket()).status()).ok()
    }

    fn ask(&self, message: &Message) -> std::io::Result<Message> {
        self.ask_within(message, Duration::from_secs(7))
    }

    fn ask_within(&self, message: &Message, within: Duration) -> std::io::Result<Message> {
        let socket = UdpSocket::bind(if self.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect((self.address, 53))?;
        socket.set_read_timeout(Some(within))?;
        socket.send(&message.to_vec().unwrap())?;
        let mut buffer = [0; 4096];
        let n = socket.recv(&mut buffer)?;
        Ok(Message::from_vec(&buffer[..n]).unwrap())
    }

    fn ask_tcp(&self, message: &Message) -> Message {
        let mut stream = TcpStream::connect((self.address, 53)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        send_framed(&mut stream, &message.to_vec().unwrap());
        Message::from_vec(&read_framed(&mut stream).unwrap()).unwrap()
    }

    fn line(&self, name: &str, kind: RecordType) -> String {
        line(&self.ask(&query(name, kind)).unwrap())
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn send_framed(stream: &mut TcpStream, wire: &[u8]) {
    stream.write_all(&u16::try_from(wire.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(wire).unwrap();
}

fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut wire = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut wire)?;
    Ok(wire)
}

/// Runs the test in a network namespace of its own, which ends with its last thread and process.
fn in_netns(test: impl FnOnce() + Send + 'static) {
    let ended = thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        test();
    })
    .join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// An upstream at this address that answers as it is told; counts questions by datagram.
fn upstream(
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

fn response(question: &Message, ttl: u32, address: [u8; 4]) -> Message {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.queries = question.queries.clone();
    let name = question.queries[0].name().clone();
    message.add_answer(Record::from_rdata(name, ttl, RData::A(A(address.into()))));
    message
}

fn good(ttl: u32, address: [u8; 4]) -> impl Fn(&Message, bool) -> Vec<Vec<u8>> {
    move |question, _| vec![response(question, ttl, address).to_vec().unwrap()]
}

#[test]
fn answers_by_datagram_and_stream_and_follows_the_file() {
    in_netns(|| {
        for address in [DNS, "fd00:96::10"] {
            let node = Node::new(address);
            let _running = node.start();
            let web = "web.default.svc.cluster.local";
            // Nothing is known yet.
            assert_eq!(node.line(web, RecordType::A), "ServFail");
            node.publish(zone());
            let found = "NoError | web.default.svc.cluster.local. A 10.96.0.20";
            wait::until("the zone is in use", PATIENCE, || node.line(web, RecordType::A) == found).unwrap();
            assert_eq!(line(&node.ask_tcp(&query(web, RecordType::A))), found);
            // A torn file changes nothing.
            std::fs::write(node.roots.zone_file(), "{\"version\":1,").unwrap();
            wait::until("it is told", PATIENCE, || node.status().is_some_and(|s| s.zone_error.is_some()))
                .unwrap();
            assert_eq!(node.line(web, RecordType::A), found);
            std::fs::remove_file(node.roots.zone_file()).unwrap();
            let endpoints = (0..200).map(|i| common::endpoint(&format!("10.1.0.{i}"), None, true)).collect();
            let slices = [common::slice("default", "many", &[], endpoints)];
            node.publish(berth_dns::build(
                &[service("default", "many", &[])],
                &slices,
                PodNames::Any,
                "cluster.local",
            ));
            let many = query("many.default.svc.cluster.local", RecordType::A);
            let code = || node.ask(&many).unwrap().metadata.response_code;
            wait::until("the next zone is in use", PATIENCE, || code() == ResponseCode::NoError).unwrap();
            let cut = node.ask(&with_edns(many.clone(), 1232)).unwrap();
            assert!(cut.metadata.truncation && cut.answers.len() > 50);
            assert_eq!(node.ask_tcp(&many).answers.len(), 200);
            let status = node.status().unwrap();
            assert!(status.counts.udp > 4 && status.counts.tcp == 2 && status.counts.zone > 4, "{status:?}");
        }
    });
}

#[test]
fn goes_on_after_a_kill_and_hands_over() {
    in_netns(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        let mut first = node.start();
        let found = "NoError | web.default.svc.cluster.local. A 10.96.0.20";
        assert_eq!(node.line("web.default.svc.cluster.local", RecordType::A), found);
        first.0.kill().unwrap();
        first.0.wait().unwrap();
        let begun = Instant::now();
        let second = node.start();
        assert_eq!(node.line("web.default.svc.cluster.local", RecordType::A), found);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        // The next ones take over while questions come: not one is lost, of either kind, from the zone or forwarded.
        upstream("127.0.0.2", |question, stream| {
            thread::sleep(Duration::from_millis(30));
            good(0, [192, 0, 2, 1])(question, stream)
        });
        node.upstreams(&["127.0.0.2"]);
        let using = || node.status().is_some_and(|s| s.upstreams.len() == 1);
        wait::until("the upstream is in use", PATIENCE, using).unwrap();
        let done = AtomicBool::new(false);
        let local = query("web.default.svc.cluster.local", RecordType::A);
        let foreign = query("www.example.com", RecordType::A);
        let forwarded = "NoError | www.example.com. A 192.0.2.1";
        let third = thread::scope(|scope| {
            let asking = |ask: Box<dyn Fn() -> String + Send>, expected: &'static str| {
                let done = &done;
                scope.spawn(move || {
                    let mut answered = 0;
                    while !done.load(Ordering::SeqCst) {
                        assert_eq!(ask(), expected, "after {answered} answers");
                        answered += 1;
                    }
                    answered
                })
            };
            let (node, local, foreign) = (&node, &local, &foreign);
            let once = Duration::from_millis(1500);
            let by_udp = move |of: &Message| line(&node.ask_within(of, once).unwrap());
            let askers = [
                asking(Box::new(move || by_udp(local)), found),
                asking(Box::new(move || by_udp(local)), found),
                asking(Box::new(move || by_udp(foreign)), forwarded),
                asking(Box::new(move || line(&node.ask_tcp(local))), found),
                asking(Box::new(move || line(&node.ask_tcp(foreign))), forwarded),
            ];
            let mut last = second;
            for _ in 0..5 {
                let next = node.start();
                wait::until("the old one ends", PATIENCE, || last.0.try_wait().unwrap().is_some()).unwrap();
                last = next;
            }
            done.store(true, Ordering::SeqCst);
            for asker in askers {
                let answered = asker.join().unwrap();
                assert!(answered > 5, "{answered}");
            }
            last
        });
        assert_eq!(node.status().unwrap().pid, third.0.id());
        drop(third);
        // The address outlives them all, and goes when told.
        let shown = || {
            let out = Command::new("ip").args(["-o", "addr", "show", "dev", "lo"]).output().unwrap();
            String::from_utf8(out.stdout).unwrap()
        };
        assert!(shown().contains("10.96.0.10/32"), "{}", shown());
        assert_eq!(address::remove(&node.roots).unwrap(), [node.address]);
        assert!(!shown().contains("10.96.0.10") && shown().contains("127.0.0.1"), "{}", shown());
    });
}

/// Asks for the handing over as the next one does; returns the connection once it is answered.
fn hand_over(node: &Node) -> UnixStream {
    let mut stream = UnixStream::connect(node.roots.dns_socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = br#"{"op":"hand-over"}"#;
    stream.write_all(&u32::try_from(request.len()).unwrap().to_le_bytes()).unwrap();
    stream.write_all(request).unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    stream
}

#[test]
fn one_that_dies_while_it_takes_over_leaves_the_other_in_charge() {
    in_netns(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        let first = node.start();
        let found = "NoError | web.default.svc.cluster.local. A 10.96.0.20";
        for bound in [false, true] {
            let stream = hand_over(&node);
            assert_eq!(node.line("web.default.svc.cluster.local", RecordType::A), found);
            if bound {
                // It went so far as to put its own socket there.
                std::fs::remove_file(node.roots.dns_socket()).unwrap();
                drop(UnixListener::bind(node.roots.dns_socket()).unwrap());
            }
            drop(stream);
            let there = || node.status().is_some_and(|s| s.pid == first.0.id());
            wait::until("the first one is asked", PATIENCE, there).unwrap();
            assert_eq!(node.line("web.default.svc.cluster.local", RecordType::A), found);
        }
        // Only one takes over at a time; the second waits until the first is done or gone.
        let stream = hand_over(&node);
        thread::scope(|scope| {
            let next = scope.spawn(|| node.start());
            assert_eq!(node.status().unwrap().pid, first.0.id());
            drop(stream);
            let next = next.join().unwrap();
            let mut first = first;
            wait::until("the first one ends", PATIENCE, || first.0.try_wait().unwrap().is_some()).unwrap();
            assert_eq!(node.status().unwrap().pid, next.0.id());
            assert_eq!(node.line("web.default.svc.cluster.local", RecordType::A), found);
        });
    });
}

#[test]
fn an_address_of_somebody_else_is_not_removed() {
    in_netns(|| {
        let node = Node::new(DNS);
        assert!(
            Command::new("ip")
                .args(["addr", "add", "10.96.0.10/32", "dev", "lo"])
                .status()
                .unwrap()
                .success()
        );
        std::fs::create_dir_all(node.roots.runtime_state.join("dns")).unwrap();
        address::ensure(&node.roots, &[node.address]).unwrap();
        assert_eq!(address::remove(&node.roots).unwrap(), Vec::<IpAddr>::new());
        let out = Command::new("ip").args(["-o", "addr", "show", "dev", "lo"]).output().unwrap();
        assert!(String::from_utf8(out.stdout).unwrap().contains("10.96.0.10/32"));
    });
}

#[test]
fn other_names_are_asked_of_the_upstreams_once() {
    in_netns(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        let asked = upstream("127.0.0.2", good(60, [192, 0, 2, 1]));
        node.upstreams(&[DNS, "127.0.0.2"]);
        let _running = node.start();
        assert_eq!(node.status().unwrap().upstreams, ["127.0.0.2:53".parse().unwrap()]);
        assert_eq!(node.line("www.example.com", RecordType::A), "NoError | www.example.com. A 192.0.2.1");
        let again = node.ask(&query("WWW.example.COM", RecordType::A)).unwrap();
        assert_eq!(again.answers[0].name.to_ascii(), "WWW.example.COM.");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // An ExternalName leads there too.
        assert_eq!(
            node.line("out.default.svc.cluster.local", RecordType::A),
            "NoError | out.default.svc.cluster.local. CNAME www.example.com. | www.example.com. A 192.0.2.1"
        );
        assert_eq!(node.line("www.example.com", RecordType::ANY), "Refused");
        // Other upstreams: what the old ones said is forgotten.
        upstream("127.0.0.3", good(60, [192, 0, 2, 3]));
        node.upstreams(&["127.0.0.3"]);
        wait::until("they are in use", PATIENCE, || {
            node.line("www.example.com", RecordType::A) == "NoError | www.example.com. A 192.0.2.3"
        })
        .unwrap();
        node.upstreams(&[]);
        wait::until("there are none", PATIENCE, || node.status().unwrap().upstreams.is_empty()).unwrap();
        assert_eq!(node.line("www.example.com", RecordType::A), "ServFail");
    });
}

#[test]
fn bad_upstreams_cost_time_but_no_answer() {
    in_netns(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        // Cut by datagram, whole by stream.
        upstream("127.0.0.2", |question, stream| {
            let mut message = response(question, 60, [192, 0, 2, 2]);
            if !stream {
                message.answers.clear();
                message.metadata.truncation = true;
            }
            vec![message.to_vec().unwrap()]
        });
        // Noise, a wrong id, another question; then the answer.
        upstream("127.0.0.3", |question, _| {
            let mut wrong = response(question, 60, [6, 6, 6, 6]);
            wrong.metadata.id = wrong.metadata.id.wrapping_add(1);
            let mut other = response(question, 60, [6, 6, 6, 6]);
            other.queries[0].set_name(common::name("other.example.com"));
            let id = question.metadata.id.to_be_bytes();
            vec![
                b"noise".to_vec(),
                [id.as_slice(), &[0xff; 40]].concat(),
                wrong.to_vec().unwrap(),
                other.to_vec().unwrap(),
                response(question, 60, [192, 0, 2, 3]).to_vec().unwrap(),
            ]
        });
        let silent = upstream("127.0.0.4", |_, _| Vec::new());
        upstream("127.0.0.5", |question, _| {
            let mut message = response(question, 60, [0; 4]);
            message.answers.clear();
            message.metadata.response_code = ResponseCode::ServFail;
            vec![message.to_vec().unwrap()]
        });
        let _running = node.start();
        let using = |servers: &[&str]| {
            node.upstreams(servers);
            let wanted: Vec<_> = servers.iter().map(|s| format!("{s}:53")).collect();
            let now = || node.status().unwrap().upstreams.iter().map(ToString::to_string).collect::<Vec<_>>();
            wait::until("upstreams are in use", PATIENCE, || now() == wanted).unwrap();
        };
        using(&["127.0.0.2"]);
        assert_eq!(node.line("a.example.com", RecordType::A), "NoError | a.example.com. A 192.0.2.2");
        using(&["127.0.0.3"]);
        assert_eq!(node.line("a.example.com", RecordType::A), "NoError | a.example.com. A 192.0.2.3");
        using(&["127.0.0.4", "127.0.0.5", "127.0.0.3"]);
        let begun = Instant::now();
        assert_eq!(node.line("b.example.com", RecordType::A), "NoError | b.example.com. A 192.0.2.3");
        assert!((2.0..4.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
        // Meanwhile it is known to be silent, and names of the cluster never wait.
        let begun = Instant::now();
        assert_eq!(node.line("c.example.com", RecordType::A), "NoError | c.example.com. A 192.0.2.3");
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(silent.load(Ordering::SeqCst), 1);
        using(&["127.0.0.5"]);
        assert_eq!(node.line("d.example.com", RecordType::A), "ServFail");
        using(&["127.0.0.4"]);
        let begun = Instant::now();
        assert_eq!(node.line("d.example.com", RecordType::A), "ServFail");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}
