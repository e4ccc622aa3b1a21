//! The groups that own the files of volumes, by the annotation `pv.beta.kubernetes.io/gid` of persistent volumes: the pod's
//! containers run with them (`GetExtraSupplementalGroupsForPod`, `pkg/kubelet/volumemanager`). Pure.

use crate::{
    model::{Objects, Pod, VolumeSource},
    refs::ephemeral_claim,
    value::Value,
};
use std::{collections::BTreeSet, sync::Arc};

/// The pod with the groups of its volumes among its supplemental groups.
pub fn with_volume_groups(pod: &Arc<Pod>, objects: &Objects) -> Arc<Pod> {
    let mut extra: BTreeSet<u32> = pod
        .mounted_volumes()
        .filter_map(|volume| group(pod, objects, &volume.source, &volume.name))
        .collect();
    extra.retain(|gid| !pod.security.supplemental_groups.contains(gid));
    let mut pod = Arc::clone(pod);
    if !extra.is_empty() {
        Arc::make_mut(&mut pod).security.supplemental_groups.extend(extra);
    }
    pod
}

fn group(pod: &Pod, objects: &Objects, source: &VolumeSource, name: &crate::ids::VolumeName) -> Option<u32> {
    let claim = match source {
        VolumeSource::PersistentVolumeClaim { claim, .. } => claim.clone(),
        VolumeSource::Ephemeral => ephemeral_claim(pod, name),
        _ => return None,
    };
    let namespace = &pod.key.namespace;
    let Value::Known(claim) = objects.claim(namespace, &claim) else { return None };
    let bound = claim.volume.as_ref().filter(|_| claim.bound)?;
    let Value::Known(volume) = objects.persistent_volume(namespace, bound) else { return None };
    volume.gid
}
