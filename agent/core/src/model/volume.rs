//! Volumes of a pod and their mounts in containers.

use super::ResourceFieldRef;
use crate::{
    ids::{Namespace, VolumeName},
    quantity::Quantity,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// One of `spec.volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The volume's name in the pod.
    pub name: VolumeName,
    /// The volume's type and its parameters.
    pub source: VolumeSource,
}

/// The type of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// A directory of the pod itself, removed with the pod.
    EmptyDir {
        /// The storage medium.
        medium: Medium,
        /// `sizeLimit`.
        size_limit: Option<Quantity>,
    },
    /// A path of the node.
    HostPath {
        /// The path on the node, absolute, without `..`.
        path: PathBuf,
        /// The check of the path before the mount.
        kind: HostPathType,
    },
    /// Keys of a ConfigMap as files.
    ConfigMap(KeysVolume),
    /// Keys of a Secret as files.
    Secret(KeysVolume),
    /// Fields of the pod as files.
    DownwardApi {
        /// The files of the volume.
        items: Vec<DownwardItem>,
        /// Mode of files that set none, default 0644.
        default_mode: u32,
    },
    /// Several of the sources above in one directory.
    Projected {
        /// The sources in order. Of two files with the same path, the later wins.
        sources: Vec<ProjectedSource>,
        /// Mode of files that set none, default 0644.
        default_mode: u32,
    },
    /// A directory of an NFS server.
    Nfs(NfsVolume),
    /// The volume that is bound to a claim of the pod's namespace.
    PersistentVolumeClaim {
        /// `claimName`.
        claim: String,
        /// `readOnly`: containers may only read.
        read_only: bool,
    },
    /// The volume that is bound to a claim of the pod's own, `<pod>-<volume>`, which a controller makes.
    Ephemeral,
    /// A volume of a CSI driver that lives as long as its pod.
    Csi(CsiEphemeral),
    /// A volume type that this build cannot mount yet. Such a pod does not start, and an event names the
    /// type.
    NotYet {
        /// The field's name in the API, for example `nfs`.
        kind: String,
    },
}

/// A directory of an NFS server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NfsVolume {
    /// `server`: a name or an address.
    pub server: String,
    /// `path`: the directory that the server exports.
    pub path: String,
    /// `readOnly`: the file system is mounted read-only.
    pub read_only: bool,
}

/// `csi` of a pod's volume: an ephemeral volume, made and removed with its pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsiEphemeral {
    /// `driver`.
    pub driver: String,
    /// `fsType`.
    pub fs_type: Option<String>,
    /// `readOnly`.
    pub read_only: bool,
    /// `volumeAttributes`.
    pub attributes: BTreeMap<String, String>,
    /// `nodePublishSecretRef.name`, a Secret of the pod's namespace.
    pub publish_secret: Option<String>,
}

/// `csi` of a PersistentVolume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsiVolume {
    /// `driver`.
    pub driver: String,
    /// `volumeHandle`.
    pub handle: String,
    /// `fsType`.
    pub fs_type: Option<String>,
    /// `readOnly`.
    pub read_only: bool,
    /// `volumeAttributes`.
    pub attributes: BTreeMap<String, String>,
    /// `nodeStageSecretRef`.
    pub stage_secret: Option<SecretRef>,
    /// `nodePublishSecretRef`.
    pub publish_secret: Option<SecretRef>,
    /// `nodeExpandSecretRef`.
    pub expand_secret: Option<SecretRef>,
}

impl CsiVolume {
    /// A volume of that driver with that id, and nothing else said of it.
    pub fn new(driver: impl Into<String>, handle: impl Into<String>) -> CsiVolume {
        CsiVolume {
            driver: driver.into(),
            handle: handle.into(),
            fs_type: None,
            read_only: false,
            attributes: BTreeMap::new(),
            stage_secret: None,
            publish_secret: None,
            expand_secret: None,
        }
    }
}

/// A Secret of any namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SecretRef {
    /// The namespace.
    pub namespace: Namespace,
    /// The name.
    pub name: String,
}

