//! `node exec`: commands at a fixed rate. A command that cannot begin in time, because too many are under way, begins
//! late; then the rate that is told is what the node carries. Times count from a command's begin.

use super::client::{Api, Client, error_stream, opened};
use anyhow::{Context, Result, bail};
use berth_harness::stats;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::{Write as _, stdout},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    api: Api,
    /// Commands per second.
    #[arg(long, default_value_t = 100.0, value_name = "N")]
    per_second: f64,
    /// Duration of the run.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    seconds: u64,
    /// Most commands at a time.
    #[arg(long, default_value_t = 32, value_name = "N")]
    at_once: usize,
}

#[derive(Debug, Default, Serialize)]
struct Told {
    due: u64,
    done: u64,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    longest_ms: f64,
    /// Failures by their text.
    failed: BTreeMap<String, u64>,
}

pub(crate) fn run(options: &Exec) -> Result<()> {
    let client = Client::new(&options.api)?;
    let (next, began) = (AtomicU64::new(0), Instant::now());
    let (end, pause) = (Duration::from_secs(options.seconds), 1.0 / options.per_second.max(0.001));
    let results = Mutex::new((Vec::new(), BTreeMap::<String, u64>::new()));
    thread::scope(|scope| {
        for _ in 0..options.at_once {
            scope.spawn(|| {
                loop {
                    let due = Duration::from_secs_f64(next.fetch_add(1, Ordering::Relaxed) as f64 * pause);
                    if due >= end || began.elapsed() >= end {
                        return;
                    }
                    thread::sleep(due.saturating_sub(began.elapsed()));
                    let begun = Instant::now();
                    let done = one(&client);
                    let took = begun.elapsed().as_secs_f64() * 1000.0;
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    match done {
                        Ok(()) => results.0.push(took),
                        Err(error) => *results.1.entry(format!("{error:#}")).or_default() += 1,
                    }
                }
            });
        }
    });
    let took = began.elapsed().as_secs_f64();
    let (times, failed) = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let done = u64::try_from(times.len())?;
    let told = Told {
        due: done + failed.values().sum::<u64>(),
        done,
        per_second: done as f64 / took,
        p50_ms: stats::quantile(&times, 0.5),
        p99_ms: stats::quantile(&times, 0.99),
        longest_ms: stats::quantile(&times, 1.0),
        failed,
    };
    writeln!(stdout(), "{}", serde_json::to_string(&told)?).context("cannot tell the result")
}

fn one(client: &Client) -> Result<()> {
    let mut tls = client.spdy("exec", "/c?command=true&output=1&error=1", "v4.channel.k8s.io")?;
    let streams = ["error", "stdout", "stderr"].map(|kind| [("streamtype", kind)]);
    tls.write_all(&opened(&streams.each_ref().map(|headers| &headers[..])))?;
    let told = error_stream(&mut tls)?;
    let status: serde_json::Value = serde_json::from_slice(&told)
        .with_context(|| format!("no status but {:?}", String::from_utf8_lossy(&told)))?;
    if status["status"] != "Success" {
        bail!("{}", status["message"].as_str().unwrap_or("no success"));
    }
    Ok(())
}
