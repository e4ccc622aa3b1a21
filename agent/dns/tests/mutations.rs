//! Damaged messages and zones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails says so by a panic"
)]

mod common;

use berth_dns::{
    cache,
    index::Index,
    question::{self, Parsed, Transport},
    resolve::{Step, resolve},
};
use berth_harness::mutate::{Bytes, Reached, bytes, run};
use common::{ask, query, with_edns, zone};
use hickory_proto::{op::Message, rr::RecordType};

const NAMES: &[&str] = &[
    "web.default.svc.cluster.local",
    "db.default.svc.cluster.local",
    "_sql._tcp.db.default.svc.cluster.local",
    "alias.default.svc.cluster.local",
    "10-0-0-1.default.pod.cluster.local",
    "1.0.0.10.in-addr.arpa",
    "www.example.com",
];

const KINDS: &[RecordType] =
    &[RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::PTR, RecordType::TXT, RecordType::ANY];

fn index() -> Index {
    Index::new(zone(), &["10.96.0.10".parse().unwrap()]).unwrap()
}

#[test]
fn damaged_questions_are_answered_or_refused() {
    let index = index();
    let pieces: &[&[u8]] =
        &[b"\xc0\x0c", b"\x00\x29\x04\xd0", b"\x05_http", b"\x3f", b"\xff\xff", b"\x00\x01\x00\x01"];
    run(
        "questions",
        |rng| {
            let message = query(rng.pick::<&str>(NAMES), *rng.pick(KINDS));
            let message = if rng.below(2) == 0 { with_edns(message, 1232) } else { message };
            let mut wire = message.to_vec().unwrap();
            bytes(rng, &mut wire, pieces);
            Bytes(wire)
        },
        |wire| {
            for transport in [Transport::Udp, Transport::Tcp] {
                match question::read(wire, transport) {
                    Parsed::Question(question) => {
                        let step = resolve(&index, question.query.name(), question.query.query_type());
                        let Step::Done(answer) = step else { return Reached::Taken };
                        let written = question.write(&answer).expect("every answer can be written");
                        assert!(transport == Transport::Tcp || written.len() <= 1232);
                        let read = Message::from_vec(&written).expect("what is written can be read");
                        assert_eq!(read.metadata.response_code, answer.code);
                    }
                    Parsed::Refused(bytes) => {
                        assert!(bytes.len() >= 12);
                        return Reached::Checks;
                    }
                    Parsed::Ignored => return Reached::Syntax,
                }
            }
            Reached::Taken
        },
    );
}

#[test]
fn damaged_answers_of_upstreams_do_no_harm() {
    let index = index();
    run(
        "answers",
        |rng| {
            let question = with_edns(query(rng.pick::<&str>(&NAMES[..4]), *rng.pick(&KINDS[..3])), 1232);
            let mut wire = ask(&index, &question, Transport::Tcp).unwrap().to_vec().unwrap();
            if rng.below(3) == 0 {
                bytes(rng, &mut wire, &[b"\xc0\x0c", b"\xff\xff\xff\xff", b"\x00\x06\x00\x01"]);
            } else {
                // Most other damage makes the message invalid.
                let at = rng.index(wire.len());
                wire[at] ^= 1 << rng.below(8);
            }
            Bytes(wire)
        },
        |wire| {
            let Ok(message) = Message::from_vec(wire) else { return Reached::Syntax };
            // A cached answer can be read again.
            let mut cache = cache::Cache::new(4, 1 << 16);
            let key = cache::Key {
                name: common::name("x"),
                kind: RecordType::A,
                dnssec: false,
                checking_disabled: false,
            };
            let now = std::time::Instant::now();
            cache.put(key.clone(), &message, wire, now);
            match cache.get(&key, now) {
                Some(_) => Reached::Taken,
                None => {
                    assert!(cache.is_empty());
                    Reached::Checks
                }
            }
        },
    );
}

#[test]
fn damaged_zones_are_taken_or_refused() {
    let text = serde_json::to_vec(&zone()).unwrap();
    let dir = berth_harness::mutate::dir().unwrap();
    let path = dir.path().join("zone.json");
    let pieces: &[&[u8]] = &[b"\"\"", b"{}", b"[]", b"null", b"-1", b"4294967296", b"...", b"\xc3", b"65536"];
    run(
        "zones",
        |rng| {
            let mut text = text.clone();
            // Damage within names, so that enough of the files are still JSON.
            if rng.below(2) == 0 {
                let at = rng.index(text.len());
                if text[at].is_ascii_alphanumeric() {
                    text[at] = *rng.pick(b".-_0zA*".as_slice());
                }
            } else {
                bytes(rng, &mut text, pieces);
            }
            Bytes(text)
        },
        |text| {
            if serde_json::from_slice::<serde_json::Value>(text).is_err() {
                return Reached::Syntax;
            }
            std::fs::write(&path, &**text).unwrap();
            let Ok(zone) = berth_dns::publish::read(&path) else { return Reached::Checks };
            let Ok(index) = Index::new(zone, &[]) else { return Reached::Checks };
            for name in NAMES {
                for kind in KINDS {
                    if let Step::Done(answer) = resolve(&index, &common::name(name), *kind) {
                        assert!(answer.answers.len() < 16);
                    }
                }
            }
            Reached::Taken
        },
    );
}