/// What to use in place of a volume type that Kubernetes gave up or moved to CSI drivers; `None` for any other type.
/// `kind` is the field's name in the API.
pub fn alternative_to(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "gitRepo" => "an init container that clones the repository into an emptyDir",
        "awsElasticBlockStore" => "the CSI driver ebs.csi.aws.com",
        "azureDisk" => "the CSI driver disk.csi.azure.com",
        "azureFile" => "the CSI driver file.csi.azure.com",
        "cinder" => "the CSI driver cinder.csi.openstack.org",
        "gcePersistentDisk" => "the CSI driver pd.csi.storage.gke.io",
        "portworxVolume" => "the CSI driver pxd.portworx.com",
        "vsphereVolume" => "the CSI driver csi.vsphere.vmware.com",
        "cephfs" => "the CSI driver cephfs.csi.ceph.com",
        "rbd" => "the CSI driver rbd.csi.ceph.com",
        "flexVolume"
        | "flocker"
        | "glusterfs"
        | "photonPersistentDisk"
        | "quobyte"
        | "scaleIO"
        | "storageos" => "a CSI driver",
        _ => return None,
    })
}

/// The storage medium of an emptyDir.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Medium {
    /// The node's disk.
    #[default]
    Disk,
    /// A tmpfs.
    Memory,
    /// A hugetlbfs with this page size (`2Mi`), or with the default size.
    HugePages(Option<String>),
}

/// `hostPath.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum HostPathType {
    /// No check. The runtime creates a missing path as a directory.
    #[default]
    Unset,
    /// A directory, created with mode 0755 where missing.
    DirectoryOrCreate,
    /// An existing directory.
    Directory,
    /// A regular file, created empty with mode 0644 where missing.
    FileOrCreate,
    /// An existing regular file.
    File,
    /// An existing UNIX socket.
    Socket,
    /// An existing character device.
    CharDevice,
    /// An existing block device.
    BlockDevice,
}

/// A ConfigMap or Secret as a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysVolume {
    /// The object's name in the pod's namespace.
    pub name: String,
    /// The keys to show and their paths; empty means all keys under their own names.
    pub items: Vec<KeyToPath>,
    /// Mode of files that set none, default 0644.
    pub default_mode: u32,
    /// Whether the pod may start without the object, or without the keys named in `items`.
    pub optional: bool,
}

/// A key and the path of its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyToPath {
    /// The key in the object.
    pub key: String,
    /// The file's path in the volume, relative, without `..`.
    pub path: PathBuf,
    /// Mode of this file; `None` means the default mode.
    pub mode: Option<u32>,
}

/// One file of a downward API volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownwardItem {
    /// The file's path in the volume, relative, without `..`.
    pub path: PathBuf,
    /// The content of the file.
    pub value: DownwardValue,
    /// Mode of this file; `None` means the default mode.
    pub mode: Option<u32>,
}

/// The content of a downward API file.
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
    /// A Secret (its `default_mode` is not used).
    Secret(KeysVolume),
    /// Fields of the pod.
    DownwardApi(Vec<DownwardItem>),
    /// A token of the pod's ServiceAccount. This build cannot project it yet.
    ServiceAccountToken {
        /// `audience`; `None` is the API server's own.
        audience: Option<String>,
        /// `expirationSeconds`, default 3600.
        expiration_seconds: u64,
        /// The path of the file in the volume.
        path: PathBuf,
    },
    /// A source that this build cannot project yet.
    NotYet {
        /// The field's name in the API, for example `clusterTrustBundle`.
        kind: String,
    },
}

/// One of a container's `volumeDevices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDevice {
    /// The volume's name: one with a claim of mode Block.
    pub volume: VolumeName,
    /// `devicePath`: the absolute path of the device in the container.
    pub path: String,
}

/// One of a container's `volumeMounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume's name.
    pub volume: VolumeName,
    /// The absolute path in the container.
    pub mount_path: String,
    /// `readOnly`.
    pub read_only: bool,
    /// `recursiveReadOnly`.
    pub recursive_read_only: RecursiveReadOnly,
    /// `subPath`, or `subPathExpr` with its `$(VAR)` references.
    pub sub_path: Option<SubPath>,
    /// `mountPropagation`.
    pub propagation: MountPropagation,
}

/// The path of a part of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubPath {
    /// The path as written.
    Plain(String),
    /// A path in which `$(VAR)` is expanded.
    Expr(String),
}

/// `recursiveReadOnly`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum RecursiveReadOnly {
    /// Only the mount itself is read-only; mounts below it may be writable.
    #[default]
    Disabled,
    /// Recursively read-only where the runtime can, else not recursively.
    IfPossible,
    /// Recursively read-only; the pod fails where the runtime cannot.
    Enabled,
}

/// `mountPropagation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum MountPropagation {
    /// Mount type rprivate.
    #[default]
    None,
    /// Mount type rslave.
    HostToContainer,
    /// Mount type rshared; privileged containers only.
    Bidirectional,
}
