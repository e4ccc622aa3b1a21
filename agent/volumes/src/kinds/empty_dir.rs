//! `emptyDir`: a directory on disk or a tmpfs that lives as long as its pod.

use super::{VolumePlugin, own_root};
use crate::{Error, inputs::VolumeInputs, volume_root};
use berth_core::{ids::VolumeName, model::Medium, quantity::Quantity};
use std::path::{Path, PathBuf};

/// An `emptyDir` volume.
pub(super) struct EmptyDir<'a> {
    pub(super) medium: &'a Medium,
    pub(super) size_limit: Option<&'a Quantity>,
}

impl VolumePlugin for EmptyDir<'_> {
    fn root(&self, pod_dir: &Path, name: &VolumeName) -> PathBuf {
        own_root(pod_dir, "kubernetes.io~empty-dir", name.as_str())
    }

    fn set_up(&self, root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        match self.medium {
            Medium::Disk => volume_root::on_disk(root, inputs.pod.security.fs_group),
            Medium::Memory => volume_root::tmpfs(root, inputs.pod, inputs.facts, self.size_limit),
            Medium::HugePages(size) => {
                let size = size.as_deref().map(|s| format!("-{s}")).unwrap_or_default();
                let kind = format!("emptyDir with medium HugePages{size}");
                Err(Error::NotYet { volume: inputs.volume.name.clone(), kind })
            }
        }
    }
}
