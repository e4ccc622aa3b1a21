//! `emptyDir`: a directory on disk, a tmpfs or huge pages that live as long as their pod.

use super::{VolumePlugin, own_root};
use crate::{Error, huge_pages::page_size, inputs::VolumeInputs, volume_root};
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
                let page = page_size(inputs.pod, size.as_deref())
                    .map_err(|reason| Error::HugePages { volume: inputs.volume.name.clone(), reason })?;
                volume_root::huge_pages(root, inputs.pod, page, self.size_limit)
            }
        }
    }
}
