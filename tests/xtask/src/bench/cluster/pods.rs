//! Start and end of pods of the API server, one by one and a hundred at once.

use super::{
    super::{millis, spread},
    api::{Api, Event},
};
use crate::out;
use anyhow::{Context, Result, bail};
use berth_harness::{image::BUSYBOX, stats::median, wait::PATIENCE};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc::{Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// Path of the pods.
pub(super) const PODS: &str = "/api/v1/namespaces/default/pods";

/// Time between a pod's readiness and its deletion. The first process of a container is not ended by SIGTERM before its
/// trap is set, and these pods are ready before that.
const SETTLE: Duration = Duration::from_secs(1);

/// Times of one node's pods, in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// From the POST to the Ready condition that the API server has.
    pub(super) start: Vec<f64>,
    /// From the POST to the binding by the scheduler.
    bound: Vec<f64>,
    /// From the DELETE to the object's end.
    pub(super) gone: Vec<f64>,
    /// The same of many pods at once, in seconds: from the first request to the last pod.
    pub(super) burst: Vec<f64>,
    pub(super) teardown: Vec<f64>,
}

/// A pod of this node with limits, a network and a process that ends on SIGTERM.
pub(super) fn manifest(name: &str, node: &str, part: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"part": part}},
        "spec": {
            "terminationGracePeriodSeconds": 10,
            "nodeSelector": {"kubernetes.io/hostname": node},
            "containers": [{
                "name": "app", "image": BUSYBOX, "imagePullPolicy": "Never",
                "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"],
                "resources": {
                    "requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"},
                },
            }],
        },
    })
}

/// Whether the Ready condition of a pod is True.
pub(super) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.clone().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn name_of(event: &Event) -> &str {
    event.object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Reads events until `done` says so.
///
/// # Errors
/// The watch ends, or it does not come in time.
pub(super) fn follow(
    events: &Receiver<Event>,
    what: &str,
    mut done: impl FnMut(&Event) -> bool,
) -> Result<Instant> {
    let end = Instant::now() + 3 * PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let event = match events.recv_timeout(left) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => bail!("waited in vain until {what}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the watch ended before {what}"),
        };
        if done(&event) {
            return Ok(event.at);
        }
    }
}

/// One round: a pod starts, and ends. `keep` says whether its times count.
pub(super) fn one(api: &Api, node: &str, round: usize, times: &mut Times, keep: bool) -> Result<Value> {
    let name = format!("one-{node}-{round}");
    let events = api.watch(PODS)?;
    let begun = Instant::now();
    api.request("POST", PODS, &manifest(&name, node, "one").to_string())?;
    let (mut bound, mut pod) = (None, Value::Null);
    let ready = follow(&events, "the pod is Ready", |event| {
        if name_of(event) != name {
            return false;
        }
        if event.object["spec"]["nodeName"].is_string() {
            bound.get_or_insert(event.at);
        }
        if is_ready(&event.object) {
            pod = event.object.clone();
        }
        is_ready(&event.object)
    })?;
    thread::sleep(SETTLE);
    let deleted = Instant::now();
    api.request("DELETE", &format!("{PODS}/{name}"), "")?;
    let gone = follow(&events, "the pod is gone", |event| name_of(event) == name && event.kind == "DELETED")?;
    if keep {
        times.start.push(millis(ready - begun));
        times.bound.push(millis(bound.unwrap_or(ready) - begun));
        times.gone.push(millis(gone - deleted));
    }
    Ok(pod)
}

/// Many pods start at once, and end at once.
pub(super) fn burst(api: &Api, node: &str, pods: usize, times: &mut Times) -> Result<()> {
    let events = api.watch(PODS)?;
    let begun = Instant::now();
    let took = |until: Instant| (until - begun).as_secs_f64();
    for n in 0..pods {
        let name = format!("burst-{node}-{n}");
        api.request("POST", PODS, &manifest(&name, node, "burst").to_string())?;
    }
    let mut ready = BTreeSet::new();
    let all = follow(&events, "all pods of the burst are Ready", |event| {
        if is_ready(&event.object) {
            ready.insert(name_of(event).to_owned());
        }
        ready.len() == pods
    })?;
    times.burst.push(took(all));
    thread::sleep(SETTLE);
    let begun = Instant::now();
    api.request("DELETE", &format!("{PODS}?labelSelector=part%3Dburst"), "")?;
    let mut gone = 0;
    let all = follow(&events, "all pods of the burst are gone", |event| {
        gone += usize::from(event.kind == "DELETED");
        gone == pods
    })?;
    times.teardown.push((all - begun).as_secs_f64());
    Ok(())
}

impl Times {
    /// Prints the times of a node's pods.
    pub(super) fn tell(&self, node: &str) {
        out::line(&format!("{node}: POST to the binding: {}", spread(&self.bound)));
        out::line(&format!("{node}: POST to Ready:       {}", spread(&self.start)));
        out::line(&format!("{node}: DELETE to gone:      {}", spread(&self.gone)));
        if self.burst.is_empty() {
            return;
        }
        out::line(&format!("{node}: bursts {:.2?} s, their ends {:.2?} s", self.burst, self.teardown));
    }
}

/// Times of the steps of starts, in the agent's own words.
#[derive(Debug, Default)]
pub(super) struct Steps(BTreeMap<String, Vec<f64>>);

impl Steps {
    /// Takes the steps of one pod's start out of the agent's view of the pod.
    pub(super) fn take(&mut self, pod: &Value) {
        for action in pod["timeline"].as_array().into_iter().flatten() {
            let kind = action["kind"].as_str().unwrap_or_default();
            let mut push = |name: String, ms: &Value| {
                self.0.entry(name).or_default().push(ms.as_f64().unwrap_or(0.0));
            };
            push(kind.to_owned(), &action["took_ms"]);
            for step in action["steps"].as_array().into_iter().flatten() {
                push(format!("{kind}: {}", step[0].as_str().unwrap_or_default()), &step[1]);
            }
        }
    }

    /// Prints the medians, the largest first.
    pub(super) fn tell(&self) {
        let mut all: Vec<_> = self.0.iter().map(|(name, ms)| (median(ms), ms.len(), name)).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        out::line("the steps of a start on Berth, p50:");
        for (ms, n, name) in all {
            out::line(&format!("  {ms:8.2} ms  {name} (n = {n})"));
        }
    }
}

/// The agent's view of a pod that is Ready, from a watch of its socket that was opened before.
///
/// # Errors
/// The agent does not know the pod in time.
pub(super) fn seen_by_agent(watch: &mut berth_harness::socket::Watch, name: &str) -> Result<Value> {
    use berth_harness::socket::Change;
    let full = format!("default/{name}");
    let mut found = None;
    watch.until("the agent has the pod", Duration::from_secs(10), |change| {
        if let Change::Pod(pod) = change
            && pod.name() == full
            && pod.ready()
        {
            found = Some(pod.0.clone());
        }
        found.is_some()
    })?;
    found.context("the pod was there")
}
