//! The persistent volume behind a volume of a pod. Texts are those of the kubelet
//! (`pkg/kubelet/volumemanager/populator/desired_state_of_world_populator.go`).

use super::claimed_volume;
use crate::{
    model::{
        AccessMode, CsiDriver, NodeInfo, ObjectKind, Objects, PersistentVolume, PersistentVolumeClaim,
        PersistentVolumeSource, Pod, Volume, VolumeAttachment, VolumeMode, VolumeSource,
    },
    quantity::Quantity,
    refs::{attachment_name, ephemeral_claim},
    value::{Value, Why},
};
use std::sync::Arc;

/// What stands behind a volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// The pod's specification says all.
    Own,
    /// A persistent volume.
    Persistent(Box<PersistentSource>),
}

/// A persistent volume that a pod may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersistentSource {
    /// The volume.
    pub volume: Arc<PersistentVolume>,
    /// The claim that is bound to it.
    pub claim: Arc<PersistentVolumeClaim>,
    /// Whether the pod may only read it.
    pub read_only: bool,
    /// The CSI driver's object, if there is one.
    pub driver: Option<Arc<CsiDriver>>,
    /// The attachment to this node; `None` where the driver needs none.
    pub attachment: Option<Arc<VolumeAttachment>>,
}

impl PersistentSource {
    /// Whether one pod alone may have the volume: `ReadWriteOncePod` is its only access mode
    /// (`pkg/kubelet/volumemanager/cache/actual_state_of_world.go`).
    pub fn is_for_one_pod(&self) -> bool {
        self.volume.access_modes == [AccessMode::ReadWriteOncePod]
    }
}

/// Why a volume of a pod cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// An object is not known yet, or is refused to the node.
    #[error("{kind} {name:?} is {why}")]
    Unknown {
        /// The object's kind.
        kind: ObjectKind,
        /// Its name.
        name: String,
        /// Why it is unknown.
        why: Why,
    },
    /// The claim, or the volume bound to it, does not serve the pod.
    #[error("error processing PVC {claim}: {reason}")]
    Claim {
        /// Namespace and name of the claim.
        claim: String,
        /// What is wrong.
        reason: String,
    },
    /// The volume is on other nodes.
    #[error("MountVolume.NodeAffinity check failed for volume {volume:?} : no matching NodeSelectorTerms")]
    OtherNode {
        /// The persistent volume.
        volume: String,
    },
    /// The volume is not attached to the node yet.
    #[error("{reason}")]
    NotAttached {
        /// The persistent volume.
        volume: String,
        /// What is missing.
        reason: String,
    },
}

/// What stands behind a volume of a pod on this node.
///
/// # Errors
///
/// The claim or its volume cannot be used, or is unknown.
pub fn resolve(
    pod: &Pod,
    volume: &Volume,
    objects: &Objects,
    node: &NodeInfo,
) -> Result<Resolved, ResolveError> {
    let (name, read_only) = match &volume.source {
        VolumeSource::PersistentVolumeClaim { claim, read_only } => (claim.clone(), *read_only),
        VolumeSource::Ephemeral => (ephemeral_claim(pod, &volume.name), false),
        _ => return Ok(Resolved::Own),
    };
    let namespace = &pod.key.namespace;
    let refuse = |reason: String| ResolveError::Claim { claim: format!("{namespace}/{name}"), reason };
    let claim = known(ObjectKind::PersistentVolumeClaim, &name, objects.claim(namespace, &name))?
        .ok_or_else(|| {
            refuse(format!("failed to fetch PVC from API server: persistentvolumeclaims {name:?} not found"))
        })?;
    if volume.source == VolumeSource::Ephemeral && claim.controller.as_deref() != Some(pod.uid.as_str()) {
        return Err(refuse(format!(
            "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
            pod.key.name
        )));
    }
    if claim.deleting {
        return Err(refuse("PVC is being deleted".to_owned()));
    }
    let bound = claim.volume.as_ref().filter(|_| claim.bound);
    let bound = bound.ok_or_else(|| {
        refuse(match &claim.pending {
            Some(why) => format!("PVC is not bound: {why}"),
            None => "PVC is not bound".to_owned(),
        })
    })?;
    let kind = ObjectKind::PersistentVolume;
    let found = known(kind, bound, objects.persistent_volume(namespace, bound))?.ok_or_else(|| {
        refuse(format!("failed to fetch PV {bound:?} from API server: persistentvolumes {bound:?} not found"))
    })?;
    check_claim_ref(&found, &claim).map_err(refuse)?;
    check_mode(pod, volume, &claim).map_err(refuse)?;
    if !found.is_on_node(node.name.as_str(), &node.labels) {
        return Err(ResolveError::OtherNode { volume: found.name.clone() });
    }
    let (driver, attachment) = attached(pod, &found, objects)?;
    Ok(Resolved::Persistent(Box::new(PersistentSource {
        volume: found,
        claim,
        read_only,
        driver,
        attachment,
    })))
}

