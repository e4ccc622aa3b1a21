//! The groups that own the files of volumes, by the annotation `pv.beta.kubernetes.io/gid` of persistent volumes: the pod's
//! containers run with them (`GetExtraSupplementalGroupsForPod`, `pkg/kubelet/volumemanager`). Pure.

use super::claimed_volume;
use crate::model::{Objects, Pod};
use std::{collections::BTreeSet, sync::Arc};

/// The pod with the groups of its volumes among its supplemental groups.
pub fn with_volume_groups(pod: &Arc<Pod>, objects: &Objects) -> Arc<Pod> {
    let mut extra: BTreeSet<u32> = pod
        .mounted_volumes()
        .filter_map(|volume| claimed_volume(pod, volume, objects))
        .filter(|(claim, _)| claim.bound)
        .filter_map(|(_, volume)| volume.gid)
        .collect();
    extra.retain(|gid| !pod.security.supplemental_groups.contains(gid));
    let mut pod = Arc::clone(pod);
    if !extra.is_empty() {
        Arc::make_mut(&mut pod).security.supplemental_groups.extend(extra);
    }
    pod
}
