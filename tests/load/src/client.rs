//! `client`: measures the rate and the latency of a server.

use anyhow::{Context, Result, bail, ensure};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use serde::Serialize;
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Time limit for one answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Options of `client`.
#[derive(Debug, clap::Args)]
pub(crate) struct Client {
    /// Server to load.
    #[arg(long, value_name = "ADDRESS:PORT")]
    target: SocketAddr,
    /// What to measure.
    #[arg(long, value_enum)]
    mode: Mode,
    /// Duration of the run.
    #[arg(long, default_value_t = 1000, value_name = "MILLISECONDS")]
    millis: u64,
    /// Number of simultaneous connections, with a thread each.
    #[arg(long, default_value_t = 2, value_name = "N")]
    at_once: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// New connections: connect, one byte, one line, reset.
    New,
    /// Requests over open connections: one byte, one line.
    Keep,
}

/// Results of a run.
#[derive(Debug, Serialize)]
struct Counted {
    /// Number of answers.
    n: usize,
    /// Answers per second.
    rate: f64,
    /// Median time of an answer in microseconds.
    p50_us: f64,
    /// 99th percentile of the answers' times in microseconds.
    p99_us: f64,
}

/// Runs the client and prints its results as JSON.
pub(crate) fn run(client: &Client) -> Result<()> {
    let (target, mode) = (client.target, client.mode);
    // The first packet of each family may wait for neighbour discovery, which is not part of the measurement.
    once(target)?;
    let begun = Instant::now();
    let until = begun + Duration::from_millis(client.millis);
    let threads: Vec<_> = (0..client.at_once)
        .map(|_| {
            thread::spawn(move || match mode {
                Mode::New => anew(target, until),
                Mode::Keep => kept(target, until),
            })
        })
        .collect();
    let mut all = Vec::new();
    for thread in threads {
        let Ok(times) = thread.join() else { bail!("a thread of the client failed") };
        all.append(&mut times?);
    }
    let took = begun.elapsed().as_secs_f64();
    ensure!(!all.is_empty(), "{target} gave no answer");
    all.sort_unstable();
    let at = |share: usize| {
        let index = (all.len() * share / 100).min(all.len() - 1);
        all.get(index).map_or(0.0, |d| d.as_secs_f64() * 1e6)
    };
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let rate = all.len() as f64 / took;
    let counted = Counted { n: all.len(), rate, p50_us: at(50), p99_us: at(99) };
    #[expect(clippy::print_stdout, reason = "what it was started for")]
    {
        println!("{}", serde_json::to_string(&counted)?);
    }
    Ok(())
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("connect to {target}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, target: SocketAddr) -> Result<()> {
    let mut line = [0_u8; 256];
    stream.write_all(b"?").with_context(|| format!("ask {target}"))?;
    let n = stream.read(&mut line).with_context(|| format!("read the answer of {target}"))?;
    ensure!(line.get(..n).is_some_and(|l| l.ends_with(b"\n")), "{target} answered {n} bytes, not a line");
    Ok(())
}

fn once(target: SocketAddr) -> Result<()> {
    let mut stream = connect(target)?;
    // The connection ends with a reset, so no port stays in TIME_WAIT however many connections were made.
    let reset = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &reset).context("set SO_LINGER")?;
    ask(&mut stream, target)
}

fn anew(target: SocketAddr, until: Instant) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(1 << 16);
    let mut now = Instant::now();
    while now < until {
        once(target)?;
        let then = Instant::now();
        times.push(then.saturating_duration_since(now));
        now = then;
    }
    Ok(times)
}

fn kept(target: SocketAddr, until: Instant) -> Result<Vec<Duration>> {
    let mut stream = connect(target)?;
    let mut times = Vec::with_capacity(1 << 18);
    let mut now = Instant::now();
    while now < until {
        ask(&mut stream, target)?;
        let then = Instant::now();
        times.push(then.saturating_duration_since(now));
        now = then;
    }
    Ok(times)
}
