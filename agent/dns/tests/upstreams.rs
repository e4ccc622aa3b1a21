//! Names outside of the cluster: forwarding to upstreams of every kind, in a network namespace of
//! its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails says so by a panic"
)]

mod common;

use berth_harness::{netns, wait};
use common::{
    node::{DNS, Node, PATIENCE, good, read_framed, response, send_framed, upstream},
    query, zone,
};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use std::{
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Makes the node use these upstreams, on port 53.
fn using(node: &Node, servers: &[&str]) {
    node.upstreams(servers);
    let wanted: Vec<_> = servers.iter().map(|s| format!("{s}:53")).collect();
    let now = || node.status().unwrap().upstreams.iter().map(ToString::to_string).collect::<Vec<_>>();
    wait::until("upstreams are in use", PATIENCE, || now() == wanted).unwrap();
}

#[test]
fn other_names_are_asked_of_the_upstreams_once() {
    netns::in_new(|| {
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
        // An ExternalName leads to an upstream too.
        assert_eq!(
            node.line("out.default.svc.cluster.local", RecordType::A),
            "NoError | out.default.svc.cluster.local. CNAME www.example.com. | www.example.com. A 192.0.2.1"
        );
        assert_eq!(node.line("www.example.com", RecordType::ANY), "Refused");
        // After a change of upstreams the cached answers are gone.
        upstream("127.0.0.3", good(60, [192, 0, 2, 3]));
        node.upstreams(&["127.0.0.3"]);
        wait::until("they are in use", PATIENCE, || {
            node.line("www.example.com", RecordType::A) == "NoError | www.example.com. A 192.0.2.3"
        })
        .unwrap();
        node.upstreams(&[]);
        wait::until("there are none", PATIENCE, || node.status().unwrap().upstreams.is_empty()).unwrap();
        assert_eq!(node.line("www.example.com", RecordType::A), "ServFail");
    })
    .unwrap();
}

#[test]
fn bad_upstreams_cost_time_but_no_answer() {
    netns::in_new(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        // Truncated by UDP, complete by TCP.
        upstream("127.0.0.2", |question, stream| {
            let mut message = response(question, 60, [192, 0, 2, 2]);
            if !stream {
                message.answers.clear();
                message.metadata.truncation = true;
            }
            vec![message.to_vec().unwrap()]
        });
        // Noise, a wrong id, another question, and then the answer.
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
        let using = |servers: &[&str]| using(&node, servers);
        using(&["127.0.0.2"]);
        assert_eq!(node.line("a.example.com", RecordType::A), "NoError | a.example.com. A 192.0.2.2");
        using(&["127.0.0.3"]);
        assert_eq!(node.line("a.example.com", RecordType::A), "NoError | a.example.com. A 192.0.2.3");
        using(&["127.0.0.4", "127.0.0.5", "127.0.0.3"]);
        let begun = Instant::now();
        assert_eq!(node.line("b.example.com", RecordType::A), "NoError | b.example.com. A 192.0.2.3");
        assert!((2.0..4.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
        // The upstream is known to be silent now, and names of the cluster never wait.
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
    })
    .unwrap();
}

#[test]
fn equal_questions_under_way_are_asked_once() {
    netns::in_new(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        let open = Arc::new(AtomicBool::new(false));
        let gate = Arc::clone(&open);
        let asked = upstream("127.0.0.2", move |question, _| {
            while !gate.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            vec![response(question, 0, [192, 0, 2, 1]).to_vec().unwrap()]
        });
        node.upstreams(&["127.0.0.2"]);
        let _running = node.start();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..20)
                .map(|n| {
                    // Each client has its own case.
                    let name = if n % 2 == 0 { "one.example.com" } else { "ONE.example.com" };
                    let node = &node;
                    scope.spawn(move || node.ask(&query(name, RecordType::A)).unwrap())
                })
                .collect();
            wait::until("all have asked", PATIENCE, || node.status().unwrap().counts.udp == 20).unwrap();
            open.store(true, Ordering::SeqCst);
            for (n, client) in clients.into_iter().enumerate() {
                let answer = client.join().unwrap();
                assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
                let case = if n % 2 == 0 { "one.example.com." } else { "ONE.example.com." };
                assert_eq!(answer.answers[0].name.to_ascii(), case);
            }
        });
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // The answer must not be cached, so the next question is forwarded again.
        node.line("one.example.com", RecordType::A);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    })
    .unwrap();
}

