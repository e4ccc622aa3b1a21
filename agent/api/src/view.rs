//! The published state of pods, the node and images. New fields need a default, for senders without
//! them; no field changes its meaning.

use berth_core::{
    ids::{ContainerId, ContainerName, NodeName, PodKey, PodUid},
    image::PullProgress,
    time::Wall,
};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, path::PathBuf};

mod control_plane;
pub use control_plane::{
    CertificateView, ControlPlaneView, RequestView, SetBehind, UnpublishedPod, UnreadObject,
};

/// A pod's state by its worker's last report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodView {
    /// The UID.
    pub uid: PodUid,
    /// Namespace and name.
    pub key: PodKey,
    /// The `v1.Pod` with its status.
    pub object: serde_json::Value,
    /// Whether condition Ready is True.
    #[serde(default)]
    pub ready: bool,
    /// Whether the pod is being terminated.
    #[serde(default)]
    pub terminating: bool,
    /// Why the pod is not Ready, in one sentence without times; `None` when it is.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// When a failed action is retried, or a crashed container restarted.
    #[serde(default)]
    pub next_try: Option<Wall>,
    /// The manifest's file, where the pod is from one.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// Why that file cannot be read; the pod keeps its last good specification meanwhile.
    #[serde(default)]
    pub held: Option<String>,
    /// The processes of the running containers.
    #[serde(default)]
    pub containers: Vec<ContainerView>,
    /// Its volumes, in the order of the specification.
    #[serde(default)]
    pub volumes: Vec<VolumeView>,
    /// The last actions, newest last.
    #[serde(default)]
    pub timeline: Vec<ActionView>,
    /// The time of this state.
    #[serde(default)]
    pub as_of: Wall,
    /// Whether every process has ended, every exit is recorded and no volume is mounted.
    #[serde(default)]
    pub gone: bool,
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// The pod's name for the volume.
    pub name: String,
    /// The kind of the data's place: `nfs`, `csi`, `emptyDir`; `unbound` for a claim without a volume.
    pub kind: String,
    /// Where the data is; empty where the kind says all.
    pub source: String,
    /// The claim, and the persistent volume that is bound to it.
    pub claim: Option<(String, Option<String>)>,
    /// The volume's root, absolute or from the pod's directory on; `None` where there is none yet, and for a block device.
    pub root: Option<PathBuf>,
}

/// A running container's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerView {
    /// The container's name.
    pub name: ContainerName,
    /// The container's id.
    pub id: ContainerId,
    /// The process id in the host's PID namespace.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`; distinguishes the process from a later one with the same id.
    pub start_time: u64,
    /// The attempt, counted from 0.
    #[serde(default)]
    pub attempt: u32,
}

/// A finished action of a pod's worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionView {
    /// The kind of action, for example `MakeSandbox`.
    pub kind: String,
    /// The container, for actions on one.
    #[serde(default)]
    pub container: Option<String>,
    /// The time of its start.
    pub begun: Wall,
    /// Its duration in milliseconds.
    pub took_ms: f64,
    /// Its steps in order, each with its duration in milliseconds.
    #[serde(default)]
    pub steps: Vec<(String, f64)>,
    /// The reason, where the action failed.
    #[serde(default)]
    pub failure: Option<String>,
}

/// The health of a part of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether the part works.
    pub ok: bool,
    /// Its version, or the reason why it does not work.
    #[serde(default)]
    pub message: String,
    /// The start of the failure, where known.
    #[serde(default)]
    pub since: Option<Wall>,
}

impl Health {
    /// The health of a part that works.
    pub fn good(message: impl Into<String>) -> Health {
        Health { ok: true, message: message.into(), since: None }
    }

    /// The health of a part that does not work, with the reason.
    pub fn bad(message: impl Into<String>) -> Health {
        Health { ok: false, message: message.into(), since: None }
    }
}

