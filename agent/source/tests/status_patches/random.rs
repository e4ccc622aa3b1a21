//! Random statuses of pods, from a seed.

use berth_harness::rng::Rng;
use serde_json::{Map, Value, json};

/// A copy of a random element of the list.
pub(crate) fn any<T: Clone>(r: &mut Rng, from: &[T]) -> T {
    r.pick(from).clone()
}

/// A random part of the list, in random order.
pub(crate) fn some<T: Clone>(r: &mut Rng, from: &[T], share: usize) -> Vec<T> {
    let mut taken: Vec<(u64, T)> = Vec::new();
    for item in from {
        if r.index(share + 1) < share {
            taken.push((r.draw(), item.clone()));
        }
    }
    taken.sort_by_key(|(at, _)| *at);
    taken.into_iter().map(|(_, item)| item).collect()
}

pub(crate) const OWN: [&str; 8] = [
    "PodScheduled",
    "Ready",
    "Initialized",
    "ContainersReady",
    "PodReadyToStartContainers",
    "PodResizePending",
    "PodResizeInProgress",
    "AllContainersRestarting",
];
const OTHERS: [&str; 3] = ["example.com/gate", "DisruptionTarget", "cloud.example/healthy"];
pub(crate) const CLAIMS: [&str; 2] = ["gpu", "nic"];

/// A time; with a fraction or another zone where the node writes it.
pub(crate) fn time(r: &mut Rng, node: bool) -> Value {
    let second = 10 + r.index(6);
    match if node { r.index(6) } else { 0 } {
        1 => format!("2026-01-02T03:04:{second}.75Z").into(),
        2 => format!("2026-01-02T05:04:{second}.000001+02:00").into(),
        _ => format!("2026-01-02T03:04:{second}Z").into(),
    }
}

fn put(map: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    map.insert(name.to_owned(), value.into());
}

fn condition(r: &mut Rng, kind: &str, node: bool) -> Value {
    let mut c = Map::new();
    put(&mut c, "type", kind);
    put(&mut c, "status", any(r, &["True", "False"]));
    put(&mut c, "lastProbeTime", Value::Null);
    if !r.one_in(20) {
        put(&mut c, "lastTransitionTime", time(r, node));
    }
    if r.one_in(2) {
        put(&mut c, "reason", any(r, &["A", "B", ""]));
        put(&mut c, "message", any(r, &["one", "two", "three"]));
    }
    if !r.one_in(4) {
        put(&mut c, "observedGeneration", 1 + r.index(4));
    }
    c.into()
}

fn terminated(r: &mut Rng, node: bool) -> Value {
    let mut t = json!({
        "exitCode": any(r, &[0, 0, 1, 137]),
        "reason": any(r, &["Completed", "Error"]),
        "startedAt": time(r, node),
        "finishedAt": time(r, node),
        "containerID": "containerd://a",
    });
    if r.one_in(3) {
        // Once in a while longer than its share.
        let length = if r.one_in(20) { 1_300 } else { any(r, &[0, 3, 40]) };
        t["message"] = "ä".repeat(length).into();
    }
    t
}

fn container(r: &mut Rng, name: &str, node: bool) -> Value {
    let mut c = Map::new();
    put(&mut c, "name", name);
    put(&mut c, "image", any(r, &["i:1", "i:2"]));
    put(&mut c, "imageID", any(r, &["", "repo@sha256:00"]));
    put(&mut c, "ready", r.one_in(2));
    put(&mut c, "restartCount", r.index(4));
    if r.one_in(2) {
        put(&mut c, "containerID", any(r, &["containerd://a", "containerd://b"]));
        put(&mut c, "started", r.one_in(2));
    }
    let state = match r.index(4) {
        0 => json!({ "waiting": { "reason": any(r, &["CrashLoopBackOff", "ContainerCreating"]) } }),
        1 => json!({ "terminated": terminated(r, node) }),
        _ => json!({ "running": { "startedAt": time(r, node) } }),
    };
    put(&mut c, "state", state);
    let last = if r.one_in(3) { json!({ "terminated": terminated(r, node) }) } else { json!({}) };
    put(&mut c, "lastState", last);
    if r.one_in(4) {
        put(&mut c, "resources", json!({ "requests": { "cpu": any(r, &["100m", "1"]) } }));
        put(&mut c, "allocatedResources", json!({ "cpu": any(r, &["100m", "1"]) }));
        put(&mut c, "volumeMounts", json!([{ "name": "v", "mountPath": "/v" }]));
        put(&mut c, "user", json!({ "linux": { "uid": 1, "gid": 0, "supplementalGroups": [0] } }));
    }
    c.into()
}