#[test]
fn an_answer_in_another_case_is_not_believed_before_tcp_says_the_same() {
    netns::in_new(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        let name = "a-name-with-many-letters.example.com";
        // A forged answer from off the path: it has the name's usual case and not the question's.
        let forger = upstream("127.0.0.2", |question, stream| {
            let forged = |question: &Message| {
                let mut plain = question.clone();
                let name = plain.queries[0].name().to_lowercase();
                plain.queries[0].set_name(name);
                response(&plain, 60, [6, 6, 6, 6]).to_vec().unwrap()
            };
            match stream {
                true => vec![response(question, 60, [192, 0, 2, 2]).to_vec().unwrap()],
                false => vec![forged(question)],
            }
        });
        // A server that answers in lower case only, by UDP and TCP.
        let by_stream = Arc::new(AtomicUsize::new(0));
        let streams = Arc::clone(&by_stream);
        upstream("127.0.0.3", move |question, stream| {
            streams.fetch_add(usize::from(stream), Ordering::SeqCst);
            let mut plain = question.clone();
            let name = plain.queries[0].name().to_lowercase();
            plain.queries[0].set_name(name);
            vec![response(&plain, 0, [192, 0, 2, 3]).to_vec().unwrap()]
        });
        let _running = node.start();
        using(&node, &["127.0.0.2"]);
        assert_eq!(node.line(name, RecordType::A), format!("NoError | {name}. A 192.0.2.2"));
        assert_eq!(forger.load(Ordering::SeqCst), 1);
        using(&node, &["127.0.0.3"]);
        for _ in 0..3 {
            assert_eq!(node.line(name, RecordType::A), format!("NoError | {name}. A 192.0.2.3"));
        }
        assert_eq!(by_stream.load(Ordering::SeqCst), 1, "known after the first answer by TCP");
    })
    .unwrap();
}

#[test]
fn an_upstream_without_edns_or_without_tcp_still_serves() {
    netns::in_new(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        upstream("127.0.0.2", |question, _| {
            if question.edns.is_none() {
                return vec![response(question, 60, [192, 0, 2, 2]).to_vec().unwrap()];
            }
            let code = ResponseCode::FormErr;
            let refusal = Message::error_msg(question.metadata.id, question.metadata.op_code, code);
            vec![refusal.to_vec().unwrap()]
        });
        // A truncated answer by UDP, and no answer by TCP.
        upstream("127.0.0.3", |question, stream| {
            let mut message = response(question, 60, [192, 0, 2, 3]);
            message.metadata.truncation = true;
            if stream { Vec::new() } else { vec![message.to_vec().unwrap()] }
        });
        // A TTL with the highest bit set (RFC 2181 8).
        let endless = upstream("127.0.0.4", good(u32::MAX, [192, 0, 2, 4]));
        let _running = node.start();
        using(&node, &["127.0.0.2"]);
        assert_eq!(node.line("a.example.com", RecordType::A), "NoError | a.example.com. A 192.0.2.2");
        using(&node, &["127.0.0.3"]);
        let part = node.ask(&query("b.example.com", RecordType::A)).unwrap();
        assert!(part.metadata.truncation);
        assert_eq!(common::line(&part), "NoError | b.example.com. A 192.0.2.3");
        using(&node, &["127.0.0.4"]);
        for _ in 0..2 {
            let answer = node.ask(&query("c.example.com", RecordType::A)).unwrap();
            assert_eq!(answer.answers[0].ttl, 0);
        }
        assert_eq!(endless.load(Ordering::SeqCst), 2, "not kept");
    })
    .unwrap();
}

/// A client's UDP socket that is connected to the node's DNS.
fn client(node: &Node, address: &str) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.connect((node.address, 53)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn one_client_cannot_use_all_forwarding_slots() {
    netns::in_new(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        upstream("127.0.0.2", |question, _| {
            let slow = question.queries[0].name().to_lowercase().to_ascii().starts_with("slow-");
            if slow { Vec::new() } else { vec![response(question, 60, [192, 0, 2, 1]).to_vec().unwrap()] }
        });
        node.upstreams(&["127.0.0.2"]);
        let _running = node.start();
        let greedy = client(&node, "127.0.0.9");
        for n in 0..600 {
            // Paced by answers to names of the zone, so that no datagram is lost.
            greedy.send(&query(&format!("slow-{n}.example.com"), RecordType::A).to_vec().unwrap()).unwrap();
            if n % 50 == 49 {
                let seen = n + 1;
                wait::until("read", PATIENCE, || node.status().unwrap().counts.udp >= seen).unwrap();
            }
        }
        let modest = client(&node, "127.0.0.10");
        modest.send(&query("quick.example.com", RecordType::A).to_vec().unwrap()).unwrap();
        let mut buffer = [0; 4096];
        let n = modest.recv(&mut buffer).unwrap();
        let answer = Message::from_vec(&buffer[..n]).unwrap();
        assert_eq!(common::line(&answer), "NoError | quick.example.com. A 192.0.2.1");
        assert!(node.status().unwrap().counts.failed >= 300, "the greedy one has its share and no more");
    })
    .unwrap();
}

