//! `ask`: clients that send requests at a fixed rate and print each answer with its times, so that the test
//! can check whether the backend was allowed to answer then.

use anyhow::{Context, Result, bail, ensure};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
    time::{ClockId, clock_gettime},
};
use serde::Serialize;
use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

/// Time limit for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a connected socket is replaced for one request.
const RENEWALS: u32 = 2;
/// Threads for TCP, and as many for UDP.
const THREADS: u32 = 4;

/// Options of `ask`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Ask {
    /// Servers to ask in turn, over TCP and UDP.
    #[arg(long = "target", required = true, value_name = "ADDRESS:PORT")]
    targets: Vec<SocketAddr>,
    /// Connections per second, and as many datagrams. Every second datagram uses a connected socket that
    /// stays open.
    #[arg(long, default_value_t = 200, value_name = "N")]
    per_second: u32,
    /// Duration of the run.
    #[arg(long, default_value_t = 1000, value_name = "MILLISECONDS")]
    millis: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// A new connection.
    Tcp,
    /// A datagram from the unconnected socket, which sends to all targets.
    Udp,
    /// A datagram from a socket that stays connected to one target.
    Connected,
}

/// One request with its answer.
#[derive(Debug, Serialize)]
struct Asked {
    kind: Kind,
    target: SocketAddr,
    /// CLOCK_MONOTONIC before the request and after the answer, in microseconds.
    sent_us: u64,
    got_us: u64,
    /// Name of the server that answered; otherwise `error` holds the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Whether the connected socket had been aborted and was replaced.
    renewed: bool,
}

/// Runs the clients; each answer is a line of JSON on standard output.
pub(crate) fn run(ask: &Ask) -> Result<()> {
    let begun = Instant::now();
    let threads: Vec<_> = (0..THREADS)
        .flat_map(|n| [(Kind::Tcp, n), (Kind::Udp, n)])
        .map(|(kind, n)| {
            let ask = ask.clone();
            thread::spawn(move || worker(&ask, kind, n, begun))
        })
        .collect();
    for thread in threads {
        let Ok(done) = thread.join() else { bail!("a thread of the client failed") };
        done?;
    }
    Ok(())
}

fn worker(ask: &Ask, kind: Kind, worker: u32, begun: Instant) -> Result<()> {
    let until = begun + Duration::from_millis(ask.millis);
    let period = Duration::from_secs(1).checked_div(ask.per_second).context("nothing a second")?;
    let targets = ask.targets.len();
    let mut sockets = Sockets::new()?;
    let mut turn = worker;
    loop {
        let due = begun + period * turn;
        if due >= until {
            return Ok(());
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let index = usize::try_from(turn)? % targets;
        let Some(target) = ask.targets.get(index).copied() else { return Ok(()) };
        // The kind of socket alternates with each pass over the targets, so that every target gets datagrams
        // of both kinds.
        let walk = usize::try_from(turn)? / targets;
        let kind = if kind == Kind::Udp && (index + walk) % 2 == 1 { Kind::Connected } else { kind };
        let sent_us = now_us();
        let (answer, renewed) = match kind {
            Kind::Tcp => (tcp(target), false),
            Kind::Udp => (sockets.anybody(target, turn), false),
            Kind::Connected => sockets.connected(target, turn),
        };
        let (by, error) = match answer {
            Ok(by) => (Some(by), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let asked = Asked { kind, target, sent_us, got_us: now_us(), by, error, renewed };
        let mut line = serde_json::to_vec(&asked)?;
        line.push(b'\n');
        io::stdout().lock().write_all(&line).context("tell an answer")?;
        turn = turn.saturating_add(THREADS);
    }
}

fn now_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

fn tcp(target: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The connection ends with a reset, so no port stays in TIME_WAIT.
    let reset = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &reset).context("set SO_LINGER")?;
    stream.write_all(b"?").context("ask")?;
    let mut line = [0_u8; 256];
    let n = stream.read(&mut line).context("read the answer")?;
    name(line.get(..n).unwrap_or_default())
}

/// Name of the server: the first word of its answer.
fn name(answer: &[u8]) -> Result<String> {
    let text = String::from_utf8_lossy(answer);
    let (line, _) = text.split_once('\n').context("the answer is no line")?;
    Ok(line.split(' ').next().unwrap_or_default().to_owned())
}

/// The datagram sockets of a thread.
struct Sockets {
    anybody: UdpSocket,
    connected: HashMap<SocketAddr, UdpSocket>,
}

impl Sockets {
    fn new() -> Result<Sockets> {
        let anybody = UdpSocket::bind("0.0.0.0:0").context("make a socket")?;
        anybody.set_read_timeout(Some(PATIENCE))?;
        Ok(Sockets { anybody, connected: HashMap::new() })
    }

    fn anybody(&self, target: SocketAddr, turn: u32) -> Result<String> {
        let mark = turn.to_be_bytes();
        self.anybody.send_to(&mark, target).context("send")?;
        let mut bytes = [0_u8; 256];
        loop {
            let (n, from) = self.anybody.recv_from(&mut bytes).context("receive")?;
            let answer = bytes.get(..n).unwrap_or_default();
            // The late answer to an earlier request.
            if !answer.ends_with(&mark) {
                continue;
            }
            ensure!(from == target, "the answer came from {from}");
            return name(answer);
        }
    }

    /// Sends over the connected socket of the target. The node aborts such a socket when its backend is
    /// removed: the socket fails once, in sending or receiving, and must be replaced, as resolvers do. The
    /// backend of the new socket may be removed at that moment too, hence [`RENEWALS`].
    fn connected(&mut self, target: SocketAddr, turn: u32) -> (Result<String>, bool) {
        let mut done = self.by_connected(target, turn);
        let mut renewed = false;
        for _ in 0..RENEWALS {
            if !done.as_ref().is_err_and(taken_away) {
                break;
            }
            self.connected.remove(&target);
            renewed = true;
            done = self.by_connected(target, turn);
        }
        (done, renewed)
    }

    fn by_connected(&mut self, target: SocketAddr, turn: u32) -> Result<String> {
        let mark = turn.to_be_bytes();
        let socket = match self.connected.entry(target) {
            std::collections::hash_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::hash_map::Entry::Vacant(room) => {
                let socket = UdpSocket::bind("0.0.0.0:0").context("make a socket")?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect(target).context("connect")?;
                room.insert(socket)
            }
        };
        socket.send(&mark).context("send")?;
        let mut bytes = [0_u8; 256];
        loop {
            let n = socket.recv(&mut bytes).context("receive")?;
            let answer = bytes.get(..n).unwrap_or_default();
            if answer.ends_with(&mark) {
                return name(answer);
            }
        }
    }
}

fn taken_away(error: &anyhow::Error) -> bool {
    let code = error.root_cause().downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    matches!(code, Some(libc::ECONNABORTED | libc::EDESTADDRREQ | libc::ENOTCONN))
}
