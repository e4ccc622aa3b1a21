//! What is shown of pods, of the node and of images. Fields may be added, with a default for those who do not send
//! them; none changes its meaning.

use berth_core::{
    ids::{ContainerId, ContainerName, NodeName, PodKey, PodUid},
    time::Wall,
};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, path::PathBuf};

/// A pod as its worker last told it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodView {
    /// Its UID.
    pub uid: PodUid,
    /// Its names.
    pub key: PodKey,
    /// The `v1.Pod` with its status.
    pub object: serde_json::Value,
    /// Whether condition Ready is True.
    #[serde(default)]
    pub ready: bool,
    /// Set while it is being ended.
    #[serde(default)]
    pub terminating: bool,
    /// Why it is not Ready and what is waited for, one sentence without times; `None` when Ready.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// When what failed is tried again, or a crashed container started again.
    #[serde(default)]
    pub next_try: Option<Wall>,
    /// The file it comes from, where it comes from one.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// Why that file cannot be read now; the pod stays as it was.
    #[serde(default)]
    pub held: Option<String>,
    /// The processes of what runs.
    #[serde(default)]
    pub containers: Vec<ContainerView>,
    /// The last actions, newest last.
    #[serde(default)]
    pub timeline: Vec<ActionView>,
    /// When this was so.
    #[serde(default)]
    pub as_of: Wall,
    /// Nobody can meet the pod any more.
    #[serde(default)]
    pub gone: bool,
}

/// A running container's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerView {
    /// Its name.
    pub name: ContainerName,
    /// Its id.
    pub id: ContainerId,
    /// The process id in the host's PID namespace.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: tells the process from a later one of the same number.
    pub start_time: u64,
    /// Which run it is.
    #[serde(default)]
    pub attempt: u32,
}

/// One action that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionView {
    /// What was done, for example `MakeSandbox`.
    pub kind: String,
    /// The container concerned.
    #[serde(default)]
    pub container: Option<String>,
    /// When it began.
    pub begun: Wall,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
    /// Its parts, in order, each with its milliseconds.
    #[serde(default)]
    pub steps: Vec<(String, f64)>,
    /// Why it failed, where it did.
    #[serde(default)]
    pub failure: Option<String>,
}

/// Something that the node needs: there, or why not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it works.
    pub ok: bool,
    /// Its version, or why it does not work.
    #[serde(default)]
    pub message: String,
    /// Since when it does not work, where that is known.
    #[serde(default)]
    pub since: Option<Wall>,
}

impl Health {
    /// It works.
    pub fn good(message: impl Into<String>) -> Health {
        Health { ok: true, message: message.into(), since: None }
    }

    /// It does not, for this reason.
    pub fn bad(message: impl Into<String>) -> Health {
        Health { ok: false, message: message.into(), since: None }
    }
}

/// The node's addresses, and where what comes from outside arrives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressesView {
    /// The node IPs, the primary one first.
    #[serde(default)]
    pub node_ips: Vec<IpAddr>,
    /// The names of the uplinks.
    #[serde(default)]
    pub uplinks: Vec<String>,
    /// What is wrong with them, a line each.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// The node on one page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub node: NodeName,
    /// The agent's version.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// That process's start time, as in [`ContainerView::start_time`].
    #[serde(default)]
    pub start_time: u64,
    /// Since when the agent runs.
    pub since: Wall,
    /// containerd.
    #[serde(default)]
    pub containerd: Health,
    /// The pod network.
    #[serde(default)]
    pub network: Health,
    /// The helper that drains container output.
    #[serde(default)]
    pub logd: Health,
    /// Services; `None` where the node runs without.
    #[serde(default)]
    pub services: Option<Health>,
    /// Cluster DNS; `None` where this node serves none.
    #[serde(default)]
    pub dns: Option<Health>,
    /// The node's addresses and uplinks; `None` from an agent that does not tell.
    #[serde(default)]
    pub addresses: Option<AddressesView>,
    /// Where pods come from.
    #[serde(default)]
    pub sources: Vec<SourceView>,
    /// When this was so.
    #[serde(default)]
    pub as_of: Wall,
}

/// A directory of manifests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceView {
    /// The directory.
    pub dir: PathBuf,
    /// Whether it could be listed, so that what is not in it is ended.
    pub listed: bool,
    /// How many pods it asks for.
    pub pods: u32,
    /// Files that cannot be used as they are.
    #[serde(default)]
    pub errors: Vec<ManifestProblem>,
    /// Pods that stay as they were because their file cannot be read, with the reason.
    #[serde(default)]
    pub held: Vec<(PodKey, String)>,
}

/// A file, or one object in it, that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestProblem {
    /// The file.
    pub file: PathBuf,
    /// Which document of it, counted from 1.
    #[serde(default)]
    pub document: Option<usize>,
    /// The field.
    #[serde(default)]
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
}

/// An image that containerd has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    /// Its name.
    pub name: String,
    /// The digest it points to.
    pub digest: String,
    /// Compressed bytes, where all of it is there.
    #[serde(default)]
    pub size: Option<u64>,
    /// When it was made or imported here.
    #[serde(default)]
    pub created: Option<Wall>,
}
