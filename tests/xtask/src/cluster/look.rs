//! What the API server says of pods, EndpointSlices and the node at one moment, and what differs between two moments.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Label whose value is the part that a pod or an EndpointSlice plays in a suite.
pub(crate) const PART: &str = "part";

/// Pods, EndpointSlices and the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Pods by UID.
    pub(crate) pods: BTreeMap<String, SeenPod>,
    /// EndpointSlices by name.
    pub(crate) slices: BTreeMap<String, SeenSlice>,
    /// Status and last transition of the Ready condition of each node.
    pub(crate) nodes: BTreeMap<String, (String, String)>,
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SeenPod {
    pub(crate) name: String,
    /// Value of the label [`PART`].
    pub(crate) part: String,
    pub(crate) deleting: bool,
    /// Status of the Ready condition.
    pub(crate) ready: bool,
    /// Last transition of the Ready condition.
    pub(crate) ready_since: String,
    /// Restarts of all containers.
    pub(crate) restarts: u64,
    /// Containers' ids, which change with each run.
    pub(crate) runs: Vec<String>,
    pub(crate) address: String,
}

/// An EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SeenSlice {
    /// Value of the label [`PART`], which the Service's labels bring.
    pub(crate) part: String,
    /// Changes with each write.
    pub(crate) version: String,
}

/// What happened between two looks to the pods that were there at both, and to the slices of a part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Differences {
    /// Restarts that no pod asked for.
    pub(crate) restarts: u64,
    /// Pods whose containers, address or identity are others now, though none was deleted by hand.
    pub(crate) replaced: u64,
    /// Pods whose readiness changed.
    pub(crate) readiness: u64,
    /// EndpointSlices that were written.
    pub(crate) slices: u64,
    /// Nodes whose readiness changed.
    pub(crate) nodes: u64,
    /// What the numbers count, a line each.
    pub(crate) told: Vec<String>,
}

impl Look {
    /// Reads a list of pods, EndpointSlices and nodes in JSON.
    ///
    /// # Errors
    /// The text is no JSON.
    pub(crate) fn read(text: &str) -> Result<Look> {
        let list: Value = serde_json::from_str(text).context("cannot read kubectl's list")?;
        let mut look = Look::default();
        for object in list["items"].as_array().into_iter().flatten() {
            let (kind, meta) = (object["kind"].as_str().unwrap_or_default(), &object["metadata"]);
            let name = text_of(&meta["name"]);
            match kind {
                "Pod" => {
                    look.pods.insert(text_of(&meta["uid"]), pod(object));
                }
                "EndpointSlice" => {
                    let part = text_of(&meta["labels"][PART]);
                    let version = text_of(&meta["resourceVersion"]);
                    look.slices.insert(name, SeenSlice { part, version });
                }
                "Node" => {
                    let ready = condition(object);
                    let ready = (text_of(&ready["status"]), text_of(&ready["lastTransitionTime"]));
                    look.nodes.insert(name, ready);
                }
                _ => {}
            }
        }
        Ok(look)
    }

    /// The pods of a part.
    pub(crate) fn of<'a>(&'a self, part: &'a str) -> impl Iterator<Item = &'a SeenPod> {
        self.pods.values().filter(move |pod| pod.part == part)
    }

    /// What differs from this look to a later one in these parts.
    pub(crate) fn until(&self, later: &Look, parts: &[&str]) -> Differences {
        let mut found = Differences::default();
        let counts = |part: &str| parts.contains(&part);
        for (uid, before) in self.pods.iter().filter(|(_, pod)| counts(&pod.part)) {
            let Some(after) = later.pods.get(uid) else {
                found.replaced += 1;
                found.told.push(format!("pod {} is gone", before.name));
                continue;
            };
            if after.restarts != before.restarts {
                found.restarts += after.restarts.saturating_sub(before.restarts);
                found
                    .told
                    .push(format!("pod {}: restarts {} -> {}", before.name, before.restarts, after.restarts));
            }
            if (&after.runs, &after.address) != (&before.runs, &before.address) {
                found.replaced += 1;
                found.told.push(format!("pod {} has another container or address", before.name));
            }
            if (after.ready, &after.ready_since) != (before.ready, &before.ready_since) {
                found.readiness += 1;
                found.told.push(format!(
                    "pod {}: Ready {} since {} -> {} since {}",
                    before.name, before.ready, before.ready_since, after.ready, after.ready_since
                ));
            }
        }
        for (name, before) in self.slices.iter().filter(|(_, slice)| counts(&slice.part)) {
            let version = later.slices.get(name).map_or("", |after| after.version.as_str());
            if version != before.version {
                found.slices += 1;
                found.told.push(format!("EndpointSlice {name}: version {} -> {version:?}", before.version));
            }
        }
        for (name, before) in &self.nodes {
            let after = later.nodes.get(name).cloned().unwrap_or_default();
            if *before != after {
                found.nodes += 1;
                found.told.push(format!("node {name}: Ready {before:?} -> {after:?}"));
            }
        }
        found
    }