/// One or two addresses of different families, and the first of them.
fn addresses(r: &mut Rng, map: &mut Map<String, Value>, one: &str, all: &str) {
    let v4 = any(r, &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    let v6 = any(r, &["2001:db8::1", "2001:db8::2"]);
    let list = match r.index(5) {
        0 => return,
        1 => vec![v4, v6],
        2 => vec![v6, v4],
        3 => vec![v6],
        _ => vec![v4],
    };
    put(map, one, list[0]);
    let list: Vec<Value> = list.into_iter().map(|ip| json!({ "ip": ip })).collect();
    put(map, all, list);
}

/// A status as the node (`node`) or the API server has it.
pub(crate) fn status(r: &mut Rng, node: bool) -> Map<String, Value> {
    let mut s = Map::new();
    put(&mut s, "phase", any(r, &["Pending", "Running", "Running", "Running", "Succeeded", "Failed"]));
    put(&mut s, "qosClass", "BestEffort");
    if r.one_in(3) {
        put(&mut s, "reason", any(r, &["Evicted", "DeadlineExceeded"]));
        put(&mut s, "message", any(r, &["Pod was rejected: x", ""]));
    }
    if !r.one_in(4) {
        put(&mut s, "startTime", time(r, node));
    }
    if !r.one_in(4) {
        put(&mut s, "observedGeneration", 1 + r.index(4));
    }
    addresses(r, &mut s, "hostIP", "hostIPs");
    addresses(r, &mut s, "podIP", "podIPs");
    let mut kinds: Vec<&str> = OWN.to_vec();
    if node {
        kinds.push("DisruptionTarget");
    } else {
        kinds.extend(OTHERS);
    }
    let conditions: Vec<Value> =
        some(r, &kinds, 2).into_iter().map(|kind| condition(r, kind, node)).collect();
    if !conditions.is_empty() || r.one_in(2) {
        put(&mut s, "conditions", conditions);
    }
    for (list, names) in [
        ("initContainerStatuses", &["setup", "sidecar"][..]),
        ("containerStatuses", &["app", "helper", "web"][..]),
        ("ephemeralContainerStatuses", &["debug"][..]),
    ] {
        let list_of: Vec<Value> =
            some(r, names, 3).into_iter().map(|name| container(r, name, node)).collect();
        if !list_of.is_empty() {
            put(&mut s, list, list_of);
        }
    }
    if r.one_in(3) {
        put(&mut s, "resources", resources(r));
        put(&mut s, "allocatedResources", json!({ "memory": any(r, &["1Gi", "64Mi"]) }));
    }
    s
}

fn resources(r: &mut Rng) -> Value {
    let mut of = json!({ "requests": { "cpu": any(r, &["100m", "1"]) } });
    if r.one_in(2) {
        of["requests"]["memory"] = any(r, &["1Gi", "64Mi"]).into();
    }
    if r.one_in(2) {
        of["limits"] = json!({ "memory": any(r, &["1Gi", "64Mi"]) });
    }
    of
}

/// The status in the API and the one that the node wants. Often the two have much in common.
pub(crate) fn pair(r: &mut Rng) -> (Value, Value) {
    let (mut old, mut wanted) = (status(r, false), status(r, true));
    match r.index(8) {
        0 => {
            old = Map::from_iter([
                ("phase".to_owned(), "Pending".into()),
                ("qosClass".to_owned(), "BestEffort".into()),
            ])
        }
        1..=4 => {
            // Some fields changed since.
            let mut now = old.clone();
            let names: Vec<String> = old.keys().chain(wanted.keys()).cloned().collect();
            for name in some(r, &names, 1) {
                match wanted.get(&name) {
                    Some(value) => now.insert(name, value.clone()),
                    None => now.remove(&name),
                };
            }
            // The first address goes with its list.
            for (one, all) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
                match now.get(all).and_then(|list| list[0]["ip"].as_str()).map(str::to_owned) {
                    Some(ip) => put(&mut now, one, ip),
                    None => drop(now.remove(one)),
                }
            }
            wanted = now;
        }
        5 => wanted = old.clone(),
        _ => {}
    }
    if r.one_in(4) {
        let claims: Vec<Value> = CLAIMS
            .iter()
            .map(|name| json!({ "name": name, "resourceClaimName": format!("claim-{name}") }))
            .collect();
        put(&mut old, "resourceClaimStatuses", claims);
    }
    (old.into(), wanted.into())
}
