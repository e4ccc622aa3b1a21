//! The patch of a pod's status (`pkg/kubelet/status/status_manager.go`, `pkg/util/pod`).

mod conditions;
mod containers;

use super::{diff, fields, time};
use berth_core::{model::Pod, time::Wall};
use serde_json::{Map, Value, json};

/// What a status update knows beside the two statuses.
#[derive(Debug, Clone, Copy)]
pub struct PodUpdate<'a> {
    /// `metadata.uid` of the object in the API: for a static pod, the uid of its mirror pod.
    pub uid: &'a str,
    /// The pod, for its restart policy and the order of its init containers.
    pub pod: &'a Pod,
    /// Whether a container of the pod may still run. A terminal phase waits for the end of all containers.
    pub may_run: bool,
    /// The time of the update.
    pub now: Wall,
}

/// A status update that the API server would refuse. Such an update is dropped; the next report replaces it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot report the status of container {container}: it ended, and the pod's restartPolicy does not let it start again"
)]
pub struct IllegalTransition {
    /// The container's name.
    pub container: String,
}

/// The patch that brings a pod's status from `old`, as the API server has it, to `wanted`, as
/// [`crate::status::pod_object`] makes it. `None` where there is nothing to send.
///
/// What other writers own stays: their conditions and fields. The rest of the rules keep a pod's history:
/// - The phase never leaves Succeeded and Failed, and becomes one of them only when no container may run.
/// - `startTime` and `qosClass` never change once set; `observedGeneration` and `restartCount` never fall.
/// - `lastTransitionTime` of a condition moves only with its status.
///
/// # Errors
/// [`IllegalTransition`] where a container that may not start again is reported as waiting or running.
pub fn pod_status(
    update: &PodUpdate<'_>,
    old: &Value,
    wanted: &Value,
) -> Result<Option<Value>, IllegalTransition> {
    let empty = Map::new();
    let old = old.as_object().unwrap_or(&empty);
    let new = merged(update, old, wanted.as_object().unwrap_or(&empty))?;
    let patch = diff::members(old, &new, fields::POD_STATUS);
    if patch.is_empty() {
        return Ok(None);
    }
    Ok(Some(json!({ "metadata": { "uid": update.uid }, "status": patch })))
}

/// The status that the API server shall have: the wanted one, with what must not change from the old one.
fn merged(
    update: &PodUpdate<'_>,
    old: &Map<String, Value>,
    wanted: &Map<String, Value>,
) -> Result<Map<String, Value>, IllegalTransition> {
    let mut new = wanted.clone();
    containers::check(update.pod, old, &new)?;
    containers::settle(update.pod, old, &mut new);
    time::truncate(&mut new, "startTime");
    keep_once_set(old, &mut new, "startTime");
    keep_once_set(old, &mut new, "qosClass");
    if new.get("startTime").is_none_or(|start| !start.is_string())
        && let Some(now) = time::text(update.now)
    {
        new.insert("startTime".to_owned(), now);
    }
    rise(old, &mut new, "observedGeneration");
    let ending = phase(update, old, &mut new);
    conditions::settle(update.now, old, &mut new, ending);
    Ok(new)
}

/// Settles the phase with its reason and message. True where the pod becomes terminal by this update.
fn phase(update: &PodUpdate<'_>, old: &Map<String, Value>, new: &mut Map<String, Value>) -> bool {
    let (was, will) = (is_terminal(old), is_terminal(new));
    let withheld = !was && will && update.may_run;
    if was || withheld {
        for name in ["phase", "reason", "message"] {
            match old.get(name) {
                Some(value) => new.insert(name.to_owned(), value.clone()),
                None => new.remove(name),
            };
        }
        // A pod without a phase is one that was just created.
        new.entry("phase").or_insert_with(|| "Pending".into());
    }
    !was && will && !update.may_run
}

/// Whether the phase of this status is final.
fn is_terminal(status: &Map<String, Value>) -> bool {
    matches!(status.get("phase").and_then(Value::as_str), Some("Succeeded" | "Failed"))
}

/// Takes the old value of a member where there is one.
fn keep_once_set(old: &Map<String, Value>, new: &mut Map<String, Value>, name: &str) {
    if let Some(value) = old.get(name).filter(|value| value.as_str().is_some_and(|text| !text.is_empty())) {
        new.insert(name.to_owned(), value.clone());
    }
}

/// Takes the larger value of a number that never falls.
fn rise(old: &Map<String, Value>, new: &mut Map<String, Value>, name: &str) {
    let number = |of: &Map<String, Value>| of.get(name).and_then(Value::as_i64).unwrap_or(0);
    let before = number(old);
    if before > number(new) {
        new.insert(name.to_owned(), before.into());
    }
}
