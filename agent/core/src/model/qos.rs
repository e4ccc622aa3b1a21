//! Quality of service class (`pkg/apis/core/v1/helper/qos`), which decides on a pod's parent cgroup and on
//! the order of OOM kills.

use super::{Origin, Pod, Resources};
use crate::quantity::Quantity;
use serde::{Deserialize, Serialize};

/// `status.qosClass`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QosClass {
    /// Every container limits cpu and memory, and its requests equal its limits.
    Guaranteed,
    /// At least one request or limit is set, and the pod is not Guaranteed.
    Burstable,
    /// No request or limit is set.
    BestEffort,
}

fn positive(r: &crate::model::ResourceList, name: &str) -> Option<i128> {
    r.get(name).map(Quantity::millis).filter(|v| *v > 0).map(i128::from)
}

fn guaranteed(r: &Resources) -> bool {
    ["cpu", "memory"].iter().all(|n| match (positive(&r.requests, n), positive(&r.limits, n)) {
        (Some(request), Some(limit)) => request == limit,
        _ => false,
    })
}

fn asks_nothing(r: &Resources) -> bool {
    ["cpu", "memory"].iter().all(|n| positive(&r.requests, n).is_none() && positive(&r.limits, n).is_none())
}

/// The least priority of the system's priority classes (`scheduling.SystemCriticalPriority`).
pub const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

impl Pod {
    /// Whether less important pods make room for this pod (IsCriticalPod, `pkg/kubelet/types`): static pods,
    /// and pods with a system priority.
    pub fn is_critical(&self) -> bool {
        matches!(self.origin, Origin::StaticFile(_)) || self.priority >= SYSTEM_CRITICAL_PRIORITY
    }

    /// Whether the pod is critical for the node (`IsNodeCriticalPod`).
    pub fn is_node_critical(&self) -> bool {
        self.is_critical() && self.priority_class.as_deref() == Some("system-node-critical")
    }

    /// The pod's class. Resources of the pod itself, where set, decide alone.
    pub fn qos(&self) -> QosClass {
        if let Some(r) = self.resources.as_ref().filter(|r| !asks_nothing(r)) {
            return if guaranteed(r) { QosClass::Guaranteed } else { QosClass::Burstable };
        }
        if self.lasting_containers().all(|c| asks_nothing(&c.resources)) {
            QosClass::BestEffort
        } else if self.lasting_containers().all(|c| guaranteed(&c.resources)) {
            QosClass::Guaranteed
        } else {
            QosClass::Burstable
        }
    }
}
