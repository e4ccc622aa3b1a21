//! References that follow from others: a claim names its volume, and the volume of a CSI driver names Secrets, an
//! attachment and the driver. Pure.

use super::{Ref, RefUse, refs};
use crate::{
    ids::{Namespace, NodeName},
    model::{
        CsiDriver, CsiVolume, ObjectKind, Objects, PersistentVolumeSource, Pod, SecretRef, VolumeSource,
    },
    value::Value,
};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

/// The references of a pod, with those that follow from the objects of storage that are known. The objects of the
/// whole cluster are named in the namespace of the pod, because a volume has one claim.
pub fn refs_with(pod: &Pod, objects: &Objects) -> BTreeSet<Ref> {
    let mut all = refs(pod);
    for volume in pod.mounted_volumes() {
        match &volume.source {
            VolumeSource::Csi(csi) => {
                if let Value::Known(driver) = objects.csi_driver(&csi.driver) {
                    all.extend(tokens(pod, driver));
                }
            }
            _ => {
                let claim = super::claim_name(pod, volume);
                all.extend(claim.into_iter().flat_map(|claim| of_claim(pod, &claim, objects)));
            }
        }
    }
    all
}

/// The references that follow from a claim, not the claim itself.
fn of_claim(pod: &Pod, claim: &str, objects: &Objects) -> Vec<Ref> {
    let namespace = &pod.key.namespace;
    let Value::Known(claim) = objects.claim(namespace, claim) else { return Vec::new() };
    let Some(name) = claim.volume.as_ref().filter(|_| claim.bound) else { return Vec::new() };
    let of = |kind, name: &str| storage(namespace, kind, name);
    let mut all = vec![of(ObjectKind::PersistentVolume, name)];
    let Value::Known(volume) = objects.persistent_volume(namespace, name) else { return all };
    let PersistentVolumeSource::Csi(csi) = &volume.source else { return all };
    all.push(of(ObjectKind::CsiDriver, &csi.driver));
    let secrets = [&csi.stage_secret, &csi.publish_secret, &csi.expand_secret];
    all.extend(secrets.into_iter().flatten().map(secret));
    match objects.csi_driver(&csi.driver) {
        Value::Known(driver) => {
            if driver.attach_required && !objects.is_listed() {
                all.push(of(ObjectKind::VolumeAttachment, &attachment_name(csi, &pod.node)));
            }
            all.extend(tokens(pod, driver));
        }
        // A control plane attaches the volumes of a driver that has no object.
        Value::Absent if !objects.is_listed() => {
            all.push(of(ObjectKind::VolumeAttachment, &attachment_name(csi, &pod.node)));
        }
        Value::Absent | Value::Unknown(_) => {}
    }
    all
}

fn storage(namespace: &Namespace, kind: ObjectKind, name: &str) -> Ref {
    Ref { kind, namespace: namespace.clone(), name: name.to_owned(), used_for: RefUse::Storage }
}

fn secret(of: &SecretRef) -> Ref {
    storage(&of.namespace, ObjectKind::Secret, &of.name)
}

/// The tokens that a driver asks for.
fn tokens(pod: &Pod, driver: &Arc<CsiDriver>) -> Vec<Ref> {
    let token = |request: &crate::model::TokenRequest| Ref {
        kind: ObjectKind::ServiceAccount,
        namespace: pod.key.namespace.clone(),
        name: pod.service_account.clone(),
        used_for: RefUse::Token {
            audience: Some(request.audience.clone()).filter(|audience| !audience.is_empty()),
            ttl: request.expiration_seconds,
            path: PathBuf::new(),
        },
    };
    driver.token_requests.iter().map(token).collect()
}

/// The name of the VolumeAttachment of a volume on a node (`getAttachmentName`, `pkg/volume/csi/csi_attacher.go`).
pub fn attachment_name(csi: &CsiVolume, node: &NodeName) -> String {
    let mut hash = Sha256::new();
    hash.update(csi.handle.as_bytes());
    hash.update(csi.driver.as_bytes());
    hash.update(node.as_str().as_bytes());
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}
