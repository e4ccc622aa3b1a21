//! Statuses of pods as Kubernetes' JSON: `v1.Pod` as `kubectl -o json` shows it. Pure.

use berth_core::{
    model::{
        Container, MountPropagation, NodeInfo, Pod, QosClass, RecursiveReadOnly, ResourceList, Resources,
    },
    status::{Condition, ContainerState, ContainerStatus, Phase, PodStatus, Terminated, Truth},
    time::Wall,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::{borrow::Cow, net::IpAddr};

/// The pod's object with its status. `raw` is the object that the source kept.
pub fn pod_object(raw: &Value, pod: &Pod, status: &PodStatus, node: &NodeInfo) -> Value {
    let mut object = match raw {
        Value::Object(map) => map.clone(),
        _ => Map::new(),
    };
    object.insert("apiVersion".to_owned(), "v1".into());
    object.insert("kind".to_owned(), "Pod".into());
    object.insert("status".to_owned(), pod_status(pod, status, node));
    object.into()
}

/// `status` of the pod's object.
pub fn pod_status(pod: &Pod, status: &PodStatus, node: &NodeInfo) -> Value {
    let node_ips = node.ips.as_slice();
    let own_ips = if pod.namespaces.host_network { node_ips } else { status.pod_ips.as_slice() };
    let mut s = Map::new();
    s.insert("phase".to_owned(), phase(status.phase).into());
    put(&mut s, "reason", status.reason.clone().map(Value::from));
    put(&mut s, "message", status.message.clone().map(Value::from));
    put(&mut s, "startTime", status.start_time.and_then(time));
    // A pod that the node rejected has neither conditions nor addresses.
    if !status.conditions.is_empty() {
        addresses(&mut s, ("hostIP", "hostIPs"), node_ips);
        resources(&mut s, &pod.total(), &set_on(pod, status).total());
    }
    addresses(&mut s, ("podIP", "podIPs"), own_ips);
    let generation = status.observed_generation;
    let conditions: Vec<Value> = status.conditions.iter().map(|c| condition(c, generation)).collect();
    if !conditions.is_empty() {
        s.insert("conditions".to_owned(), conditions.into());
    }
    put(&mut s, "observedGeneration", generation.map(Value::from));
    for (field, list, of) in [
        ("initContainerStatuses", &status.init_containers, &pod.init_containers),
        ("containerStatuses", &status.containers, &pod.containers),
        ("ephemeralContainerStatuses", &status.ephemeral_containers, &pod.ephemeral_containers),
    ] {
        let list: Vec<Value> =
            list.iter().map(|c| container(c, of.iter().find(|spec| spec.name == c.name), node)).collect();
        if !list.is_empty() {
            s.insert(field.to_owned(), list.into());
        }
    }
    let qos = match status.qos {
        QosClass::Guaranteed => "Guaranteed",
        QosClass::Burstable => "Burstable",
        QosClass::BestEffort => "BestEffort",
    };
    s.insert("qosClass".to_owned(), qos.into());
    s.into()
}

/// The pod with the resources that are set on its runs.
fn set_on<'p>(pod: &'p Pod, status: &PodStatus) -> Cow<'p, Pod> {
    let mut set = Cow::Borrowed(pod);
    for (name, resources) in status.all_containers().filter_map(|c| Some((&c.name, c.resources.as_ref()?))) {
        let pod = set.to_mut();
        let mut all = pod.init_containers.iter_mut().chain(&mut pod.containers);
        if let Some(container) = all.find(|c| &c.name == name) {
            container.resources = resources.clone();
        }
    }
    set
}

/// RFC 3339 in whole seconds, UTC, the form of `metav1.Time`; `None` outside the years 0 to 9999.
pub(crate) fn time(at: Wall) -> Option<Value> {
    let at = Timestamp::from_second(at.seconds()).ok()?;
    Some(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into())
}

fn put(map: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value);
    }
}

fn addresses(map: &mut Map<String, Value>, (one, all): (&str, &str), ips: &[IpAddr]) {
    put(map, one, ips.first().map(|ip| ip.to_string().into()));
    if !ips.is_empty() {
        let list: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
        map.insert(all.to_owned(), list.into());
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
    }
}

fn condition(c: &Condition, generation: Option<i64>) -> Value {
    let mut map = Map::new();
    map.insert("type".to_owned(), c.kind.name().into());
    map.insert("status".to_owned(), c.status.name().into());
    map.insert("lastProbeTime".to_owned(), Value::Null);
    map.insert("lastTransitionTime".to_owned(), time(c.since).unwrap_or(Value::Null));
    put(&mut map, "reason", c.reason.clone().map(Value::from));
    put(&mut map, "message", c.message.clone().map(Value::from));
    put(&mut map, "observedGeneration", c.generation.or(generation).map(Value::from));
    map.into()
}

