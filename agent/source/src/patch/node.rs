//! The patch of a Node's status (`pkg/kubelet/kubelet_node_status.go`, `component-helpers` `node/util/status.go`).

use super::{
    diff::{self, member},
    fields,
};
use serde_json::{Map, Value, json};

/// When a node status is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heartbeat {
    /// Only where something beside the heartbeat times changed.
    OnChange,
    /// In any case: the last report is too old.
    Due,
}

/// The patch that brings a Node's status from `old`, as the API server has it, to `wanted`, as
/// [`crate::node::node_status`] makes it. `None` where there is nothing to send.
///
/// What others own stays: their conditions, `volumesAttached`, `config` and unknown fields, and the
/// extended resources that they advertise; those become allocatable too. `lastTransitionTime` of a condition moves
/// only with its status.
pub fn node_status(old: &Value, wanted: &Value, heartbeat: Heartbeat) -> Option<Value> {
    let empty = Map::new();
    let old = old.as_object().unwrap_or(&empty);
    let mut new = wanted.as_object().unwrap_or(&empty).clone();
    resources(old, &mut new);
    conditions(old, &mut new);
    if heartbeat == Heartbeat::OnChange {
        let mut quiet = new.clone();
        without_heartbeats(old, &mut quiet);
        if diff::members(old, &quiet, fields::NODE_STATUS).is_empty() {
            return None;
        }
    }
    let patch = diff::members(old, &new, fields::NODE_STATUS);
    (!patch.is_empty()).then(|| json!({ "status": patch }))
}

/// Keeps the resources that this node does not know, all of their capacity allocatable. Huge pages are the node's own:
/// a size that is gone is gone.
fn resources(old: &Map<String, Value>, new: &mut Map<String, Value>) {
    let known = member(new, "capacity");
    let kept: Vec<(String, Value)> = member(old, "capacity")
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| !name.starts_with("hugepages-") && known.get(name.as_str()).is_none())
        .map(|(name, amount)| (name.clone(), amount.clone()))
        .collect();
    for list in ["capacity", "allocatable"] {
        if let Some(Value::Object(amounts)) = new.get_mut(list) {
            amounts.extend(kept.iter().cloned());
        }
    }
}

/// Puts the node's conditions at the place of the old ones, others' beside them.
fn conditions(old: &Map<String, Value>, new: &mut Map<String, Value>) {
    let mut merged = member(old, "conditions").as_array().cloned().unwrap_or_default();
    let wanted = member(new, "conditions").as_array().cloned().unwrap_or_default();
    for mut condition in wanted.into_iter().filter(Value::is_object) {
        let before = merged.iter_mut().find(|c| c["type"] == condition["type"]);
        match before {
            Some(before) => {
                if before["status"] == condition["status"] && before["lastTransitionTime"].is_string() {
                    condition["lastTransitionTime"] = before["lastTransitionTime"].clone();
                }
                *before = condition;
            }
            None => merged.push(condition),
        }
    }
    new.insert("conditions".to_owned(), merged.into());
}

/// Gives each condition its old heartbeat time.
fn without_heartbeats(old: &Map<String, Value>, new: &mut Map<String, Value>) {
    let before = member(old, "conditions").as_array().cloned().unwrap_or_default();
    for condition in new.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(before) = before.iter().find(|c| c["type"] == condition["type"])
            && let Value::Object(condition) = condition
        {
            condition.insert("lastHeartbeatTime".to_owned(), before["lastHeartbeatTime"].clone());
        }
    }
}
