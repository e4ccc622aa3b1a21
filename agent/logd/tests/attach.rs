//! Attached readers: each gets a copy of the output, and none holds up the container.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail as tests do")]

mod support;

use berth_api::logd::attach_fifo;
use berth_logd::{StreamSpec, format::Stream};
use rustix::fs::{CWD, Mode, OFlags};
use std::{
    fs::File,
    io::{self, Read, Write},
    path::PathBuf,
};
use support::*;

#[test]
fn role() {
    act_or_check();
}

/// The FIFOs of an attachment, with their reading ends open.
fn fifos(node: &Node, spec: &StreamSpec, session: &str) -> Vec<File> {
    let open = |stream| {
        let path: PathBuf = node.roots.fifo_dir(&spec.id).join(attach_fifo(session, stream));
        rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
        File::from(rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap())
    };
    ["stdout", "stderr"].into_iter().map(open).collect()
}

/// Reads what is there; false at the end.
fn read(from: &mut File, into: &mut Vec<u8>) -> bool {
    let mut buffer = vec![0; 1 << 16];
    match from.read(&mut buffer) {
        Ok(0) => false,
        Ok(n) => {
            into.extend_from_slice(&buffer[..n]);
            true
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => true,
        Err(e) => panic!("{e}"),
    }
}

#[tokio::test]
async fn readers_get_a_copy_and_a_slow_one_loses_its_place() {
    let node = Node::new();
    let _logd = node.start().await;
    let client = node.client();
    let spec = node.spec("web");
    let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
    writeln!(shim.out, "before").unwrap();
    wait_for("the first line", || node.raw(&spec, Stream::Stdout) == b"before\n");

    let (mut quick, mut slow) = (fifos(&node, &spec, "1x0"), fifos(&node, &spec, "1x1"));
    client.attach(&spec.id, "1x0").await.unwrap();
    client.attach(&spec.id, "1x1").await.unwrap();
    let line = [b"x".repeat((64 << 10) - 1), b"\n".to_vec()].concat();
    let total = 8 << 20;
    let (mut got, mut sent) = (Vec::new(), 0);
    while sent < total {
        shim.out.write_all(&line).unwrap();
        sent += line.len();
        // The quick reader keeps up; the slow one reads nothing, and the writer is never held.
        while got.len() < sent {
            assert!(read(&mut quick[0], &mut got));
        }
    }
    writeln!(shim.err.as_ref().unwrap(), "error").unwrap();
    let mut error = Vec::new();
    wait_for("standard error", || read(&mut quick[1], &mut error) && error == b"error\n");
    assert!(got.chunks(line.len()).all(|chunk| chunk == line), "the copy is what was written");

    let mut late = Vec::new();
    wait_for("the end of the slow reader", || !read(&mut slow[0], &mut late));
    assert!(late.len() < total && late.starts_with(&line));

    // The quick reader sees the end of the container's output, and the log has all of it.
    client.finish(&spec.id).await.unwrap();
    wait_for("the end", || !read(&mut quick[0], &mut got));
    assert_eq!(node.raw(&spec, Stream::Stdout).len(), "before\n".len() + total);
}

#[tokio::test]
async fn what_cannot_be_attached_is_refused_and_a_reader_that_is_gone_costs_nothing() {
    let node = Node::new();
    let _logd = node.start().await;
    let client = node.client();
    let spec = StreamSpec { stdin: true, ..node.spec("web") };
    assert!(client.attach(&spec.id, "1x0").await.is_err(), "its output is not registered");
    let paths = client.register(spec.clone()).await.unwrap();
    assert!(client.attach(&spec.id, "1x0").await.is_err(), "there is no FIFO");
    assert!(client.attach(&spec.id, "../1x0").await.is_err(), "that is no name");
    drop(fifos(&node, &spec, "1x2"));
    assert!(client.attach(&spec.id, "1x2").await.is_err(), "nobody reads the FIFO");

    let mut shim = Shim::open(&paths);
    let readers = fifos(&node, &spec, "1x3");
    client.attach(&spec.id, "1x3").await.unwrap();
    drop(readers);
    writeln!(shim.out, "after").unwrap();
    wait_for("the line", || node.raw(&spec, Stream::Stdout) == b"after\n");

    // Nobody else holds the input, so its reader sees the end once logd has let go.
    let mut input = File::open(paths.stdin.unwrap()).unwrap();
    client.close_stdin(&spec.id).await.unwrap();
    assert_eq!(input.read(&mut [0]).unwrap(), 0);
}
