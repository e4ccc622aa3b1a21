//! Volumes of a pod and their mounts in containers.

use super::{ObjectKind, ResourceFieldRef};
use crate::{ids::VolumeName, quantity::Quantity};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

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
    /// A volume type that this build cannot mount yet. Such a pod does not start, and an event names the
    /// type.
    NotYet {
        /// The field's name in the API, for example `nfs`.
        kind: String,
    },
}

impl VolumeSource {
    /// The ConfigMaps and Secrets of the pod's namespace from which the volume's files are made.
    pub fn objects(&self) -> Vec<(ObjectKind, &str)> {
        match self {
            VolumeSource::ConfigMap(keys) => vec![(ObjectKind::ConfigMap, keys.name.as_str())],
            VolumeSource::Secret(keys) => vec![(ObjectKind::Secret, keys.name.as_str())],
            VolumeSource::Projected { sources, .. } => {
                sources.iter().filter_map(ProjectedSource::object).collect()
            }
            VolumeSource::EmptyDir { .. }
            | VolumeSource::HostPath { .. }
            | VolumeSource::DownwardApi { .. }
            | VolumeSource::NotYet { .. } => Vec::new(),
        }
    }
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
    /// A source that this build cannot project yet.
    NotYet {
        /// The field's name in the API, for example `serviceAccountToken`.
        kind: String,
    },
}

impl ProjectedSource {
    /// The ConfigMap or Secret from which the source's files are made.
    fn object(&self) -> Option<(ObjectKind, &str)> {
        match self {
            ProjectedSource::ConfigMap(keys) => Some((ObjectKind::ConfigMap, keys.name.as_str())),
            ProjectedSource::Secret(keys) => Some((ObjectKind::Secret, keys.name.as_str())),
            ProjectedSource::DownwardApi(_) | ProjectedSource::NotYet { .. } => None,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::PodKey, model::*};

    fn keys(name: &str) -> KeysVolume {
        KeysVolume { name: name.into(), items: Vec::new(), default_mode: 0o644, optional: false }
    }

    #[test]
    fn volume_objects_names_the_config_maps_and_secrets_of_volumes() {
        let sources = vec![
            ProjectedSource::ConfigMap(keys("one")),
            ProjectedSource::Secret(keys("two")),
            ProjectedSource::DownwardApi(Vec::new()),
        ];
        let volumes = [
            ("a", VolumeSource::ConfigMap(keys("two"))),
            ("b", VolumeSource::Projected { sources, default_mode: 0o644 }),
            ("c", VolumeSource::EmptyDir { medium: Medium::Disk, size_limit: None }),
            ("unmounted", VolumeSource::Secret(keys("three"))),
        ];
        let mounts = ["a", "b", "c"].map(|name| VolumeMount {
            volume: name.parse().unwrap(),
            mount_path: format!("/{name}"),
            read_only: false,
            recursive_read_only: RecursiveReadOnly::default(),
            sub_path: None,
            propagation: MountPropagation::default(),
        });
        let key = PodKey { namespace: "default".parse().unwrap(), name: "web".parse().unwrap() };
        let mut pod = Pod::new("u".parse().unwrap(), key, "n".parse().unwrap());
        pod.containers =
            vec![Container { mounts: mounts.into(), ..Container::new("c".parse().unwrap(), "image") }];
        pod.volumes = volumes.map(|(name, source)| Volume { name: name.parse().unwrap(), source }).into();
        let got: Vec<_> = pod.volume_objects().into_iter().collect();
        assert_eq!(
            got,
            [(ObjectKind::ConfigMap, "one"), (ObjectKind::ConfigMap, "two"), (ObjectKind::Secret, "two")]
        );
    }
}
