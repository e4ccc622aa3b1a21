//! The fields of a `v1.Pod` that commands display. They are read leniently from the object that the
//! agent sends: a field that an older or newer agent does not send is left out.

use berth_api::view::PodView;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// Reads null as the default: Kubernetes writes null for empty lists and objects in places.
fn lax<'d, D: Deserializer<'d>, T: Default + Deserialize<'d>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

macro_rules! object {
    ($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(crate) struct $name {
            $($(#[$attr])* #[serde(deserialize_with = "lax")] pub(crate) $field: $type,)*
        }
    };
}

object!(
    /// `v1.Pod`.
    Pod { metadata: Meta, spec: Spec, status: Status, }
);
object!(
    /// `metadata`.
    Meta {
        name: String,
        namespace: String,
        uid: String,
        creation_timestamp: String,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
    }
);
object!(
    /// `spec`.
    Spec {
        node_name: String,
        restart_policy: String,
        host_network: bool,
        termination_grace_period_seconds: Option<i64>,
        priority_class_name: String,
        service_account_name: String,
        init_containers: Vec<Container>,
        containers: Vec<Container>,
        ephemeral_containers: Vec<Container>,
        volumes: Vec<serde_json::Map<String, serde_json::Value>>,
    }
);
object!(
    /// One of `spec.containers`.
    Container {
        name: String,
        image: String,
        command: Vec<String>,
        args: Vec<String>,
        ports: Vec<Port>,
        restart_policy: String,
        target_container_name: String,
        resources: Resources,
        liveness_probe: Option<serde_json::Value>,
        readiness_probe: Option<serde_json::Value>,
        startup_probe: Option<serde_json::Value>,
        volume_mounts: Vec<Mount>,
    }
);
object!(
    /// One of `ports`.
    Port { name: String, container_port: i64, host_port: Option<i64>, protocol: String, }
);
object!(
    /// `resources`.
    Resources {
        requests: BTreeMap<String, serde_json::Value>,
        limits: BTreeMap<String, serde_json::Value>,
    }
);
object!(
    /// One of `volumeMounts`.
    Mount { name: String, mount_path: String, read_only: bool, sub_path: String, }
);
object!(
    /// `status`.
    Status {
        phase: String,
        reason: String,
        message: String,
        start_time: String,
        qos_class: String,
        #[serde(rename = "podIPs")]
        pod_ips: Vec<Address>,
        conditions: Vec<Condition>,
        init_container_statuses: Vec<ContainerStatus>,
        container_statuses: Vec<ContainerStatus>,
        ephemeral_container_statuses: Vec<ContainerStatus>,
    }
);
object!(
    /// One of `podIPs`.
    Address { ip: String, }
);
object!(
    /// One of `conditions`.
    Condition {
        r#type: String,
        status: String,
        reason: String,
        message: String,
        last_transition_time: String,
    }
);
object!(
    /// One of `containerStatuses`.
    ContainerStatus {
        name: String,
        image: String,
        #[serde(rename = "imageID")]
        image_id: String,
        #[serde(rename = "containerID")]
        container_id: String,
        ready: bool,
        started: Option<bool>,
        restart_count: u32,
        state: State,
        last_state: State,
    }
);
object!(
    /// `state` and `lastState`.
    State { waiting: Option<Waiting>, running: Option<Running>, terminated: Option<Terminated>, }
);
object!(
    /// `state.waiting`.
    Waiting { reason: String, message: String, }
);
object!(
    /// `state.running`.
    Running { started_at: String, }
);
object!(
    /// `state.terminated`.
    Terminated {
        exit_code: i32,
        reason: String,
        message: String,
        started_at: String,
        finished_at: String,
    }
);

impl Pod {
    /// The pod of a view. A malformed object gives an empty pod with the view's name.
    pub(crate) fn of(view: &PodView) -> Pod {
        let mut pod = Pod::deserialize(&view.object).unwrap_or_default();
        pod.metadata.name = view.key.name.to_string();
        pod.metadata.namespace = view.key.namespace.to_string();
        pod.metadata.uid = view.uid.to_string();
        pod
    }

    /// All containers, init containers first, then the main ones and the ephemeral ones, each with its status where there
    /// is one.
    pub(crate) fn containers(&self) -> impl Iterator<Item = Shown<'_>> {
        let (spec, status) = (&self.spec, &self.status);
        let init = shown(ContainerKind::Init, &spec.init_containers, &status.init_container_statuses);
        let main = shown(ContainerKind::Main, &spec.containers, &status.container_statuses);
        let (ephemeral, statuses) = (&spec.ephemeral_containers, &status.ephemeral_container_statuses);
        init.chain(main).chain(shown(ContainerKind::Ephemeral, ephemeral, statuses))
    }
}

fn shown<'p>(
    kind: ContainerKind,
    specs: &'p [Container],
    statuses: &'p [ContainerStatus],
) -> impl Iterator<Item = Shown<'p>> {
    specs.iter().map(move |spec| Shown {
        kind,
        sidecar: kind == ContainerKind::Init && spec.restart_policy == "Always",
        spec,
        status: statuses.iter().find(|s| s.name == spec.name),
    })
}

/// The list of the pod in which a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerKind {
    /// `initContainers`.
    Init,
    /// `containers`.
    Main,
    /// `ephemeralContainers`.
    Ephemeral,
}

/// A container with its status.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'p> {
    /// The kind of container.
    pub(crate) kind: ContainerKind,
    /// Whether it is a sidecar: an init container with restart policy Always.
    pub(crate) sidecar: bool,
    /// Its specification.
    pub(crate) spec: &'p Container,
    /// Its status; `None` before the agent has reported one.
    pub(crate) status: Option<&'p ContainerStatus>,
}

impl Shown<'_> {
    /// Whether the pod's readiness counts the container: main containers and sidecars.
    pub(crate) fn counts(&self) -> bool {
        self.kind == ContainerKind::Main || self.sidecar
    }
}

impl ContainerStatus {
    /// The container's id without the prefix `containerd://`.
    pub(crate) fn id(&self) -> &str {
        self.container_id.split_once("://").map_or(self.container_id.as_str(), |(_, id)| id)
    }
}
