//! The mounts of a container: the fixed mounts, then the pod's, in an order in which no mount hides another.

use super::{HostFacts, ImageConfig, SpecError};
use berth_core::model::{MountPropagation, RecursiveReadOnly, VolumeMount};
use oci_spec::{
    OciSpecError,
    runtime::{Mount, MountBuilder},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

/// Origin of a mount. Of two mounts with one destination, the pod's wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountOrigin {
    /// A volume, the pod's hosts file or the termination message file: mounts that the kubelet passes to the
    /// runtime.
    Pod,
    /// A file of the sandbox (`/etc/hostname`, `/etc/resolv.conf`, `/dev/shm`): mounts that the runtime adds.
    /// Files follow `readOnlyRootFilesystem`.
    Sandbox,
    /// A `VOLUME` of the image: a directory of the container's own, with the image's content of that path.
    /// Writable also with a read-only root.
    ImageVolume,
}

/// One bind mount. The source is resolved and exists when the task is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// The mount's origin.
    pub origin: MountOrigin,
    /// A path on the host, without symbolic links.
    pub source: PathBuf,
    /// The path in the container.
    pub destination: String,
    /// Whether writes to the mount fail.
    pub read_only: bool,
    /// Whether writes to mounts below it fail too.
    pub recursive_read_only: bool,
    /// Direction in which mounts propagate.
    pub propagation: MountPropagation,
}

impl MountSpec {
    /// A volume as one container mounts it. `source` is the volume's directory (or the part that `subPath`
    /// names). `recursive` says whether the runtime supports recursive read-only mounts.
    pub fn volume(
        mount: &VolumeMount,
        source: PathBuf,
        volume_is_read_only: bool,
        recursive: bool,
    ) -> MountSpec {
        let recursive_read_only = match mount.recursive_read_only {
            RecursiveReadOnly::Disabled => false,
            RecursiveReadOnly::IfPossible => {
                recursive && mount.read_only && mount.propagation == MountPropagation::None
            }
            RecursiveReadOnly::Enabled => true,
        };
        MountSpec {
            origin: MountOrigin::Pod,
            source,
            destination: mount.mount_path.clone(),
            read_only: mount.read_only || volume_is_read_only,
            recursive_read_only,
            propagation: mount.propagation,
        }
    }

    /// A writable file or directory of the pod's own (hosts file, termination message).
    pub fn pod(source: PathBuf, destination: &str) -> MountSpec {
        Self::plain(MountOrigin::Pod, source, destination)
    }

    /// A file or directory of the sandbox.
    pub fn sandbox(source: PathBuf, destination: &str) -> MountSpec {
        Self::plain(MountOrigin::Sandbox, source, destination)
    }

    /// The container's own directory for a `VOLUME` of the image; a relative destination starts at the root.
    pub fn image_volume(source: PathBuf, destination: &str) -> MountSpec {
        let absolute = Path::new("/").join(destination);
        Self::plain(MountOrigin::ImageVolume, source, &clean(&absolute.to_string_lossy()))
    }

    fn plain(origin: MountOrigin, source: PathBuf, destination: &str) -> MountSpec {
        MountSpec {
            origin,
            source,
            destination: destination.to_owned(),
            read_only: false,
            recursive_read_only: false,
            propagation: MountPropagation::None,
        }
    }
}

/// The `VOLUME`s of an image for which a container gets directories of its own, normalised and without
/// repeats: those without a volume of the pod at the same path. The root directory is skipped; with
/// containerd's CRI plugin it would hide the whole image.
pub fn image_volumes(image: &ImageConfig, mounts: &[MountSpec]) -> BTreeSet<String> {
    let of_pod = mounts.iter().filter(|m| m.origin == MountOrigin::Pod);
    let taken: BTreeSet<String> = of_pod.map(|m| clean(&m.destination)).collect();
    let wanted = image.volumes.iter().map(|v| clean(v));
    wanted.filter(|v| v != "/" && !taken.contains(v)).collect()
}

/// The path without `.`, `..` and doubled separators, computed from its text alone.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().unwrap_or_default()),
            Component::ParentDir => {
                parts.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    format!("/{}", parts.join("/"))
}

fn depth(destination: &str) -> usize {
    clean(destination).matches('/').count()
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|v| (*v).to_owned()).collect()
}