/// The node's addresses and uplinks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressesView {
    /// The node IPs, the primary one first.
    #[serde(default)]
    pub node_ips: Vec<IpAddr>,
    /// The names of the uplinks: devices on which traffic from outside arrives.
    #[serde(default)]
    pub uplinks: Vec<String>,
    /// Problems of addresses and uplinks, one line each.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// The state of the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// The node's name.
    pub node: NodeName,
    /// The agent's version.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// That process's start time, as in [`ContainerView::start_time`].
    #[serde(default)]
    pub start_time: u64,
    /// The agent's start.
    pub since: Wall,
    /// Health of containerd.
    #[serde(default)]
    pub containerd: Health,
    /// Health of the pod network.
    #[serde(default)]
    pub network: Health,
    /// Health of logd, the helper that writes container output to files.
    #[serde(default)]
    pub logd: Health,
    /// Health of Services; `None` where the node runs without them.
    #[serde(default)]
    pub services: Option<Health>,
    /// Health of cluster DNS; `None` where this node does not serve it.
    #[serde(default)]
    pub dns: Option<Health>,
    /// The file system of the images, and what image collection did there; `None` before the first look.
    #[serde(default)]
    pub image_disk: Option<Health>,
    /// The registered CSI drivers, and plugins that are not registered; `None` where there is no plugin.
    #[serde(default)]
    pub csi: Option<Health>,
    /// The node's addresses and uplinks; `None` from an older agent.
    #[serde(default)]
    pub addresses: Option<AddressesView>,
    /// The sources of pods that are directories.
    #[serde(default)]
    pub sources: Vec<SourceView>,
    /// The control plane; `None` where the node works for none.
    #[serde(default)]
    pub control_plane: Option<ControlPlaneView>,
    /// The time of this state.
    #[serde(default)]
    pub as_of: Wall,
}

/// A source of pods: a directory of manifests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceView {
    /// The directory.
    pub dir: PathBuf,
    /// Whether the directory could be listed; only then pods that are missing in it are terminated.
    pub listed: bool,
    /// The number of its pods.
    pub pods: u32,
    /// Files, or objects in them, that cannot be used.
    #[serde(default)]
    pub errors: Vec<ManifestProblem>,
    /// Pods that keep their last good specification because their file cannot be read, with the
    /// reason.
    #[serde(default)]
    pub held: Vec<(PodKey, String)>,
}

/// A problem of a file, or of one object in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestProblem {
    /// The file.
    pub file: PathBuf,
    /// The YAML document in the file, counted from 1.
    #[serde(default)]
    pub document: Option<usize>,
    /// The field.
    #[serde(default)]
    pub field: Option<String>,
    /// The problem.
    pub reason: String,
}

/// A pull that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullView {
    /// The image's name in full.
    pub image: String,
    /// The name as containers have it.
    #[serde(default)]
    pub wanted: Vec<String>,
    /// How far it is.
    #[serde(default)]
    pub progress: PullProgress,
}

/// Details of an image in containerd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDetails {
    /// All names of the image.
    pub names: Vec<String>,
    /// The digest of their target.
    pub digest: String,
    /// The image's id, as the status of a container shows it.
    pub id: String,
    /// The compressed size in bytes.
    #[serde(default)]
    pub size: u64,
    /// The layers, the lowest first, each with its compressed size in bytes.
    #[serde(default)]
    pub layers: Vec<(String, u64)>,
    /// `config` of the image's configuration, as far as containers use it.
    #[serde(default)]
    pub config: serde_json::Value,
    /// Containers of the image: namespace, pod and container.
    #[serde(default)]
    pub used_by: Vec<String>,
}

/// An image in containerd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    /// The image's name.
    pub name: String,
    /// The digest of its target.
    pub digest: String,
    /// The compressed size in bytes; `None` for an incomplete image.
    #[serde(default)]
    pub size: Option<u64>,
    /// The time of its creation or import on this node.
    #[serde(default)]
    pub created: Option<Wall>,
}

/// What `berth image prune` removed and what it left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneView {
    /// The names of the removed images.
    #[serde(default)]
    pub removed: Vec<String>,
    /// Bytes that containerd's store holds less: blobs and unpacked layers.
    #[serde(default)]
    pub freed: u64,
    /// The number of images that stay, by the reason.
    #[serde(default)]
    pub kept: Vec<(String, u32)>,
}

/// The check of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedImage {
    /// The image's name.
    pub name: String,
    /// The number of sound blobs.
    #[serde(default)]
    pub blobs: u64,
    /// Their bytes.
    #[serde(default)]
    pub bytes: u64,
    /// What is damaged; empty for a sound image.
    #[serde(default)]
    pub damage: Vec<DamagedPart>,
}

/// A damaged part of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPart {
    /// The part, such as `layer 2`.
    pub part: String,
    /// Its digest, or the key of the snapshot.
    pub digest: String,
    /// What is wrong.
    pub reason: String,
}
