//! The CSINode object of this node as JSON (`storage.k8s.io/v1`), and what a driver adds to the Node: the topology as
//! labels, and the node's id in an annotation. Pure.
//!
//! The rules are those of the kubelet's `nodeinfomanager`: a driver that this agent never saw registered keeps its entry,
//! because after a restart drivers come back one by one.

use berth_core::ids::NodeName;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The annotation of a Node with each driver's id of the node, a JSON object.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";

/// A driver that is registered on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsiNodeDriver {
    /// Its name.
    pub name: String,
    /// The node's id, as the driver's controller knows it.
    pub node_id: String,
    /// Where the node is, as labels.
    pub topology: BTreeMap<String, String>,
    /// The most volumes of the driver on the node.
    pub max_volumes: Option<u64>,
}

/// The next change of the CSINode.
#[derive(Debug, Clone, PartialEq)]
pub enum CsiNodeChange {
    /// There is none yet.
    Create(Value),
    /// This one takes its place.
    Put(Value),
    /// It belongs to a Node of the same name that is gone.
    Delete,
}

/// The next change that makes the CSINode say what `drivers` say; `None` if it does. `known` are the names of all
/// drivers that were registered since the agent started: only theirs are removed.
///
/// A driver's id and topology cannot change while its entry stands. So its entry goes with one change and comes with the
/// next.
pub fn csi_node_change(
    node: &NodeName,
    node_uid: &str,
    before: Option<&Value>,
    drivers: &[CsiNodeDriver],
    known: &BTreeSet<String>,
) -> Option<CsiNodeChange> {
    let Some(before) = before else {
        let entries: Vec<Value> = drivers.iter().map(entry).collect();
        return Some(CsiNodeChange::Create(json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSINode",
            "metadata": { "name": node.as_str(), "ownerReferences": [owner(node, node_uid)] },
            "spec": { "drivers": entries },
        })));
    };
    if !is_owned(before, node, node_uid) {
        return Some(CsiNodeChange::Delete);
    }
    let there: Vec<&Value> = before["spec"]["drivers"].as_array().into_iter().flatten().collect();
    let wanted: BTreeMap<&str, Value> = drivers.iter().map(|d| (d.name.as_str(), entry(d))).collect();
    let mut entries: Vec<Value> = Vec::new();
    let mut removes = false;
    for old in &there {
        let name = old["name"].as_str().unwrap_or_default();
        match wanted.get(name) {
            None if known.contains(name) => removes = true,
            None => entries.push((*old).clone()),
            Some(new) if is_same_node(old, new) => {
                // The order of its keys cannot change either.
                let mut new = new.clone();
                new["topologyKeys"] = old["topologyKeys"].clone();
                entries.push(new);
            }
            Some(_) => removes = true,
        }
    }
    // The order is that of the API server's copy: a new driver comes last.
    if !removes {
        let is_there = |name: &str| there.iter().any(|old| old["name"] == name);
        entries.extend(wanted.into_iter().filter(|(name, _)| !is_there(name)).map(|(_, new)| new));
    }
    let same = entries.len() == there.len() && entries.iter().zip(&there).all(|(new, old)| is_same(old, new));
    if same {
        return None;
    }
    let mut object = before.clone();
    object["apiVersion"] = "storage.k8s.io/v1".into();
    object["kind"] = "CSINode".into();
    if !object["spec"].is_object() {
        object["spec"] = json!({});
    }
    object["spec"]["drivers"] = entries.into();
    Some(CsiNodeChange::Put(object))
}

fn owner(node: &NodeName, uid: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": uid })
}

fn is_owned(object: &Value, node: &NodeName, uid: &str) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let mut nodes = owners.filter(|o| o["kind"] == "Node");
    nodes.any(|o| o["name"] == node.as_str() && o["uid"] == uid)
}

fn entry(driver: &CsiNodeDriver) -> Value {
    let keys: Vec<&String> = driver.topology.keys().collect();
    let mut entry = json!({ "name": driver.name, "nodeID": driver.node_id, "topologyKeys": keys });
    if let Some(max) = driver.max_volumes {
        // The field has 32 bits.
        entry["allocatable"] = json!({ "count": i32::try_from(max).unwrap_or(i32::MAX) });
    }
    entry
}

/// Whether what cannot change is the same.
fn is_same_node(old: &Value, new: &Value) -> bool {
    let keys = |v: &Value| -> BTreeSet<String> {
        let keys = v["topologyKeys"].as_array().into_iter().flatten();
        keys.filter_map(|k| k.as_str().map(str::to_owned)).collect()
    };
    old["nodeID"] == new["nodeID"] && keys(old) == keys(new)
}

fn is_same(old: &Value, new: &Value) -> bool {
    old["name"] == new["name"]
        && is_same_node(old, new)
        && old["allocatable"]["count"] == new["allocatable"]["count"]
}

/// A topology label that the Node has with another value, perhaps of another driver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("driver {driver} says that the node's label {key} is {value:?}, and the Node has {there:?}")]
pub struct TopologyConflict {
    /// The driver.
    pub driver: String,
    /// The label.
    pub key: String,
    /// The driver's value.
    pub value: String,
    /// The Node's value.
    pub there: String,
}

/// The conflict of the driver's topology with the Node or with `others`, whose labels come first. A driver with one is
/// not to be shown in the CSINode.
pub fn topology_conflict<'a>(
    driver: &CsiNodeDriver,
    node: &'a Value,
    others: impl Iterator<Item = &'a CsiNodeDriver> + Clone,
) -> Option<TopologyConflict> {
    driver.topology.iter().find_map(|(key, value)| {
        let mut there = others.clone().filter_map(|o| o.topology.get(key).map(String::as_str));
        let there = there.next().or_else(|| node["metadata"]["labels"][key].as_str());
        let there = there.filter(|there| there != value)?.to_owned();
        Some(TopologyConflict { driver: driver.name.clone(), key: key.clone(), value: value.clone(), there })
    })
}

/// The patch (strategic merge) of the Node's labels and of its annotation with the drivers' ids; `None` if nothing is to
/// change. `known` as of [`csi_node_change`]. Labels stay when a driver goes, as with the kubelet: volumes may need them.
pub fn node_patch(node: &Value, drivers: &[CsiNodeDriver], known: &BTreeSet<String>) -> Option<Value> {
    let mut metadata = Map::new();
    let labels: Map<String, Value> = drivers
        .iter()
        .flat_map(|d| &d.topology)
        .filter(|(key, value)| node["metadata"]["labels"][key] != value.as_str())
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    if !labels.is_empty() {
        metadata.insert("labels".into(), labels.into());
    }
    let text = node["metadata"]["annotations"][NODE_IDS].as_str();
    // An annotation that cannot be read is written anew.
    let before: Map<String, Value> = text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
    let mut ids = before.clone();
    ids.retain(|name, _| !known.contains(name));
    ids.extend(drivers.iter().map(|d| (d.name.clone(), d.node_id.as_str().into())));
    if ids != before {
        let text = if ids.is_empty() { Value::Null } else { Value::Object(ids).to_string().into() };
        metadata.insert("annotations".into(), json!({ NODE_IDS: text }));
    }
    (!metadata.is_empty()).then(|| json!({ "metadata": metadata }))
}

#[cfg(test)]
mod tests;
