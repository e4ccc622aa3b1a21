//! The order in which pending resizes are tried (`sortPendingResizes`, `pkg/kubelet/allocation`).

use crate::{
    model::{Pod, QosClass},
    resources::pod_requests,
    time::Wall,
};
use std::cmp::Reverse;

/// Sorts pods whose resize is pending: first those that request no more than now, then by priority, then guaranteed pods
/// before others, then those that wait longest. Each is the wanted pod, the allocated one, and since when it waits.
pub fn by_priority<K>(pods: &mut [(K, &Pod, &Pod, Option<Wall>)]) {
    pods.sort_by_key(|(_, wanted, allocated, since)| {
        let guaranteed = wanted.qos() == QosClass::Guaranteed;
        (increases(wanted, allocated), Reverse(wanted.priority), !guaranteed, since.is_none(), *since)
    });
}

fn increases(wanted: &Pod, allocated: &Pod) -> bool {
    let (wanted, now) = (pod_requests(wanted), pod_requests(allocated));
    wanted.cpu_millis > now.cpu_millis || wanted.memory_bytes > now.memory_bytes
}
