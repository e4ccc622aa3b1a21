//! `node fuzz`: a fuzzer at a live socket. Each input is made from a seed and its number, so that one can be sent again.
//! After every hundred inputs a good request has to be answered.

use super::{
    client::{Api, As, Client, Tls, head_of},
    inputs::{KINDS, Kind, input},
};
use anyhow::{Context, Result, ensure};
use berth_harness::rng::{self, Rng};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _, stdout},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Longest wait for the end of a connection after its input.
const WAIT: Duration = Duration::from_millis(100);

/// Inputs between two good requests.
const CHECK: u64 = 100;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Fuzz {
    #[command(flatten)]
    api: Api,
    /// Duration of the run.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    seconds: u64,
    /// Connections at a time.
    #[arg(long, default_value_t = 8, value_name = "N")]
    at_once: usize,
    /// Send only the input of this number (`BERTH_SEED` is its seed).
    #[arg(long, value_name = "NUMBER")]
    only: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Told {
    seed: u64,
    inputs: u64,
    /// Answers by kind of input and status; 0 where the connection ended without one.
    answers: BTreeMap<String, u64>,
    checks: u64,
}

pub(crate) fn run(options: &Fuzz) -> Result<()> {
    let (client, seed) = (Client::new(&options.api)?, rng::seed());
    if let Some(number) = options.only {
        let answer = one(&client, seed, number)?;
        return writeln!(stdout(), "{answer}").context("cannot tell the result");
    }
    let (next, checks) = (AtomicU64::new(0), AtomicU64::new(0));
    let answers = Mutex::new(BTreeMap::<String, u64>::new());
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let worker = || -> Result<()> {
        while Instant::now() < end {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let answer = one(&client, seed, number)?;
            *answers.lock().unwrap_or_else(PoisonError::into_inner).entry(answer).or_default() += 1;
            if number.is_multiple_of(CHECK) {
                good(&client).with_context(|| format!("after the input {number} of the seed {seed}"))?;
                checks.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.at_once).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_panic| Err(anyhow::anyhow!("a thread of the fuzzer failed")))
        })
    })?;
    let told = Told {
        seed,
        inputs: next.into_inner(),
        answers: answers.into_inner().unwrap_or_else(PoisonError::into_inner),
        checks: checks.into_inner(),
    };
    writeln!(stdout(), "{}", serde_json::to_string(&told)?).context("cannot tell the result")
}

/// Sends one input, and says what was answered.
fn one(client: &Client, seed: u64, number: u64) -> Result<String> {
    let mut rng = Rng::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let kind = *rng.pick(&KINDS);
    let bytes = input(kind, &client.api.pod, &mut rng);
    let command = "/c?command=cat&input=1&output=1&tty=1";
    let tls = match kind {
        Kind::Head => client.connect(As::Known).context("cannot connect"),
        Kind::Command => client.spdy("exec", command, "v4.channel.k8s.io"),
        Kind::Forward => client.spdy("portForward", "", "portforward.k8s.io"),
        Kind::Channels => client.websocket("exec", command, "v5.channel.k8s.io"),
        Kind::Tunnel => client.websocket("portForward", "", "SPDY/3.1+portforward.k8s.io"),
    };
    let mut tls = tls.with_context(|| format!("before the input {number} of the seed {seed}"))?;
    tls.sock.set_read_timeout(Some(WAIT))?;
    // The server may have ended the connection at an earlier byte.
    let _sent = tls.write_all(&bytes).and_then(|()| tls.flush());
    Ok(format!("{kind:?} {}", status(&mut tls, kind)))
}

/// The status of the answer to a head; how the connection stands after frames.
fn status(tls: &mut Tls, kind: Kind) -> String {
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    let ended = loop {
        match tls.read(&mut chunk) {
            Ok(0) => break true,
            Ok(count) if all.len() < 64 * 1024 => {
                all.extend_from_slice(chunk.get(..count).unwrap_or_default())
            }
            Ok(_) => break false,
            Err(e) => break e.kind() != std::io::ErrorKind::WouldBlock,
        }
    };
    if kind != Kind::Head {
        return if ended { "ended" } else { "open" }.to_owned();
    }
    let text = String::from_utf8_lossy(&all);
    text.split(' ').nth(1).map_or_else(|| if ended { "ended" } else { "open" }.to_owned(), str::to_owned)
}

/// A request that has to be answered.
fn good(client: &Client) -> Result<()> {
    let mut tls = client.connect(As::Known)?;
    tls.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")?;
    let head = head_of(&mut tls)?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "no good answer any more: {head}");
    Ok(())
}
