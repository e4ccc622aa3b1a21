//! References of a pod: the objects of its namespace that it names, and what each is used for. Pure.
//!
//! A source that reads objects one by one asks for exactly these. A kind that is not named is never asked for: the API
//! server refuses it to a node.

mod storage;

use crate::{
    ids::{Namespace, VolumeName},
    model::{Container, EnvFromSource, EnvValue, ObjectKind, Pod, ProjectedSource, Volume, VolumeSource},
};
use std::{collections::BTreeSet, path::PathBuf};

pub use storage::{attachment_name, refs_with};

/// A reference of a pod to an object of its namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ref {
    /// The object's kind.
    pub kind: ObjectKind,
    /// The pod's namespace, which is the object's too; but for the Secrets of a persistent volume, which may be of any
    /// namespace, and for objects of the whole cluster.
    pub namespace: Namespace,
    /// The object's name.
    pub name: String,
    /// What the pod uses the object for.
    pub used_for: RefUse,
}

/// The use that a pod has for an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefUse {
    /// Files of a volume that a container mounts.
    Volume,
    /// Environment variables of a container.
    Env,
    /// Credentials for pulling images.
    Pull,
    /// A persistent volume, or one of a CSI driver, that a container mounts.
    Storage,
    /// A token of a ServiceAccount as a file of a volume that a container mounts.
    Token {
        /// The token's audience; `None` is the API server's own.
        audience: Option<String>,
        /// The wanted life of the token in seconds.
        ttl: u64,
        /// The path of the file in the volume.
        path: PathBuf,
    },
}

impl RefUse {
    /// Whether the object itself is used, and no token of it.
    pub fn is_object(&self) -> bool {
        !matches!(self, RefUse::Token { .. })
    }

    /// Whether a volume is made of the object.
    pub fn is_file(&self) -> bool {
        matches!(self, RefUse::Volume | RefUse::Storage | RefUse::Token { .. })
    }
}

/// The references of a pod. Objects of a volume that no container mounts are not among them, because such a volume is
/// not set up.
pub fn refs(pod: &Pod) -> BTreeSet<Ref> {
    let of = |kind, name: &str, used_for| Ref {
        kind,
        namespace: pod.key.namespace.clone(),
        name: name.to_owned(),
        used_for,
    };
    let mut all: BTreeSet<Ref> = pod.all_containers().flat_map(|c| env_refs(pod, c)).collect();
    all.extend(pod.image_pull_secrets.iter().map(|name| of(ObjectKind::Secret, name, RefUse::Pull)));
    for volume in pod.mounted_volumes() {
        match &volume.source {
            VolumeSource::ConfigMap(keys) => {
                all.insert(of(ObjectKind::ConfigMap, &keys.name, RefUse::Volume));
            }
            VolumeSource::Secret(keys) => {
                all.insert(of(ObjectKind::Secret, &keys.name, RefUse::Volume));
            }
            VolumeSource::Projected { sources, .. } => {
                all.extend(sources.iter().filter_map(|source| match source {
                    ProjectedSource::ConfigMap(keys) => {
                        Some(of(ObjectKind::ConfigMap, &keys.name, RefUse::Volume))
                    }
                    ProjectedSource::Secret(keys) => Some(of(ObjectKind::Secret, &keys.name, RefUse::Volume)),
                    ProjectedSource::ServiceAccountToken { audience, expiration_seconds, path } => {
                        let (audience, path) = (audience.clone(), path.clone());
                        let used_for = RefUse::Token { audience, ttl: *expiration_seconds, path };
                        Some(of(ObjectKind::ServiceAccount, &pod.service_account, used_for))
                    }
                    ProjectedSource::DownwardApi(_) | ProjectedSource::NotYet { .. } => None,
                }));
            }
            VolumeSource::PersistentVolumeClaim { .. } | VolumeSource::Ephemeral => {
                let claim = claim_name(pod, volume);
                all.extend(claim.map(|name| of(ObjectKind::PersistentVolumeClaim, &name, RefUse::Storage)));
            }
            VolumeSource::Csi(csi) => {
                all.insert(of(ObjectKind::CsiDriver, &csi.driver, RefUse::Storage));
                let secret = csi.publish_secret.iter();
                all.extend(secret.map(|name| of(ObjectKind::Secret, name, RefUse::Storage)));
            }
            VolumeSource::Nfs(_)
            | VolumeSource::EmptyDir { .. }
            | VolumeSource::HostPath { .. }
            | VolumeSource::DownwardApi { .. }
            | VolumeSource::NotYet { .. } => {}
        }
    }
    all
}

/// The name of the claim of a generic ephemeral volume (`ephemeral.VolumeClaimName`).
pub fn ephemeral_claim(pod: &Pod, volume: &VolumeName) -> String {
    format!("{}-{volume}", pod.key.name)
}

/// The name of the claim of a volume, a generic ephemeral one included; `None` for a volume without a claim.
pub fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    match &volume.source {
        VolumeSource::PersistentVolumeClaim { claim, .. } => Some(claim.clone()),
        VolumeSource::Ephemeral => Some(ephemeral_claim(pod, &volume.name)),
        _ => None,
    }
}

/// The references of a container's environment.
pub fn env_refs<'a>(pod: &'a Pod, container: &'a Container) -> impl Iterator<Item = Ref> + 'a {
    let from = container.env_from.iter().map(|from| match &from.source {
        EnvFromSource::ConfigMap(name) => (ObjectKind::ConfigMap, name),
        EnvFromSource::Secret(name) => (ObjectKind::Secret, name),
    });
    let keys = container.env.iter().filter_map(|var| match &var.value {
        EnvValue::ConfigMapKey(key) => Some((ObjectKind::ConfigMap, &key.name)),
        EnvValue::SecretKey(key) => Some((ObjectKind::Secret, &key.name)),
        EnvValue::Text(_) | EnvValue::Field(_) | EnvValue::Resource(_) => None,
    });
    from.chain(keys).map(|(kind, name)| Ref {
        kind,
        namespace: pod.key.namespace.clone(),
        name: name.clone(),
        used_for: RefUse::Env,
    })
}

#[cfg(test)]
mod tests;
