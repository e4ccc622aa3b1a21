//! Requests and limits.

use super::{Container, Pod};
use crate::{ids::ContainerName, quantity::Quantity};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Amounts by resource name (`cpu`, `memory`, `ephemeral-storage`, `hugepages-2Mi`, extended ones).
pub type ResourceList = BTreeMap<String, Quantity>;

/// `resources` of a container or pod. A missing request equals the limit, if there is one; the source applies
/// that default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Resources {
    /// The amounts that the node reserves.
    pub requests: ResourceList,
    /// The amounts that may not be exceeded.
    pub limits: ResourceList,
}

/// `resizePolicy` of a container: whether a change of a resource restarts it. Neither does by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ResizePolicy {
    /// CPU: `RestartContainer`.
    pub cpu_restarts: bool,
    /// Memory: `RestartContainer`.
    pub memory_restarts: bool,
}

impl Resources {
    /// Requested CPU in thousandths of a core, 0 where none is requested.
    pub fn cpu_request_millis(&self) -> i64 {
        self.requests.get("cpu").map_or(0, Quantity::millis)
    }
    /// CPU limit in thousandths of a core; `None` and 0 mean no limit.
    pub fn cpu_limit_millis(&self) -> Option<i64> {
        self.limits.get("cpu").map(Quantity::millis).filter(|v| *v > 0)
    }
    /// Requested memory in bytes, 0 where none is requested.
    pub fn memory_request_bytes(&self) -> i64 {
        self.requests.get("memory").map_or(0, Quantity::units)
    }
    /// Memory limit in bytes; `None` and 0 mean no limit.
    pub fn memory_limit_bytes(&self) -> Option<i64> {
        self.limits.get("memory").map(Quantity::units).filter(|v| *v > 0)
    }
}

/// The amount that containers need together at the worst moment: the main containers with all sidecars, or an
/// init container with the sidecars started before it (`component-helpers/resource`).
pub fn peak(init_containers: &[Container], containers: &[Container], of: impl Fn(&Container) -> i64) -> i64 {
    let main = containers.iter().fold(0_i64, |sum, c| sum.saturating_add(of(c)));
    let (mut sidecars, mut peak) = (0_i64, 0_i64);
    for c in init_containers {
        let moment = sidecars.saturating_add(of(c));
        if c.sidecar {
            sidecars = moment;
        }
        peak = peak.max(moment);
    }
    main.saturating_add(sidecars).max(peak)
}

impl Pod {
    /// The amount that the pod's containers need together at the worst moment, see [`peak`].
    pub fn peak(&self, of: impl Fn(&Container) -> i64) -> i64 {
        peak(&self.init_containers, &self.containers, of)
    }

    /// The pod's total request of one resource: of its containers, or of its own `resources`, plus its
    /// overhead. `amount` gives the unit, for example [`Quantity::millis`].
    pub fn request(&self, resource: &str, amount: impl Fn(&Quantity) -> i64) -> i64 {
        let of = |list: &ResourceList| list.get(resource).map(|q| amount(q).max(0));
        let own = self.resources.as_ref().and_then(|r| of(&r.requests));
        let sum = own.unwrap_or_else(|| self.peak(|c| of(&c.resources.requests).unwrap_or(0)));
        sum.saturating_add(self.overhead.as_ref().and_then(of).unwrap_or(0))
    }
}

/// `resourceFieldRef` of the downward API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceFieldRef {
    /// The container; `None` means the container that holds the reference. Volumes must name one.
    pub container: Option<ContainerName>,
    /// The resource, for example `limits.cpu`.
    pub resource: String,
    /// The unit of the value, default 1; values are rounded up.
    pub divisor: Option<Quantity>,
}
