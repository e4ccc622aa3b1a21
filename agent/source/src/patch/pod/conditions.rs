//! Conditions of a pod: which are the node's, and what of an old one stays.

use super::{is_terminal, rise};
use crate::patch::{
    diff::{self, member},
    time,
};
use berth_core::time::Wall;
use serde_json::{Map, Value, json};

/// The types that only the node writes (`PodConditionByKubelet`).
const OWNED: [&str; 8] = [
    "PodScheduled",
    "Ready",
    "Initialized",
    "ContainersReady",
    "PodReadyToStartContainers",
    "PodResizePending",
    "PodResizeInProgress",
    "AllContainersRestarting",
];

/// The type that the node writes beside others, and only together with the terminal phase.
const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Settles `conditions`: those of other writers as they are, then the node's. `ending` says that this update makes the
/// pod terminal.
pub(super) fn settle(now: Wall, old: &Map<String, Value>, new: &mut Map<String, Value>, ending: bool) {
    let old_list = list(old);
    let mut merged: Vec<Value> = old_list.iter().filter(|c| !is_owned(c)).cloned().collect();
    let terminal = is_terminal(new);
    let mut wanted = match new.remove("conditions") {
        Some(Value::Array(wanted)) => wanted,
        _ => Vec::new(),
    };
    if terminal {
        not_ready(now, new, &mut wanted);
    }
    for mut condition in wanted {
        let before = old_list.iter().find(|c| kind(c) == kind(&condition));
        if let Value::Object(condition) = &mut condition {
            keep(before.and_then(Value::as_object), condition);
        }
        if is_owned(&condition) {
            merged.push(condition);
        } else if ending && kind(&condition) == Some(DISRUPTION_TARGET) {
            match merged.iter_mut().find(|c| kind(c) == Some(DISRUPTION_TARGET)) {
                Some(shared) => *shared = condition,
                None => merged.push(condition),
            }
        }
    }
    if !merged.is_empty() {
        new.insert("conditions".to_owned(), merged.into());
    }
}

/// A terminal pod is never shown as ready, also if the report says so still.
fn not_ready(now: Wall, new: &Map<String, Value>, conditions: &mut [Value]) {
    let is_ready = |c: &Value| matches!(kind(c), Some("Ready" | "ContainersReady"));
    if !conditions.iter().any(|c| is_ready(c) && c["status"] == "True") {
        return;
    }
    let reason =
        if new.get("phase").is_some_and(|phase| phase == "Failed") { "PodFailed" } else { "PodCompleted" };
    for condition in conditions.iter_mut().filter(|c| is_ready(c)) {
        let since = if condition["status"] == "False" {
            condition["lastTransitionTime"].clone()
        } else {
            time::text(now).unwrap_or_default()
        };
        *condition = json!({
            "type": condition["type"],
            "status": "False",
            "reason": reason,
            "lastProbeTime": null,
            "lastTransitionTime": since,
            "observedGeneration": condition["observedGeneration"],
        });
    }
}

/// Takes over what stays of the old condition of this type.
fn keep(before: Option<&Map<String, Value>>, condition: &mut Map<String, Value>) {
    condition.insert("lastProbeTime".to_owned(), Value::Null);
    time::truncate(condition, "lastTransitionTime");
    let Some(before) = before else { return };
    rise(before, condition, "observedGeneration");
    // A resize has one status all the time: its reason tells the transition.
    let resize =
        condition.get("type").and_then(Value::as_str).is_some_and(|kind| kind.starts_with("PodResize"));
    let unchanged = before.get("status") == condition.get("status")
        && (!resize || diff::same(member(before, "reason"), member(condition, "reason")));
    if unchanged && let Some(since) = before.get("lastTransitionTime").filter(|since| since.is_string()) {
        condition.insert("lastTransitionTime".to_owned(), since.clone());
    }
}

fn list(status: &Map<String, Value>) -> &[Value] {
    status.get("conditions").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn kind(condition: &Value) -> Option<&str> {
    condition.get("type").and_then(Value::as_str)
}

fn is_owned(condition: &Value) -> bool {
    kind(condition).is_some_and(|kind| OWNED.contains(&kind))
}
