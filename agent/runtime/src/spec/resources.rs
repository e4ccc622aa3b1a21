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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::testing::{container, pod};
    use proptest::prelude::*;

    fn amounts(list: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
        list.iter().map(|(k, v)| ((*k).to_owned(), v.parse().unwrap())).collect()
    }

    fn resources(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Resources {
        Resources { requests: amounts(requests), limits: amounts(limits) }
    }

    fn of(resources: Resources) -> ContainerResources {
        let mut pod = pod();
        pod.containers[0].resources = resources;
        ContainerResources::of(&pod, &pod.containers[0], &HostFacts::default())
    }

    #[test]
    fn shares_and_quota_stay_within_the_kernels_bounds() {
        assert_eq!(of(Resources::default()).cpu_shares, MIN_SHARES);
        assert_eq!(of(resources(&[("cpu", "1m")], &[])).cpu_shares, MIN_SHARES);
        assert_eq!(of(resources(&[("cpu", "250m")], &[("cpu", "2")])).cpu_shares, 256);
        assert_eq!(of(resources(&[], &[("cpu", "2")])).cpu_shares, 2048);
        assert_eq!(of(resources(&[("cpu", "9000")], &[])).cpu_shares, MAX_SHARES);
        assert_eq!(of(resources(&[("cpu", "0")], &[("cpu", "2")])).cpu_shares, MIN_SHARES);
        assert_eq!(of(resources(&[], &[("cpu", "1m")])).cpu_quota, Some(MIN_QUOTA_US));
        assert_eq!(of(resources(&[], &[("cpu", "150m")])).cpu_quota, Some(15_000));
        assert_eq!(of(Resources::default()).cpu_quota, None);
    }

    #[test]
    fn swap_follows_memory_and_every_page_size_is_limited() {
        let host = HostFacts {
            swap_accounting: true,
            unified_cgroups: true,
            hugepage_sizes: vec!["2MB".to_owned(), "1GB".to_owned()],
            ..HostFacts::default()
        };
        let mut pod = pod();
        pod.containers[0].resources = resources(&[], &[("memory", "1Mi"), ("hugepages-2Mi", "4Mi")]);
        let got = ContainerResources::of(&pod, &pod.containers[0], &host);
        assert_eq!((got.memory_limit, got.memory_swap), (Some(1 << 20), Some(1 << 20)));
        assert_eq!(got.hugepages, [("2MB".to_owned(), 4 << 20), ("1GB".to_owned(), 0)]);
        assert_eq!(got.unified.get("memory.oom.group").map(String::as_str), Some("1"));
    }

    #[test]
    fn oom_scores_follow_the_quality_of_service() {
        const GIB: i64 = 1 << 30;
        let mut p = pod();
        assert_eq!(oom_score_adj(&p, &p.containers[0], 4 * GIB), 1000);
        p.containers[0].resources = resources(&[("memory", "1Gi")], &[]);
        assert_eq!(oom_score_adj(&p, &p.containers[0], 4 * GIB), 750);
        assert_eq!(oom_score_adj(&p, &p.containers[0], GIB), 3);
        p.containers[0].resources = resources(&[("memory", "1")], &[]);
        assert_eq!(oom_score_adj(&p, &p.containers[0], 4 * GIB), 999);
        assert_eq!(oom_score_adj(&p, &p.containers[0], 0), 3);
        // A sidecar is never killed before the least of the main containers.
        p.containers[0].resources = resources(&[("memory", "2Gi")], &[]);
        let mut side = container("side");
        side.sidecar = true;
        p.init_containers.push(side);
        assert_eq!(oom_score_adj(&p, &p.init_containers[0], 4 * GIB), 500);
        // What the pod requests beyond its containers is shared out.
        p.resources = Some(resources(&[("memory", "4Gi")], &[]));
        assert_eq!(oom_score_adj(&p, &p.containers[0], 8 * GIB), 625);
        p.priority = SYSTEM_CRITICAL_PRIORITY;
        p.priority_class = Some("system-node-critical".to_owned());
        assert_eq!(oom_score_adj(&p, &p.containers[0], 4 * GIB), GUARANTEED_OOM);
    }

    proptest! {
        #[test]
        fn any_amount_gives_values_the_kernel_takes(cpu in "[0-9]{1,19}(m|Ei|)", memory in "[0-9]{1,19}(Ki|Ei|m|)", capacity: i64) {
            let mut p = pod();
            p.containers[0].resources =
                resources(&[("cpu", cpu.as_str()), ("memory", memory.as_str())], &[("cpu", cpu.as_str())]);
            let got = ContainerResources::of(&p, &p.containers[0], &HostFacts::default());
            prop_assert!((MIN_SHARES..=MAX_SHARES).contains(&got.cpu_shares));
            prop_assert!(got.cpu_quota.is_none_or(|q| q >= MIN_QUOTA_US));
            prop_assert!((-997..=1000).contains(&oom_score_adj(&p, &p.containers[0], capacity)));
        }
    }
}
