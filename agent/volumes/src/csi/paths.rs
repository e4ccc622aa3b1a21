//! Where a volume of a driver is. The paths are the kubelet's (`pkg/volume/csi`), because drivers and their manifests
//! name them.

use berth_core::{ids::PodUid, model::VolumeMode, roots::Roots};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};

/// The name of the record beside a volume.
const RECORD: &str = "vol_data.json";

/// The paths of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CsiPaths {
    /// The volume's identity on this node, as text without separators.
    pub(super) key: String,
    /// The path for stage and unstage.
    pub(super) staging: PathBuf,
    /// The directory with the record of the staging.
    pub(super) staging_record_dir: PathBuf,
    /// The directory with what this boot knows of the volume.
    pub(super) marks: PathBuf,
    mode: VolumeMode,
    plugin_dir: PathBuf,
    /// The name of the persistent volume, or of the pod's volume.
    name: String,
}

impl CsiPaths {
    pub(crate) fn new(roots: &Roots, driver: &str, handle: &str, mode: VolumeMode, name: &str) -> CsiPaths {
        let plugin_dir = plugin_dir(roots);
        let (staging_record_dir, staging) = match mode {
            VolumeMode::Filesystem => {
                let dir = plugin_dir.join(driver).join(hex(&[handle]));
                (dir.clone(), dir.join("globalmount"))
            }
            VolumeMode::Block => {
                let devices = plugin_dir.join("volumeDevices");
                (devices.join(name).join("data"), devices.join("staging").join(name))
            }
        };
        let key = hex(&[driver, "\0", handle]);
        let marks = roots.runtime_state.join("volumes").join(&key);
        CsiPaths { key, staging, staging_record_dir, marks, mode, plugin_dir, name: name.to_owned() }
    }

    /// The record of the staging.
    pub(super) fn staging_record(&self) -> PathBuf {
        self.staging_record_dir.join(RECORD)
    }

    /// The directory of the volume in the pod's directory.
    pub(crate) fn pod_volume_dir(&self, pod_dir: &Path) -> PathBuf {
        match self.mode {
            VolumeMode::Filesystem => volumes_dir(pod_dir).join(&self.name),
            VolumeMode::Block => devices_dir(pod_dir).join(&self.name),
        }
    }

    /// The path for publish and unpublish.
    pub(crate) fn target(&self, pod_dir: &Path, pod: &PodUid) -> PathBuf {
        match self.mode {
            VolumeMode::Filesystem => self.pod_volume_dir(pod_dir).join("mount"),
            VolumeMode::Block => {
                self.plugin_dir.join("volumeDevices/publish").join(&self.name).join(pod.as_str())
            }
        }
    }

    /// The record of the publishing for a pod. That of a device is a directory of its own beside the link to it, because
    /// the kubelet keeps one record for all pods there.
    pub(super) fn pod_record(&self, pod_dir: &Path) -> PathBuf {
        match self.mode {
            VolumeMode::Filesystem => self.pod_volume_dir(pod_dir).join(RECORD),
            VolumeMode::Block => pod_dir.join("volumeDevices").join(DEVICE_RECORDS).join(&self.name),
        }
    }
}

/// The directory of the records of a pod's devices.
pub(super) const DEVICE_RECORDS: &str = "berth~csi";

/// The directory of all CSI drivers.
pub(super) fn plugin_dir(roots: &Roots) -> PathBuf {
    roots.pod_state.join("plugins/kubernetes.io/csi")
}

/// The directory of a pod's volumes of CSI drivers.
pub(super) fn volumes_dir(pod_dir: &Path) -> PathBuf {
    pod_dir.join("volumes/kubernetes.io~csi")
}

/// The directory of a pod's block devices of CSI drivers.
pub(super) fn devices_dir(pod_dir: &Path) -> PathBuf {
    pod_dir.join("volumeDevices/kubernetes.io~csi")
}

/// The SHA-256 of texts.
pub(super) fn hex(texts: &[&str]) -> String {
    let mut hash = Sha256::new();
    texts.iter().for_each(|text| hash.update(text.as_bytes()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
