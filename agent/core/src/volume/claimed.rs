//! The persistent volume behind a volume of a pod, as far as the pod's objects tell. Pure.

use crate::{
    model::{Objects, PersistentVolume, PersistentVolumeClaim, Pod, Volume},
    refs::claim_name,
    value::Value,
};
use std::sync::Arc;

/// The claim of a volume, which need not be bound, and the persistent volume that it names; `None` where the volume has no
/// claim, or one of them is not known.
pub fn claimed_volume<'o>(
    pod: &Pod,
    volume: &Volume,
    objects: &'o Objects,
) -> Option<(&'o Arc<PersistentVolumeClaim>, &'o Arc<PersistentVolume>)> {
    let namespace = &pod.key.namespace;
    let Value::Known(claim) = objects.claim(namespace, &claim_name(pod, volume)?) else { return None };
    match objects.persistent_volume(namespace, claim.volume.as_ref()?) {
        Value::Known(volume) => Some((claim, volume)),
        Value::Absent | Value::Unknown(_) => None,
    }
}
