//! Berth beside the kubelet with kube-proxy: two nodes of one control plane, measured in turns.
//!
//! Both nodes run on the same containerd, in namespaces of their own. The images are there. What is compared is what the
//! API server shows; pods are placed by the scheduler.

mod api;
mod idle;
pub(super) mod node_api;
mod pods;
pub(super) mod pulls;
mod services;
pub(super) mod services_only;

use super::Figure;
use crate::{
    cluster::{self, Audit, Cluster, Etcd, JoinedNode, Node, Options},
    out,
};
use anyhow::{Context, Result};
use api::Api;
use berth_harness::{
    socket::Socket,
    stats::{median, quantile},
    tools::{self, Build},
};
use pods::{Steps, Times};
use std::time::Duration;

/// Names of the two nodes.
const NODES: [(&str, Node); 2] = [("kubelet", Node::Kubelet), ("berth", Node::Berth)];

/// Bursts of each node.
const BURSTS: usize = 3;

/// Services beside the one whose endpoint changes.
const SERVICES: usize = 5_000;

/// Services when memory is measured.
const MANY_SERVICES: usize = 10_000;

/// How much is measured.
pub(super) struct Amount<'a> {
    /// Rounds of start and end, and changes of an endpoint.
    pub(super) rounds: usize,
    /// Pods of a burst, and of an idle node.
    pub(super) pods: usize,
    /// How long idle nodes are measured.
    pub(super) span: Duration,
    /// The parts to measure (start, burst, idle, services); all where none is named.
    pub(super) only: &'a [String],
}

impl Amount<'_> {
    fn has(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == part)
    }
}

/// The two nodes, in the order of [`NODES`].
type Both<'a> = [&'a JoinedNode; 2];

/// Measures on a cluster of this run's own.
pub(super) fn run(amount: &Amount) -> Result<Vec<Figure>> {
    with_cluster("bench", Audit::OfNodes, NODES, |cluster, nodes| measure(cluster, nodes, amount))
}

