//! What is mounted into one container.

use crate::{
    Error, Volumes, os,
    subpath::{self},
};
use berth_core::{
    ids::Attempt,
    model::{
        Container, HostPathType, MountPropagation, Pod, RecursiveReadOnly, SubPath, Volume, VolumeMount,
        VolumeSource,
    },
};
use rustix::fd::AsFd as _;
use std::{
    io,
    path::{Component, Path, PathBuf},
};

/// One bind mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerMount {
    /// The node's path.
    pub source: PathBuf,
    /// Where the container sees it; absolute.
    pub destination: String,
    /// Whether the container may only read through it.
    pub read_only: bool,
    /// Whether that holds for mounts below too. [`RecursiveReadOnly::Disabled`] unless `read_only`; whether the
    /// runtime can do it is the caller's to know.
    pub recursive_read_only: RecursiveReadOnly,
    /// Which mount events pass.
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

impl Volumes {
    /// The container's mounts: its `volumeMounts` in order, then `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`
    /// and `/dev/shm` unless it mounts those itself. Needs [`Volumes::mount`] and [`Volumes::prepare_files`] to have
    /// succeeded. `env` is the container's resolved environment. Sub-paths are made and bound here; one that shows
    /// the right file already is left alone.
    ///
    /// The termination message's mount is not among them, as it belongs to one attempt:
    /// [`Volumes::termination_mount`].
    pub fn container_mounts(
        &self,
        pod: &Pod,
        container: &Container,
        env: &[(String, String)],
    ) -> Result<Vec<ContainerMount>, Error> {
        let mut out = Vec::with_capacity(container.mounts.len() + 4);
        for (index, mount) in container.mounts.iter().enumerate() {
            out.push(self.volume_mount(pod, container, index, mount, env)?);
        }
        for mount in self.file_mounts(pod, container) {
            if !out.iter().any(|m| same_place(&m.destination, &mount.destination)) {
                out.push(mount);
            }
        }
        Ok(out)
    }

    /// The mount of one attempt's termination message, its file made; `None` where the container wants none.
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
        index: usize,
        mount: &VolumeMount,
        env: &[(String, String)],
    ) -> Result<ContainerMount, Error> {
        let unknown =
            || Error::UnknownVolume { volume: mount.volume.clone(), container: container.name.clone() };
        let volume = pod.volumes.iter().find(|v| v.name == mount.volume).ok_or_else(unknown)?;
        let read_only = mount.read_only || always_read_only(&volume.source);
        let sub_path = sub_path(mount, env)?;
        check_options(container, mount)?;
        let root = self.volume_dir(&pod.uid, volume).ok_or_else(unknown)?;
        let source = match sub_path {
            Some(path) => self.bind_sub_path(pod, container, index, volume, &root, &path)?,
            None => whole_volume(container, volume, root)?,
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
        root: &Path,
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
        let root = open_root(volume, root).map_err(prepared)?;
        // What is missing becomes a directory, also in a volume of a ConfigMap that lacks the key: as the kubelet has it.
        let mode = rustix::fs::fstat(&root).map_err(|e| prepared(e.into()))?.st_mode & 0o7777;
        let fd = match subpath::resolve(root.as_fd(), path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                subpath::resolve_or_make(root.as_fd(), path, mode).map_err(created)?
            }
            // Something is there, and nothing is made: it leads out of the volume, or is below a file.
            found => found.map_err(prepared)?,
        };
        let target = self.sub_path_dir(&pod.uid, &volume.name, &container.name).join(index.to_string());
        subpath::bind(&fd, &target).map_err(prepared)?;
        Ok(target)
    }
}

/// The volume's root as a descriptor. A hostPath may be a link, and then means what it leads to.
fn open_root(volume: &Volume, path: &Path) -> io::Result<rustix::fd::OwnedFd> {
    match volume.source {
        VolumeSource::HostPath { .. } => {
            let flags =
                rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
        }
        _ => os::open_dir(path),
    }
}

fn whole_volume(container: &Container, volume: &Volume, root: PathBuf) -> Result<PathBuf, Error> {
    let is_there = root.try_exists().map_err(Error::io("look at", &root))?;
    if is_there {
        return Ok(root);
    }
    // A hostPath without a type that is not there is made at the container's start.
    if matches!(volume.source, VolumeSource::HostPath { kind: HostPathType::Unset, .. }) {
        os::make_dirs(&root, 0o755).map_err(Error::io("make", &root))?;
        return Ok(root);
    }
    Err(Error::NotSetUp { volume: volume.name.clone(), container: container.name.clone() })
}

/// The `subPath` of a mount in normal form, variables expanded; `None` where the whole volume is mounted.
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

/// Volumes whose files are the node's to write: containers only read them.
fn always_read_only(source: &VolumeSource) -> bool {
    match source {
        VolumeSource::ConfigMap(_)
        | VolumeSource::Secret(_)
        | VolumeSource::DownwardApi { .. }
        | VolumeSource::Projected { .. } => true,
        VolumeSource::EmptyDir { .. } | VolumeSource::HostPath { .. } | VolumeSource::NotYet { .. } => false,
    }
}

fn same_place(a: &str, b: &str) -> bool {
    fn parts(path: &str) -> impl Iterator<Item = Component<'_>> {
        Path::new(path).components().filter(|c| !matches!(c, Component::CurDir))
    }
    parts(a).eq(parts(b))
}

#[cfg(test)]
mod tests;
