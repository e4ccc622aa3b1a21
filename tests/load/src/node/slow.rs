//! `node slow`: clients that send heads and bodies byte by byte, and clients that read nothing of what has no end. Each
//! begins again when it loses its connection.

use super::client::{Api, As, Client, opened};
use anyhow::{Context, Result};
use serde::Serialize;
use std::{
    io::{Read as _, Write, stdout},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Pause between two bytes.
const PAUSE: Duration = Duration::from_secs(1);

/// Pause of a client before it connects again.
const AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Slow {
    #[command(flatten)]
    api: Api,
    /// Strangers who send a head, or a handshake, byte by byte.
    #[arg(long, default_value_t = 400, value_name = "N")]
    strangers: usize,
    /// Known clients of each other kind.
    #[arg(long, default_value_t = 20, value_name = "N")]
    known: usize,
    /// Duration of the run.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    seconds: u64,
}

#[derive(Debug, Default, Serialize)]
struct Told {
    clients: usize,
    connections: u64,
    /// Connections that the server refused or ended.
    ended: u64,
}

/// What a client does with one connection, until the run's end.
type Way = fn(&Client, Instant) -> Result<()>;

const STRANGERS: [Way; 2] = [
    |client, end| {
        let mut tcp = client.tcp()?;
        trickle(&mut tcp, &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], end)
    },
    |client, end| trickle(&mut client.connect(As::Stranger)?, b"GET /pods HTTP/1.1\r\nHost: n\r\nX: y", end),
];

const KNOWN: [Way; 6] = [
    |client, end| trickle(&mut client.connect(As::Known)?, b"GET /pods HTTP/1.1\r\nHost: n\r\nX: y", end),
    |client, end| {
        let mut tls = client.connect(As::Known)?;
        tls.write_all(b"POST /run/default/none/c HTTP/1.1\r\nHost: n\r\nContent-Length: 100000\r\n\r\n")?;
        trickle(&mut tls, b"body", end)
    },
    |client, end| {
        let head = format!("GET /containerLogs/{}/c?follow=true HTTP/1.1\r\nHost: n\r\n\r\n", client.api.pod);
        let mut tls = client.connect(As::Known)?;
        tls.write_all(head.as_bytes())?;
        wait(&mut tls, end)
    },
    |client, end| unread(client, "exec", "/c?command=yes&output=1", end),
    |client, end| unread(client, "attach", "/c?output=1", end),
    |client, end| {
        let mut tls =
            client.spdy("exec", "/c?command=sleep&command=100000&input=1&output=1", "v4.channel.k8s.io")?;
        let streams = ["error", "stdout", "stdin"].map(|kind| [("streamtype", kind)]);
        tls.write_all(&opened(&streams.each_ref().map(|headers| &headers[..])))?;
        tls.sock.set_write_timeout(Some(PAUSE))?;
        // Fills every queue on the way to a process that reads nothing.
        while Instant::now() < end {
            let frame = [&berth_spdy::encode::data_head(5, 8192, false)[..], &[7; 8192]].concat();
            match tls.write_all(&frame) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return wait(&mut tls, end),
                done => done?,
            }
        }
        Ok(())
    },
];

pub(crate) fn run(options: &Slow) -> Result<()> {
    let client = Client::new(&options.api)?;
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let (connections, ended) = (AtomicU64::new(0), AtomicU64::new(0));
    let strangers = (0..options.strangers).zip(STRANGERS.iter().cycle()).map(|(_, way)| way);
    let known = (0..options.known).flat_map(|_| &KNOWN);
    let ways: Vec<&Way> = strangers.chain(known).collect();
    thread::scope(|scope| {
        for way in &ways {
            let (client, connections, ended) = (&client, &connections, &ended);
            let begin = thread::Builder::new().stack_size(256 * 1024);
            begin.spawn_scoped(scope, move || {
                while Instant::now() < end {
                    connections.fetch_add(1, Ordering::Relaxed);
                    if way(client, end).is_err() {
                        ended.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(AGAIN);
                    }
                }
            })?;
        }
        Ok::<_, std::io::Error>(())
    })
    .context("cannot start the clients")?;
    let told = Told { clients: ways.len(), connections: connections.into_inner(), ended: ended.into_inner() };
    writeln!(stdout(), "{}", serde_json::to_string(&told)?).context("cannot tell the result")
}

/// Sends bytes one by one, the last one again and again.
fn trickle(to: &mut impl Write, bytes: &[u8], end: Instant) -> Result<()> {
    let last = bytes.last().copied().unwrap_or(b'x');
    for byte in bytes.iter().copied().chain(std::iter::repeat(last)) {
        if Instant::now() >= end {
            return Ok(());
        }
        to.write_all(&[byte])?;
        to.flush()?;
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Reads nothing of the output of a command or of a container.
fn unread(client: &Client, verb: &str, rest: &str, end: Instant) -> Result<()> {
    let mut tls = client.spdy(verb, rest, "v4.channel.k8s.io")?;
    let streams = ["error", "stdout"].map(|kind| [("streamtype", kind)]);
    tls.write_all(&opened(&streams.each_ref().map(|headers| &headers[..])))?;
    wait(&mut tls, end)
}

/// Reads nothing until the end, then looks whether the connection is still there.
fn wait(tls: &mut super::client::Tls, end: Instant) -> Result<()> {
    thread::sleep(end.saturating_duration_since(Instant::now()));
    tls.read_exact(&mut [0]).context("cannot read")
}
