//! From requests and limits to what the kernel takes: pure, and the kubelet's arithmetic
//! (`pkg/kubelet/cm/helpers_linux.go`, `qos/policy.go`, `component-helpers/resource`).

use berth_core::{
    model::{Container, Pod, QosClass, ResourceList},
    quantity::Quantity,
};
use std::collections::BTreeMap;

/// The fewest CPU shares there are; also those of all best-effort pods together.
pub const MIN_SHARES: u64 = 2;
/// The most CPU shares there are.
pub const MAX_SHARES: u64 = 262_144;
/// The period in which a CPU quota is counted, in microseconds.
pub const CPU_PERIOD_US: u64 = 100_000;
/// The smallest quota the kernel takes, in microseconds.
pub const MIN_QUOTA_US: i64 = 1000;

/// `oom_score_adj` of what may hardly ever be killed: guaranteed pods and node-critical ones.
pub const OOM_GUARANTEED: i32 = -997;
/// `oom_score_adj` of best-effort pods: killed first.
pub const OOM_BEST_EFFORT: i32 = 1000;
/// `oom_score_adj` of a pod's pause program.
pub const OOM_SANDBOX: i32 = -998;
/// `oom_score_adj` of the agent and its helpers.
pub const OOM_AGENT: i32 = -999;

/// From here on a priority is one of the system's (`scheduling.SystemCriticalPriority`).
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// CPU shares (cgroup v1 `cpu.shares`) of a request in thousandths of a core.
pub fn cpu_shares(millis: i64) -> u64 {
    let shares = u64::try_from(millis).unwrap_or(0).saturating_mul(1024) / 1000;
    shares.clamp(MIN_SHARES, MAX_SHARES)
}

/// CPU weight (cgroup v2 `cpu.weight`, 1 to 10000) of shares, by the formula for pods and QoS classes. Runtimes use
/// another one for containers.
pub fn cpu_weight(shares: u64) -> u64 {
    let shares = shares.clamp(MIN_SHARES, MAX_SHARES);
    1 + (shares - MIN_SHARES) * 9999 / (MAX_SHARES - MIN_SHARES)
}

/// CPU quota in microseconds per `period_us` of a limit in thousandths of a core; `None` is no limit.
pub fn cpu_quota(limit_millis: Option<i64>, period_us: u64) -> Option<i64> {
    let millis = limit_millis.filter(|m| *m > 0)?;
    let period = i64::try_from(period_us).unwrap_or(i64::MAX);
    Some((millis.saturating_mul(period) / 1000).max(MIN_QUOTA_US))
}

/// Amounts of cpu (thousandths of a core) and memory (bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    /// In thousandths of a core.
    pub cpu_millis: i64,
    /// In bytes.
    pub memory_bytes: i64,
}

impl Amounts {
    fn of(list: &ResourceList) -> Amounts {
        Amounts {
            cpu_millis: list.get("cpu").map_or(0, |q| q.millis().max(0)),
            memory_bytes: list.get("memory").map_or(0, |q| q.units().max(0)),
        }
    }
}

/// What the containers need together at their worst moment.
fn aggregate(pod: &Pod, of: impl Fn(&Container) -> Amounts) -> Amounts {
    Amounts { cpu_millis: pod.peak(|c| of(c).cpu_millis), memory_bytes: pod.peak(|c| of(c).memory_bytes) }
}

/// What the pod requests in all: its containers or its own `resources`, and its overhead.
pub fn pod_requests(pod: &Pod) -> Amounts {
    Amounts {
        cpu_millis: pod.request("cpu", Quantity::millis),
        memory_bytes: pod.request("memory", Quantity::units),
    }
}

