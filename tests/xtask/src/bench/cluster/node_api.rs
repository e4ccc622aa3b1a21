//! The node's API of Berth beside the kubelet's: commands, logs and metrics, asked through the API server in turns.

mod client;

use super::{
    super::{Figure, millis, spread},
    Both, NODES,
    api::Api,
    idle, pods, with_cluster,
};
use crate::{
    cluster::{Audit, Cluster},
    out,
};
use anyhow::{Context, Result, ensure};
use berth_harness::stats::median;
use client::Client;
use serde_json::json;
use std::{
    io::Read as _,
    thread,
    time::{Duration, Instant},
};

/// Lines of the log that is read, and bytes of one with its end. A record of it in the node's file is 40 bytes longer;
/// all are in one file, because the limit of a file is 10 MiB on both nodes.
const LINES: usize = 60_000;
const LINE: usize = 100;

/// Reads of the log on each node.
const READS: usize = 30;

/// Scrapes of each node.
const SCRAPES: usize = 30;

/// Time between two scrapes. The node's own pace of refreshing goes on meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

/// What a scrape asks for.
const ROUTES: [&str; 2] = ["metrics/resource", "metrics/cadvisor"];

/// How much is measured.
pub(in crate::bench) struct Amount<'a> {
    /// Commands on each node.
    pub(in crate::bench) rounds: usize,
    /// Pods of a node that is scraped.
    pub(in crate::bench) pods: usize,
    /// The parts to measure (exec, logs, scrape); all where none is named.
    pub(in crate::bench) only: &'a [String],
}

/// Measures on a cluster of this run's own.
pub(in crate::bench) fn run(amount: &Amount) -> Result<Vec<Figure>> {
    with_cluster("bench-node-api", Audit::ToNodes, NODES, |cluster, nodes| {
        measure(cluster, nodes.each_ref(), amount)
    })
}

fn measure(cluster: &Cluster, nodes: Both, amount: &Amount) -> Result<Vec<Figure>> {
    let (api, client) = (Api::start(cluster)?, Client::new(cluster)?);
    let has = |part: &str| amount.only.is_empty() || amount.only.iter().any(|name| name == part);
    let mut figures = Vec::new();
    if has("exec") || has("logs") {
        start_pods(&api)?;
    }
    if has("exec") {
        figures.push(out::timed("exec", || exec(&client, amount.rounds))?);
    }
    if has("logs") {
        figures.push(out::timed("follow logs", || logs(&client))?);
    }
    if has("scrape") {
        out::timed("fill both nodes", || idle::fill(&api, &nodes, amount.pods))?;
        // The work that follows the start of so many pods is not part of a scrape.
        thread::sleep(Duration::from_secs(15));
        figures.push(out::timed("scrape", || scrape(&client, nodes, amount.pods))?);
    }
    Ok(figures)
}

fn pod(node: &str) -> String {
    format!("node-api-{node}")
}

/// One pod on each node that has written its log and waits.
fn start_pods(api: &Api) -> Result<()> {
    let line = "x".repeat(LINE - 1);
    let script = format!(
        "trap 'exit 0' TERM; yes {line} | head -n {LINES}; touch /written; while :; do sleep 3600 & wait $!; done"
    );
    let events = api.watch(pods::PODS)?;
    for (node, _) in NODES {
        let mut pod = pods::manifest(&pod(node), node, "node-api");
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]);
        // A limit of processor time would slow the command down, not the node.
        pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "64Mi"}});
        // A startup probe ends with its success.
        pod["spec"]["containers"][0]["startupProbe"] = json!({
            "exec": {"command": ["test", "-e", "/written"]}, "periodSeconds": 1, "failureThreshold": 60,
        });
        api.request("POST", pods::PODS, &pod.to_string())?;
    }
    let mut ready = std::collections::BTreeSet::new();
    pods::follow(&events, "both pods are Ready", |event| {
        if pods::is_ready(&event.object) {
            ready.insert(event.object["metadata"]["name"].to_string());
        }
        ready.len() == NODES.len()
    })
    .map(drop)
}

/// Times from the request for a command to its outcome.
fn exec(client: &Client, rounds: usize) -> Result<Figure> {
    let mut times = [Vec::new(), Vec::new()];
    // The first round warms up both nodes and is not counted.
    for round in 0..=rounds {
        for ((node, _), times) in NODES.iter().zip(&mut times) {
            let took = client.exec(&pod(node), "true")?;
            if round > 0 {
                times.push(millis(took));
            }
        }
    }
    for ((node, _), times) in NODES.iter().zip(&times) {
        out::line(&format!("{node}: exec of true: {}", spread(times)));
    }
    let [theirs, ours] = times.each_ref().map(|times| median(times));
    Ok(Figure {
        name: "exec_p50_ratio",
        value: ours / theirs,
        unit: "ratio",
        n: rounds,
        against: format!("the kubelet's {theirs:.2} ms from the request to the outcome, ours {ours:.2}"),
    })
}

