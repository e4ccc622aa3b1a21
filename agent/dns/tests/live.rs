//! The server in its own network namespace, asked over its sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails says so by a panic"
)]

mod common;

use berth_dns::{PodNames, address};
use berth_harness::{netns, wait};
use common::{
    line,
    node::{DNS, Node, PATIENCE, good, upstream},
    query, service, with_edns, zone,
};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use std::{
    io::{Read, Write},
    net::IpAddr,
    os::unix::net::{UnixListener, UnixStream},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

#[test]
fn cluster_dns_answers_by_udp_and_tcp_and_follows_the_zone_file() {
    netns::in_new(|| {
        for address in [DNS, "fd00:96::10"] {
            let node = Node::new(address);
            let _running = node.start();
            let web = "web.default.svc.cluster.local";
            // No zone exists yet.
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
    })
    .unwrap();
}

#[test]
fn cluster_dns_survives_a_kill_and_hands_over_without_losing_a_question() {
    netns::in_new(|| {
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
        // New servers take over while questions arrive: no question is lost, neither from the zone
        // nor forwarded.
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
        // The address stays after all servers, until it is removed explicitly.
        let shown = || {
            let out = Command::new("ip").args(["-o", "addr", "show", "dev", "lo"]).output().unwrap();
            String::from_utf8(out.stdout).unwrap()
        };
        assert!(shown().contains("10.96.0.10/32"), "{}", shown());
        assert_eq!(address::remove(&node.roots).unwrap(), [node.address]);
        assert!(!shown().contains("10.96.0.10") && shown().contains("127.0.0.1"), "{}", shown());
    })
    .unwrap();
}

/// Requests a handover like a new server, until the server has handed over: it refuses while it waits for the new server of
/// an earlier request, and then binds its local socket anew. Returns the connection.
fn hand_over(node: &Node) -> UnixStream {
    let request = || -> std::io::Result<(UnixStream, Vec<u8>)> {
        let mut stream = UnixStream::connect(node.roots.dns_socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = br#"{"op":"hand-over"}"#;
        stream.write_all(&u32::try_from(request.len()).unwrap().to_le_bytes())?;
        stream.write_all(request)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut reply = vec![0; u32::from_le_bytes(length) as usize];
        stream.read_exact(&mut reply)?;
        Ok((stream, reply))
    };
    wait::some("the server hands over", PATIENCE, || {
        let (stream, reply) = request().ok()?;
        (reply == br#"{"reply":"handed-over"}"#).then_some(stream)
    })
    .unwrap()
}

#[test]
fn a_server_that_dies_during_its_takeover_leaves_the_old_one_active() {
    netns::in_new(|| {
        let node = Node::new(DNS);
        node.publish(zone());
        let first = node.start();
        let found = "NoError | web.default.svc.cluster.local. A 10.96.0.20";
        for bound in [false, true] {
            let stream = hand_over(&node);
            assert_eq!(node.line("web.default.svc.cluster.local", RecordType::A), found);
            if bound {
                // The new server has bound its own local socket already.
                std::fs::remove_file(node.roots.dns_socket()).unwrap();
                drop(UnixListener::bind(node.roots.dns_socket()).unwrap());
            }
            drop(stream);
            let there = || node.status().is_some_and(|s| s.pid == first.0.id());
            wait::until("the first one is asked", PATIENCE, there).unwrap();
            assert_eq!(node.line("web.default.svc.cluster.local", RecordType::A), found);
        }
        // Only one server takes over at a time. The second waits until the first has finished or is
        // gone.
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
    })
    .unwrap();
}

#[test]
fn an_address_of_another_owner_is_not_removed() {
    netns::in_new(|| {
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
    })
    .unwrap();
}
