//! A container's output is complete, byte by byte, whatever happens to logd and at whatever point
//! of the container's life.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail as tests do")]

mod support;

use berth_logd::{StreamSpec, client::Client, format::Stream, server::READ_SIZE};
use rustix::process::Signal;
use std::{
    io::Write,
    sync::mpsc::{self, TryRecvError},
    thread,
    time::Duration,
};
use support::*;

#[test]
fn role() {
    act_or_check();
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    None,
    /// logd is killed and started again after a while.
    Down,
    /// logd is stopped for a while.
    Slow,
    /// logd is killed and started again at once.
    Restarted,
    /// A new logd takes over.
    Replaced,
}

const ALL: [Trouble; 5] =
    [Trouble::None, Trouble::Down, Trouble::Slow, Trouble::Restarted, Trouble::Replaced];
const A_WHILE: Duration = Duration::from_millis(150);
/// A write that takes this long hangs. Latencies of writes are measured on a real node, because a
/// busy machine delays them too.
const HANGS: Duration = Duration::from_secs(30);
/// How often logd is killed while one writer writes.
const KILLS: u64 = 40;

impl Trouble {
    async fn strike(self, node: &Node, mut logd: Logd) -> Logd {
        match self {
            Trouble::None => logd,
            Trouble::Down => {
                logd.kill();
                tokio::time::sleep(A_WHILE).await;
                node.start().await
            }
            Trouble::Slow => {
                logd.stop();
                tokio::time::sleep(A_WHILE).await;
                logd.signal(Signal::CONT);
                logd
            }
            Trouble::Restarted => {
                logd.kill();
                node.start().await
            }
            Trouble::Replaced => {
                let new = node.start().await;
                logd.ended();
                new
            }
        }
    }

    fn may_repeat(self) -> usize {
        if matches!(self, Trouble::Down | Trouble::Restarted) { READ_SIZE } else { 0 }
    }
}

/// About 5 MB/s for about 0.8 s, so that the failure comes in the middle of the output.
async fn write_through(trouble: Trouble, spec: impl Fn(&Node) -> StreamSpec, end: &str) {
    let node = Node::new();
    let logd = node.start().await;
    let client = node.client();
    let spec = spec(&node);
    let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
    let written = numbered(4_000_000, end);
    let bytes = written.clone();
    let writer = thread::spawn(move || shim.write_at(&bytes, 5_000_000));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let logd = trouble.strike(&node, logd).await;
    let slowest = tokio::task::spawn_blocking(|| writer.join().unwrap()).await.unwrap();
    client.finish(&spec.id).await.unwrap();
    drop(logd);
    // A terminal's carriage returns are dropped with their newlines.
    let expected: Vec<u8> = written.iter().copied().filter(|b| *b != b'\r').collect();
    assert_bound(&expected, &node.raw(&spec, Stream::Stdout), trouble.may_repeat());
    assert!(slowest < HANGS, "{trouble:?}: a write took {slowest:?}");
    println!("{trouble:?}: slowest write {slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_at_5_megabytes_a_second_is_complete_through_every_failure() {
    for trouble in ALL {
        write_through(trouble, |node| node.spec("writer"), "\n").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminal_output_is_complete_through_every_failure() {
    for trouble in ALL {
        write_through(trouble, |node| StreamSpec { tty: true, ..node.spec("tty") }, "\r\n").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_of_a_container_created_during_a_failure_is_complete() {
    for trouble in ALL {
        let node = Node::new();
        let logd = node.start().await;
        let spec = node.spec("created");
        let create = async {
            let client = node.client();
            let mut kept = Vec::new();
            for n in 0..20 {
                let spec = node.spec(&format!("c-{n}"));
                let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
                write!(shim.out, "out {n}\nrest").unwrap();
                writeln!(shim.err.as_ref().unwrap(), "err {n}").unwrap();
                kept.push((spec, shim));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for (spec, shim) in kept {
                drop(shim);
                assert!(client.finish(&spec.id).await.unwrap().known);
            }
        };
        let strike = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            trouble.strike(&node, logd).await
        };
        let ((), _logd) = tokio::join!(create, strike);
        for n in 0..20 {
            let spec = node.spec(&format!("c-{n}"));
            let out = format!("out {n}\nrest");
            assert_bound(out.as_bytes(), &node.raw(&spec, Stream::Stdout), trouble.may_repeat());
            assert_bound(
                format!("err {n}\n").as_bytes(),
                &node.raw(&spec, Stream::Stderr),
                trouble.may_repeat(),
            );
        }
        assert!(!node.client().finish(&spec.id).await.unwrap().known);
    }
}

/// The shim ends while logd is down: only the agent's client holds the FIFOs then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_of_a_container_that_exits_during_a_failure_is_complete() {
    for trouble in ALL {
        let node = Node::new();
        let logd = node.start().await;
        let client = node.client();
        let spec = node.spec("exits");
        let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
        let written = [numbered(300_000, "\n"), b"last words".to_vec()].concat();
        let bytes = written.clone();
        let exit = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            tokio::task::spawn_blocking(move || shim.out.write_all(&bytes).unwrap()).await.unwrap();
        };
        let (_logd, ()) = tokio::join!(trouble.strike(&node, logd), exit);
        let report = client.finish(&spec.id).await.unwrap();
        assert!(report.known);
        assert_bound(&written, &node.raw(&spec, Stream::Stdout), trouble.may_repeat());
        assert!(!node.roots.fifo_dir(&spec.id).exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logd_killed_again_and_again_under_load_loses_no_output() {
    let node = Node::new();
    let mut logd = node.start().await;
    let client = node.client();
    let spec = node.spec("killed");
    let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
    let piece = numbered(500_000, "\n");
    let bytes = piece.clone();
    let (killed, all_killed) = mpsc::channel::<()>();
    // The writer writes as long as logd is being killed, however slow either is.
    let writer = thread::spawn(move || {
        let (mut pieces, mut slowest) = (0, Duration::ZERO);
        while all_killed.try_recv() == Err(TryRecvError::Empty) {
            slowest = slowest.max(shim.write_at(&bytes, 8_000_000));
            pieces += 1;
        }
        (pieces, slowest)
    });
    for kill in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(7 + kill * 3 % 20)).await;
        logd.kill();
        logd = node.start().await;
    }
    drop(killed);
    let (pieces, slowest) = tokio::task::spawn_blocking(|| writer.join().unwrap()).await.unwrap();
    Client::new(node.roots.logd_socket()).finish(&spec.id).await.unwrap();
    let (written, read) = (piece.repeat(pieces), node.raw(&spec, Stream::Stdout));
    println!("{} bytes written, {} read, slowest write {slowest:?}", written.len(), read.len());
    assert_bound(&written, &read, usize::try_from(KILLS).unwrap() * READ_SIZE);
    assert!(slowest < HANGS, "a write took {slowest:?}");
}