/// Starts a cluster in this directory of the cache with both nodes, measures, and ends it.
fn with_cluster(
    dir: &str,
    audit: Audit,
    nodes: [(&'static str, Node); 2],
    measure: impl FnOnce(&Cluster, [JoinedNode; 2]) -> Result<Vec<Figure>>,
) -> Result<Vec<Figure>> {
    out::timed("build berth, optimised", || tools::programs(Build::Release))?;
    let dir = tools::cache()?.join(dir);
    let options = Options { release: true, ..Options::new(Node::None, Etcd::New, audit) };
    let cluster = cluster::start(&dir, &options)?;
    let measured = nodes
        .iter()
        .map(|(name, kind)| {
            cluster.join(*kind, name, Build::Release).with_context(|| format!("cannot join {name}"))
        })
        .collect::<Result<Vec<_>>>()
        .and_then(|nodes| {
            let nodes = <[JoinedNode; 2]>::try_from(nodes);
            measure(&cluster, nodes.map_err(|_other| anyhow::anyhow!("two nodes were joined"))?)
        });
    let kept = crate::root().join("target/bench");
    if measured.is_err() {
        cluster.keep_logs(&kept)?;
        out::line(&format!("the cluster's logs are in {}", kept.display()));
    }
    let ended = cluster.end();
    measured.and_then(|figures| ended.map(|()| figures))
}

fn measure(cluster: &Cluster, [kubelet, berth]: [JoinedNode; 2], amount: &Amount) -> Result<Vec<Figure>> {
    let api = Api::start(cluster)?;
    let both = [&kubelet, &berth];
    let mut figures = Vec::new();
    let mut times = [Times::default(), Times::default()];
    if amount.has("start") {
        one_by_one(&api, both, amount.rounds, &mut times)?;
        tell(both, &times);
        figures.extend(starts(&times));
    }
    if amount.has("burst") {
        for n in 0..BURSTS {
            for (node, times) in both.iter().zip(&mut times) {
                out::timed(&format!("burst {n} of {}", node.name()), || {
                    pods::burst(&api, node.name(), amount.pods, times)
                })?;
            }
        }
        tell(both, &times);
        figures.extend(bursts(&times, amount.pods));
    }
    if amount.has("idle") {
        figures.extend(idle_nodes(cluster, &api, both, amount)?);
    }
    if amount.has("services") {
        kubelet.end()?;
        figures.extend(many_services(cluster, &api, &berth, amount)?);
    }
    Ok(figures)
}

fn tell(nodes: [&JoinedNode; 2], times: &[Times; 2]) {
    for (node, times) in nodes.iter().zip(times) {
        times.tell(node.name());
    }
}

fn one_by_one(api: &Api, nodes: [&JoinedNode; 2], rounds: usize, times: &mut [Times; 2]) -> Result<()> {
    let mut steps = Steps::default();
    let socket = nodes[1].agent_socket()?;
    // The first round warms up both nodes and is not counted.
    for round in 0..=rounds {
        for (node, times) in nodes.iter().zip(&mut *times) {
            let mut watch =
                (node.name() == "berth").then(|| Socket::connect(&socket)?.watch()).transpose()?;
            let name = format!("one-{}-{round}", node.name());
            pods::one(api, node.name(), round, times, round > 0)?;
            if let Some(watch) = &mut watch {
                steps.take(&pods::seen_by_agent(watch, &name)?);
            }
        }
    }
    steps.tell();
    Ok(())
}

fn ratio(
    name: &'static str,
    values: impl Fn(&Times) -> &[f64],
    [kubelet, berth]: &[Times; 2],
    what: &str,
) -> Figure {
    let (theirs, ours) = (values(kubelet), values(berth));
    Figure {
        name,
        value: median(ours) / median(theirs),
        unit: "ratio",
        n: ours.len(),
        against: format!("the kubelet's {what}, p50 {:.2}; ours {:.2}", median(theirs), median(ours)),
    }
}

fn starts(times: &[Times; 2]) -> [Figure; 2] {
    [
        ratio("cluster_start_p50_ratio", |t| &t.start, times, "ms from POST to Ready"),
        ratio("cluster_gone_p50_ratio", |t| &t.gone, times, "ms from DELETE to gone"),
    ]
}

fn bursts(times: &[Times; 2], pods: usize) -> [Figure; 2] {
    [
        ratio("cluster_burst_100_ratio", |t| &t.burst, times, &format!("s for {pods} pods")),
        ratio("cluster_teardown_100_ratio", |t| &t.teardown, times, &format!("s for {pods} pods")),
    ]
}

fn idle_nodes(cluster: &Cluster, api: &Api, nodes: [&JoinedNode; 2], amount: &Amount) -> Result<Vec<Figure>> {
    out::timed("fill both nodes", || idle::fill(api, &nodes, amount.pods))?;
    let mut log = cluster.audit()?;
    let used = out::timed("measure", || idle::measure(&nodes, &mut log, amount.span))?;
    out::timed("empty both nodes", || idle::empty(api, amount.pods * nodes.len()))?;
    let [theirs, ours] = used[..] else { anyhow::bail!("two nodes were measured") };
    let with = format!("{} pods, each with its own ConfigMap, token and readiness probe", amount.pods);
    Ok(vec![
        Figure {
            name: "cluster_idle_cpu_ratio",
            value: ours.cpu / theirs.cpu,
            unit: "ratio",
            n: amount.pods,
            against: format!("the kubelet's {:.2} s a minute, ours {:.2}; {with}", theirs.cpu, ours.cpu),
        },
        Figure {
            name: "cluster_rss_mb",
            value: ours.rss,
            unit: "MB",
            n: amount.pods,
            against: format!("{with}; the kubelet and kube-proxy have {:.0} MB", theirs.rss),
        },
        Figure {
            name: "cluster_idle_requests_per_min",
            value: ours.requests,
            unit: "a minute",
            n: amount.pods,
            against: format!("{with}; the kubelet and kube-proxy send {:.1}", theirs.requests),
        },
    ])
}

fn many_services(cluster: &Cluster, api: &Api, berth: &JoinedNode, amount: &Amount) -> Result<Vec<Figure>> {
    out::timed(&format!("make {SERVICES} Services"), || services::make(api, 0, SERVICES))?;
    let changes = services::changes(api, berth, "10.96.255.1", amount.rounds.max(100), Duration::ZERO)?;
    out::timed(&format!("make {} Services", MANY_SERVICES - SERVICES), || {
        services::make(api, SERVICES, MANY_SERVICES)
    })?;
    let mut log = cluster.audit()?;
    let used = idle::measure(&[berth], &mut log, Duration::from_secs(20))?;
    Ok(vec![
        Figure {
            name: "cluster_endpoint_change_p99_ms",
            value: quantile(&changes, 0.99),
            unit: "ms",
            n: changes.len(),
            against: format!("PATCH answered to first answer of the new backend, {SERVICES} Services"),
        },
        Figure {
            name: "cluster_rss_services_mb",
            value: used.first().map_or(0.0, |used| used.rss),
            unit: "MB",
            n: MANY_SERVICES,
            against: format!("{MANY_SERVICES} Services x 10 endpoints"),
        },
    ])
}
