//! Specification of a pod.

use super::{Container, NodeSelectorTerm, PodSecurity, Resources, Toleration, Volume};
use crate::{
    ids::{NodeName, PodKey, PodUid},
    resize::PendingResize,
    time::Wall,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

/// A pod that this node shall run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// `metadata.uid`, unique for one life of the pod.
    pub uid: PodUid,
    /// `metadata.namespace` and `.name`.
    pub key: PodKey,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.creationTimestamp`, or when the source first saw the pod. In the second case the pods of one
    /// file are a nanosecond apart, in the order of the file.
    pub created: Wall,
    /// `metadata.generation`: the number of the spec; `None` for a pod whose source counts none.
    #[serde(default)]
    pub generation: Option<i64>,
    /// The source of the pod.
    pub origin: Origin,
    /// `spec.nodeName`.
    pub node: NodeName,
    /// `spec.os.name`.
    #[serde(default)]
    pub os: Os,
    /// `spec.nodeSelector`.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// `spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution`.
    #[serde(default)]
    pub node_affinity: Option<Vec<NodeSelectorTerm>>,
    /// `spec.tolerations`: those that can tolerate a taint of effect NoExecute.
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    /// `spec.restartPolicy`.
    pub restart_policy: RestartPolicy,
    /// `spec.terminationGracePeriodSeconds`, default 30.
    pub grace_seconds: u32,
    /// `spec.activeDeadlineSeconds`.
    pub active_deadline_seconds: Option<u32>,
    /// `spec.initContainers` in order. Those with [`Container::sidecar`] keep running.
    pub init_containers: Vec<Container>,
    /// `spec.containers`.
    pub containers: Vec<Container>,
    /// `spec.ephemeralContainers`: containers that were added to the running pod, in the order of the spec. They run once
    /// and are never restarted; neither the pod's phase nor its readiness counts them.
    #[serde(default)]
    pub ephemeral_containers: Vec<Container>,
    /// `spec.volumes`.
    pub volumes: Vec<Volume>,
    /// `spec.resources`: limits of the pod as a whole.
    pub resources: Option<Resources>,
    /// `spec.overhead`.
    pub overhead: Option<super::ResourceList>,
    /// Host namespaces and the shared PID namespace.
    pub namespaces: PodNamespaces,
    /// Names and name resolution.
    pub dns: PodDns,
    /// `spec.securityContext`.
    pub security: PodSecurity,
    /// `spec.serviceAccountName`, for the downward API.
    pub service_account: String,
    /// `spec.runtimeClassName`.
    pub runtime_class: Option<String>,
    /// `spec.priority`.
    pub priority: i32,
    /// `spec.priorityClassName`.
    pub priority_class: Option<String>,
    /// `spec.enableServiceLinks`, default true.
    pub enable_service_links: bool,
    /// `spec.readinessGates[].conditionType`.
    pub readiness_gates: Vec<String>,
    /// The names of `imagePullSecrets`, in order.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// The part of the spec that this node does not support, and the reason, for people. Nothing of such a pod is
    /// started, and it stays Pending. The other fields of its spec are defaults, but for the names and the images of
    /// its containers.
    #[serde(default)]
    pub unsupported: Option<String>,
    /// The spec of the API server wants other resources than those above, which are the allocated ones, and why they are
    /// not allocated ([`mod@crate::resize`]).
    #[serde(default)]
    pub pending_resize: Option<PendingResize>,
}

impl Pod {
    /// A minimal pod: no containers, created at the epoch, from the API server, with Kubernetes' defaults for
    /// the rest.
    pub fn new(uid: PodUid, key: PodKey, node: NodeName) -> Pod {
        Pod {
            uid,
            key,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            created: Wall(0),
            generation: None,
            origin: Origin::Cluster,
            node,
            os: Os::default(),
            node_selector: BTreeMap::new(),
            node_affinity: None,
            tolerations: Vec::new(),
            restart_policy: RestartPolicy::default(),
            grace_seconds: 30,
            active_deadline_seconds: None,
            init_containers: Vec::new(),
            containers: Vec::new(),
            ephemeral_containers: Vec::new(),
            volumes: Vec::new(),
            resources: None,
            overhead: None,
            namespaces: PodNamespaces::default(),
            dns: PodDns::default(),
            security: PodSecurity::default(),
            service_account: "default".to_owned(),
            runtime_class: None,
            priority: 0,
            priority_class: None,
            enable_service_links: true,
            readiness_gates: Vec::new(),
            image_pull_secrets: Vec::new(),
            unsupported: None,
            pending_resize: None,
        }
    }

    /// All containers: init containers first, then the main ones, then the ephemeral ones.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.lasting_containers().chain(&self.ephemeral_containers)
    }

    /// The containers that the pod was created with: init containers first, then the main ones. They alone have resources,
    /// ports and probes.
    pub fn lasting_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers)
    }

    /// The volumes that a container mounts. The other volumes are not set up, so the objects that they refer
    /// to may be missing (`pkg/kubelet/volumemanager/populator`).
    pub fn mounted_volumes(&self) -> impl Iterator<Item = &Volume> {
        let uses = |c: &Container, v: &Volume| {
            c.mounts.iter().any(|m| m.volume == v.name) || c.devices.iter().any(|d| d.volume == v.name)
        };
        let mounted = move |v: &&Volume| self.all_containers().any(|c| uses(c, v));
        self.volumes.iter().filter(mounted)
    }

    /// The container with this name, of any kind.
    pub fn container(&self, name: &crate::ids::ContainerName) -> Option<&Container> {
        self.all_containers().find(|c| &c.name == name)
    }
}

/// `spec.os.name`: the system that a pod is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub enum Os {
    /// Linux; also of a pod that names none.
    #[default]
    Linux,
    /// Windows: this node rejects the pod.
    Windows,
}

/// The source of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Origin {
    /// The manifest directory, with the path of the file.
    Manifest(PathBuf),
    /// The directory `staticPodPath`, with the path of the file.
    StaticFile(PathBuf),
    /// The API server.
    Cluster,
}

impl Origin {
    /// The kind of the source.
    pub fn kind(&self) -> OriginKind {
        match self {
            Origin::Manifest(_) => OriginKind::Manifest,
            Origin::StaticFile(_) => OriginKind::StaticFile,
            Origin::Cluster => OriginKind::Cluster,
        }
    }
}

/// The kinds of sources of pods. A node has at most one source of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OriginKind {
    /// The manifest directory.
    Manifest,
    /// The directory `staticPodPath`.
    StaticFile,
    /// The API server.
    Cluster,
}

impl OriginKind {
    /// Every kind of source.
    pub const ALL: [OriginKind; 3] = [OriginKind::Manifest, OriginKind::StaticFile, OriginKind::Cluster];
}

/// `spec.restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub enum RestartPolicy {
    /// Restart the container whatever its exit code.
    #[default]
    Always,
    /// Restart the container after a non-zero exit code.
    OnFailure,
    /// Never restart the container.
    Never,
}

/// The namespaces that a pod shares with the host or among its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct PodNamespaces {
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.hostPID`.
    pub host_pid: bool,
    /// `spec.hostIPC`.
    pub host_ipc: bool,
    /// `spec.shareProcessNamespace`.
    pub share_pid: bool,
}

/// Name resolution inside the pod, and the pod's own host name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct PodDns {
    /// `spec.dnsPolicy`.
    pub policy: DnsPolicy,
    /// `spec.dnsConfig.nameservers`.
    pub nameservers: Vec<IpAddr>,
    /// `spec.dnsConfig.searches`.
    pub searches: Vec<String>,
    /// `spec.dnsConfig.options`.
    pub options: Vec<(String, Option<String>)>,
    /// `spec.hostname`.
    pub hostname: Option<String>,
    /// `spec.subdomain`.
    pub subdomain: Option<String>,
    /// `spec.setHostnameAsFQDN`.
    pub hostname_as_fqdn: bool,
    /// `spec.hostAliases`: an address and its names.
    pub host_aliases: Vec<(IpAddr, Vec<String>)>,
}

/// `spec.dnsPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum DnsPolicy {
    /// Cluster DNS; the node's DNS configuration for pods on the host network.
    #[default]
    ClusterFirst,
    /// Cluster DNS, also for pods on the host network.
    ClusterFirstWithHostNet,
    /// The node's DNS configuration.
    Default,
    /// `dnsConfig` alone.
    None,
}