/// What the pod may use in all; 0 where nothing limits it. Overhead counts only where there is a limit.
pub fn pod_limits(pod: &Pod) -> Amounts {
    let mut sum = aggregate(pod, |c| Amounts::of(&c.resources.limits));
    if let Some(own) = &pod.resources {
        if let Some(cpu) = own.limits.get("cpu") {
            sum.cpu_millis = cpu.millis().max(0);
        }
        if let Some(memory) = own.limits.get("memory") {
            sum.memory_bytes = memory.units().max(0);
        }
    }
    let over = pod.overhead.as_ref().map(Amounts::of).unwrap_or_default();
    let add = |limit: i64, over: i64| if limit > 0 { limit.saturating_add(over) } else { 0 };
    Amounts {
        cpu_millis: add(sum.cpu_millis, over.cpu_millis),
        memory_bytes: add(sum.memory_bytes, over.memory_bytes),
    }
}

/// What a pod's own cgroup is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodCgroup {
    /// Shares; as a weight see [`cpu_weight`].
    pub cpu_shares: u64,
    /// Quota in microseconds per [`CPU_PERIOD_US`]; `None` is unlimited.
    pub cpu_quota: Option<i64>,
    /// Memory limit in bytes; `None` is unlimited.
    pub memory_limit: Option<i64>,
    /// The most processes and threads; `None` is unlimited.
    pub pids_limit: Option<i64>,
}

/// A pod's cgroup. CPU and memory are limited only where every container (or the pod itself) is: one without a limit
/// may use what the node has.
pub fn pod_cgroup(pod: &Pod, pids_limit: Option<i64>) -> PodCgroup {
    let limits = pod_limits(pod);
    let own = pod.resources.as_ref().map(|r| Amounts::of(&r.limits)).unwrap_or_default();
    let all = |amount: fn(Amounts) -> i64| {
        amount(own) > 0 || pod.all_containers().all(|c| amount(Amounts::of(&c.resources.limits)) > 0)
    };
    let class = pod.qos();
    let limited = |amount: fn(Amounts) -> i64| match class {
        QosClass::Guaranteed => true,
        QosClass::Burstable => all(amount),
        QosClass::BestEffort => false,
    };
    PodCgroup {
        cpu_shares: match class {
            QosClass::BestEffort => MIN_SHARES,
            _ => cpu_shares(pod_requests(pod).cpu_millis),
        },
        cpu_quota: limited(|a| a.cpu_millis)
            .then(|| cpu_quota(Some(limits.cpu_millis), CPU_PERIOD_US))
            .flatten(),
        memory_limit: limited(|a| a.memory_bytes).then_some(limits.memory_bytes).filter(|m| *m > 0),
        pids_limit: pids_limit.filter(|n| *n > 0),
    }
}

/// The shares of all burstable pods together: the sum of their requests.
pub fn burstable_shares<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> u64 {
    let sum = pods
        .into_iter()
        .filter(|p| p.qos() == QosClass::Burstable)
        .fold(0i64, |sum, p| sum.saturating_add(pod_requests(p).cpu_millis));
    cpu_shares(sum)
}

/// What this machine's cgroups can do, as far as container values depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CgroupFacts {
    /// Pure cgroup v2 (hybrid counts as v1, as it does for runtimes).
    pub v2: bool,
    /// Whether swap can be limited.
    pub swap: bool,
}

/// The values of a container's cgroup, in the terms of the OCI spec's `linux.resources`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerCgroup {
    /// `cpu.shares`.
    pub cpu_shares: u64,
    /// `cpu.quota` in microseconds; `None` is unlimited and left out.
    pub cpu_quota: Option<i64>,
    /// `cpu.period` in microseconds; there also without a quota.
    pub cpu_period: u64,
    /// `memory.limit` in bytes; `None` is unlimited and left out.
    pub memory_limit: Option<i64>,
    /// `memory.swap`: memory and swap together, in bytes. Equal to the memory limit, so that nothing is swapped;
    /// `None` where there is no limit or swap cannot be limited.
    pub memory_swap: Option<i64>,
    /// `pids.limit`; always `None`: the pod's cgroup carries that limit.
    pub pids_limit: Option<i64>,
    /// `unified`: files of cgroup v2 and their values.
    pub unified: BTreeMap<String, String>,
}

