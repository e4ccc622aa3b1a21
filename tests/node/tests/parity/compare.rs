//! Comparison of two pod statuses, value by value.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Compared values of a status by path: `phase`, `conditions.Ready.status`,
/// `containers.app.lastState.terminated.exitCode`. Ids and times are left out; the caller has replaced
/// addresses by placeholders.
pub(crate) type Leaves = BTreeMap<String, Value>;

/// Flattens a status. With `backs_off`, an ended container that has restarted before counts as waiting for
/// its next start, as in the recordings of such shapes.
pub(crate) fn leaves(status: &Value, backs_off: bool) -> Leaves {
    let mut out = Leaves::new();
    for key in ["phase", "reason", "message", "qosClass", "podIP", "resources", "allocatedResources"] {
        put(&mut out, key, &status[key]);
    }
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let order: Vec<&str> = conditions.iter().filter_map(|c| c["type"].as_str()).collect();
    out.insert("conditions".to_owned(), json!(order));
    let ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    for condition in conditions {
        let kind = condition["type"].as_str().unwrap_or_default();
        // The condition turns False when the sandbox is torn down, a moment after the pod has ended. Which
        // value an observation sees is chance.
        if ended && kind == "PodReadyToStartContainers" {
            continue;
        }
        for key in ["status", "reason", "message"] {
            put(&mut out, &format!("conditions.{kind}.{key}"), &condition[key]);
        }
    }
    for (list, short) in [("initContainerStatuses", "initContainers"), ("containerStatuses", "containers")] {
        let all = status[list].as_array().map(Vec::as_slice).unwrap_or_default();
        let order: Vec<&str> = all.iter().filter_map(|c| c["name"].as_str()).collect();
        out.insert(short.to_owned(), json!(order));
        for container in all {
            let mut container = container.clone();
            if backs_off {
                as_backing_off(&mut container);
            }
            let at = format!("{short}.{}", container["name"].as_str().unwrap_or_default());
            let whole = ["image", "resources", "allocatedResources", "user", "volumeMounts", "stopSignal"];
            for key in ["ready", "started", "restartCount"].into_iter().chain(whole) {
                put(&mut out, &format!("{at}.{key}"), &container[key]);
            }
            for key in ["state", "lastState"] {
                state(&mut out, &format!("{at}.{key}"), &container[key]);
            }
        }
    }
    out
}

fn as_backing_off(container: &mut Value) {
    if container["restartCount"].as_u64().unwrap_or(0) > 0 && !container["state"]["terminated"].is_null() {
        let ended = container["state"].take();
        container["lastState"] = ended;
        container["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    }
    if container["state"]["waiting"]["reason"] == "CrashLoopBackOff" {
        container["state"]["waiting"]["message"] = Value::Null;
    }
}

fn state(out: &mut Leaves, at: &str, state: &Value) {
    let kinds: Vec<&str> =
        ["waiting", "running", "terminated"].into_iter().filter(|k| !state[*k].is_null()).collect();
    out.insert(at.to_owned(), json!(kinds.join("+")));
    for key in ["reason", "message"] {
        put(out, &format!("{at}.waiting.{key}"), &state["waiting"][key]);
    }
    for key in ["exitCode", "signal", "reason", "message"] {
        put(out, &format!("{at}.terminated.{key}"), &state["terminated"][key]);
    }
}

fn put(out: &mut Leaves, path: &str, value: &Value) {
    if !value.is_null() {
        out.insert(path.to_owned(), value.clone());
    }
}

/// A path with different values on the two sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unlike {
    pub(crate) path: String,
    pub(crate) kubelet: Value,
    pub(crate) berth: Value,
}

impl std::fmt::Display for Unlike {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: kubelet {}, berth {}", self.path, self.kubelet, self.berth)
    }
}

/// Differences of two statuses. A missing value is null.
pub(crate) fn unlike(kubelet: &Leaves, berth: &Leaves) -> Vec<Unlike> {
    let paths: BTreeSet<&String> = kubelet.keys().chain(berth.keys()).collect();
    let of = |side: &Leaves, path: &String| side.get(path).cloned().unwrap_or_default();
    paths
        .into_iter()
        .map(|p| Unlike { path: p.clone(), kubelet: of(kubelet, p), berth: of(berth, p) })
        .filter(|u| u.kubelet != u.berth)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Value {
        json!({
            "phase": "Running",
            "qosClass": "BestEffort",
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
            "containerStatuses": [{
                "name": "app", "ready": false, "started": false, "restartCount": 1,
                "state": {"terminated": {"exitCode": 3, "reason": "Error", "message": "why"}}, "lastState": {},
            }],
        })
    }

    #[test]
    fn every_value_counts() {
        let recorded = leaves(&status(), false);
        assert!(unlike(&recorded, &leaves(&status(), false)).is_empty());
        let changes: [(&str, Value); 11] = [
            ("/phase", json!("Pending")),
            ("/qosClass", json!("Burstable")),
            ("/conditions", json!([])),
            ("/conditions/0/status", json!("True")),
            ("/conditions/0/reason", Value::Null),
            ("/containerStatuses", json!([])),
            ("/containerStatuses/0/restartCount", json!(2)),
            ("/containerStatuses/0/started", json!(true)),
            ("/containerStatuses/0/state/terminated/exitCode", json!(4)),
            ("/containerStatuses/0/state/terminated/message", Value::Null),
            ("/containerStatuses/0/lastState", json!({"terminated": {"exitCode": 3, "reason": "Error"}})),
        ];
        for (path, value) in changes {
            let mut other = status();
            *other.pointer_mut(path).unwrap() = value;
            assert!(!unlike(&recorded, &leaves(&other, false)).is_empty(), "{path}");
        }
    }

    #[test]
    fn a_container_that_ended_and_was_restarted_is_taken_for_backing_off() {
        let shown = leaves(&status(), true);
        assert_eq!(shown["containers.app.state.waiting.reason"], "CrashLoopBackOff");
        assert_eq!(shown["containers.app.lastState.terminated.exitCode"], 3);
    }
}
