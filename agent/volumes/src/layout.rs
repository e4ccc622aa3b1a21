//! The layout of a pod's directory. It is the kubelet's, so that tools that know that layout find everything.

use crate::Volumes;
use berth_core::ids::{Attempt, ContainerId, ContainerName, PodUid, VolumeName};
use std::path::PathBuf;

/// Mode of directories into which only the node looks.
pub(crate) const NODE_DIR: u32 = 0o750;

impl Volumes {
    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.roots.pod_state.join("pods")
    }

    pub(crate) fn pod_dir(&self, uid: &PodUid) -> PathBuf {
        self.roots.pod_dir(uid)
    }

    pub(crate) fn sub_path_dir(
        &self,
        uid: &PodUid,
        volume: &VolumeName,
        container: &ContainerName,
    ) -> PathBuf {
        self.pod_dir(uid).join("volume-subpaths").join(volume.as_str()).join(container.as_str())
    }

    pub(crate) fn container_dir(&self, uid: &PodUid, container: &ContainerName) -> PathBuf {
        self.pod_dir(uid).join("containers").join(container.as_str())
    }

    pub(crate) fn image_volumes_dir(&self, uid: &PodUid, container: &ContainerId) -> PathBuf {
        self.pod_dir(uid).join("image-volumes").join(container.as_str())
    }

    pub(crate) fn termination_path(
        &self,
        uid: &PodUid,
        container: &ContainerName,
        attempt: Attempt,
    ) -> PathBuf {
        self.container_dir(uid, container).join(format!("{TERMINATION_PREFIX}{attempt}"))
    }

    pub(crate) fn hosts_path(&self, uid: &PodUid) -> PathBuf {
        self.pod_dir(uid).join("etc-hosts")
    }

    pub(crate) fn resolv_conf_path(&self, uid: &PodUid) -> PathBuf {
        self.pod_dir(uid).join("resolv.conf")
    }

    pub(crate) fn hostname_path(&self, uid: &PodUid) -> PathBuf {
        self.pod_dir(uid).join("hostname")
    }

    pub(crate) fn shm_path(&self, uid: &PodUid) -> PathBuf {
        self.pod_dir(uid).join("shm")
    }
}

/// Name of the file of a termination message, without the number of the attempt at its end.
pub(crate) const TERMINATION_PREFIX: &str = "termination-";
