//! The kinds of volumes, each behind [`VolumePlugin`], as the kubelet has a plugin for each kind.
//!
//! A new kind is a file here and an arm of [`plugin_of`]. Taking a pod down needs no plugin: everything below the pod's
//! directory is unmounted and removed alike.

pub(crate) mod csi;
mod empty_dir;
mod host_path;
mod local;
mod nfs;
mod payload;

use crate::{Error, Volumes, inputs::VolumeInputs, os, payload::VolumeFiles};
use berth_core::{
    ids::VolumeName,
    model::{
        NodeInfo, Objects, PersistentVolumeSource, Pod, Volume, VolumeMode, VolumeSource, alternative_to,
    },
    volume::{PersistentSource, ResolveError, Resolved, resolve},
};
use rustix::fd::OwnedFd;
use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
};

/// A kind of volumes, with the specification of one volume of that kind.
pub(crate) trait VolumePlugin {
    /// The node's path of the volume's root, whether or not it exists.
    fn root(&self, pod_dir: &Path, name: &VolumeName) -> PathBuf;

    /// Sets the volume up at its root. A volume that is set up stays as it is, but for files from objects.
    fn set_up(&self, root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error>;

    /// The files that the node writes into the volume; `None` for a kind whose content is not the node's.
    fn files(&self, _inputs: &VolumeInputs<'_>) -> Result<Option<VolumeFiles>, Error> {
        Ok(None)
    }

    /// The device of a volume of mode Block, once it is set up.
    fn device(&self, _pod_dir: &Path) -> Result<Option<PathBuf>, Error> {
        Ok(None)
    }

    /// The name of the persistent volume.
    fn persistent(&self) -> Option<&str> {
        None
    }

    /// Brings a volume that is set up to date, for kinds without files of the node.
    fn keep(&self, _root: &Path, _inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Whether containers may only read the volume, whatever their mounts say.
    fn read_only(&self) -> bool {
        false
    }

    /// Opens the volume's root for a sub-path.
    fn open_root(&self, root: &Path) -> io::Result<OwnedFd> {
        os::open_dir(root)
    }

    /// Makes a missing root when a container mounts the whole volume. Returns whether this kind does so.
    fn make_missing_root(&self, _root: &Path) -> Result<bool, Error> {
        Ok(false)
    }
}

/// The plugin of a volume.
///
/// # Errors
///
/// The kind is not supported, or the claim of the volume does not lead to a persistent volume that the pod may use.
pub(crate) fn plugin_of<'a>(
    volumes: &'a Volumes,
    pod: &Pod,
    volume: &'a Volume,
    objects: &Objects,
    node: &NodeInfo,
) -> Result<Box<dyn VolumePlugin + 'a>, Error> {
    match resolve(pod, volume, objects, node) {
        Ok(Resolved::Own) => own_plugin(volumes, pod, volume, objects),
        Ok(Resolved::Persistent(source)) => persistent_plugin(volumes, pod, volume, *source),
        Err(ResolveError::Unknown { kind, name, why }) => {
            Err(Error::UnknownObject { volume: volume.name.clone(), kind, name, why })
        }
        Err(error) => Err(Error::Claim { volume: volume.name.clone(), error: Box::new(error) }),
    }
}

/// The plugin of a volume whose kind is in the pod's specification.
fn own_plugin<'a>(
    volumes: &'a Volumes,
    pod: &Pod,
    volume: &'a Volume,
    objects: &Objects,
) -> Result<Box<dyn VolumePlugin + 'a>, Error> {
    Ok(match &volume.source {
        VolumeSource::EmptyDir { medium, size_limit } => {
            Box::new(empty_dir::EmptyDir { medium, size_limit: size_limit.as_ref() })
        }
        VolumeSource::HostPath { path, kind } => {
            Box::new(host_path::HostPath { path: Cow::Borrowed(path), kind: *kind, read_only: false })
        }
        VolumeSource::ConfigMap(keys) => Box::new(payload::ConfigMap(keys)),
        VolumeSource::Secret(keys) => Box::new(payload::Secret(keys)),
        VolumeSource::DownwardApi { items, default_mode } => {
            Box::new(payload::DownwardApi { items, default_mode: *default_mode })
        }
        VolumeSource::Projected { sources, default_mode } => {
            Box::new(payload::Projected { sources, default_mode: *default_mode })
        }
        VolumeSource::Csi(source) => {
            let csi = csi::Csi::ephemeral(volumes, pod, volume, source, objects);
            Box::new(csi.map_err(|e| e.in_persistent(Some(volume.name.as_str())))?)
        }
        VolumeSource::Nfs(source) => Box::new(nfs::Nfs {
            pending: &volumes.pending,
            volume: source.clone(),
            name: volume.name.to_string(),
            options: Vec::new(),
            read_only: false,
        }),
        VolumeSource::PersistentVolumeClaim { .. } => return Err(not_yet(volume, "persistentVolumeClaim")),
        VolumeSource::Ephemeral => return Err(not_yet(volume, "ephemeral")),
        VolumeSource::NotYet { kind } => return Err(not_yet(volume, kind)),
    })
}

/// The plugin of a persistent volume.
fn persistent_plugin<'a>(
    volumes: &'a Volumes,
    pod: &Pod,
    volume: &Volume,
    source: PersistentSource,
) -> Result<Box<dyn VolumePlugin + 'a>, Error> {
    Ok(match &source.volume.source {
        PersistentVolumeSource::HostPath { path, kind } => Box::new(host_path::HostPath {
            path: Cow::Owned(path.clone()),
            kind: *kind,
            read_only: source.read_only,
        }),
        PersistentVolumeSource::Local { fs_type: None, .. }
            if source.volume.mode == VolumeMode::Filesystem =>
        {
            Box::new(local::Local { source })
        }
        PersistentVolumeSource::Local { .. } if source.volume.mode == VolumeMode::Block => {
            Box::new(local::LocalDevice { source })
        }
        PersistentVolumeSource::Local { .. } => return Err(not_yet(volume, "local with fsType")),
        PersistentVolumeSource::Csi(_) => {
            let csi = csi::Csi::persistent(volumes, pod, &source);
            Box::new(csi.map_err(|e| e.in_persistent(Some(&source.volume.name)))?)
        }
        PersistentVolumeSource::Nfs(of) => Box::new(nfs::Nfs {
            pending: &volumes.pending,
            volume: of.clone(),
            name: source.volume.name.clone(),
            options: source.volume.mount_options.clone(),
            read_only: source.read_only,
        }),
        PersistentVolumeSource::NotYet { kind } => return Err(not_yet(volume, kind)),
    })
}

fn not_yet(volume: &Volume, kind: &str) -> Error {
    let (volume, kind) = (volume.name.clone(), kind.to_owned());
    match alternative_to(&kind) {
        Some(alternative) => Error::GivenUp { volume, kind, alternative },
        None => Error::NotYet { volume, kind },
    }
}

/// The root of a volume that has a directory of its own: the kubelet's path for that plugin.
fn own_root(pod_dir: &Path, plugin: &str, name: &str) -> PathBuf {
    pod_dir.join("volumes").join(plugin).join(name)
}
