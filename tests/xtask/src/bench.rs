//! `cargo xtask bench`: measurements, each with a yardstick measured in the same run, because absolute times
//! of two runs or two machines cannot be compared.

mod cluster;
mod idle;
mod pod_start;
mod pull;
mod service;
mod yardstick;

use crate::{out, setup};
use anyhow::{Context, Result, bail};
use berth_harness::{
    image,
    node::Node,
    stats,
    tools::{self, Build},
};
use serde::Serialize;
use std::{fs, path::PathBuf, time::Duration};

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Benchmark to run: pod-start, idle, service, cluster, node-api, pull, services-only.
    name: String,
    /// Write the figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds of pod-start (default 30), of service (default 24), of cluster (default 20), of node-api (default 100)
    /// of pull (default 5) and of services-only (default 30).
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Run only these parts; with service: service, cni, nodeport, tables; with cluster: start, burst, idle, services;
    /// with node-api: exec, logs, scrape; with pull: one, memory, twenty;
    /// with services-only: fill, memory, change, connections.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Number of pods of the burst (pod-start, cluster) and of nodes that are idle or scraped.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pods: usize,
    /// Duration of idle's measurement.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    seconds: u64,
}

/// A measured figure.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    /// Number of measurements.
    n: usize,
    /// The yardstick of a ratio, or the conditions of an absolute value.
    against: String,
}

/// Promised limit of a figure.
#[derive(Debug, Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn verdict(self, value: f64) -> String {
        match self {
            Bound::AtMost(bound) if value <= bound => format!("within its bound of {bound}"),
            Bound::AtMost(bound) => format!("OVER its bound of {bound}"),
            Bound::AtLeast(bound) if value >= bound => format!("reaches its bound of {bound}"),
            Bound::AtLeast(bound) => format!("BELOW its bound of {bound}"),
        }
    }
}

/// Promised limits by figure.
const BOUNDS: [(&str, Bound); 34] = [
    ("pod_start_p50_ratio", Bound::AtMost(2.5)),
    ("pod_stop_p50_ratio", Bound::AtMost(1.5)),
    ("burst_100_ratio", Bound::AtMost(2.5)),
    ("exec_probe_cpu_ratio", Bound::AtMost(0.2)),
    ("idle_cpu_s_per_min", Bound::AtMost(0.5)),
    ("rss_mb", Bound::AtMost(40.0)),
    ("service_new_conn_ratio", Bound::AtLeast(0.95)),
    ("service_keepalive_ratio", Bound::AtLeast(0.93)),
    ("service_keepalive_runs", Bound::AtMost(0.0)),
    ("cni_new_conn_ratio", Bound::AtLeast(1.05)),
    ("nodeport_new_conn_ratio", Bound::AtLeast(1.05)),
    ("update_p99_us", Bound::AtMost(1000.0)),
    ("fill_10k_s", Bound::AtMost(0.3)),
    ("restart_sync_s", Bound::AtMost(0.5)),
    ("datapath_mem_mb", Bound::AtMost(30.0)),
    ("cluster_start_p50_ratio", Bound::AtMost(0.25)),
    ("cluster_gone_p50_ratio", Bound::AtMost(0.1)),
    ("cluster_burst_100_ratio", Bound::AtMost(0.3)),
    ("cluster_teardown_100_ratio", Bound::AtMost(0.25)),
    ("cluster_idle_cpu_ratio", Bound::AtMost(0.1)),
    ("cluster_rss_mb", Bound::AtMost(40.0)),
    ("cluster_rss_services_mb", Bound::AtMost(60.0)),
    ("cluster_endpoint_change_p99_ms", Bound::AtMost(50.0)),
    ("cluster_idle_requests_per_min", Bound::AtMost(8.0)),
    ("exec_p50_ratio", Bound::AtMost(0.5)),
    ("logs_mb_s_ratio", Bound::AtLeast(1.5)),
    ("scrape_cpu_ratio", Bound::AtMost(0.2)),
    ("pull_one_ratio", Bound::AtMost(1.05)),
    ("pull_20_ratio", Bound::AtMost(0.6)),
    ("pull_memory_mb", Bound::AtMost(2.0)),
    ("endpoint_change_p50_ratio", Bound::AtMost(0.05)),
    ("fill_ratio", Bound::AtMost(0.05)),
    ("rss_ratio", Bound::AtMost(0.25)),
    ("new_conn_ratio", Bound::AtLeast(1.2)),
];

