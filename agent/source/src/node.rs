//! The Node object of this node as JSON: for its registration, the labels of one that exists, and its status. Pure.

use crate::status::time;
use berth_core::{ids::NodeName, model::ResourceList, status::Truth, time::Wall};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// The images that a node reports at most (`nodeStatusMaxImages`).
const MAX_IMAGES: usize = 50;

/// The names of an image that a node reports at most (`MaxNamesPerImageInNodeStatus`).
const MAX_NAMES: usize = 5;

/// The annotation that lets the attach-detach controller attach volumes for the node.
const CONTROLLER_ATTACHES: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// What a node is registered as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// `metadata.name`.
    pub name: NodeName,
    /// The value of the label `kubernetes.io/hostname`.
    pub hostname: String,
    /// The architecture in Go's words, for example `amd64`.
    pub architecture: String,
    /// Labels from the configuration; they win over the node's own.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`. The API server lets a node set them only when it is created.
    pub taints: Vec<Taint>,
    /// `spec.providerID`.
    pub provider_id: Option<String>,
}

/// One of `spec.taints`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// `key`.
    pub key: String,
    /// `value`; may be empty.
    pub value: String,
    /// `effect`, for example `NoSchedule`.
    pub effect: String,
}

/// What a node reports of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// Addresses, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// The address of type `Hostname`.
    pub hostname: String,
    /// Amounts of the whole machine.
    pub capacity: ResourceList,
    /// Amounts for pods.
    pub allocatable: ResourceList,
    /// The node's conditions, `Ready` last.
    pub conditions: Vec<NodeCondition>,
    /// `nodeInfo`.
    pub info: NodeSystemInfo,
    /// `daemonEndpoints.kubeletEndpoint.Port`: where the API server asks for logs and exec. `None` where nothing
    /// listens.
    pub port: Option<u16>,
    /// The images on the node, in any order and number.
    pub images: Vec<NodeImage>,
    /// `volumesInUse`: the attached volumes that pods use or are about to use. `None` while that is unknown: what the
    /// API server has stays, because a controller may detach what is missing.
    pub volumes_in_use: Option<BTreeSet<String>>,
    /// `runtimeHandlers`.
    pub handlers: Vec<RuntimeHandler>,
    /// `features.supplementalGroupsPolicy`: whether the node obeys the field of that name.
    pub supplemental_groups_policy: bool,
}

/// One of a node's conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCondition {
    /// Its type.
    pub kind: NodeConditionType,
    /// `status`.
    pub status: Truth,
    /// `reason`, for example `KubeletReady`.
    pub reason: String,
    /// `message`.
    pub message: String,
}

/// The types of conditions that a node itself writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeConditionType {
    /// Memory is short.
    MemoryPressure,
    /// Disk space or inodes are short.
    DiskPressure,
    /// Process ids are short.
    PidPressure,
    /// The node runs pods.
    Ready,
}

impl NodeConditionType {
    /// `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeConditionType::MemoryPressure => "MemoryPressure",
            NodeConditionType::DiskPressure => "DiskPressure",
            NodeConditionType::PidPressure => "PIDPressure",
            NodeConditionType::Ready => "Ready",
        }
    }
}

/// Versions and ids of the machine and its programs (`nodeInfo`, `NodeSystemInfo` in `core/v1`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSystemInfo {
    /// `machineID`.
    pub machine_id: String,
    /// `systemUUID`.
    pub system_uuid: String,
    /// `bootID`.
    pub boot_id: String,
    /// `kernelVersion`.
    pub kernel_version: String,
    /// `osImage`.
    pub os_image: String,
    /// containerd's version, without `containerd://`.
    pub containerd_version: String,
    /// `kubeletVersion`. The API server must not be older.
    pub kubelet_version: String,
    /// `architecture`, in Go's words.
    pub architecture: String,
    /// `swap.capacity` in bytes; `None` without swap.
    pub swap_bytes: Option<u64>,
}

/// One of `images`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeImage {
    /// Names with a digest.
    pub digests: Vec<String>,
    /// Names with a tag.
    pub tags: Vec<String>,
    /// The size in bytes.
    pub size: u64,
}

/// One of `runtimeHandlers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeHandler {
    /// The handler's name; empty for the default one.
    pub name: String,
    /// Whether mounts can be read-only together with those below them.
    pub recursive_read_only_mounts: bool,
    /// Whether pods may have a user namespace.
    pub user_namespaces: bool,
}

/// The Node to create, with its status.
pub fn node_object(registration: &Registration, report: &NodeReport, now: Wall) -> Value {
    let mut spec = Map::new();
    if !registration.taints.is_empty() {
        let taints: Vec<Value> = registration.taints.iter().map(taint).collect();
        spec.insert("taints".to_owned(), taints.into());
    }
    if let Some(id) = &registration.provider_id {
        spec.insert("providerID".to_owned(), id.as_str().into());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": registration.name.as_str(),
            "labels": labels(registration),
            "annotations": { CONTROLLER_ATTACHES: "true" },
        },
        "spec": spec,
        "status": node_status(report, now),
    })
}

