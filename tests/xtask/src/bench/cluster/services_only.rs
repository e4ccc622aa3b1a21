//! Services alone beside kube-proxy: two nodes of the real kubelet and one control plane, with kube-proxy on one and Berth in
//! its place on the other, measured in turns. What is not measured does not run: both follow the same Services.
//!
//! Every endpoint answers: their addresses are local ones of each node, and one server has them all.

mod dial;

use super::{
    SERVICES,
    api::Api,
    pods::{PODS, follow, is_ready, manifest},
    services, with_cluster,
};
use crate::{
    bench::Figure,
    cargo,
    cluster::{AGENT, Audit, Cluster, JoinedNode, KUBE_PROXY, Node},
    out,
};
use anyhow::{Context, Result, ensure};
use berth_harness::{
    stats::{median, quantile},
    tools::Build,
    wait,
};
use dial::{Background, Dialler};
use serde_json::Value;
use std::{
    env,
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

/// The two nodes.
const NODES: [(&str, Node); 2] = [("kube-proxy", Node::Kubelet), ("services", Node::Services)];

/// Starts of each side.
const FILLS: usize = 3;

/// Services that are dialled after a start: these and the last one.
const EVERY: usize = 250;

/// Addresses of all endpoints ([`services::make`]).
const ENDPOINTS: [&str; 3] = ["10.100.0.0/14", "10.104.0.0/13", "10.112.0.0/13"];

/// Time between two changes of an endpoint: kube-proxy gathers the changes of a second.
const PAUSE: Duration = Duration::from_millis(1100);

/// Time after which memory is looked at.
const SETTLED: Duration = Duration::from_secs(10);

/// Runs of new connections on each side, and how long one takes.
const RUNS: usize = 5;

/// ClusterIPs of the Services of one node: whose endpoint changes, and whose connections are counted.
const OWN: [(&str, &str); 2] = [("10.96.255.1", "10.96.255.2"), ("10.96.255.3", "10.96.255.4")];

/// One of the two.
struct Side<'a> {
    node: &'a JoinedNode,
    daemon: &'static str,
    /// Addresses of its own Services.
    own: (&'static str, &'static str),
    /// Serves all endpoints of the node.
    _server: Background,
}

/// Measures on a cluster of this run's own.
pub(in crate::bench) fn run(rounds: usize, only: &[String]) -> Result<Vec<Figure>> {
    let load = load()?;
    with_cluster("bench-services", Audit::ToNodes, NODES, |cluster, nodes| {
        let dialler = Dialler::new(&load);
        let daemons = [KUBE_PROXY, AGENT];
        let sides = nodes.iter().zip(daemons).zip(OWN).map(|((node, daemon), own)| {
            for range in ENDPOINTS {
                node.run(&["ip", "route", "add", "local", range, "dev", "lo"])?;
            }
            let server = dialler.serve(&node.network(), &node.hooked_cgroup()?, &["--any", "80"])?;
            Ok::<_, anyhow::Error>(Side { node, daemon, own, _server: server })
        });
        let sides = sides.collect::<Result<Vec<_>>>()?;
        let [theirs, ours] = &sides[..] else { anyhow::bail!("two nodes were joined") };
        measure(cluster, &dialler, [theirs, ours], rounds, only)
    })
}

/// Builds `berth-load`, optimised: what it costs itself must not hide a difference. A ready directory (`BERTH_BIN`) has it.
fn load() -> Result<PathBuf> {
    if let Some(ready) = env::var_os("BERTH_BIN") {
        return Ok(PathBuf::from(ready).join("berth-load"));
    }
    let mut build = cargo::command(&["build", "--quiet", "--release", "--locked", "--package", "berth-load"]);
    ensure!(build.status().context("cannot run cargo")?.success(), "berth-load does not build");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    Ok(target.join("release/berth-load"))
}

