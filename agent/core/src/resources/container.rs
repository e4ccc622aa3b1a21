//! Values of a container's cgroup (`pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`).

use super::{CPU_PERIOD_US, cpu_quota, cpu_shares};
use crate::{
    model::{Container, Pod, Resources},
    quantity::Quantity,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The features of the node's cgroups that a container's values depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CgroupFacts<'a> {
    /// The node has cgroup v2 alone. A hybrid node counts as v1, as it does for runtimes.
    pub v2: bool,
    /// Whether the kernel can limit swap.
    pub swap: bool,
    /// The page sizes of the hugetlb controller (`2MB`).
    pub hugepage_sizes: &'a [String],
}

/// The values of a container's cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerResources {
    /// `cpu.shares`; runc converts it to the v2 weight.
    pub cpu_shares: u64,
    /// Microseconds of CPU per period; `None` means no limit.
    pub cpu_quota: Option<i64>,
    /// The period of [`Self::cpu_quota`] in microseconds.
    pub cpu_period: u64,
    /// Memory limit in bytes; `None` means no limit.
    pub memory_limit: Option<i64>,
    /// Limit of memory and swap together in bytes. It equals the memory limit, so that the container cannot
    /// swap.
    pub memory_swap: Option<i64>,
    /// Huge page limits in bytes by page size (`2MB`). Every page size of the node is listed, with 0 where
    /// the container has no limit for it.
    pub hugepages: Vec<(String, i64)>,
    /// Files of cgroup v2 and the values to write to them.
    pub unified: BTreeMap<String, String>,
}

/// The hugetlb controller's name of a page size: `2MB` for `hugepages-2Mi`.
pub(super) fn page_size(resource: &str) -> Option<String> {
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
    /// The values for one container of the pod on such a node.
    pub fn of(pod: &Pod, container: &Container, node: CgroupFacts<'_>) -> ContainerResources {
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
        if node.v2 {
            // On OOM the kernel kills the whole container, because killing one process would leave a
            // half-alive container.
            unified.insert("memory.oom.group".to_owned(), "1".to_owned());
            if node.swap {
                // Containers do not swap, even without a memory limit and on a node with swap.
                unified.insert("memory.swap.max".to_owned(), "0".to_owned());
            }
        }
        ContainerResources {
            cpu_shares: cpu_shares(request),
            cpu_quota: cpu_quota(cpu_limit, CPU_PERIOD_US),
            cpu_period: CPU_PERIOD_US,
            memory_limit,
            memory_swap: memory_limit.filter(|_| node.swap),
            hugepages: node
                .hugepage_sizes
                .iter()
                .map(|size| (size.clone(), huge.get(size).copied().unwrap_or(0)))
                .collect(),
            unified,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            MAX_SHARES, MIN_QUOTA_US, MIN_SHARES, oom_score_adj,
            testing::{container, pod, resources},
        },
        *,
    };
    use proptest::prelude::*;

    fn of(requests: &str, limits: &str) -> ContainerResources {
        let pod = pod("u", vec![], vec![container(requests, limits)]);
        ContainerResources::of(&pod, &pod.containers[0], CgroupFacts::default())
    }

    #[test]
    fn shares_and_quota_stay_within_the_kernels_bounds() {
        assert_eq!(of("", "").cpu_shares, MIN_SHARES);
        assert_eq!(of("cpu=1m", "").cpu_shares, MIN_SHARES);
        assert_eq!(of("cpu=250m", "cpu=2").cpu_shares, 256);
        assert_eq!(of("", "cpu=2").cpu_shares, 2048);
        assert_eq!(of("cpu=9000", "").cpu_shares, MAX_SHARES);
        assert_eq!(of("cpu=0", "cpu=2").cpu_shares, MIN_SHARES);
        assert_eq!(of("", "cpu=1m").cpu_quota, Some(MIN_QUOTA_US));
        assert_eq!(of("", "cpu=150m").cpu_quota, Some(15_000));
        assert_eq!(of("", "").cpu_quota, None);
        // A limit replaces a missing request, even where no source has applied that default.
        let mut p = pod("u", vec![], vec![container("", "cpu=2")]);
        p.containers[0].resources.requests.clear();
        assert_eq!(ContainerResources::of(&p, &p.containers[0], CgroupFacts::default()).cpu_shares, 2048);
    }

    #[test]
    fn swap_follows_memory_and_every_page_size_is_limited() {
        let sizes = ["2MB".to_owned(), "1GB".to_owned()];
        let node = CgroupFacts { v2: true, swap: true, hugepage_sizes: &sizes };
        let p = pod("u", vec![], vec![container("", "memory=1Mi,hugepages-2Mi=4Mi")]);
        let got = ContainerResources::of(&p, &p.containers[0], node);
        assert_eq!((got.memory_limit, got.memory_swap), (Some(1 << 20), Some(1 << 20)));
        assert_eq!(got.hugepages, [("2MB".to_owned(), 4 << 20), ("1GB".to_owned(), 0)]);
        assert_eq!(got.unified.get("memory.oom.group").map(String::as_str), Some("1"));
        assert_eq!(got.unified.get("memory.swap.max").map(String::as_str), Some("0"));
        let unlimited = pod("u", vec![], vec![container("", "")]);
        let of_unlimited = |node| ContainerResources::of(&unlimited, &unlimited.containers[0], node).unified;
        assert_eq!(of_unlimited(node).get("memory.swap.max").map(String::as_str), Some("0"));
        // The kernel has no such file where it does not account swap.
        assert_eq!(of_unlimited(CgroupFacts { swap: false, ..node }).get("memory.swap.max"), None);
        let no_swap =
            ContainerResources::of(&p, &p.containers[0], CgroupFacts { swap: false, v2: false, ..node });
        assert_eq!((no_swap.memory_limit, no_swap.memory_swap), (Some(1 << 20), None));
        assert!(no_swap.unified.is_empty());
    }

    #[test]
    fn the_pods_limit_stands_for_one_that_a_container_has_not() {
        let mut p = pod("u", vec![], vec![container("cpu=20m", ""), container("", "cpu=50m")]);
        p.resources = Some(resources("", "cpu=300m,memory=100Mi"));
        let of = |n: usize| ContainerResources::of(&p, &p.containers[n], CgroupFacts::default());
        assert_eq!(
            (of(0).cpu_shares, of(0).cpu_quota, of(0).memory_limit),
            (20, Some(30_000), Some(100 << 20))
        );
        assert_eq!((of(1).cpu_shares, of(1).cpu_quota), (51, Some(5_000)));
    }

    proptest! {
        #[test]
        fn any_amount_gives_values_the_kernel_takes(cpu in "[0-9]{1,19}(m|Ei|)", memory in "[0-9]{1,19}(Ki|Ei|m|)", capacity: i64) {
            let amounts = format!("cpu={cpu},memory={memory}");
            let p = pod("u", vec![], vec![container(&amounts, &format!("cpu={cpu}"))]);
            let got = ContainerResources::of(&p, &p.containers[0], CgroupFacts::default());
            prop_assert!((MIN_SHARES..=MAX_SHARES).contains(&got.cpu_shares));
            prop_assert!(got.cpu_quota.is_none_or(|q| q >= MIN_QUOTA_US));
            prop_assert!((-997..=1000).contains(&oom_score_adj(&p, &p.containers[0], capacity)));
        }
    }
}