/// The patch of a Node that exists already: labels and annotation that are missing or different. Taints stay, and so
/// does each label that is not the node's. `None` where there is nothing to send.
pub fn node_metadata(registration: &Registration, node: &Value) -> Option<Value> {
    let mut metadata = Map::new();
    let annotations = BTreeMap::from([(CONTROLLER_ATTACHES.to_owned(), "true".to_owned())]);
    for (name, wanted) in [("labels", labels(registration)), ("annotations", annotations)] {
        let changes: Map<String, Value> = wanted
            .into_iter()
            .filter(|(key, value)| node["metadata"][name][key] != value.as_str())
            .map(|(key, value)| (key, value.into()))
            .collect();
        if !changes.is_empty() {
            metadata.insert(name.to_owned(), changes.into());
        }
    }
    (!metadata.is_empty()).then(|| json!({ "metadata": metadata }))
}

/// `status` of the Node as this node wants it.
pub fn node_status(report: &NodeReport, now: Wall) -> Value {
    let mut addresses: Vec<Value> = report
        .addresses
        .iter()
        .map(|ip| json!({ "type": "InternalIP", "address": ip.to_string() }))
        .collect();
    addresses.push(json!({ "type": "Hostname", "address": report.hostname }));
    let conditions: Vec<Value> = report.conditions.iter().map(|c| condition(c, now)).collect();
    let handlers: Vec<Value> = report.handlers.iter().map(handler).collect();
    let mut status = json!({
        "addresses": addresses,
        "capacity": amounts(&report.capacity),
        "allocatable": amounts(&report.allocatable),
        "conditions": conditions,
        "nodeInfo": info(&report.info),
        "daemonEndpoints": { "kubeletEndpoint": { "Port": report.port.unwrap_or(0) } },
        "images": images(&report.images),
        "runtimeHandlers": handlers,
        "features": { "supplementalGroupsPolicy": report.supplemental_groups_policy },
    });
    if let Some(volumes) = report.volumes_in_use.as_ref().filter(|volumes| !volumes.is_empty()) {
        status["volumesInUse"] = json!(volumes);
    }
    // Where the node serves streams, the API server need not translate a client's WebSocket.
    if report.port.is_some() {
        status["declaredFeatures"] = json!(["ExtendWebSocketsToKubelet"]);
    }
    status
}

fn labels(registration: &Registration) -> BTreeMap<String, String> {
    let own = [
        ("kubernetes.io/hostname", registration.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", registration.architecture.as_str()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", registration.architecture.as_str()),
    ];
    let mut labels: BTreeMap<String, String> =
        own.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    labels.extend(registration.labels.clone());
    labels
}

fn taint(taint: &Taint) -> Value {
    json!({ "key": taint.key, "value": taint.value, "effect": taint.effect })
}

fn condition(c: &NodeCondition, now: Wall) -> Value {
    let status = match c.status {
        Truth::True => "True",
        Truth::False => "False",
        Truth::Unknown => "Unknown",
    };
    json!({
        "type": c.kind.as_str(),
        "status": status,
        "reason": c.reason,
        "message": c.message,
        "lastHeartbeatTime": time(now),
        "lastTransitionTime": time(now),
    })
}

fn amounts(list: &ResourceList) -> Map<String, Value> {
    list.iter().map(|(name, amount)| (name.clone(), amount.canonical().into())).collect()
}

fn info(info: &NodeSystemInfo) -> Value {
    let mut value = json!({
        "machineID": info.machine_id,
        "systemUUID": info.system_uuid,
        "bootID": info.boot_id,
        "kernelVersion": info.kernel_version,
        "osImage": info.os_image,
        "containerRuntimeVersion": format!("containerd://{}", info.containerd_version),
        "kubeletVersion": info.kubelet_version,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": info.architecture,
    });
    if let Some(bytes) = info.swap_bytes {
        value["swap"] = json!({ "capacity": bytes });
    }
    value
}

/// The largest images, each with its first names: those with a digest before those with a tag.
fn images(images: &[NodeImage]) -> Vec<Value> {
    let mut named: Vec<(u64, Vec<&str>)> = images
        .iter()
        .map(|image| {
            let (mut digests, mut tags): (Vec<&str>, Vec<&str>) = (
                image.digests.iter().map(String::as_str).collect(),
                image.tags.iter().map(String::as_str).collect(),
            );
            digests.sort_unstable();
            tags.sort_unstable();
            digests.extend(tags);
            digests.truncate(MAX_NAMES);
            (image.size, digests)
        })
        .collect();
    // Equal sizes are told apart by name, so that the list is the same each time.
    named.sort_by(|(a, a_names), (b, b_names)| b.cmp(a).then_with(|| a_names.cmp(b_names)));
    named.truncate(MAX_IMAGES);
    named.into_iter().map(|(size, names)| json!({ "names": names, "sizeBytes": size })).collect()
}

fn handler(handler: &RuntimeHandler) -> Value {
    json!({
        "name": handler.name,
        "features": {
            "recursiveReadOnlyMounts": handler.recursive_read_only_mounts,
            "userNamespaces": handler.user_namespaces,
        },
    })
}

#[cfg(test)]
mod tests;