/// A container's cgroup.
pub fn container_cgroup(container: &Container, facts: CgroupFacts) -> ContainerCgroup {
    let r = &container.resources;
    let request = match r.requests.get("cpu") {
        Some(q) => q.millis(),
        None => r.cpu_limit_millis().unwrap_or(0),
    };
    let memory_limit = r.memory_limit_bytes();
    let mut unified = BTreeMap::new();
    if facts.v2 {
        // One process of a container killed for lack of memory leaves a half-alive container.
        unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    ContainerCgroup {
        cpu_shares: cpu_shares(request),
        cpu_quota: cpu_quota(r.cpu_limit_millis(), CPU_PERIOD_US),
        cpu_period: CPU_PERIOD_US,
        memory_limit,
        memory_swap: memory_limit.filter(|_| facts.swap),
        pids_limit: None,
        unified,
    }
}

/// `oom_score_adj` of a container, on a node with that much memory in bytes: the more it requested, the later it is
/// killed. A sidecar never goes before the main containers.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i32 {
    let node_critical = pod.priority >= SYSTEM_CRITICAL_PRIORITY
        && pod.priority_class.as_deref() == Some("system-node-critical");
    if node_critical {
        return OOM_GUARANTEED;
    }
    match pod.qos() {
        QosClass::Guaranteed => return OOM_GUARANTEED,
        QosClass::BestEffort => return OOM_BEST_EFFORT,
        QosClass::Burstable => {}
    }
    let extra = unassigned_memory_per_container(pod);
    let score = |request: i64| {
        let share = i128::from(request).saturating_add(i128::from(extra)).saturating_mul(1000);
        1000 - share / i128::from(node_memory.max(1))
    };
    let mut adjust = score(container.resources.memory_request_bytes());
    if container.sidecar {
        let least = pod.containers.iter().map(|c| c.resources.memory_request_bytes()).min().unwrap_or(0);
        adjust = adjust.min(score(least));
    }
    // Always above a guaranteed pod that uses all memory, and below a best-effort one.
    i32::try_from(adjust.clamp(i128::from(1000 + OOM_GUARANTEED), i128::from(OOM_BEST_EFFORT - 1)))
        .unwrap_or(OOM_BEST_EFFORT - 1)
}

