//! Mutation tests of logd's own state files and of the messages that it receives.

use super::{
    carry::{CarryFile, checksum},
    table,
};
use crate::format::{MAX_LINE, Splitter};
use berth_api::logd::{FinishReport, Reply, Request, StreamSpec, StreamStatus, decode, encode};
use berth_core::{
    ids::{
        Attempt, ContainerId, ContainerName, Namespace, NodeName, PodKey, PodName, PodUid, SandboxAttempt,
    },
    roots::Roots,
};
use berth_harness::{
    mutate::{Bytes, Reached, bytes, dir, json::Corpus, run},
    rng::Rng,
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Component, Path},
};

const TEXTS: &[&str] =
    &["app", "default", "..", "a/b", "a_b", "A", "hello", "register", "finish", "list", "done"];

fn spec() -> StreamSpec {
    let uid = PodUid::new("1b4e28ba-2fa1-11d2-883f-0016d3cca427").unwrap();
    let container = ContainerName::new("app").unwrap();
    StreamSpec {
        id: ContainerId::derive(&uid, SandboxAttempt(0), &container, Attempt(2)),
        uid,
        key: PodKey { namespace: Namespace::new("default").unwrap(), name: PodName::new("web").unwrap() },
        container,
        attempt: Attempt(2),
        tty: false,
        stdin: true,
        stdin_once: false,
    }
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

/// Whether a path made of these names stays below its root.
fn below(path: &Path, root: &Path) -> bool {
    path.strip_prefix(root).is_ok_and(|p| p.components().all(|c| matches!(c, Component::Normal(_))))
}

#[test]
fn mutated_stream_table() {
    let dir = dir().unwrap();
    let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), "berth-logd-mutations");
    table::prepare(&roots).unwrap();
    table::save(&roots, &spec()).unwrap();
    assert_eq!(table::load(&roots).unwrap(), [spec()]);
    let file = roots.runtime_state.join("logd/streams").join(format!("{}.json", spec().id));
    let document: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let corpus = Corpus::new(vec![document], TEXTS);
    run(
        "stream table",
        |rng| corpus.text(rng),
        |text| {
            fs::write(&file, &text[..]).unwrap();
            let loaded = table::load(&roots).unwrap();
            let bad = file.with_extension("bad");
            assert_eq!(loaded.is_empty(), bad.exists(), "a row is used or set aside");
            match loaded.first() {
                Some(spec) => {
                    assert!(below(&spec.log_path(&roots), &roots.pod_logs));
                    assert!(below(&roots.fifo_dir(&spec.id), &roots.runtime_state));
                    assert!(spec.link_name().len() <= 255 && !spec.link_name().contains('/'));
                    assert!(file.ends_with(format!("{}.json", spec.id)), "removing it removes this file");
                    Reached::Taken
                }
                None => {
                    assert_eq!(fs::read(&bad).unwrap(), text[..], "kept as it was");
                    fs::remove_file(&bad).unwrap();
                    if is_json(text) { Reached::Checks } else { Reached::Syntax }
                }
            }
        },
    );
}

/// A carry file as `CarryFile` writes it, then damaged, mostly under a correct checksum.
fn carry_file(rng: &mut Rng) -> Bytes {
    let long = rng.below(20) == 0;
    let mut line = b"begun, not ended".repeat(if long { MAX_LINE / 16 + rng.index(2) } else { 1 });
    if rng.below(2) == 0 {
        bytes(rng, &mut line, &[b"\n", b"\0"]);
    }
    let extremes = [0, 1, line.len() as u32, MAX_LINE as u32, MAX_LINE as u32 + 1, u32::MAX];
    let (mut take, mut len) = (7, line.len() as u32);
    match rng.below(4) {
        0 => take = *rng.pick(&extremes),
        1 => len = *rng.pick(&extremes),
        _ => {}
    }
    let mut raw = Vec::new();
    raw.extend(checksum(&line).to_le_bytes());
    raw.extend(rng.draw().to_le_bytes());
    raw.extend(take.to_le_bytes());
    raw.extend(len.to_le_bytes());
    raw.extend(line);
    match rng.below(4) {
        0 => bytes(rng, &mut raw, &[&[0xff; 8], &[0; 8]]),
        1 => raw.truncate(rng.index(raw.len())),
        _ => {}
    }
    Bytes(raw)
}

#[test]
fn mutated_begun_lines() {
    let dir = dir().unwrap();
    let path = dir.path().join("carry");
    run("unfinished lines", carry_file, |raw| {
        fs::write(&path, &raw[..]).unwrap();
        let mut file = CarryFile::new(path.clone());
        let Some(saved) = file.load() else { return Reached::Syntax };
        assert!(saved.carry.len() <= MAX_LINE);
        let mut splitter = Splitter::resume(saved.carry.clone());
        let mut pieces = Vec::new();
        splitter.push(b"\n", |piece| pieces.push((piece.partial, piece.text.to_vec())));
        if !saved.carry.contains(&b'\n') {
            assert_eq!(pieces, [(false, saved.carry.clone())]);
        }
        // The next save overwrites the file.
        assert!(file.save(b"next", b"x"));
        assert_eq!(CarryFile::new(path.clone()).load().unwrap().carry, b"next");
        Reached::Taken
    });
}

#[test]
fn mutated_messages() {
    let body = |frame: Vec<u8>| serde_json::from_slice::<Value>(frame.get(4..).unwrap()).unwrap();
    let status = StreamStatus { spec: spec(), bytes: 5, lost: 1, failing: Some("disk full".into()) };
    let paths = spec().paths(&Roots::below(Path::new("/x"), NodeName::new("n").unwrap(), "g"));
    let requests = vec![
        body(encode(1, Request::Register { spec: spec() }).unwrap()),
        body(encode(2, Request::Finish { id: spec().id }).unwrap()),
        body(encode(3, Request::RemovePod { key: spec().key, uid: spec().uid }).unwrap()),
        json!({"v": 1, "body": {"op": "hello"}}),
    ];
    let replies = vec![
        body(encode(1, Reply::Streams { streams: vec![status] }).unwrap()),
        body(encode(2, Reply::Paths(paths)).unwrap()),
        body(encode(3, Reply::Finished(FinishReport { known: true, bytes: 5, lost: 0 })).unwrap()),
        body(encode(4, Reply::Handed { spec: spec(), bytes: 7, lost: 0 }).unwrap()),
        json!({"v": 1, "body": {"kind": "failed", "message": "why"}}),
    ];
    let (requests, replies) = (Corpus::new(requests, TEXTS), Corpus::new(replies, TEXTS));
    for request in requests.documents() {
        decode::<Request>(request.to_string().as_bytes()).unwrap();
    }
    for reply in replies.documents() {
        decode::<Reply>(reply.to_string().as_bytes()).unwrap();
    }
    let make = |rng: &mut Rng| {
        let ask = rng.below(2) == 0;
        (ask, if ask { requests.text(rng) } else { replies.text(rng) })
    };
    run("messages", make, |(ask, text)| {
        let understood = if *ask {
            decode::<Request>(text).map(|e| assert!(!e.body.name().is_empty()))
        } else {
            decode::<Reply>(text).map(drop)
        };
        match understood {
            Ok(()) => Reached::Taken,
            Err(_) if is_json(text) => Reached::Checks,
            Err(_) => Reached::Syntax,
        }
    });
}