fn fixed(destination: &str, typ: &str, source: &str, options: Vec<String>) -> Result<Mount, OciSpecError> {
    MountBuilder::default().destination(destination).typ(typ).source(source).options(options).build()
}

/// The mounts of every container, which precede the pod's.
fn fixed_mounts(host: &HostFacts, privileged: bool) -> Result<Vec<Mount>, OciSpecError> {
    let access = if privileged { "rw" } else { "ro" };
    let mut cgroup = strings(&["nosuid", "noexec", "nodev", "relatime", access]);
    // A container with its own cgroup namespace has another superblock view: there are no options to
    // preserve.
    if !host.unified_cgroups || privileged {
        cgroup.extend(host.cgroup_mount_options.iter().cloned());
    }
    Ok(vec![
        fixed("/proc", "proc", "proc", strings(&["nosuid", "noexec", "nodev"]))?,
        fixed("/dev", "tmpfs", "tmpfs", strings(&["nosuid", "strictatime", "mode=755", "size=65536k"]))?,
        fixed(
            "/dev/pts",
            "devpts",
            "devpts",
            strings(&["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        )?,
        fixed(
            "/dev/shm",
            "tmpfs",
            "shm",
            strings(&["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        )?,
        fixed("/dev/mqueue", "mqueue", "mqueue", strings(&["nosuid", "noexec", "nodev"]))?,
        fixed("/sys", "sysfs", "sysfs", strings(&["nosuid", "noexec", "nodev", access]))?,
        fixed("/sys/fs/cgroup", "cgroup", "cgroup", cgroup)?,
    ])
}

/// All mounts of a container in order, and the propagation that its root needs for them.
pub(super) fn build(
    asked: &[MountSpec],
    host: &HostFacts,
    privileged: bool,
    read_only_root: bool,
) -> Result<(Vec<Mount>, Option<&'static str>), SpecError> {
    let of_pod = |m: &MountSpec| m.origin == MountOrigin::Pod;
    let mut wanted: Vec<&MountSpec> = asked.iter().filter(|m| of_pod(m)).collect();
    let taken: Vec<String> = wanted.iter().map(|m| clean(&m.destination)).collect();
    for origin in [MountOrigin::Sandbox, MountOrigin::ImageVolume] {
        wanted.extend(asked.iter().filter(|m| m.origin == origin && !taken.contains(&clean(&m.destination))));
    }
    // A stable sort: mounts of equal depth keep the requested order.
    wanted.sort_by_key(|m| depth(&m.destination));
    let destinations: Vec<String> = wanted.iter().map(|m| clean(&m.destination)).collect();
    let own_dev = destinations.iter().any(|d| d == "/dev");

    let mut mounts: Vec<Mount> = fixed_mounts(host, privileged)?
        .into_iter()
        .filter(|m| {
            let at = m.destination().to_string_lossy();
            let hidden = own_dev && at.starts_with("/dev/");
            !hidden && !destinations.iter().any(|d| *d == at)
        })
        .collect();
    let mut root: Option<&'static str> = None;
    for m in wanted {
        if !m.destination.starts_with('/') {
            return Err(SpecError::RelativePath { what: "mountPath", path: m.destination.clone() });
        }
        if !m.source.is_absolute() {
            return Err(SpecError::RelativePath {
                what: "source of a mount",
                path: m.source.display().to_string(),
            });
        }
        let propagation = match m.propagation {
            MountPropagation::None => "rprivate",
            MountPropagation::HostToContainer => {
                root = root.or(Some("rslave"));
                "rslave"
            }
            MountPropagation::Bidirectional if privileged => {
                root = Some("rshared");
                "rshared"
            }
            MountPropagation::Bidirectional => {
                return Err(SpecError::BidirectionalNeedsPrivileged(m.destination.clone()));
            }
        };
        let read_only = m.read_only
            || (m.origin == MountOrigin::Sandbox && read_only_root && m.destination != "/dev/shm");
        let access = match (read_only, m.recursive_read_only) {
            (false, false) => "rw",
            (true, false) => "ro",
            (true, true) if m.propagation == MountPropagation::None => "rro",
            (_, true) => return Err(SpecError::RecursiveReadOnly(m.destination.clone())),
        };
        mounts.push(
            MountBuilder::default()
                .destination(m.destination.as_str())
                .typ("bind")
                .source(m.source.clone())
                .options(strings(&["rbind", propagation, access]))
                .build()?,
        );
    }
    Ok((mounts, root))
}