fn container(c: &ContainerStatus, spec: Option<&Container>, node: &NodeInfo) -> Value {
    let mut map = Map::new();
    map.insert("name".to_owned(), c.name.as_str().into());
    map.insert("image".to_owned(), c.image.as_str().into());
    map.insert("imageID".to_owned(), c.image_id.as_str().into());
    put(&mut map, "containerID", c.id.as_ref().map(|id| format!("containerd://{id}").into()));
    map.insert("ready".to_owned(), (c.ready == Truth::True).into());
    put(&mut map, "started", c.started.map(Value::from));
    map.insert("restartCount".to_owned(), c.restart_count.into());
    let state = match &c.state {
        ContainerState::Waiting { reason, message } => {
            let mut waiting = Map::new();
            waiting.insert("reason".to_owned(), reason.as_str().into());
            put(&mut waiting, "message", message.clone().map(Value::from));
            json!({ "waiting": waiting })
        }
        ContainerState::Running { started_at } => json!({ "running": { "startedAt": time(*started_at) } }),
        ContainerState::Terminated(t) => json!({ "terminated": terminated(t) }),
    };
    map.insert("state".to_owned(), state);
    let last = c.last_state.as_ref().map_or(json!({}), |t| json!({ "terminated": terminated(t) }));
    map.insert("lastState".to_owned(), last);
    if let Some(user) = &c.user {
        let linux = json!({ "uid": user.uid, "gid": user.gid, "supplementalGroups": user.groups });
        map.insert("user".to_owned(), json!({ "linux": linux }));
    }
    if let Some(spec) = spec {
        from_spec(&mut map, spec, c, node);
    }
    map.into()
}

/// Adds the fields that the kubelet repeats from the spec. Resources are left out for a container that never ran; those of
/// a run are the ones that are set on it.
fn from_spec(map: &mut Map<String, Value>, spec: &Container, status: &ContainerStatus, node: &NodeInfo) {
    if status.id.is_some() {
        resources(map, &spec.resources, status.resources.as_ref().unwrap_or(&spec.resources));
    }
    let mounts: Vec<Value> = spec
        .mounts
        .iter()
        .map(|m| {
            let mut mount = Map::new();
            mount.insert("name".to_owned(), m.volume.as_str().into());
            mount.insert("mountPath".to_owned(), m.mount_path.as_str().into());
            if m.read_only {
                mount.insert("readOnly".to_owned(), true.into());
                // What came of it: `IfPossible` is no answer.
                let recursive = match m.recursive_read_only {
                    RecursiveReadOnly::Disabled => false,
                    RecursiveReadOnly::IfPossible => {
                        node.recursive_read_only && m.propagation == MountPropagation::None
                    }
                    RecursiveReadOnly::Enabled => true,
                };
                let recursive = if recursive { "Enabled" } else { "Disabled" };
                mount.insert("recursiveReadOnly".to_owned(), recursive.into());
            }
            mount.into()
        })
        .collect();
    if !mounts.is_empty() {
        map.insert("volumeMounts".to_owned(), mounts.into());
    }
}

/// `resources` as they are set, and `allocatedResources` where anything is requested.
fn resources(map: &mut Map<String, Value>, allocated: &Resources, set: &Resources) {
    let list = |list: &ResourceList| -> Map<String, Value> {
        list.iter().map(|(name, amount)| (name.clone(), amount.canonical().into())).collect()
    };
    let mut both = Map::new();
    for (side, amounts) in [("limits", &set.limits), ("requests", &set.requests)] {
        if !amounts.is_empty() {
            both.insert(side.to_owned(), list(amounts).into());
        }
    }
    if !allocated.requests.is_empty() {
        map.insert("allocatedResources".to_owned(), list(&allocated.requests).into());
    }
    map.insert("resources".to_owned(), both.into());
}

fn terminated(t: &Terminated) -> Value {
    let mut map = Map::new();
    map.insert("exitCode".to_owned(), t.exit_code.into());
    map.insert("reason".to_owned(), t.reason.as_str().into());
    put(&mut map, "message", t.message.clone().map(Value::from));
    map.insert("startedAt".to_owned(), t.started_at.and_then(time).unwrap_or(Value::Null));
    map.insert("finishedAt".to_owned(), t.finished_at.and_then(time).unwrap_or(Value::Null));
    put(&mut map, "containerID", t.id.as_ref().map(|id| format!("containerd://{id}").into()));
    map.into()
}

#[cfg(test)]
mod tests;
