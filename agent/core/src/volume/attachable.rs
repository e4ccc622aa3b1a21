//! The attachable volumes of a pod, by the names that a Node's status has for them.

use super::claimed_volume;
use crate::{
    model::{Objects, PersistentVolumeSource, Pod},
    value::Value,
};
use std::collections::BTreeSet;

/// The name of a CSI driver's volume in `status.volumesInUse` and `status.volumesAttached` of a Node.
pub fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The volumes of a pod that a control plane attaches to the node, as far as the pod's objects tell.
pub fn attachable(pod: &Pod, objects: &Objects) -> BTreeSet<String> {
    let name = |volume| {
        let (_, volume) = claimed_volume(pod, volume, objects)?;
        let PersistentVolumeSource::Csi(csi) = &volume.source else { return None };
        // Without its object a driver's volumes are attached.
        let attached = match objects.csi_driver(&csi.driver) {
            Value::Known(driver) => driver.attach_required,
            Value::Absent | Value::Unknown(_) => true,
        };
        attached.then(|| unique_name(&csi.driver, &csi.handle))
    };
    pod.mounted_volumes().filter_map(name).collect()
}
