//! The bind mounts of one container.

use crate::{
    Error, Volumes,
    kinds::{VolumePlugin, plugin_of},
    subpath,
};
use berth_core::{
    ids::Attempt,
    model::{
        Container, MountPropagation, NodeInfo, Objects, Pod, RecursiveReadOnly, SubPath, Volume,
        VolumeDevice, VolumeMount,
    },
};
use rustix::fd::{AsFd as _, OwnedFd};
use std::{
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Component, Path, PathBuf},
};

/// One bind mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerMount {
    /// The node's path.
    pub source: PathBuf,
    /// The absolute path in the container.
    pub destination: String,
    /// Whether the container may only read through it.
    pub read_only: bool,
    /// Whether mounts below are read-only too. [`RecursiveReadOnly::Disabled`] unless `read_only`. The caller
    /// knows whether the runtime can do it.
    pub recursive_read_only: RecursiveReadOnly,
    /// The directions in which mount events propagate.
    pub propagation: MountPropagation,
}

impl ContainerMount {
    fn plain(source: PathBuf, destination: &str, read_only: bool) -> ContainerMount {
        ContainerMount {
            source,
            destination: destination.to_owned(),
            read_only,
            recursive_read_only: RecursiveReadOnly::Disabled,
            propagation: MountPropagation::None,
        }
    }
}

/// A block device of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDevice {
    /// The device on the node.
    pub source: PathBuf,
    /// The absolute path of the device in the container.
    pub destination: String,
    /// The device's numbers.
    pub numbers: (u32, u32),
    /// Whether the container may only read it.
    pub read_only: bool,
}

impl Volumes {
    /// The container's block devices (`volumeDevices`), in order. Needs [`Volumes::mount`] to have succeeded.
    ///
    /// # Errors
    ///
    /// A volume is not set up, or has no block device.
    pub fn container_devices(
        &self,
        pod: &Pod,
        container: &Container,
        (objects, node): (&Objects, &NodeInfo),
    ) -> Result<Vec<ContainerDevice>, Error> {
        let device = |wanted: &VolumeDevice| {
            let not_set_up =
                || Error::NotSetUp { volume: wanted.volume.clone(), container: container.name.clone() };
            let volume = pod.volumes.iter().find(|v| v.name == wanted.volume).ok_or_else(not_set_up)?;
            let plugin = plugin_of(self, pod, volume, objects, node)?;
            let source = plugin.device(&self.pod_dir(&pod.uid))?.ok_or_else(not_set_up)?;
            let found = std::fs::metadata(&source).map_err(Error::io("examine", &source))?;
            if !found.file_type().is_block_device() {
                let reason = "is no block device";
                return Err(Error::LocalPath { volume: volume.name.clone(), path: source, reason });
            }
            let numbers = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
            let destination = wanted.path.clone();
            Ok(ContainerDevice { source, destination, numbers, read_only: plugin.read_only() })
        };
        container.devices.iter().map(device).collect()
    }

    /// The container's mounts: its `volumeMounts` in order, then `/etc/hosts`, `/etc/hostname`,
    /// `/etc/resolv.conf` and `/dev/shm` unless it mounts those itself. Needs [`Volumes::mount`] and
    /// [`Volumes::prepare_files`] to have succeeded. `env` is the container's resolved environment. Sub-paths
    /// are made and bound here; a sub-path that is bound already stays as it is.
    ///
    /// The mount of the termination message belongs to one attempt, so it is left out here: see
    /// [`Volumes::termination_mount`].
    pub fn container_mounts(
        &self,
        pod: &Pod,
        container: &Container,
        (objects, node): (&Objects, &NodeInfo),
        env: &[(String, String)],
    ) -> Result<Vec<ContainerMount>, Error> {
        let mut out = Vec::with_capacity(container.mounts.len() + 4);
        for (index, mount) in container.mounts.iter().enumerate() {
            let unknown =
                || Error::UnknownVolume { volume: mount.volume.clone(), container: container.name.clone() };
            let volume = pod.volumes.iter().find(|v| v.name == mount.volume).ok_or_else(unknown)?;
            let plugin = plugin_of(self, pod, volume, objects, node).map_err(|e| match e {
                Error::NotYet { .. } | Error::GivenUp { .. } => unknown(),
                other => other,
            })?;
            out.push(self.volume_mount(pod, container, (index, mount), (volume, &*plugin), env)?);
        }
        for mount in self.file_mounts(pod, container) {
            if !out.iter().any(|m| same_place(&m.destination, &mount.destination)) {
                out.push(mount);
            }
        }
        Ok(out)
    }

    /// Makes the file of one attempt's termination message and returns its mount; `None` if the container
    /// wants none.
    pub fn termination_mount(
        &self,
        pod: &Pod,
        container: &Container,
        attempt: Attempt,
    ) -> Result<Option<ContainerMount>, Error> {
        let path = &container.termination_message_path;
        if path.is_empty() {
            return Ok(None);
        }
        let destination = if path.starts_with('/') { path.clone() } else { format!("/{path}") };
        Ok(Some(ContainerMount::plain(self.termination_file(pod, container, attempt)?, &destination, false)))
    }

