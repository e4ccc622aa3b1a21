//! Container statuses of a pod: their order, what must not fall, and which transitions the API server refuses.

use super::{IllegalTransition, rise};
use crate::patch::time;
use berth_core::model::{Pod, RestartPolicy};
use serde_json::{Map, Value};

/// The members of a pod's status that list container statuses.
const LISTS: [&str; 3] = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];

/// The termination messages of all containers of a pod together, in bytes (`MaxPodTerminationMessageLogLength`).
const MESSAGES: usize = 12 * 1024;

/// Finds a container that ended for good and is wanted to wait or run (`checkContainerStateTransition`).
pub(super) fn check(
    pod: &Pod,
    old: &Map<String, Value>,
    new: &Map<String, Value>,
) -> Result<(), IllegalTransition> {
    for list in LISTS {
        for before in statuses(old, list) {
            let (Some(name), Some(ended)) = (name(before), before.pointer("/state/terminated/exitCode"))
            else {
                continue;
            };
            if may_restart(pod, list, name, ended.as_i64()) {
                continue;
            }
            let wanted = statuses(new, list).iter().find(|status| self::name(status) == Some(name));
            if wanted.is_some_and(|status| status.pointer("/state/terminated").is_none_or(Value::is_null)) {
                return Err(IllegalTransition { container: name.to_owned() });
            }
        }
    }
    Ok(())
}

fn may_restart(pod: &Pod, list: &str, name: &str, exit_code: Option<i64>) -> bool {
    let sidecar = || pod.init_containers.iter().any(|c| c.name.as_str() == name && c.sidecar);
    match list {
        "ephemeralContainerStatuses" => false,
        "initContainerStatuses" if sidecar() => true,
        _ => match pod.restart_policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != Some(0),
            RestartPolicy::Never => false,
        },
    }
}

/// Sorts the lists, cuts times to seconds and messages to their share, and lets no restart count fall.
pub(super) fn settle(pod: &Pod, old: &Map<String, Value>, new: &mut Map<String, Value>) {
    let share = MESSAGES / pod.all_containers().count().max(1);
    for list in LISTS {
        let Some(Value::Array(wanted)) = new.get_mut(list) else { continue };
        for status in wanted.iter_mut().filter_map(Value::as_object_mut) {
            for state in ["state", "lastState"] {
                settle_state(status.get_mut(state), share);
            }
            let name = status.get("name").and_then(Value::as_str);
            let before = statuses(old, list).iter().find(|before| self::name(before) == name);
            if let Some(before) = before.and_then(Value::as_object) {
                rise(before, status, "restartCount");
            }
        }
        if list == "initContainerStatuses" {
            let place = |status: &Value| {
                pod.init_containers.iter().position(|c| self::name(status) == Some(c.name.as_str()))
            };
            wanted.sort_by_key(|status| place(status).unwrap_or(usize::MAX));
        } else {
            wanted.sort_by(|a, b| name(a).cmp(&name(b)));
        }
    }
}

fn settle_state(state: Option<&mut Value>, share: usize) {
    let Some(Value::Object(state)) = state else { return };
    if let Some(Value::Object(running)) = state.get_mut("running") {
        time::truncate(running, "startedAt");
    }
    if let Some(Value::Object(terminated)) = state.get_mut("terminated") {
        time::truncate(terminated, "startedAt");
        time::truncate(terminated, "finishedAt");
        if let Some(Value::String(message)) = terminated.get_mut("message") {
            message.truncate(message.floor_char_boundary(share));
        }
    }
}

fn statuses<'a>(status: &'a Map<String, Value>, list: &str) -> &'a [Value] {
    status.get(list).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn name(status: &Value) -> Option<&str> {
    status.get("name").and_then(Value::as_str)
}