fn measure(
    cluster: &Cluster,
    dialler: &Dialler,
    sides: [&Side<'_>; 2],
    rounds: usize,
    only: &[String],
) -> Result<Vec<Figure>> {
    let has = |part: &str| only.is_empty() || only.iter().any(|name| name == part);
    let api = Api::start(cluster)?;
    let pods =
        sides.map(|side| if has("connections") { pair(&api, side, dialler).map(Some) } else { Ok(None) });
    let [theirs, ours] = pods;
    let pods = [theirs?, ours?];
    for side in sides {
        side.node.kill(side.daemon)?;
    }
    out::timed(&format!("make {SERVICES} Services"), || services::make(&api, 0, SERVICES))?;
    let sampled = sampled(&api)?;
    let mut figures = Vec::new();
    let ten = format!("{SERVICES} Services x 10 endpoints");
    if has("fill") {
        let mut took = [Vec::new(), Vec::new()];
        for _ in 0..FILLS {
            for (side, took) in sides.iter().zip(&mut took) {
                took.push(fill(side, dialler, &sampled)?);
                side.node.kill(side.daemon)?;
            }
        }
        let [theirs, ours] = took.map(|times| median(&times));
        figures.push(figure(
            "fill_ratio",
            ours / theirs,
            FILLS,
            format!("kube-proxy's {theirs:.2} s from its start until all answer, ours {ours:.2} s; {ten}"),
        ));
    }
    let (mut used, mut changed) = ([0.0, 0.0], [Vec::new(), Vec::new()]);
    for ((side, used), changed) in sides.iter().zip(&mut used).zip(&mut changed) {
        fill(side, dialler, &sampled)?;
        thread::sleep(SETTLED);
        let process = side.node.daemon(side.daemon).context("the proxy has ended")?;
        *used = megabytes(process.rss());
        if has("change") {
            *changed = services::changes(&api, side.node, side.own.0, rounds, PAUSE)?;
            out::line(&format!(
                "{}: {:.1} MB at first, {:.1} MB after the changes",
                side.daemon,
                *used,
                megabytes(process.rss())
            ));
        }
        side.node.kill(side.daemon)?;
    }
    if has("memory") {
        let [theirs, ours] = used;
        figures.push(figure(
            "rss_ratio",
            ours / theirs,
            1,
            format!("kube-proxy's {theirs:.1} MB, ours {ours:.1} MB; {ten}"),
        ));
    }
    if has("change") {
        let [theirs, ours] = changed;
        let of = |times: &[f64]| format!("p50 {:.1}, p90 {:.1} ms", median(times), quantile(times, 0.9));
        figures.push(figure(
            "endpoint_change_p50_ratio",
            median(&ours) / median(&theirs),
            ours.len(),
            format!(
                "kube-proxy's {}, ours {}; PATCH answered to first answer of the new backend, {ten}",
                of(&theirs),
                of(&ours)
            ),
        ));
    }
    if let [Some(theirs), Some(ours)] = &pods {
        for side in sides {
            side.node.start(side.daemon)?;
        }
        figures.push(connections(dialler, sides, [theirs, ours], &ten)?);
    }
    Ok(figures)
}

fn figure(name: &'static str, value: f64, n: usize, against: String) -> Figure {
    Figure { name, value, unit: "ratio", n, against }
}

fn megabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

/// ClusterIPs of every [`EVERY`]th Service, and of the last.
fn sampled(api: &Api) -> Result<Vec<SocketAddr>> {
    let numbers = (0..SERVICES).step_by(EVERY).chain([SERVICES - 1]);
    let address = |n: usize| {
        let service: Value =
            api.request("GET", &format!("/api/v1/namespaces/default/services/many-{n}"), "")?;
        let ip = service["spec"]["clusterIP"].as_str().context("a Service without an address")?;
        Ok(SocketAddr::new(ip.parse().context("cannot read a ClusterIP")?, 80))
    };
    numbers.map(address).collect()
}

/// Starts one side without anything left of an earlier run. Returns the seconds until all sampled Services answer.
fn fill(side: &Side<'_>, dialler: &Dialler, sampled: &[SocketAddr]) -> Result<f64> {
    if side.daemon == AGENT {
        side.node.reset_services(Build::Release)?;
    } else {
        for family in ["ip", "ip6"] {
            // It may have none of this family.
            drop(side.node.run(&["nft", "delete", "table", family, "kube-proxy"]));
        }
    }
    let reaching = dialler.reach(&side.node.network(), &side.node.hooked_cgroup()?, sampled)?;
    let begun = Instant::now();
    side.node.start(side.daemon)?;
    let took = reaching.ended()?.saturating_duration_since(begun).as_secs_f64();
    out::line(&format!("{}: all answer after {took:.2} s", side.daemon));
    Ok(took)
}

/// A client and a server: two pods of a node, and a Service of the server alone.
struct Pair {
    client: PathBuf,
    target: SocketAddr,
    _server: Background,
}

fn pair(api: &Api, side: &Side<'_>, dialler: &Dialler) -> Result<Pair> {
    let node = side.node.name();
    let [client, server] = ["client", "served"].map(|what| pod(api, &format!("{what}-{node}"), node));
    let ((client, _), (server, address)) = (client?, server?);
    services::make_one(api, &format!("dialled-{node}"), Some(side.own.1), &[address])?;
    let served = dialler.serve(&server, &side.node.hooked_cgroup()?, &["--listen", "0.0.0.0:80"])?;
    let target = SocketAddr::new(side.own.1.parse().context("no address")?, 80);
    Ok(Pair { client, target, _server: served })
}

/// Makes a pod. Returns the file of its network namespace and its address.
fn pod(api: &Api, name: &str, node: &str) -> Result<(PathBuf, String)> {
    let events = api.watch(PODS)?;
    let made = api.request("POST", PODS, &manifest(name, node, "dial").to_string())?;
    let uid = made["metadata"]["uid"].as_str().context("a pod without a UID")?.to_owned();
    let mut address = String::new();
    follow(&events, "a pod is Ready", |event| {
        let found = event.object["metadata"]["name"] == *name && is_ready(&event.object);
        if found {
            address = event.object["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        }
        found
    })?;
    Ok((crate::takeover::pod_network(&uid)?, address))
}

/// New connections a second from a pod by a ClusterIP, in turns.
fn connections(dialler: &Dialler, sides: [&Side<'_>; 2], pairs: [&Pair; 2], ten: &str) -> Result<Figure> {
    let mut rates = [Vec::new(), Vec::new()];
    for (side, pair) in sides.iter().zip(pairs) {
        wait::ok(&format!("{} answers", side.daemon), Duration::from_secs(60), || {
            dialler.rate(&pair.client, &side.node.hooked_cgroup()?, pair.target, 50).map(drop)
        })?;
    }
    thread::sleep(SETTLED);
    for _ in 0..RUNS {
        for ((side, pair), rates) in sides.iter().zip(pairs).zip(&mut rates) {
            rates.push(dialler.rate(&pair.client, &side.node.hooked_cgroup()?, pair.target, 2000)?);
        }
    }
    let [theirs, ours] = rates.map(|rates| median(&rates));
    ensure!(theirs > 0.0, "kube-proxy's Service did not answer");
    Ok(figure(
        "new_conn_ratio",
        ours / theirs,
        RUNS,
        format!("kube-proxy's {theirs:.0} a second from a pod by a ClusterIP, ours {ours:.0}; {ten}"),
    ))
}
