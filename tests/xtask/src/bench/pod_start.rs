//! Start and stop of a pod, a burst of pods, and the cost of an exec probe.

use super::{Figure, millis, spread, yardstick::Yardstick};
use crate::out;
use anyhow::{Context, Result, ensure};
use berth_harness::{
    image,
    node::Node,
    process::Process,
    socket::{Change, Pod, Watch},
    stats::median,
    wait::PATIENCE,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Number of parallel runc runs in a burst.
const SIDE_BY_SIDE: usize = 8;
/// Number of bursts.
const BURSTS: usize = 3;
/// Number of containers with an exec probe, and below the time of the measurement.
const PROBED: usize = 20;
const PROBED_FOR: Duration = Duration::from_secs(20);
/// Number of commands run by containerd's Exec.
const EXECS: usize = 60;

/// Measures start, stop, burst and exec probe.
pub(crate) fn run(node: &Node, rounds: usize, pods: usize) -> Result<Vec<Figure>> {
    let mut figures = one_by_one(node, rounds)?;
    figures.push(burst(node, pods)?);
    figures.push(exec_probe(node)?);
    Ok(figures)
}

/// Manifest of a realistic pod: limits, a network, output through FIFOs, and a process that ends on SIGTERM.
fn manifest(name: &str, extra: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 10\n  containers:\n\
         \x20 - name: app\n    image: {}\n    command: [sh, -c, \"trap 'exit 0' TERM; echo ready; while :; do sleep 3600 & \
         wait $!; done\"]\n    resources: {{requests: {{cpu: 10m, memory: 16Mi}}, limits: {{cpu: 500m, memory: 64Mi}}}}\n{extra}",
        image::TEST
    )
}

fn wait_ready(watch: &mut Watch, name: &str) -> Result<Pod> {
    let mut ready = None;
    watch.until(&format!("{name} is Ready"), PATIENCE, |change| match change {
        Change::Pod(pod) if pod.name() == name && pod.ready() => {
            ready = Some(pod.as_ref().clone());
            true
        }
        _ => false,
    })?;
    ready.context("it was Ready")
}

/// Rounds of four steps: pod started, runc run of the same bundle, runc's stop, pod stopped.
fn one_by_one(node: &Node, rounds: usize) -> Result<Vec<Figure>> {
    let (mut start, mut run, mut stop, mut end, mut left) = (vec![], vec![], vec![], vec![], vec![]);
    let mut steps: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut watch = node.socket()?.watch()?;
    // The first round warms up both sides and is not counted.
    for round in 0..=rounds {
        let (name, file) = (format!("round-{round}"), format!("round-{round}.yaml"));
        let full = format!("default/{name}");
        let text = manifest(&name, "");
        let begun = Instant::now();
        node.apply(&file, &text)?;
        let pod = wait_ready(&mut watch, &full)?;
        let started = begun.elapsed();

        let yardstick = Yardstick::of(node, &pod)?;
        let id = format!("yardstick-{round}");
        yardstick.bundle(&id)?;
        let (running, ran) = yardstick.run(&id)?;
        let ended = yardstick.end(&running)?;

        let begun = Instant::now();
        node.remove(&file)?;
        let mut gone = None;
        watch.until(&format!("{full} is removed"), PATIENCE, |change| match change {
            Change::Pod(pod) if pod.name() == full && pod.0["gone"] == true => {
                gone.get_or_insert(begun.elapsed());
                false
            }
            Change::Removed(name) if *name == full => true,
            _ => false,
        })?;
        let removed = begun.elapsed();
        if round == 0 {
            continue;
        }
        start.push(millis(started));
        run.push(millis(ran));
        end.push(millis(ended));
        stop.push(millis(gone.unwrap_or(removed)));
        left.push(millis(removed));
        for action in pod.0["timeline"].as_array().into_iter().flatten() {
            let kind = action["kind"].as_str().unwrap_or_default();
            steps.entry(kind.to_owned()).or_default().push(action["took_ms"].as_f64().unwrap_or(0.0));
            for step in action["steps"].as_array().into_iter().flatten() {
                let name = format!("{kind}: {}", step[0].as_str().unwrap_or_default());
                steps.entry(name).or_default().push(step[1].as_f64().unwrap_or(0.0));
            }
        }
    }
    out::line(&format!("start of a pod until Ready is seen: {}", spread(&start)));
    out::line(&format!("runc run -d of its bundle:          {}", spread(&run)));
    out::line(&format!("stop of a pod until reported gone:  {}", spread(&stop)));
    out::line(&format!("  until nothing of it is left:      {}", spread(&left)));
    out::line(&format!("runc kill and runc delete:          {}", spread(&end)));
    tell_steps(&steps, median(&start));
    let n = start.len();
    Ok(vec![
        Figure {
            name: "pod_start_p50_ratio",
            value: median(&start) / median(&run),
            unit: "ratio",
            n,
            against: format!("runc run -d of the pod's own bundle, {:.1} ms", median(&run)),
        },
        Figure {
            name: "pod_stop_p50_ratio",
            value: median(&stop) / median(&end),
            unit: "ratio",
            n,
            against: format!("runc kill and runc delete, {:.1} ms", median(&end)),
        },
    ])
}

fn tell_steps(steps: &BTreeMap<String, Vec<f64>>, whole: f64) {
    let mut all: Vec<(&str, f64)> =
        steps.iter().map(|(name, times)| (name.as_str(), median(times))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    out::line("the steps of a start, p50:");
    for (name, ms) in &all {
        out::line(&format!("  {ms:8.2} ms  {name}"));
    }
    if let Some((name, ms)) = all.iter().find(|(name, _)| name.contains(": ")) {
        out::line(&format!("the largest is \"{name}\", {:.0} % of a start", ms / whole * 100.0));
    }
}

/// Time of many pods at once, against as many runs of runc.
fn burst(node: &Node, pods: usize) -> Result<Figure> {
    let (mut ours, mut theirs, mut ratios) = (vec![], vec![], vec![]);
    for round in 0..BURSTS {
        let names: Vec<String> = (0..pods).map(|n| format!("burst-{round}-{n}")).collect();
        let texts: Vec<String> = names.iter().map(|name| manifest(name, "")).collect();
        let mut watch = node.socket()?.watch()?;
        let begun = Instant::now();
        for (name, text) in names.iter().zip(&texts) {
            node.apply(&format!("{name}.yaml"), text)?;
        }
        let mut ready = BTreeSet::new();
        let mut first = None;
        watch.until("all pods of the burst are Ready", PATIENCE * 3, |change| {
            if let Change::Pod(pod) = change
                && pod.ready()
            {
                ready.insert(pod.name());
                first.get_or_insert_with(|| pod.as_ref().clone());
            }
            ready.len() == pods
        })?;
        let took = begun.elapsed().as_secs_f64();

        let yardstick = Yardstick::of(node, &first.context("no pod")?)?;
        for name in &names {
            yardstick.bundle(name)?;
        }
        let next = AtomicUsize::new(0);
        let begun = Instant::now();
        let runs = thread::scope(|scope| {
            let workers: Vec<_> = (0..SIDE_BY_SIDE)
                .map(|_| {
                    scope.spawn(|| {
                        let mut runs = Vec::new();
                        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                            runs.push(yardstick.run(name)?.0);
                        }
                        Ok::<_, anyhow::Error>(runs)
                    })
                })
                .collect();
            let mut all = Vec::new();
            for worker in workers {
                all.extend(worker.join().map_err(|_panic| anyhow::anyhow!("a thread failed"))??);
            }
            Ok::<_, anyhow::Error>(all)
        })?;
        let yard = begun.elapsed().as_secs_f64();
        for run in &runs {
            yardstick.end(run)?;
        }
        out::line(&format!(
            "{pods} pods at once: {took:.2} s; {pods} runs of runc, {SIDE_BY_SIDE} at a time: {yard:.2} s"
        ));
        ours.push(took);
        theirs.push(yard);
        ratios.push(took / yard);
        let begun = Instant::now();
        for name in &names {
            node.remove(&format!("{name}.yaml"))?;
        }
        node.end_pods()?;
        out::line(&format!("  all of them gone after {:.2} s", begun.elapsed().as_secs_f64()));
    }
    Ok(Figure {
        name: "burst_100_ratio",
        value: median(&ratios),
        unit: "ratio",
        n: ratios.len(),
        against: format!(
            "{pods} runc run -d, {SIDE_BY_SIDE} at a time, {:.2} s (ours {:.2} s)",
            median(&theirs),
            median(&ours)
        ),
    })
}

/// CPU time of processes and their reaped children, in seconds.
fn cpu(processes: &[Process]) -> f64 {
    let ticks: u64 = processes.iter().map(Process::cpu_ticks).sum();
    f64::from(u32::try_from(ticks).unwrap_or(u32::MAX)) / 100.0
}

/// CPU time of one exec probe of `true`, against one Exec of containerd.
fn exec_probe(node: &Node) -> Result<Figure> {
    let probe = "    readinessProbe: {exec: {command: [\"true\"]}, periodSeconds: 1}\n";
    for n in 0..PROBED {
        node.apply(&format!("probed-{n}.yaml"), &manifest(&format!("probed-{n}"), probe))?;
    }
    let mut last = None;
    for n in 0..PROBED {
        last = Some(node.ready(&format!("default/probed-{n}"))?);
    }
    let last = last.context("no pod")?;
    let mut ours: Vec<Process> = node.agent().into_iter().collect();
    ours.extend(node.helpers("probe-exec"));
    ours.extend(exec_helpers(node));
    ours.sort_unstable();
    ours.dedup();
    let (before, begun) = (cpu(&ours), Instant::now());
    thread::sleep(PROBED_FOR);
    let probes = begun.elapsed().as_secs_f64() * f64::from(u32::try_from(PROBED)?);
    let each = (cpu(&ours) - before) / probes;

    let id = last.0["containers"][0]["id"].as_str().context("no container")?;
    let process = *last.processes().get("app").context("no process")?;
    let shim = parent(process).context("no shim")?;
    let theirs = [node.containerd.process().context("containerd does not run")?, shim];
    let before = cpu(&theirs);
    for n in 0..EXECS {
        node.containerd.ctr(&["tasks", "exec", "--exec-id", &format!("exec-{n}"), id, "true"])?;
    }
    let exec = (cpu(&theirs) - before) / f64::from(u32::try_from(EXECS)?);
    node.end_pods()?;
    ensure!(exec > 0.0, "containerd's Exec took no CPU");
    out::line(&format!(
        "an exec probe of true: {:.2} ms CPU; containerd's Exec of it: {:.2} ms CPU",
        each * 1e3,
        exec * 1e3
    ));
    Ok(Figure {
        name: "exec_probe_cpu_ratio",
        value: each / exec,
        unit: "ratio",
        n: EXECS,
        against: format!("containerd's Exec, {:.2} ms CPU with its shim and runc", exec * 1e3),
    })
}

/// The agent's child processes, which include the exec probe helper whatever its name.
pub(crate) fn exec_helpers(node: &Node) -> Vec<Process> {
    let Some(agent) = node.agent() else { return Vec::new() };
    berth_harness::process::all().into_keys().filter(|p| parent(*p) == Some(agent)).collect()
}

fn parent(process: Process) -> Option<Process> {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
    let parent = text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    Process::of(parent)
}
