//! The volumes of a pod that are asked for their numbers: those of claims, of CSI drivers and of NFS servers. Pure.
//!
//! The paths are the kubelet's. A volume whose claim, driver or object is not known has no numbers.

use super::remote_volumes::{Asked, RemoteVolume};
use berth_core::{
    ids::PodUid,
    model::{Objects, PersistentVolume, PersistentVolumeSource, Pod, Volume, VolumeMode, VolumeSource},
    roots::Roots,
    volume::claimed_volume,
};
use berth_csi_client::{DriverName, GetVolumeStats, VolumeId, registration::Plugins};
use berth_volumes::ephemeral_handle;
use std::path::PathBuf;

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodVolume {
    pub(super) pod: PodUid,
    /// Name in the pod.
    pub(super) name: String,
    /// Namespace and name of its claim.
    pub(super) claim: Option<(String, String)>,
    pub(super) volume: RemoteVolume,
}

/// The pod's volumes that are asked.
pub(super) fn of_pod<'a>(
    roots: &'a Roots,
    pod: &'a Pod,
    objects: &'a Objects,
    plugins: &'a Plugins,
) -> impl Iterator<Item = PodVolume> + 'a {
    let find = Find { roots, pod, objects, plugins };
    pod.volumes.iter().filter_map(move |volume| {
        let (claim, volume_asked) = find.volume(volume)?;
        let claim = claim.map(|name| (pod.key.namespace.to_string(), name));
        Some(PodVolume { pod: pod.uid.clone(), name: volume.name.to_string(), claim, volume: volume_asked })
    })
}

struct Find<'a> {
    roots: &'a Roots,
    pod: &'a Pod,
    objects: &'a Objects,
    plugins: &'a Plugins,
}

impl Find<'_> {
    fn volume(&self, volume: &Volume) -> Option<(Option<String>, RemoteVolume)> {
        match &volume.source {
            VolumeSource::Nfs(_) => {
                let path = self.dir("kubernetes.io~nfs", volume.name.as_str());
                Some((None, RemoteVolume { path, asked: Asked::FileSystem }))
            }
            VolumeSource::Csi(csi) => {
                let path = self.dir("kubernetes.io~csi", volume.name.as_str()).join("mount");
                let handle = ephemeral_handle(self.pod, volume);
                Some((None, self.of_driver(path, &csi.driver, &handle, VolumeMode::Filesystem)?))
            }
            _ => {
                let claimed = claimed_volume(self.pod, volume, self.objects);
                let (claim, bound) = claimed.filter(|(claim, _)| claim.bound)?;
                Some((Some(claim.name.clone()), self.persistent(bound)?))
            }
        }
    }

    fn persistent(&self, volume: &PersistentVolume) -> Option<RemoteVolume> {
        let mounted = |plugin| {
            let path = self.dir(plugin, &volume.name);
            (volume.mode == VolumeMode::Filesystem).then_some(RemoteVolume { path, asked: Asked::FileSystem })
        };
        match &volume.source {
            PersistentVolumeSource::Local { .. } => mounted("kubernetes.io~local-volume"),
            PersistentVolumeSource::Nfs(_) => mounted("kubernetes.io~nfs"),
            PersistentVolumeSource::Csi(csi) => {
                let path = match volume.mode {
                    VolumeMode::Filesystem => self.dir("kubernetes.io~csi", &volume.name).join("mount"),
                    VolumeMode::Block => {
                        let published = "kubernetes.io/csi/volumeDevices/publish";
                        let dir = self.roots.plugins_dir().join(published).join(&volume.name);
                        dir.join(self.pod.uid.as_str())
                    }
                };
                self.of_driver(path, &csi.driver, &csi.handle, volume.mode)
            }
            // The kubelet has no numbers of a path of the node either.
            _ => None,
        }
    }

    /// A driver that has no statistics has mounted a file system all the same.
    fn of_driver(&self, path: PathBuf, driver: &str, handle: &str, mode: VolumeMode) -> Option<RemoteVolume> {
        let registered = self.plugins.drivers.get(&DriverName::parse(driver).ok()?)?;
        let asked = match (registered.capabilities.get_volume_stats, mode) {
            (true, _) => {
                let (volume, volume_path) = (VolumeId::new(handle).ok()?, path.clone());
                let question = GetVolumeStats { volume, volume_path, staging_target_path: None };
                Asked::Driver(registered.driver.clone(), question)
            }
            (false, VolumeMode::Filesystem) => Asked::FileSystem,
            (false, VolumeMode::Block) => return None,
        };
        Some(RemoteVolume { path, asked })
    }

    fn dir(&self, plugin: &str, name: &str) -> PathBuf {
        self.roots.pod_dir(&self.pod.uid).join("volumes").join(plugin).join(name)
    }
}

#[cfg(test)]
mod tests;