    /// Restarts of pods outside these parts.
    pub(crate) fn restarts_but_of(&self, parts: &[&str]) -> Vec<String> {
        let others = self.pods.values().filter(|p| !parts.contains(&p.part.as_str()) && p.restarts > 0);
        others.map(|p| format!("pod {} ({}): {} restarts", p.name, p.part, p.restarts)).collect()
    }

    /// Names of all pods.
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        self.pods.values().map(|pod| pod.name.as_str()).collect()
    }
}

fn pod(object: &Value) -> SeenPod {
    let (meta, status) = (&object["metadata"], &object["status"]);
    let ready = condition(object);
    let containers = || status["containerStatuses"].as_array().into_iter().flatten();
    SeenPod {
        name: text_of(&meta["name"]),
        part: text_of(&meta["labels"][PART]),
        deleting: meta["deletionTimestamp"].is_string(),
        ready: ready["status"] == "True",
        ready_since: text_of(&ready["lastTransitionTime"]),
        restarts: containers().filter_map(|c| c["restartCount"].as_u64()).sum(),
        runs: containers().map(|c| text_of(&c["containerID"])).collect(),
        address: text_of(&status["podIP"]),
    }
}

fn condition(object: &Value) -> Value {
    let all = object["status"]["conditions"].as_array().into_iter().flatten();
    all.clone().find(|c| c["type"] == "Ready").cloned().unwrap_or_default()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn look(restarts: u64, since: &str, version: &str, node: &str) -> Look {
        let ready = |status: &str, since: &str| {
            json!([{"type": "Other", "status": "False"},
                {"type": "Ready", "status": status, "lastTransitionTime": since}])
        };
        let list = json!({"items": [
            {"kind": "Pod", "metadata": {"uid": "u", "name": "a", "labels": {"part": "steady"}},
             "status": {"podIP": "1", "conditions": ready("True", since),
                "containerStatuses": [{"restartCount": restarts, "containerID": format!("x{restarts}")}]}},
            {"kind": "EndpointSlice", "metadata": {"name": "s", "labels": {"part": "steady"}, "resourceVersion": version}},
            {"kind": "Node", "metadata": {"name": "n"}, "status": {"conditions": ready(node, "t")}},
        ]});
        Look::read(&list.to_string()).unwrap()
    }

    #[test]
    fn two_looks_differ_in_what_happened_between_them() {
        let before = look(0, "t1", "5", "True");
        assert!(before.pods["u"].ready);
        assert_eq!(before.until(&before.clone(), &["steady"]), Differences::default());
        let after = look(2, "t2", "6", "Unknown");
        let found = before.until(&after, &["steady"]);
        let numbers = (found.restarts, found.replaced, found.readiness, found.slices, found.nodes);
        assert_eq!(numbers, (2, 1, 1, 1, 1), "{found:?}");
        let others = before.until(&after, &["other"]);
        assert_eq!((others.restarts, others.readiness, others.slices, others.nodes), (0, 0, 0, 1));
        let gone = before.until(&Look::default(), &["steady"]);
        assert_eq!((gone.replaced, gone.slices, gone.nodes), (1, 1, 1));
        assert_eq!(after.restarts_but_of(&["steady"]), Vec::<String>::new());
        assert_eq!(after.restarts_but_of(&[]).len(), 1);
    }
}
