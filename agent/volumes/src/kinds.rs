//! The kinds of volumes, each behind [`VolumePlugin`], as the kubelet has a plugin for each kind.
//!
//! A new kind is a file here and an arm of [`plugin_of`]. Taking a pod down needs no plugin: everything below the pod's
//! directory is unmounted and removed alike.

mod empty_dir;
mod host_path;
mod payload;

use crate::{Error, inputs::VolumeInputs, os, payload::VolumeFiles};
use berth_core::{
    ids::VolumeName,
    model::{Volume, VolumeSource},
};
use rustix::fd::OwnedFd;
use std::{
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

/// The plugin of a volume; an error for a kind that is not supported yet.
pub(crate) fn plugin_of(volume: &Volume) -> Result<Box<dyn VolumePlugin + '_>, Error> {
    Ok(match &volume.source {
        VolumeSource::EmptyDir { medium, size_limit } => {
            Box::new(empty_dir::EmptyDir { medium, size_limit: size_limit.as_ref() })
        }
        VolumeSource::HostPath { path, kind } => Box::new(host_path::HostPath { path, kind: *kind }),
        VolumeSource::ConfigMap(keys) => Box::new(payload::ConfigMap(keys)),
        VolumeSource::Secret(keys) => Box::new(payload::Secret(keys)),
        VolumeSource::DownwardApi { items, default_mode } => {
            Box::new(payload::DownwardApi { items, default_mode: *default_mode })
        }
        VolumeSource::Projected { sources, default_mode } => {
            Box::new(payload::Projected { sources, default_mode: *default_mode })
        }
        VolumeSource::NotYet { kind } => {
            return Err(Error::NotYet { volume: volume.name.clone(), kind: kind.clone() });
        }
    })
}

/// The root of a volume that has a directory of its own: the kubelet's path for that plugin.
fn own_root(pod_dir: &Path, plugin: &str, name: &VolumeName) -> PathBuf {
    pod_dir.join("volumes").join(plugin).join(name.as_str())
}
