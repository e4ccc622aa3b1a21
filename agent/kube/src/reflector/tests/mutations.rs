//! Damaged streams: no panic, bounded memory, and well-formed changes.

use super::*;
use crate::lines::Lines;
use berth_harness::{
    mutate::{self, Reached},
    rng::Rng,
};

/// Answers in the form of kube-apiserver 1.36: pages, a streaming list, news, both forms of 410.
fn corpus() -> Vec<Vec<u8>> {
    let expired = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version: 1 (207)", "reason": "Expired", "code": 410});
    let full = json!({"apiVersion": "v1", "kind": "Number", "number": 7, "metadata": {
        "name": "full", "namespace": "kube-system", "uid": "0c2f6a3e-7d1c-4a53-9f0e-3d0f3c9c8a11",
        "resourceVersion": "4711", "creationTimestamp": "2026-01-02T03:04:05Z", "managedFields": [{"manager": "m"}],
        "annotations": {"a": "\u{e4}\u{1f600}\n\"\\"}}});
    let join =
        |lines: &[Vec<u8>]| lines.iter().flat_map(|l| [l.as_slice(), b"\n"].concat()).collect::<Vec<u8>>();
    vec![
        page(&[object("a", 1, 1), full.clone()], 300, Some("eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ")),
        page(&[object("b", 2, 2), object("c", 3, 3)], 300, None),
        join(&[
            line("ADDED", &object("a", 1, 1)),
            line("ADDED", &full),
            bookmark(301, true),
            line("MODIFIED", &object("a", 302, 2)),
        ]),
        join(&[
            line("MODIFIED", &object("b", 303, 5)),
            bookmark(305, false),
            line("DELETED", &object("b", 306, 5)),
        ]),
        join(&[line("ERROR", &expired)]),
        join(&[bookmark(307, false), line("ADDED", &object("d", 308, 1))]),
    ]
}

const PIECES: &[&[u8]] = &[
    b"\n",
    b"null",
    b"{}",
    b"[]",
    b"\"ERROR\"",
    b"\"BOOKMARK\"",
    b"\"DELETED\"",
    b"\"resourceVersion\":",
    b"\"0\"",
    b"\"\"",
    b"\"code\":410",
    b"\"code\":500",
    b"\"retryAfterSeconds\":9999999999",
    b"\"continue\":\"t\"",
    b"\"metadata\":null",
    b"\"items\":null",
    b"\\ud800",
    b"99999999999999999999999",
    b"{\"a\":{\"a\":{\"a\":",
];

/// Answers in a random order, each possibly damaged.
fn streams(rng: &mut Rng) -> Vec<mutate::Bytes> {
    let corpus = corpus();
    let mut answers = Vec::new();
    for _ in 0..=rng.below(5) {
        let mut answer = rng.pick(&corpus).clone();
        if rng.below(3) > 0 {
            mutate::bytes(rng, &mut answer, PIECES);
        }
        answers.push(mutate::Bytes(answer));
    }
    answers
}

/// Maximum of bytes that a machine may hold after any input: a token, a version and a text.
const HELD: usize = 32 * 1024;

#[test]
fn mutated_streams_neither_panic_nor_grow_the_machine() {
    mutate::run("streams", streams, |answers| {
        let (mut machine, mut store, mut lines) =
            (ListWatch::new(Options::set()), Store::default(), Lines::new(1024));
        let (mut now, mut reached) = (Duration::ZERO, Reached::Syntax);
        for (n, answer) in answers.iter().enumerate() {
            let mut step = machine.next(now, n as u64 * 77, n % 2 == 0);
            if let Step::Wait(until) = step {
                assert!(until - now <= s(301), "waits {:?}", until - now);
                now = until;
                step = machine.next(now, 0, n % 2 == 0);
            }
            let mut changes = Vec::new();
            if let Step::List { query } = &step {
                assert!(query.len() < HELD * 3);
                changes = machine.page(&Numbers, answer, now);
            } else {
                machine.answered(now);
                'watch: for piece in answer.chunks(100) {
                    if let Err(error) = lines.push(piece) {
                        machine.ended(End::LineTooLong(error), now);
                        break;
                    }
                    assert!(lines.held() <= 4096);
                    while let Some(line) = lines.next_line() {
                        changes.extend(machine.line(&Numbers, line, now));
                        if !machine.is_open() {
                            break 'watch;
                        }
                    }
                }
                if machine.is_open() {
                    machine.ended(End::Closed, now);
                }
                lines = Lines::new(1024);
            }
            assert!(changes.len() <= answer.len() / 20 + 2, "{} changes", changes.len());
            assert!(machine.behind().is_none_or(|why| why.len() <= 5 * 1024));
            for change in changes {
                reached = match change {
                    Change::Complete(_) => Reached::Taken,
                    _ if reached == Reached::Syntax => Reached::Checks,
                    _ => reached,
                };
                store.apply(change);
            }
            now += s(1);
        }
        reached
    });
}
