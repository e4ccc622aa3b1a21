//! Volumes and how containers see them.

use super::ResourceFieldRef;
use crate::{ids::VolumeName, quantity::Quantity};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One of `spec.volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name in the pod.
    pub name: VolumeName,
    /// What it is.
    pub source: VolumeSource,
}

/// What a volume is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// A directory of the pod's own, gone with the pod.
    EmptyDir {
        /// Where it lies.
        medium: Medium,
        /// `sizeLimit`.
        size_limit: Option<Quantity>,
    },
    /// A path of the node.
    HostPath {
        /// Absolute, without `..`.
        path: PathBuf,
        /// What must be there.
        kind: HostPathType,
    },
    /// Keys of a ConfigMap as files.
    ConfigMap(KeysVolume),
    /// Keys of a Secret as files.
    Secret(KeysVolume),
    /// Facts about the pod as files.
    DownwardApi {
        /// The files.
        items: Vec<DownwardItem>,
        /// Mode of files without one of their own, default 0644.
        default_mode: u32,
    },
    /// Several of the above in one directory.
    Projected {
        /// In order; a later file wins.
        sources: Vec<ProjectedSource>,
        /// Mode of files without one of their own, default 0644.
        default_mode: u32,
    },
    /// A kind that this build does not mount yet; starting the pod is refused with an event that names it.
    NotYet {
        /// The field's name in the API, for example `nfs`.
        kind: String,
    },
}

/// Where an emptyDir lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Medium {
    /// The node's disk.
    #[default]
    Disk,
    /// A tmpfs.
    Memory,
    /// hugetlbfs with that page size (`2Mi`), or the default size.
    HugePages(Option<String>),
}

/// `hostPath.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum HostPathType {
    /// No check; missing paths are created as directories by the runtime.
    #[default]
    Unset,
    /// Made as a directory (0755) where missing.
    DirectoryOrCreate,
    /// Must be a directory.
    Directory,
    /// Made as an empty file (0644) where missing.
    FileOrCreate,
    /// Must be a regular file.
    File,
    /// Must be a UNIX socket.
    Socket,
    /// Must be a character device.
    CharDevice,
    /// Must be a block device.
    BlockDevice,
}

/// A ConfigMap or Secret as a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysVolume {
    /// The object's name in the pod's namespace.
    pub name: String,
    /// Which keys go where; empty means all keys under their own names.
    pub items: Vec<KeyToPath>,
    /// Mode of files without one of their own, default 0644.
    pub default_mode: u32,
    /// Whether the pod may start without the object (or the keys named in `items`).
    pub optional: bool,
}

/// One key and the file it becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyToPath {
    /// The key.
    pub key: String,
    /// Relative, without `..`.
    pub path: PathBuf,
    /// Mode of this file.
    pub mode: Option<u32>,
}

/// One file of a downward API volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownwardItem {
    /// Relative, without `..`.
    pub path: PathBuf,
    /// What it shows.
    pub value: DownwardValue,
    /// Mode of this file.
    pub mode: Option<u32>,
}

/// What a downward API file shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownwardValue {
    /// `fieldRef.fieldPath`.
    Field(String),
    /// `resourceFieldRef`.
    Resource(ResourceFieldRef),
}

/// One source of a projected volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProjectedSource {
    /// A ConfigMap (its `default_mode` is not used).
    ConfigMap(KeysVolume),
    /// A Secret (likewise).
    Secret(KeysVolume),
    /// Facts about the pod.
    DownwardApi(Vec<DownwardItem>),
    /// A kind that this build does not project yet.
    NotYet {
        /// The field's name in the API, for example `serviceAccountToken`.
        kind: String,
    },
}

/// One of a container's `volumeMounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume.
    pub volume: VolumeName,
    /// Where the container sees it; absolute.
    pub mount_path: String,
    /// `readOnly`.
    pub read_only: bool,
    /// `recursiveReadOnly`.
    pub recursive_read_only: RecursiveReadOnly,
    /// `subPath`, or `subPathExpr` with its `$(VAR)`.
    pub sub_path: Option<SubPath>,
    /// `mountPropagation`.
    pub propagation: MountPropagation,
}

/// A part of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubPath {
    /// Taken as written.
    Plain(String),
    /// `$(VAR)` is expanded.
    Expr(String),
}

/// `recursiveReadOnly`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum RecursiveReadOnly {
    /// Mounts below may be writable.
    #[default]
    Disabled,
    /// Where the runtime can.
    IfPossible,
    /// Or the pod fails.
    Enabled,
}

/// `mountPropagation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum MountPropagation {
    /// rprivate.
    #[default]
    None,
    /// rslave.
    HostToContainer,
    /// rshared; privileged containers only.
    Bidirectional,
}