/// What the pod requests for itself beyond its containers' requests, divided among them.
fn unassigned_memory_per_container(pod: &Pod) -> i64 {
    let own = pod.resources.as_ref().map_or(0, |r| r.memory_request_bytes());
    if own == 0 {
        return 0;
    }
    let assigned = aggregate(pod, |c| Amounts::of(&c.resources.requests)).memory_bytes;
    let count = i64::try_from(pod.all_containers().count()).unwrap_or(i64::MAX).max(1);
    own.saturating_sub(assigned) / count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{container, pod, resources, sidecar, with_overhead};
    use berth_core::model::Pod;

    const MI: i64 = 1 << 20;

    #[test]
    fn shares_weights_and_quotas() {
        for (millis, shares, weight) in [
            (-1, 2, 1),
            (0, 2, 1),
            (1, 2, 1),
            (2, 2, 1),
            (100, 102, 4),
            (250, 256, 10),
            (1000, 1024, 39),
            (4000, 4096, 157),
            (256_000, 262_144, 10_000),
            (i64::MAX, 262_144, 10_000),
        ] {
            assert_eq!((cpu_shares(millis), cpu_weight(cpu_shares(millis))), (shares, weight), "{millis}");
        }
        for (limit, period, quota) in [
            (None, 100_000, None),
            (Some(0), 100_000, None),
            (Some(1), 100_000, Some(1000)),
            (Some(10), 100_000, Some(1000)),
            (Some(11), 100_000, Some(1100)),
            (Some(1000), 100_000, Some(100_000)),
            (Some(2500), 5000, Some(12_500)),
        ] {
            assert_eq!(cpu_quota(limit, period), quota, "{limit:?} {period}");
        }
        assert!(cpu_quota(Some(i64::MAX), u64::MAX).is_some_and(|q| q > 0));
    }

    fn amounts(cpu_millis: i64, mi: i64) -> Amounts {
        Amounts { cpu_millis, memory_bytes: mi * MI }
    }

    #[test]
    fn requests_are_those_of_the_worst_moment() {
        let init = |r: &str| container(r, "");
        let side = |r: &str| sidecar(r, "");
        let main = || vec![container("cpu=100m,memory=100Mi", ""), container("cpu=50m,memory=10Mi", "")];
        for (inits, want) in [
            (vec![], amounts(150, 110)),
            (vec![init("cpu=10m")], amounts(150, 110)),
            (vec![init("cpu=1,memory=10Mi")], amounts(1000, 110)),
            // Sidecars run beside the main containers …
            (vec![side("cpu=200m,memory=5Mi")], amounts(350, 115)),
            // … and beside the init containers after them, not before.
            (vec![side("cpu=200m"), init("cpu=1")], amounts(1200, 110)),
            (vec![init("cpu=1"), side("cpu=200m")], amounts(1000, 110)),
            (vec![side("cpu=200m"), side("cpu=300m"), init("cpu=400m")], amounts(900, 110)),
        ] {
            assert_eq!(pod_requests(&pod("u", inits.clone(), main())), want, "{inits:?}");
        }
    }

    #[test]
    fn overhead_counts_where_there_is_a_limit_and_pod_level_values_win() {
        let limited = pod("u", vec![], vec![container("", "cpu=1")]);
        let p = with_overhead(limited, "cpu=100m,memory=64Mi");
        assert_eq!(pod_requests(&p), amounts(1100, 64));
        assert_eq!(pod_limits(&p), amounts(1100, 0));
        let p = Pod { resources: Some(resources("cpu=3", "cpu=4,memory=10Mi")), ..p };
        assert_eq!(pod_requests(&p), amounts(3100, 74));
        assert_eq!(pod_limits(&p), amounts(4100, 74));
    }

    #[test]
    fn a_pod_is_limited_where_all_of_it_is() {
        let full = || container("", "cpu=1,memory=64Mi");
        let values = |p: &Pod| {
            let v = pod_cgroup(p, Some(0));
            (v.cpu_shares, v.cpu_quota, v.memory_limit.map(|m| m / MI))
        };
        for (what, p, want) in [
            ("guaranteed", pod("u", vec![], vec![full(), full()]), (2048, Some(200_000), Some(128))),
            ("nothing", pod("u", vec![], vec![container("", "")]), (2, None, None)),
            (
                "all",
                pod("u", vec![], vec![container("cpu=500m", "cpu=1,memory=64Mi")]),
                (512, Some(100_000), Some(64)),
            ),
            (
                "one is not",
                pod("u", vec![], vec![full(), container("", "memory=1Mi")]),
                (1024, None, Some(65)),
            ),
            (
                "an init is not",
                pod("u", vec![container("", "cpu=2")], vec![full()]),
                (2048, Some(200_000), None),
            ),
            ("requests only", pod("u", vec![], vec![container("cpu=1,memory=1Mi", "")]), (1024, None, None)),
            (
                "by the pod",
                Pod {
                    resources: Some(resources("cpu=1", "cpu=2,memory=9Mi")),
                    ..pod("u", vec![], vec![container("", "")])
                },
                (1024, Some(200_000), Some(9)),
            ),
        ] {
            assert_eq!(values(&p), want, "{what}");
        }
        let p = pod("u", vec![], vec![full()]);
        assert_eq!(pod_cgroup(&p, Some(100)).pids_limit, Some(100));
        assert_eq!(pod_cgroup(&p, Some(-1)).pids_limit, None);
        assert_eq!(pod_cgroup(&p, None).pids_limit, None);
    }

    #[test]
    fn burstable_pods_share_by_the_sum_of_their_requests() {
        let burstable = pod("a", vec![], vec![container("cpu=500m", "")]);
        let guaranteed = pod("b", vec![], vec![container("", "cpu=8,memory=1Mi")]);
        let best_effort = pod("c", vec![], vec![container("", "")]);
        assert_eq!(burstable_shares([&burstable, &guaranteed, &best_effort, &burstable]), 1024);
        assert_eq!(burstable_shares([&guaranteed]), MIN_SHARES);
    }

    #[test]
    fn a_containers_values() {
        let v1 = CgroupFacts { v2: false, swap: true };
        let c = container_cgroup(&container("cpu=250m", "cpu=500m,memory=64Mi"), v1);
        assert_eq!(
            c,
            ContainerCgroup {
                cpu_shares: 256,
                cpu_quota: Some(50_000),
                cpu_period: 100_000,
                memory_limit: Some(64 * MI),
                memory_swap: Some(64 * MI),
                ..ContainerCgroup::default()
            }
        );
        let none = container_cgroup(&container("", ""), CgroupFacts { v2: true, swap: true });
        assert_eq!(
            (none.cpu_shares, none.cpu_quota, none.memory_limit, none.memory_swap),
            (2, None, None, None)
        );
        assert_eq!(none.unified.get("memory.oom.group").map(String::as_str), Some("1"));
        let no_swap = container_cgroup(&container("", "memory=1Mi"), CgroupFacts { v2: false, swap: false });
        assert_eq!((no_swap.memory_limit, no_swap.memory_swap), (Some(MI), None));
        // A limit stands for a missing request also where no source has seen to it.
        let mut bare = container("", "cpu=2");
        bare.resources.requests.clear();
        assert_eq!(container_cgroup(&bare, v1).cpu_shares, 2048);
    }

    #[test]
    fn who_is_killed_first() {
        let node = 1000 * MI;
        let burst = |mi: i64| container(&format!("memory={mi}Mi"), "");
        let of = |p: &Pod, n: usize| oom_score_adj(p, p.all_containers().nth(n).unwrap(), node);
        let single = |c| pod("u", vec![], vec![c]);
        for (what, p, n, want) in [
            ("guaranteed", single(container("", "cpu=1,memory=1Mi")), 0, -997),
            ("best effort", single(container("", "")), 0, 1000),
            ("a tenth", single(burst(100)), 0, 900),
            ("nearly nothing", single(burst(0)), 0, 1000),
            ("cpu only", single(container("cpu=1", "")), 0, 999),
            ("a thousandth", single(burst(1)), 0, 999),
            ("nearly all", single(burst(999)), 0, 3),
            ("more than there is", single(burst(5000)), 0, 3),
            ("sidecar", pod("u", vec![sidecar("memory=10Mi", "")], vec![burst(100), burst(300)]), 0, 900),
            ("large sidecar", pod("u", vec![sidecar("memory=500Mi", "")], vec![burst(100)]), 0, 500),
            ("init", pod("u", vec![burst(10)], vec![burst(100)]), 0, 990),
        ] {
            assert_eq!(of(&p, n), want, "{what}");
        }
        let by_pod = Pod {
            resources: Some(resources("memory=300Mi", "")),
            ..pod("u", vec![], vec![burst(100), burst(0)])
        };
        assert_eq!((of(&by_pod, 0), of(&by_pod, 1)), (800, 900));
        let critical = Pod {
            priority: 2_000_001_000,
            priority_class: Some("system-node-critical".into()),
            ..single(container("", ""))
        };
        assert_eq!(of(&critical, 0), -997);
        let only_named = Pod { priority: 5, ..critical };
        assert_eq!(of(&only_named, 0), 1000);
        assert_eq!(oom_score_adj(&single(burst(1)), &burst(1), 0), 3);
    }
}