    fn file_mounts(&self, pod: &Pod, container: &Container) -> [ContainerMount; 4] {
        let read_only = container.security.read_only_root;
        let shm = if pod.namespaces.host_ipc { PathBuf::from("/dev/shm") } else { self.shm_path(&pod.uid) };
        [
            ContainerMount::plain(self.hosts_path(&pod.uid), "/etc/hosts", false),
            ContainerMount::plain(self.hostname_path(&pod.uid), "/etc/hostname", read_only),
            ContainerMount::plain(self.resolv_conf_path(&pod.uid), "/etc/resolv.conf", read_only),
            ContainerMount::plain(shm, "/dev/shm", false),
        ]
    }

    fn volume_mount(
        &self,
        pod: &Pod,
        container: &Container,
        (index, mount): (usize, &VolumeMount),
        (volume, plugin): (&Volume, &dyn VolumePlugin),
        env: &[(String, String)],
    ) -> Result<ContainerMount, Error> {
        let read_only = mount.read_only || plugin.read_only();
        let sub_path = sub_path(mount, env)?;
        check_options(container, mount)?;
        let root = plugin.root(&self.pod_dir(&pod.uid), &volume.name);
        let source = match sub_path {
            Some(path) => {
                let root = plugin.open_root(&root).map_err(|source| Error::SubPathPrepare {
                    volume: volume.name.clone(),
                    container: container.name.clone(),
                    source,
                })?;
                self.bind_sub_path(pod, container, index, volume, &root, &path)?
            }
            None => whole_volume(container, volume, plugin, root)?,
        };
        let destination = match mount.mount_path.as_str() {
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        Ok(ContainerMount {
            source,
            destination,
            read_only,
            recursive_read_only: mount.recursive_read_only,
            propagation: mount.propagation,
        })
    }

    fn bind_sub_path(
        &self,
        pod: &Pod,
        container: &Container,
        index: usize,
        volume: &Volume,
        root: &OwnedFd,
        path: &Path,
    ) -> Result<PathBuf, Error> {
        let created = |source| Error::SubPathCreate {
            volume: volume.name.clone(),
            container: container.name.clone(),
            source,
        };
        let prepared = |source| Error::SubPathPrepare {
            volume: volume.name.clone(),
            container: container.name.clone(),
            source,
        };
        // As with the kubelet, a missing sub-path becomes a directory, even in the volume of a ConfigMap that
        // lacks the key.
        let mode = rustix::fs::fstat(root).map_err(|e| prepared(e.into()))?.st_mode & 0o7777;
        let fd = match subpath::resolve(root.as_fd(), path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                subpath::resolve_or_make(root.as_fd(), path, mode).map_err(created)?
            }
            // An existing path that leads out of the volume, or below a file; nothing is created for it.
            found => found.map_err(prepared)?,
        };
        let target = self.sub_path_dir(&pod.uid, &volume.name, &container.name).join(index.to_string());
        subpath::bind(&fd, &target).map_err(prepared)?;
        Ok(target)
    }
}

fn whole_volume(
    container: &Container,
    volume: &Volume,
    plugin: &dyn VolumePlugin,
    root: PathBuf,
) -> Result<PathBuf, Error> {
    if root.try_exists().map_err(Error::io("examine", &root))? || plugin.make_missing_root(&root)? {
        return Ok(root);
    }
    Err(Error::NotSetUp { volume: volume.name.clone(), container: container.name.clone() })
}

/// The `subPath` of a mount in normal form, with variables expanded; `None` if the whole volume is mounted.
fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<PathBuf>, Error> {
    let text = match &mount.sub_path {
        None => return Ok(None),
        Some(SubPath::Plain(text)) if text.is_empty() => return Ok(None),
        Some(SubPath::Plain(text)) => text.clone(),
        Some(SubPath::Expr(text)) if text.is_empty() => return Ok(None),
        Some(SubPath::Expr(text)) => {
            subpath::expand(text, env).map_err(|names| Error::SubPathEnv { names })?
        }
    };
    subpath::normal(&text).map(Some).map_err(|reason| Error::SubPathText {
        volume: mount.volume.clone(),
        sub_path: text,
        reason,
    })
}

fn check_options(container: &Container, mount: &VolumeMount) -> Result<(), Error> {
    let refuse = |reason| {
        Err(Error::MountOptions { volume: mount.volume.clone(), container: container.name.clone(), reason })
    };
    if mount.recursive_read_only != RecursiveReadOnly::Disabled {
        if !mount.read_only {
            return refuse("requested recursive read-only mode, but it is not read-only");
        }
        if mount.propagation != MountPropagation::None {
            return refuse("requested recursive read-only mode, which excludes mount propagation");
        }
    }
    if mount.propagation == MountPropagation::Bidirectional && !container.security.privileged {
        return refuse("asks for Bidirectional propagation, which only privileged containers get");
    }
    Ok(())
}

fn same_place(a: &str, b: &str) -> bool {
    fn parts(path: &str) -> impl Iterator<Item = Component<'_>> {
        Path::new(path).components().filter(|c| !matches!(c, Component::CurDir))
    }
    parts(a).eq(parts(b))
}

#[cfg(test)]
mod tests;