/// Rates at which a log is followed from its beginning to its last line, in MB a second.
fn logs(client: &Client) -> Result<Figure> {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=READS {
        for ((node, _), rates) in NODES.iter().zip(&mut rates) {
            let rate = follow(client, &pod(node)).with_context(|| format!("the log of {node}"))?;
            if round > 0 {
                rates.push(rate);
            }
        }
    }
    let [theirs, ours] = rates.each_ref().map(|rates| median(rates));
    for ((node, _), rates) in NODES.iter().zip(&rates) {
        let spread = berth_harness::stats::spread(rates, 1);
        out::line(&format!("{node}: a followed log: {spread} MB/s"));
    }
    Ok(Figure {
        name: "logs_mb_s_ratio",
        value: ours / theirs,
        unit: "ratio",
        n: READS,
        against: format!("the kubelet's {theirs:.1} MB/s of {LINES} lines of {LINE} bytes, ours {ours:.1}"),
    })
}

fn follow(client: &Client, pod: &str) -> Result<f64> {
    let (sent, mut body) = client.get(&format!("{}/{pod}/log?follow=true", pods::PODS))?;
    let (mut chunk, mut left) = (vec![0; 64 * 1024], LINES * LINE);
    while left > 0 {
        let n = body.read(&mut chunk).context("cannot read it")?;
        ensure!(n > 0 && n <= left, "{n} bytes where {left} are left");
        left -= n;
    }
    Ok((LINES * LINE) as f64 / 1e6 / sent.elapsed().as_secs_f64())
}

/// Processor time that scrapes of a node take, in seconds each.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    /// Of the node's programs without containerd.
    node: f64,
    /// Of containerd.
    containerd: f64,
    /// Bytes of a scrape.
    bytes: usize,
}

fn scrape(client: &Client, nodes: Both, pods: usize) -> Result<Figure> {
    let idle = window(client, nodes, false)?;
    let busy = window(client, nodes, true)?;
    let mut all = [Spent::default(); 2];
    for (((node, idle), busy), spent) in nodes.iter().zip(idle).zip(busy).zip(&mut all) {
        let each = |busy: f64, idle: f64| (busy - idle) / SCRAPES as f64;
        *spent = Spent {
            node: each(busy.node, idle.node),
            containerd: each(busy.containerd, idle.containerd),
            bytes: busy.bytes,
        };
        out::line(&format!(
            "{}: a scrape of {} bytes takes {:.1} ms of CPU and {:.1} ms of containerd's; idle, the same time takes \
             {:.1} and {:.1} ms",
            node.name(),
            spent.bytes,
            spent.node * 1e3,
            spent.containerd * 1e3,
            idle.node * 1e3 / SCRAPES as f64,
            idle.containerd * 1e3 / SCRAPES as f64,
        ));
    }
    let [theirs, ours] = all;
    let total = |spent: Spent| (spent.node + spent.containerd) * 1e3;
    Ok(Figure {
        name: "scrape_cpu_ratio",
        value: total(ours) / total(theirs),
        unit: "ratio",
        n: SCRAPES,
        against: format!(
            "{:.1} ms of the kubelet and containerd, ours {:.1} (without containerd {:.1} and {:.1}), {pods} pods",
            total(theirs),
            total(ours),
            theirs.node * 1e3,
            ours.node * 1e3
        ),
    })
}

/// What both nodes use in the time of the scrapes, with them or without.
fn window(client: &Client, nodes: Both, asks: bool) -> Result<Vec<Spent>> {
    let mut before = Vec::new();
    for node in nodes {
        let all = node.processes()?;
        before.push(all.into_iter().map(|(p, name)| (p, name, p.cpu())).collect::<Vec<_>>());
    }
    let mut spent = vec![Spent::default(); nodes.len()];
    let begun = Instant::now();
    for n in 1..=SCRAPES {
        for (node, spent) in nodes.iter().zip(&mut spent).filter(|_| asks) {
            spent.bytes = 0;
            for route in ROUTES {
                let path = format!("/api/v1/nodes/{}/proxy/{route}", node.name());
                let mut text = String::new();
                client.get(&path)?.1.read_to_string(&mut text).context("cannot read metrics")?;
                ensure!(text.contains("container_"), "{path}: no metrics of containers");
                spent.bytes += text.len();
            }
        }
        let next = begun + PAUSE * u32::try_from(n).context("so many scrapes")?;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    for ((node, before), spent) in nodes.iter().zip(before).zip(&mut spent) {
        for (process, name, cpu) in before {
            ensure!(process.alive(), "{name} of {} ended meanwhile", node.name());
            let used = process.cpu().saturating_sub(cpu).as_secs_f64();
            *(if name == "containerd" { &mut spent.containerd } else { &mut spent.node }) += used;
        }
    }
    Ok(spent)
}
