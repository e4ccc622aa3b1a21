//! A container's limits as the kubelet hands them to the runtime (`pkg/kubelet/kuberuntime`, `pkg/kubelet/qos`).

use super::HostFacts;
use berth_core::{
    model::{Container, Origin, Pod, QosClass, Resources},
    quantity::Quantity,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `cpu.shares` of a container that requests nothing, and the kernel's least.
pub const MIN_SHARES: u64 = 2;
/// The kernel's most.
pub const MAX_SHARES: u64 = 262_144;
/// The CFS period, in microseconds.
pub const CPU_PERIOD_US: u64 = 100_000;
/// The kernel takes no smaller quota, in microseconds.
pub const MIN_QUOTA_US: i64 = 1_000;

const GUARANTEED_OOM: i32 = -997;
const BEST_EFFORT_OOM: i32 = 1000;
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What the container's cgroup is set to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerResources {
    /// `cpu.shares`; runc makes the v2 weight of it.
    pub cpu_shares: u64,
    /// Microseconds of CPU per period; `None` means no limit.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: u64,
    /// Bytes; `None` means no limit.
    pub memory_limit: Option<i64>,
    /// Bytes of memory and swap together; equals the limit, so that nothing swaps.
    pub memory_swap: Option<i64>,
    /// Bytes by page size (`2MB`); every size that the node has, 0 where not asked for.
    pub hugepages: Vec<(String, i64)>,
    /// Files of cgroup v2 set as they are.
    pub unified: BTreeMap<String, String>,
}

fn shares(millis: i64) -> u64 {
    let shares = millis.saturating_mul(1024) / 1000;
    u64::try_from(shares).unwrap_or(0).clamp(MIN_SHARES, MAX_SHARES)
}

fn quota(millis: i64) -> i64 {
    (millis.saturating_mul(CPU_PERIOD_US as i64) / 1000).max(MIN_QUOTA_US)
}

/// `hugepages-2Mi` is page size `2MB` to the kernel's controller.
fn page_size(resource: &str) -> Option<String> {
    let bytes = resource.strip_prefix("hugepages-")?.parse::<Quantity>().ok()?.units();
    let (mut value, mut unit) = (bytes, 0_usize);
    while value >= 1024 && unit < 3 {
        value /= 1024;
        unit += 1;
    }
    Some(format!("{value}{}", ["B", "KB", "MB", "GB"].get(unit)?))
}

fn limit_of(pod: &Pod, container: &Container, of: fn(&Resources) -> Option<i64>) -> Option<i64> {
    of(&container.resources).or_else(|| pod.resources.as_ref().and_then(of))
}

impl ContainerResources {
    /// The limits of one of the pod's containers on that node.
    pub fn of(pod: &Pod, container: &Container, host: &HostFacts) -> ContainerResources {
        let cpu_limit = limit_of(pod, container, Resources::cpu_limit_millis);
        let memory_limit = limit_of(pod, container, Resources::memory_limit_bytes);
        let request = if container.resources.requests.contains_key("cpu") {
            container.resources.cpu_request_millis()
        } else {
            cpu_limit.unwrap_or(0)
        };
        let mut huge: BTreeMap<String, i64> = BTreeMap::new();
        for resources in pod.resources.iter().chain([&container.resources]) {
            for (name, amount) in &resources.limits {
                if let Some(size) = page_size(name) {
                    huge.insert(size, amount.units());
                }
            }
        }
        let mut unified = BTreeMap::new();
        if host.unified_cgroups {
            unified.insert("memory.oom.group".to_owned(), "1".to_owned());
        }
        ContainerResources {
            cpu_shares: shares(request),
            cpu_quota: cpu_limit.map(quota),
            cpu_period: CPU_PERIOD_US,
            memory_limit,
            memory_swap: memory_limit.filter(|_| host.swap_accounting),
            hugepages: host
                .hugepage_sizes
                .iter()
                .map(|size| (size.clone(), huge.get(size).copied().unwrap_or(0)))
                .collect(),
            unified,
        }
    }
}

/// Memory that the pod requests as a whole beyond what its containers request, shared out evenly.
fn remaining_per_container(pod: &Pod) -> i64 {
    let Some(whole) = pod.resources.as_ref().filter(|r| !r.requests.is_empty()) else { return 0 };
    let main: i64 =
        pod.containers.iter().fold(0, |sum, c| sum.saturating_add(c.resources.memory_request_bytes()));
    let (mut sidecars, mut peak_of_init) = (0_i64, 0_i64);
    for c in &pod.init_containers {
        let request = c.resources.memory_request_bytes();
        if c.sidecar {
            sidecars = sidecars.saturating_add(request);
        } else {
            peak_of_init = peak_of_init.max(sidecars.saturating_add(request));
        }
    }
    let asked = main.saturating_add(sidecars).max(peak_of_init);
    let left = whole.memory_request_bytes().saturating_sub(asked);
    let count = i64::try_from(pod.all_containers().count()).unwrap_or(i64::MAX);
    left.max(0).checked_div(count).unwrap_or(0)
}

/// `oom_score_adj` of a container: who dies first when the node is out of memory. `capacity` is the node's memory in
/// bytes. Source: `pkg/kubelet/qos/policy.go`.
pub fn oom_score_adj(pod: &Pod, container: &Container, capacity: i64) -> i32 {
    let critical = pod.priority >= SYSTEM_CRITICAL_PRIORITY || matches!(pod.origin, Origin::StaticFile(_));
    if critical && pod.priority_class.as_deref() == Some("system-node-critical") {
        return GUARANTEED_OOM;
    }
    match pod.qos() {
        QosClass::Guaranteed => return GUARANTEED_OOM,
        QosClass::BestEffort => return BEST_EFFORT_OOM,
        QosClass::Burstable => {}
    }
    let capacity = i128::from(capacity.max(1));
    let score = |bytes: i64| 1000_i128 - 1000 * i128::from(bytes) / capacity;
    let rest = remaining_per_container(pod);
    let mut adj = score(container.resources.memory_request_bytes().saturating_add(rest));
    if container.sidecar {
        let least = pod.containers.iter().map(|c| c.resources.memory_request_bytes()).min().unwrap_or(0);
        adj = adj.min(score(least.saturating_add(rest)));
    }
    // Between those of Guaranteed and BestEffort pods, whatever is requested.
    let adj = adj.clamp(i128::from(1000 + GUARANTEED_OOM), i128::from(BEST_EFFORT_OOM - 1));
    i32::try_from(adj).unwrap_or(BEST_EFFORT_OOM - 1)
}
