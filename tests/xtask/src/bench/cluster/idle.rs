//! What nodes use and ask while nothing happens.

use super::{
    api::{Api, Event},
    pods::{PODS, follow, is_ready, manifest},
};
use crate::{
    cluster::{Asked, AuditLog, JoinedNode},
    out,
};
use anyhow::{Context, Result, ensure};
use berth_harness::process::Process;
use serde_json::json;
use std::{
    collections::BTreeSet,
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};

/// What a node used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    /// Processor time in seconds a minute, of the node's programs with containerd.
    pub(super) cpu: f64,
    /// Resident memory of the node's programs without containerd, in MB.
    pub(super) rss: f64,
    /// Requests a minute to the API server.
    pub(super) requests: f64,
}

/// Makes pods on each node, each with a ConfigMap and a token of its own.
pub(super) fn fill(api: &Api, nodes: &[&JoinedNode], pods: usize) -> Result<()> {
    let events = api.watch(PODS)?;
    for n in 0..pods {
        for node in nodes {
            let name = format!("idle-{}-{n}", node.name());
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": n.to_string()}});
            api.request("POST", "/api/v1/namespaces/default/configmaps", &map.to_string())?;
            let mut pod = manifest(&name, node.name(), "idle");
            pod["spec"]["volumes"] = json!([{"name": "own", "configMap": {"name": name}}]);
            pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "own", "mountPath": "/own"}]);
            pod["spec"]["containers"][0]["command"] =
                json!(["sh", "-c", "mkdir /www; echo ok > /www/index.html; exec httpd -f -p 80 -h /www"]);
            pod["spec"]["containers"][0]["readinessProbe"] =
                json!({"httpGet": {"port": 80}, "periodSeconds": 10});
            api.request("POST", PODS, &pod.to_string())?;
        }
    }
    all_ready(&events, pods * nodes.len())
}

fn all_ready(events: &Receiver<Event>, pods: usize) -> Result<()> {
    let mut ready = BTreeSet::new();
    follow(events, "all pods are Ready", |event| {
        if is_ready(&event.object) {
            ready.insert(event.object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        }
        ready.len() == pods
    })
    .map(drop)
}

/// Removes the pods.
pub(super) fn empty(api: &Api, pods: usize) -> Result<()> {
    let events = api.watch(PODS)?;
    api.request("DELETE", &format!("{PODS}?labelSelector=part%3Didle&gracePeriodSeconds=1"), "")?;
    let mut gone = 0;
    follow(&events, "the pods are gone", |event| {
        gone += usize::from(event.kind == "DELETED");
        gone == pods
    })
    .map(drop)
}

/// What nodes use in the same time.
pub(super) fn measure(nodes: &[&JoinedNode], log: &mut AuditLog, span: Duration) -> Result<Vec<Used>> {
    // The work that follows the start of so many pods is not part of idling.
    thread::sleep(Duration::from_secs(15));
    let mut before = Vec::new();
    for node in nodes {
        let all = node.processes()?;
        ensure!(!all.is_empty(), "node {} has no process", node.name());
        before.push(all.into_iter().map(|(p, name)| (p, name, p.cpu())).collect::<Vec<_>>());
    }
    log.news()?;
    let begun = Instant::now();
    thread::sleep(span);
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    let asked = log.news()?;
    nodes.iter().zip(before).map(|(node, before)| used(node, &before, &asked, minutes)).collect()
}

fn used(
    node: &JoinedNode,
    before: &[(Process, String, Duration)],
    asked: &[Asked],
    minutes: f64,
) -> Result<Used> {
    let mut used = Used::default();
    for (process, name, spent) in before {
        ensure!(process.alive(), "{name} ended meanwhile");
        let cpu = process.cpu().saturating_sub(*spent).as_secs_f64() / minutes;
        let rss = f64::from(u32::try_from(process.rss() >> 10)?) / 1024.0;
        let what = process.command_line().into_iter().take(2).collect::<Vec<_>>();
        let what =
            what.last().filter(|w| !w.contains('/') && !w.starts_with('-')).cloned().unwrap_or_default();
        out::line(&format!(
            "{:14} {name:12} {what:12} {cpu:7.3} s of CPU a minute, {rss:6.1} MB",
            node.name()
        ));
        used.cpu += cpu;
        if name != "containerd" {
            used.rss += rss;
        }
    }
    let own = asked.iter().filter(|a| a.user == node.name()).count();
    used.requests = f64::from(u32::try_from(own).context("so many requests")?) / minutes;
    Ok(used)
}
