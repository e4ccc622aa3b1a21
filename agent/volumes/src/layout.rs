//! Where a pod's things lie: the kubelet's own layout, so that tools that know it find them.

use crate::Volumes;
use berth_core::{
    ids::{Attempt, ContainerId, ContainerName, PodUid, VolumeName},
    model::{Volume, VolumeSource},
};
use std::path::PathBuf;

/// Mode of directories that only the node itself enters.
pub(crate) const NODE_DIR: u32 = 0o750;

/// The directory name of a volume's plugin; none where the volume has no directory of its own.
pub(crate) fn plugin(source: &VolumeSource) -> Option<&'static str> {
    match source {
        VolumeSource::EmptyDir { .. } => Some("kubernetes.io~empty-dir"),
        VolumeSource::ConfigMap(_) => Some("kubernetes.io~configmap"),
        VolumeSource::Secret(_) => Some("kubernetes.io~secret"),
        VolumeSource::DownwardApi { .. } => Some("kubernetes.io~downward-api"),
        VolumeSource::Projected { .. } => Some("kubernetes.io~projected"),
        VolumeSource::HostPath { .. } | VolumeSource::NotYet { .. } => None,
    }
}

impl Volumes {
    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.roots.pod_state.join("pods")
    }

    pub(crate) fn pod_dir(&self, uid: &PodUid) -> PathBuf {
        self.roots.pod_dir(uid)
    }

    /// The node's path of a volume's root, whether or not it is there.
    pub(crate) fn volume_dir(&self, uid: &PodUid, volume: &Volume) -> Option<PathBuf> {
        match &volume.source {
            VolumeSource::HostPath { path, .. } => Some(path.clone()),
            source => plugin(source)
                .map(|plugin| self.pod_dir(uid).join("volumes").join(plugin).join(volume.name.as_str())),
        }
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

/// Files of termination messages are this and the attempt's number.
pub(crate) const TERMINATION_PREFIX: &str = "termination-";
