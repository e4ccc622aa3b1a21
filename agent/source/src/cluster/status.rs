//! The status of a pod from the API server's JSON. A part that cannot be read counts as not there: it may be another
//! agent's, and the node's next report replaces what is the node's own.

use berth_core::{
    ids::{ContainerId, ContainerName},
    status::{ApiStatus, ContainerState, ContainerStatus, ContainerUser, Phase, Terminated, Truth},
    time::Wall,
};
use jiff::Timestamp;
use serde_json::Value;

/// `status` of a v1.Pod.
pub fn api_status(status: &Value) -> ApiStatus {
    let lists = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
    ApiStatus {
        phase: match status["phase"].as_str() {
            Some("Pending") => Some(Phase::Pending),
            Some("Running") => Some(Phase::Running),
            Some("Succeeded") => Some(Phase::Succeeded),
            Some("Failed") => Some(Phase::Failed),
            _ => None,
        },
        reason: text(&status["reason"]),
        message: text(&status["message"]),
        start_time: time(&status["startTime"]),
        pod_ips: list(&status["podIPs"]).filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect(),
        conditions: list(&status["conditions"])
            .filter_map(|c| {
                let since = time(&c["lastTransitionTime"]);
                Some((c["type"].as_str()?.to_owned(), (truth(&c["status"]), since)))
            })
            .collect(),
        containers: lists.iter().flat_map(|name| list(&status[*name])).filter_map(container).collect(),
    }
}

fn container(status: &Value) -> Option<ContainerStatus> {
    let is_true = |member: &Value| if member == true { Truth::True } else { Truth::False };
    Some(ContainerStatus {
        name: ContainerName::new(status["name"].as_str()?).ok()?,
        image: text(&status["image"]).unwrap_or_default(),
        image_id: text(&status["imageID"]).unwrap_or_default(),
        id: id(&status["containerID"]),
        ready: is_true(&status["ready"]),
        started: status["started"].as_bool(),
        restart_count: status["restartCount"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        state: state(&status["state"]),
        last_state: terminated(&status["lastState"]["terminated"]),
        resources: None,
        user: user(&status["user"]["linux"]),
    })
}

fn user(linux: &Value) -> Option<ContainerUser> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    let groups = list(&linux["supplementalGroups"]).filter_map(id).collect();
    Some(ContainerUser { uid: id(&linux["uid"])?, gid: id(&linux["gid"])?, groups })
}

fn state(state: &Value) -> ContainerState {
    if let Some(terminated) = terminated(&state["terminated"]) {
        return ContainerState::Terminated(terminated);
    }
    if let Some(started_at) = time(&state["running"]["startedAt"]) {
        return ContainerState::Running { started_at };
    }
    let waiting = &state["waiting"];
    ContainerState::Waiting {
        reason: text(&waiting["reason"]).unwrap_or_default(),
        message: text(&waiting["message"]),
    }
}

fn terminated(terminated: &Value) -> Option<Terminated> {
    Some(Terminated {
        exit_code: i32::try_from(terminated["exitCode"].as_i64()?).ok()?,
        reason: text(&terminated["reason"]).unwrap_or_default(),
        message: text(&terminated["message"]),
        started_at: time(&terminated["startedAt"]),
        finished_at: time(&terminated["finishedAt"]),
        id: id(&terminated["containerID"]),
    })
}

/// The id of a `containerID`, which is `<runtime>://<id>`.
fn id(value: &Value) -> Option<ContainerId> {
    ContainerId::new(value.as_str()?.split_once("://")?.1).ok()
}

fn truth(value: &Value) -> Truth {
    match value.as_str() {
        Some("True") => Truth::True,
        Some("False") => Truth::False,
        _ => Truth::Unknown,
    }
}

fn time(value: &Value) -> Option<Wall> {
    let at: Timestamp = value.as_str()?.parse().ok()?;
    i64::try_from(at.as_nanosecond()).ok().map(Wall)
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