/// Runs a benchmark. A figure beyond its limit is printed but does not fail the run; the reader decides.
pub(crate) fn run(args: &Args) -> Result<bool> {
    setup::run()?;
    let figures = match args.name.as_str() {
        "pod-start" => on_a_node(|node| pod_start::run(node, args.rounds.unwrap_or(30), args.pods))?,
        "idle" => on_a_node(|node| idle::run(node, args.pods, Duration::from_secs(args.seconds)))?,
        "service" => service::run(args.rounds.unwrap_or(24), &args.only)?,
        "cluster" => cluster::run(&cluster::Amount {
            rounds: args.rounds.unwrap_or(20),
            pods: args.pods,
            span: Duration::from_secs(args.seconds),
            only: &args.only,
        })?,
        "node-api" => cluster::node_api::run(&cluster::node_api::Amount {
            rounds: args.rounds.unwrap_or(100),
            pods: args.pods,
            only: &args.only,
        })?,
        "pull" => pull::run(args.rounds.unwrap_or(5), &args.only)?,
        "services-only" => cluster::services_only::run(args.rounds.unwrap_or(30), &args.only)?,
        other => bail!(
            "there is no bench {other}: pod-start, idle, service, cluster, node-api, pull, services-only"
        ),
    };
    for f in &figures {
        let bound = BOUNDS.iter().find(|(name, _)| *name == f.name);
        let verdict = bound.map_or_else(String::new, |(_, bound)| format!(", {}", bound.verdict(f.value)));
        out::line(&format!(
            "{:24} {:8.3} {} (n = {}, against {}){verdict}",
            f.name, f.value, f.unit, f.n, f.against
        ));
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "figures": figures }))?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(true)
}

/// Starts a node of optimised programs, measures, and ends the node.
fn on_a_node<T>(measure: impl FnOnce(&Node) -> Result<T>) -> Result<T> {
    let programs = out::timed("build berth, optimised", || tools::programs(Build::Release))?;
    let name = format!("berth-bench-{}", std::process::id());
    let (dir, run) = (std::env::temp_dir().join(&name), PathBuf::from("/run").join(&name));
    // The boot state of both sides (Berth with containerd, and the yardstick's runc) lies in memory, whatever
    // file system `/run` has here. A disk file system searches long for a free inode after many files were
    // removed, which would burden the side that makes more files.
    for dir in [&run, &dir.join("containerd/state")] {
        Node::tmpfs(dir)?;
    }
    let node = Node::new(&dir, &run, "bench", programs)?;
    let measured = (|| {
        node.containerd.start()?;
        image::import_test(&node.containerd, &node.dir)?;
        node.start_agent()?;
        measure(&node)
    })();
    if measured.is_err() {
        out::line(&format!("the agent's last words:\n{}", node.last_words()));
    }
    node.down().context("end the node")?;
    measured
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// p10, p50 and p90 in milliseconds, as text.
fn spread(values: &[f64]) -> String {
    format!("{} ms", stats::spread(values, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_met_from_their_own_side() {
        assert!(Bound::AtMost(2.0).verdict(2.0).starts_with("within"));
        assert!(Bound::AtMost(2.0).verdict(2.1).starts_with("OVER"));
        assert!(Bound::AtLeast(0.95).verdict(0.95).starts_with("reaches"));
        assert!(Bound::AtLeast(0.95).verdict(0.94).starts_with("BELOW"));
    }
}
