//! Quality of service (`pkg/apis/core/v1/helper/qos`): which cgroup a pod lies in and who dies first.

use super::{Pod, Resources};
use crate::quantity::Quantity;
use serde::{Deserialize, Serialize};

/// `status.qosClass`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QosClass {
    /// Every container limits cpu and memory and requests just that.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
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

impl Pod {
    /// The pod's class. Pod-level resources decide alone where they are set.
    pub fn qos(&self) -> QosClass {
        if let Some(r) = self.resources.as_ref().filter(|r| !asks_nothing(r)) {
            return if guaranteed(r) { QosClass::Guaranteed } else { QosClass::Burstable };
        }
        if self.all_containers().all(|c| asks_nothing(&c.resources)) {
            QosClass::BestEffort
        } else if self.all_containers().all(|c| guaranteed(&c.resources)) {
            QosClass::Guaranteed
        } else {
            QosClass::Burstable
        }
    }
}