/// Whether a driver wants one of the pod's volumes published again from time to time (`requiresRepublish`).
pub fn wants_republish(pod: &Pod, objects: &Objects) -> bool {
    let wants = |driver: &str| match objects.csi_driver(driver) {
        Value::Known(driver) => driver.requires_republish,
        Value::Absent | Value::Unknown(_) => false,
    };
    pod.mounted_volumes().any(|volume| match &volume.source {
        VolumeSource::Csi(csi) => wants(&csi.driver),
        _ => claimed_volume(pod, volume, objects).is_some_and(|(_, volume)| match &volume.source {
            PersistentVolumeSource::Csi(csi) => wants(&csi.driver),
            _ => false,
        }),
    })
}

/// Whether one of the pod's volumes has grown beyond what its claim tells.
pub fn wants_expansion(pod: &Pod, objects: &Objects) -> bool {
    let bytes = |size: &Option<Quantity>| size.as_ref().map_or(0, Quantity::units);
    pod.mounted_volumes().filter_map(|volume| claimed_volume(pod, volume, objects)).any(|(claim, volume)| {
        claim.bound
            && matches!(volume.source, PersistentVolumeSource::Csi(_))
            && bytes(&volume.capacity) > bytes(&claim.capacity)
    })
}

fn known<T>(kind: ObjectKind, name: &str, value: Value<&Arc<T>>) -> Result<Option<Arc<T>>, ResolveError> {
    match value {
        Value::Known(object) => Ok(Some(Arc::clone(object))),
        Value::Absent => Ok(None),
        Value::Unknown(why) => Err(ResolveError::Unknown { kind, name: name.to_owned(), why }),
    }
}

fn check_claim_ref(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), String> {
    match &volume.claim {
        None => Err(format!(
            "found PV object {:?} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim",
            volume.name
        )),
        Some(of) if of.uid == claim.uid => Ok(()),
        Some(of) => Err(format!(
            "found PV object {:?} but its pv.Spec.ClaimRef.UID {:?} does not point to claim.UID {:?}",
            volume.name, of.uid, claim.uid
        )),
    }
}

/// A claim of mode Block is for `volumeDevices`, and any other for `volumeMounts`.
fn check_mode(pod: &Pod, volume: &Volume, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let mounts = pod.all_containers().any(|c| c.mounts.iter().any(|m| m.volume == volume.name));
    let devices = pod.all_containers().any(|c| c.devices.iter().any(|d| d.volume == volume.name));
    match claim.mode {
        VolumeMode::Block if mounts => {
            Err(format!("volume {} has volumeMode Block, but is specified in volumeMounts", volume.name))
        }
        VolumeMode::Filesystem if devices => Err(format!(
            "volume {} has volumeMode Filesystem, but is specified in volumeDevices",
            volume.name
        )),
        VolumeMode::Block | VolumeMode::Filesystem => Ok(()),
    }
}

type Attached = (Option<Arc<CsiDriver>>, Option<Arc<VolumeAttachment>>);

/// The driver's object and the attachment of a volume of a CSI driver.
fn attached(pod: &Pod, volume: &PersistentVolume, objects: &Objects) -> Result<Attached, ResolveError> {
    let PersistentVolumeSource::Csi(csi) = &volume.source else { return Ok((None, None)) };
    let driver = known(ObjectKind::CsiDriver, &csi.driver, objects.csi_driver(&csi.driver))?;
    // A node without a control plane has nobody who attaches.
    let needed = !objects.is_listed() && driver.as_ref().is_none_or(|driver| driver.attach_required);
    if !needed {
        return Ok((driver, None));
    }
    let name = attachment_name(csi, &pod.node);
    let not_yet = |reason: String| ResolveError::NotAttached { volume: volume.name.clone(), reason };
    let found = objects.attachment(&pod.key.namespace, &name);
    let found = known(ObjectKind::VolumeAttachment, &name, found)?;
    match found {
        Some(found) if found.attached && !found.deleting => Ok((driver, Some(found))),
        Some(found) if found.deleting => Err(not_yet(format!("volume attachment {name} is being deleted"))),
        Some(found) => Err(not_yet(match &found.error {
            Some(error) => error.clone(),
            None => format!("volume attachment is not attached yet: {name}"),
        })),
        None => Err(not_yet(format!("volume attachment {name} does not exist yet"))),
    }
}

#[cfg(test)]
mod tests;
