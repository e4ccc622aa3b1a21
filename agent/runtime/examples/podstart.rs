//! Starts and ends a pod's container many times and prints the time of each step, beside the time of a plain
//! `runc run -d` of the same bundle in the same minutes.
//!
//! `cargo run -p berth-runtime --example podstart -- [ROUNDS] [--kill]`. With `--kill`, containerd is killed
//! at a rng random moment of every fourth round: during the start, or before the container's end, which
//! then happens while no process watches. Fails unless every pod had one shim, every exit code was known and
//! nothing is left.
#![allow(clippy::print_stdout, reason = "this is a program for people")]

#[path = "../tests/support/mod.rs"]
mod support;

use anyhow::{Context, Result, bail, ensure};
use berth_harness::rng::Rng;
use berth_runtime::{ExitRecord, FoundState, Runtime, RuntimeEvent, StartRequest, Started};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use support::{Node, PATIENCE, tools};

/// Durations by step.
#[derive(Default)]
struct Figures(BTreeMap<String, Vec<Duration>>);

impl Figures {
    fn add(&mut self, step: &str, took: Duration) {
        self.0.entry(step.to_owned()).or_default().push(took);
    }

    fn print(&mut self) {
        println!("{:<28}{:>6}{:>10}{:>10}{:>10}", "step", "n", "p50 ms", "p90 ms", "min ms");
        for (step, all) in &mut self.0 {
            all.sort_unstable();
            let at = |part: usize| all[(all.len() - 1) * part / 100].as_secs_f64() * 1e3;
            println!("{step:<28}{:>6}{:>10.1}{:>10.1}{:>10.1}", all.len(), at(50), at(90), at(0));
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut rounds = 50_u64;
    let mut kill = false;
    let mut every = 4;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--kill" => kill = true,
            "--every" => every = 1,
            other => rounds = other.parse().with_context(|| format!("{other:?} is no number of rounds"))?,
        }
    }
    let mut node = Node::start().await;
    let (runtime, image) = node.ready().await;
    let bundle = bundle(&node)?;
    let mut figures = Figures::default();
    let mut rng = Rng::new(0x5eed);
    let mut outages = 0_u64;
    for round in 0..rounds {
        figures.add("runc run -d (yardstick)", runc(&node, &bundle)?);
        let code = i32::try_from(rng.below(100))?;
        let script = format!("trap 'exit {code}' TERM; echo up; while :; do sleep 0.01; done");
        let (request, output) = node.request(&image, &format!("pod-{round}"), "app", &script);
        let strike = kill && round % every == every - 1;
        let in_start = strike && rng.below(2) == 0;
        let from = Instant::now();
        let started = if in_start {
            let start = tokio::spawn(persist(runtime.clone(), request.clone()));
            tokio::time::sleep(Duration::from_millis(rng.below(120))).await;
            node.kill_containerd();
            node.start_containerd().await;
            tokio::time::timeout(PATIENCE * 4, start).await.context("start after an outage")???
        } else {
            runtime.create_and_start(request.clone()).await?
        };
        if !strike {
            figures.add("start, whole", from.elapsed());
            started.timings.iter().for_each(|(step, took)| figures.add(&format!("start: {step}"), *took));
        }
        output.has("up").await;
        let (shims, idle) = runtime.shims();
        ensure!(shims.len() - idle == 1, "round {round}: {} shims for one pod", shims.len() - idle);
        let mut events = runtime.events();
        let down = strike && !in_start;
        let from = Instant::now();
        if down {
            node.kill_containerd();
        }
        runtime.signal(&request.id, started.pid, started.start_time, 15).await?;
        if down {
            while berth_sys::process::alive(started.pid, started.start_time)? {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            node.start_containerd().await;
            outages += 1;
        }
        let seen = exit(&runtime, &mut events, &request).await?;
        ensure!(seen == code, "round {round}: exit code {seen}, not {code}");
        if !strike {
            figures.add("end: signal to exit event", from.elapsed());
        }
        let record = ExitRecord {
            code,
            at: started.started_at,
            oom: false,
            reason: None,
            message: None,
            started_at: Some(started.started_at),
        };
        timed(&mut figures, strike, "end: store exit", runtime.record_exit(&request.id, &record)).await?;
        timed(&mut figures, strike, "end: delete task", runtime.delete_task(&request.id)).await?;
        timed(&mut figures, strike, "end: remove", runtime.remove(&request.id)).await?;
        runtime.release_lease(&request.pod).await?;
    }
    figures.print();
    ensure!(runtime.list().await?.is_empty(), "containers are left");
    runtime.shutdown().await;
    support::until("no shim is left", || async { node.shims().is_empty() }).await;
    ensure!(node.cgroups().is_empty() && node.mounts().is_empty(), "cgroups or mounts are left");
    println!(
        "{rounds} pods, one shim each, every exit code known, {outages} of them during an outage; nothing left"
    );
    Ok(())
}

async fn timed<T>(
    figures: &mut Figures,
    skip: bool,
    step: &str,
    work: impl Future<Output = Result<T, berth_runtime::Error>>,
) -> Result<T> {
    let from = Instant::now();
    let value = work.await?;
    if !skip {
        figures.add(step, from.elapsed());
    }
    Ok(value)
}

/// Repeats the start until it succeeds.
async fn persist(runtime: Runtime, request: StartRequest) -> Result<Started> {
    let end = Instant::now() + PATIENCE;
    loop {
        let from = Instant::now();
        match runtime.create_and_start(request.clone()).await {
            Ok(started) => return Ok(started),
            Err(e) if Instant::now() > end => {
                bail!("{} at {} after {:?}", e.message(), e.stage, from.elapsed())
            }
            Err(_again) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Exit code of the container, from the event or, after an outage, from the list.
async fn exit(
    runtime: &Runtime,
    events: &mut tokio::sync::broadcast::Receiver<RuntimeEvent>,
    request: &StartRequest,
) -> Result<i32> {
    let wait = async {
        loop {
            match events.recv().await? {
                RuntimeEvent::Exit { id, exec_id: None, code, .. } if id == request.id => return Ok(code),
                RuntimeEvent::Reestablished => {
                    let found = runtime.list().await?;
                    let mine = found.iter().find(|f| f.id == request.id).context("it is on the list")?;
                    if let FoundState::Stopped { code, .. } = mine.state {
                        return Ok(code);
                    }
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.context("the exit is told")?
}

/// Bundle of the same container for runc alone, on a plain directory.
fn bundle(node: &Node) -> Result<PathBuf> {
    let bundle = node.dir.path().join("bundle");
    let rootfs = bundle.join("rootfs");
    fs::create_dir_all(&rootfs)?;
    let layer = berth_harness::oci::Image::busybox(support::BUSYBOX)?.layers.remove(0);
    let archive = node.dir.path().join("rootfs.tar");
    fs::write(&archive, berth_harness::oci::tar(&layer)?)?;
    let done = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&rootfs).status()?;
    ensure!(done.success(), "cannot unpack the root file system");
    Ok(bundle)
}

fn runc(node: &Node, bundle: &Path) -> Result<Duration> {
    let id = berth_core::ids::ContainerId::new("f".repeat(64))?;
    let spec = node.spec(&id, "yardstick", &["sleep", "1000"]);
    fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)?;
    let run = |args: &[&str]| -> Result<()> {
        let null = std::process::Stdio::null;
        let done = Command::new(tools().join("runc"))
            .arg("--root")
            .arg(node.dir.path().join("yardstick"))
            .args(args)
            .stdin(null())
            .stdout(null())
            .status()?;
        ensure!(done.success(), "runc {args:?} failed");
        Ok(())
    };
    let path = bundle.to_str().context("the bundle's path is text")?;
    let from = Instant::now();
    run(&["run", "-d", "--bundle", path, "yardstick"])?;
    let took = from.elapsed();
    run(&["delete", "--force", "yardstick"])?;
    Ok(took)
}
