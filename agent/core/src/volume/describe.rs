//! A volume of a pod in a few words, for people.

use crate::{
    model::{CsiVolume, NfsVolume, Objects, PersistentVolumeSource, Pod, Volume, VolumeMode, VolumeSource},
    refs::ephemeral_claim,
    value::Value,
};
use std::path::PathBuf;

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeDescription {
    /// The kind of the data's place: `nfs`, `csi`, `emptyDir`. Of a claim that is not bound: `unbound`.
    pub kind: &'static str,
    /// Where the data is; empty where the kind says all.
    pub source: String,
    /// The claim and the volume that is bound to it.
    pub claim: Option<(String, Option<String>)>,
    /// The root of the volume on the node, from the pod's directory on or from `/`. `None` for a block device.
    pub root: Option<PathBuf>,
}

/// What a volume of a pod is, as far as the objects tell.
pub fn describe(pod: &Pod, volume: &Volume, objects: &Objects) -> VolumeDescription {
    let name = volume.name.as_str();
    let own = |kind, source: String, plugin: &str| VolumeDescription {
        kind,
        source,
        claim: None,
        root: Some(directory(plugin, name)),
    };
    match &volume.source {
        VolumeSource::EmptyDir { .. } => own("emptyDir", String::new(), "empty-dir"),
        VolumeSource::HostPath { path, .. } => VolumeDescription {
            root: Some(path.clone()),
            ..own("hostPath", path.display().to_string(), "host-path")
        },
        VolumeSource::ConfigMap(keys) => own("configMap", keys.name.clone(), "configmap"),
        VolumeSource::Secret(keys) => own("secret", keys.name.clone(), "secret"),
        VolumeSource::DownwardApi { .. } => own("downwardAPI", String::new(), "downward-api"),
        VolumeSource::Projected { .. } => own("projected", String::new(), "projected"),
        VolumeSource::Nfs(nfs) => own("nfs", place(nfs), "nfs"),
        VolumeSource::Csi(csi) => VolumeDescription {
            root: Some(directory("csi", name).join("mount")),
            ..own("csi", csi.driver.clone(), "csi")
        },
        VolumeSource::PersistentVolumeClaim { claim, .. } => claimed(pod, claim.clone(), objects),
        VolumeSource::Ephemeral => claimed(pod, ephemeral_claim(pod, &volume.name), objects),
        VolumeSource::NotYet { kind } => {
            VolumeDescription { root: None, ..own("not supported", kind.clone(), "") }
        }
    }
}

fn directory(plugin: &str, name: &str) -> PathBuf {
    PathBuf::from("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
}

fn place(nfs: &NfsVolume) -> String {
    format!("{}:{}", nfs.server, nfs.path)
}

fn claimed(pod: &Pod, claim: String, objects: &Objects) -> VolumeDescription {
    let namespace = &pod.key.namespace;
    let bound = match objects.claim(namespace, &claim) {
        Value::Known(found) if found.bound => found.volume.clone(),
        _ => None,
    };
    let found = bound.as_ref().map(|name| objects.persistent_volume(namespace, name));
    let Some(Value::Known(volume)) = found else {
        return VolumeDescription {
            kind: "unbound",
            source: String::new(),
            claim: Some((claim, bound)),
            root: None,
        };
    };
    let at = |plugin| Some(directory(plugin, &volume.name));
    let (kind, source, root) = match &volume.source {
        PersistentVolumeSource::Nfs(nfs) => ("nfs", place(nfs), at("nfs")),
        PersistentVolumeSource::Local { path, .. } => {
            ("local", path.display().to_string(), at("local-volume"))
        }
        PersistentVolumeSource::HostPath { path, .. } => {
            ("hostPath", path.display().to_string(), Some(path.clone()))
        }
        PersistentVolumeSource::Csi(CsiVolume { driver, handle, .. }) => {
            ("csi", format!("{driver} {handle}"), at("csi").map(|dir| dir.join("mount")))
        }
        PersistentVolumeSource::NotYet { kind } => ("not supported", kind.clone(), None),
    };
    let root = root.filter(|_| volume.mode == VolumeMode::Filesystem);
    VolumeDescription { kind, source, claim: Some((claim, bound)), root }
}
