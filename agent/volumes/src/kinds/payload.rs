//! Volumes whose files the node writes: ConfigMap, Secret, downward API and projected. They lie on a tmpfs, but for
//! ConfigMaps, whose content is not secret.

use super::{VolumePlugin, own_root};
use crate::{
    Error, atomic,
    inputs::VolumeInputs,
    nested_mounts,
    payload::{Collector, VolumeFiles},
    volume_root,
};
use berth_core::{
    ids::VolumeName,
    model::{DownwardItem, KeysVolume, ObjectKind, ProjectedSource, Volume},
};
use std::path::{Path, PathBuf};

/// A `configMap` volume.
pub(super) struct ConfigMap<'a>(pub(super) &'a KeysVolume);

/// A `secret` volume.
pub(super) struct Secret<'a>(pub(super) &'a KeysVolume);

/// A `downwardAPI` volume.
pub(super) struct DownwardApi<'a> {
    pub(super) items: &'a [DownwardItem],
    pub(super) default_mode: u32,
}

/// A `projected` volume.
pub(super) struct Projected<'a> {
    pub(super) sources: &'a [ProjectedSource],
    pub(super) default_mode: u32,
}

/// Sets up the root by `make_root` and writes the files into it.
fn set_up(
    plugin: &dyn VolumePlugin,
    root: &Path,
    inputs: &VolumeInputs<'_>,
    make_root: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    // The files come first: a pod that waits for its ConfigMap leaves no empty volume behind.
    let files = plugin.files(inputs)?;
    make_root()?;
    if let Some(files) = files {
        nested_mounts::make_mount_points(root, inputs.pod, inputs.volume)?;
        atomic::write_files(root, &files, inputs.pod.security.fs_group)?;
    }
    Ok(())
}

fn set_up_in_memory(plugin: &dyn VolumePlugin, root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error> {
    set_up(plugin, root, inputs, || volume_root::tmpfs(root, inputs.pod, inputs.facts, None))
}

impl VolumePlugin for ConfigMap<'_> {
    fn root(&self, pod_dir: &Path, name: &VolumeName) -> PathBuf {
        own_root(pod_dir, "kubernetes.io~configmap", name.as_str())
    }

    fn set_up(&self, root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        set_up(self, root, inputs, || volume_root::on_disk(root, inputs.pod.security.fs_group))
    }

    fn files(&self, inputs: &VolumeInputs<'_>) -> Result<Option<VolumeFiles>, Error> {
        Collector::collect(inputs, |files| files.keys(ObjectKind::ConfigMap, self.0, self.0.default_mode))
    }

    fn read_only(&self) -> bool {
        true
    }
}

impl VolumePlugin for Secret<'_> {
    fn root(&self, pod_dir: &Path, name: &VolumeName) -> PathBuf {
        own_root(pod_dir, "kubernetes.io~secret", name.as_str())
    }

    fn set_up(&self, root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        set_up_in_memory(self, root, inputs)
    }

    fn files(&self, inputs: &VolumeInputs<'_>) -> Result<Option<VolumeFiles>, Error> {
        Collector::collect(inputs, |files| files.keys(ObjectKind::Secret, self.0, self.0.default_mode))
    }

    fn read_only(&self) -> bool {
        true
    }
}

impl VolumePlugin for DownwardApi<'_> {
    fn root(&self, pod_dir: &Path, name: &VolumeName) -> PathBuf {
        own_root(pod_dir, "kubernetes.io~downward-api", name.as_str())
    }

    fn set_up(&self, root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        set_up_in_memory(self, root, inputs)
    }

    fn files(&self, inputs: &VolumeInputs<'_>) -> Result<Option<VolumeFiles>, Error> {
        Collector::collect(inputs, |files| files.downward(self.items, self.default_mode))
    }

    fn read_only(&self) -> bool {
        true
    }
}

fn not_yet(volume: &Volume, kind: &str) -> Error {
    Error::NotYet { volume: volume.name.clone(), kind: format!("projected {kind}") }
}

impl VolumePlugin for Projected<'_> {
    fn root(&self, pod_dir: &Path, name: &VolumeName) -> PathBuf {
        own_root(pod_dir, "kubernetes.io~projected", name.as_str())
    }

    fn set_up(&self, root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        set_up_in_memory(self, root, inputs)
    }

    fn files(&self, inputs: &VolumeInputs<'_>) -> Result<Option<VolumeFiles>, Error> {
        let mode = self.default_mode;
        Collector::collect(inputs, |files| {
            self.sources.iter().try_for_each(|source| match source {
                ProjectedSource::ConfigMap(keys) => files.keys(ObjectKind::ConfigMap, keys, mode),
                ProjectedSource::Secret(keys) => files.keys(ObjectKind::Secret, keys, mode),
                ProjectedSource::DownwardApi(items) => files.downward(items, mode),
                ProjectedSource::ServiceAccountToken { audience, expiration_seconds, path } => {
                    files.token(path, audience.as_deref(), *expiration_seconds, mode)
                }
                ProjectedSource::NotYet { kind } => Err(not_yet(inputs.volume, kind)),
            })
        })
    }

    fn read_only(&self) -> bool {
        true
    }
}
