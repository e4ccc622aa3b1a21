//! Two statuses side by side, and the reviewed list of where they may differ.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The values of a status that are compared, by path: `phase`, `conditions.Ready.status`,
/// `containers.app.lastState.terminated.exitCode`. Ids, times, addresses and images are not among them.
pub(crate) type Leaves = BTreeMap<String, Value>;

/// Takes a status apart; `backs_off` shows an ended container that was restarted before as waiting for its next
/// start, as the recordings of such shapes do.
pub(crate) fn leaves(status: &Value, backs_off: bool) -> Leaves {
    let mut out = Leaves::new();
    for key in ["phase", "reason", "qosClass"] {
        put(&mut out, key, &status[key]);
    }
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let order: Vec<&str> = conditions.iter().filter_map(|c| c["type"].as_str()).collect();
    out.insert("conditions".to_owned(), json!(order));
    let ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    for condition in conditions {
        let kind = condition["type"].as_str().unwrap_or_default();
        // Turns False once the sandbox is taken down, a moment after the pod has ended; which of the two a look meets
        // is chance.
        if ended && kind == "PodReadyToStartContainers" {
            continue;
        }
        for key in ["status", "reason"] {
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
            for key in ["ready", "started", "restartCount"] {
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
}

fn state(out: &mut Leaves, at: &str, state: &Value) {
    let kinds: Vec<&str> =
        ["waiting", "running", "terminated"].into_iter().filter(|k| !state[*k].is_null()).collect();
    out.insert(at.to_owned(), json!(kinds.join("+")));
    put(out, &format!("{at}.waiting.reason"), &state["waiting"]["reason"]);
    for key in ["exitCode", "reason", "message"] {
        put(out, &format!("{at}.terminated.{key}"), &state["terminated"][key]);
    }
}

fn put(out: &mut Leaves, path: &str, value: &Value) {
    if !value.is_null() {
        out.insert(path.to_owned(), value.clone());
    }
}

/// One value that is not the same.
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

/// Where they differ; null stands for what is not there.
pub(crate) fn unlike(kubelet: &Leaves, berth: &Leaves) -> Vec<Unlike> {
    let paths: BTreeSet<&String> = kubelet.keys().chain(berth.keys()).collect();
    let of = |side: &Leaves, path: &String| side.get(path).cloned().unwrap_or_default();
    paths
        .into_iter()
        .map(|p| Unlike { path: p.clone(), kubelet: of(kubelet, p), berth: of(berth, p) })
        .filter(|u| u.kubelet != u.berth)
        .collect()
}

/// The reviewed list, `tests/golden/status-differences.json`: each entry says for which shapes which values differ
/// and why that is right.
#[derive(Debug)]
pub(crate) struct Differences {
    /// By shape and path: what the kubelet says, what Berth says.
    known: BTreeMap<(String, String), (Value, Value)>,
    used: BTreeSet<(String, String)>,
}

impl Differences {
    pub(crate) fn read(path: &Path) -> Result<Differences> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let list: Vec<Value> =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
        let mut known = BTreeMap::new();
        for entry in &list {
            ensure!(
                entry["reason"].as_str().is_some_and(|r| r.len() > 20),
                "an entry without a reason: {entry}"
            );
            let shapes = entry["shapes"].as_array().with_context(|| format!("no shapes in {entry}"))?;
            let values = entry["values"].as_object().with_context(|| format!("no values in {entry}"))?;
            ensure!(!shapes.is_empty() && !values.is_empty(), "an entry about nothing: {entry}");
            for shape in shapes {
                let shape = shape.as_str().with_context(|| format!("a shape in {entry}"))?;
                for (path, sides) in values {
                    let key = (shape.to_owned(), path.clone());
                    let sides = (sides["kubelet"].clone(), sides["berth"].clone());
                    ensure!(known.insert(key, sides).is_none(), "{shape} {path} is listed twice");
                }
            }
        }
        Ok(Differences { known, used: BTreeSet::new() })
    }

    /// The differences that are not on the list.
    pub(crate) fn unknown(&self, shape: &str, found: &[Unlike]) -> Vec<Unlike> {
        found.iter().filter(|u| !self.lists(shape, u)).cloned().collect()
    }

    fn lists(&self, shape: &str, unlike: &Unlike) -> bool {
        let known = self.known.get(&(shape.to_owned(), unlike.path.clone()));
        known.is_some_and(|(kubelet, berth)| *kubelet == unlike.kubelet && *berth == unlike.berth)
    }

    /// Notes that these were met.
    pub(crate) fn meet(&mut self, shape: &str, found: &[Unlike]) {
        self.used.extend(found.iter().map(|u| (shape.to_owned(), u.path.clone())));
    }

    /// Entries about these shapes that nothing needs, and entries about shapes that are not known at all.
    pub(crate) fn unused(&self, ran: &BTreeSet<&str>, exist: &BTreeSet<&str>) -> Vec<String> {
        self.known
            .keys()
            .filter(|key| {
                !exist.contains(key.0.as_str()) || (ran.contains(key.0.as_str()) && !self.used.contains(key))
            })
            .map(|(shape, path)| format!("{shape} {path}"))
            .collect()
    }
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

    #[test]
    fn the_list_covers_just_what_it_says_and_must_be_needed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.json");
        let entry = json!([{
            "shapes": ["a", "b"], "reason": "a reason that is long enough",
            "values": {"phase": {"kubelet": "Running", "berth": "Pending"}},
        }]);
        fs::write(&path, entry.to_string()).unwrap();
        let mut list = Differences::read(&path).unwrap();
        let found = |berth: &str| {
            vec![Unlike { path: "phase".into(), kubelet: json!("Running"), berth: json!(berth) }]
        };
        assert!(list.unknown("a", &found("Pending")).is_empty());
        assert_eq!(list.unknown("a", &found("Failed")).len(), 1);
        assert_eq!(list.unknown("c", &found("Pending")).len(), 1);
        list.meet("a", &found("Pending"));
        let exist = BTreeSet::from(["a", "b"]);
        assert_eq!(list.unused(&exist, &exist), ["b phase"]);
        assert!(list.unused(&BTreeSet::from(["a"]), &exist).is_empty());
        assert_eq!(list.unused(&BTreeSet::new(), &BTreeSet::from(["a"])), ["b phase"]);
        fs::write(&path, r#"[{"shapes": ["a"], "values": {"phase": {}}}]"#).unwrap();
        assert!(Differences::read(&path).is_err(), "an entry without a reason");
    }
}
