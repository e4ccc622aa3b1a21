//! Requests and limits.

use super::{Container, Pod};
use crate::{ids::ContainerName, quantity::Quantity};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Amounts by resource name (`cpu`, `memory`, `ephemeral-storage`, `hugepages-2Mi`, extended ones).
pub type ResourceList = BTreeMap<String, Quantity>;

/// `resources` of a container or pod. A request that is missing while the limit is there equals the limit; sources
/// apply that default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Resources {
    /// What is set aside.
    pub requests: ResourceList,
    /// What may not be passed.
    pub limits: ResourceList,
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

/// What containers need together at their worst moment: either the main ones with all sidecars, or an init container
/// with those sidecars that were started before it (`component-helpers/resource`).
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
    /// What its containers need together at their worst moment, see [`peak`].
    pub fn peak(&self, of: impl Fn(&Container) -> i64) -> i64 {
        peak(&self.init_containers, &self.containers, of)
    }

    /// What the pod requests of one resource in all: its containers or its own `resources`, and its overhead. `amount`
    /// says in which unit, for example [`Quantity::millis`].
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
    /// Default: the container that asks (required in volumes).
    pub container: Option<ContainerName>,
    /// For example `limits.cpu`.
    pub resource: String,
    /// The unit of the value, default 1; values are rounded up.
    pub divisor: Option<Quantity>,
}