#[test]
fn one_client_cannot_hold_all_streams() {
    netns::in_new(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        let _running = node.start();
        let at = SocketAddr::new(node.address, 53);
        let idle: Vec<TcpStream> = (0..180).map(|_| connect_from("127.0.0.9", at)).collect();
        let mut modest = connect_from("127.0.0.10", at);
        send_framed(&mut modest, &query("web.default.svc.cluster.local", RecordType::A).to_vec().unwrap());
        let answer = Message::from_vec(&read_framed(&mut modest).unwrap()).unwrap();
        assert_eq!(common::line(&answer), "NoError | web.default.svc.cluster.local. A 10.96.0.20");
        drop(idle);
    })
    .unwrap();
}

fn connect_from(client: &str, at: SocketAddr) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
    use std::os::fd::AsRawFd as _;
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let from = SocketAddr::new(client.parse::<IpAddr>().unwrap(), 0);
    bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
    connect(fd.as_raw_fd(), &SockaddrStorage::from(at)).unwrap();
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn an_upstream_that_forwards_back_is_detected() {
    netns::in_new(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        let at = SocketAddr::new(node.address, 53);
        let asked = upstream("127.0.0.2", move |question, _| {
            let back = UdpSocket::bind("0.0.0.0:0").unwrap();
            back.connect(at).unwrap();
            back.set_read_timeout(Some(PATIENCE)).unwrap();
            // A new id, like a forwarder's.
            let mut forwarded = question.clone();
            forwarded.metadata.id = question.metadata.id.wrapping_add(1);
            back.send(&forwarded.to_vec().unwrap()).unwrap();
            let mut buffer = [0; 4096];
            let n = back.recv(&mut buffer).unwrap();
            let mut answer = Message::from_vec(&buffer[..n]).unwrap();
            answer.metadata.id = question.metadata.id;
            vec![answer.to_vec().unwrap()]
        });
        node.upstreams(&["127.0.0.2"]);
        let _running = node.start();
        let begun = Instant::now();
        assert_eq!(node.line("somewhere-outside.example.com", RecordType::A), "ServFail");
        // No upstream timed out.
        assert!(begun.elapsed() < berth_dns::forward::UPSTREAM, "{:?}", begun.elapsed());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    })
    .unwrap();
}

#[test]
fn resolv_conf_is_followed_through_links_that_are_put_elsewhere() {
    netns::in_new(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        let dir = |name: &str| {
            let dir = node.dir.path().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            dir
        };
        let (first, second) = (dir("run/first"), dir("run/second"));
        let write = |dir: &std::path::Path, server: &str| {
            let text = format!("nameserver {server}\n");
            berth_sys::fs::write_atomic(&dir.join("resolv.conf"), text.as_bytes(), 0o644).unwrap();
        };
        let link = |to: &std::path::Path| {
            let new = node.dir.path().join("etc/new");
            std::os::unix::fs::symlink(to.join("resolv.conf"), &new).unwrap();
            std::fs::rename(&new, &node.roots.resolv_conf).unwrap();
        };
        let uses = |server: &str| {
            let wanted = [format!("{server}:53").parse::<SocketAddr>().unwrap()];
            wait::until("the upstream is in use", PATIENCE, || node.status().unwrap().upstreams == wanted)
                .unwrap();
        };
        write(&first, "192.0.2.1");
        write(&second, "192.0.2.2");
        link(&first);
        let _running = node.start();
        uses("192.0.2.1");
        link(&second);
        uses("192.0.2.2");
        write(&second, "192.0.2.3");
        uses("192.0.2.3");
        link(&first);
        uses("192.0.2.1");
        write(&first, "192.0.2.4");
        uses("192.0.2.4");
    })
    .unwrap();
}
