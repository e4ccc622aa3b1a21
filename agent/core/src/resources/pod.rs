//! Total requests and limits of a pod, and the values of its cgroup (ResourceConfigForPod,
//! `pkg/kubelet/cm/helpers_linux.go`; `component-helpers/resource`).

use super::{CPU_PERIOD_US, MIN_SHARES, container::page_size, cpu_quota, cpu_shares};
use crate::{
    model::{Container, Pod, QosClass, ResourceList},
    quantity::Quantity,
};
use std::collections::BTreeMap;

/// Amounts of CPU and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    /// CPU in thousandths of a core.
    pub cpu_millis: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
}

impl Amounts {
    /// The amounts in a resource list; 0 where the list does not name the resource.
    pub fn of(list: &ResourceList) -> Amounts {
        Amounts {
            cpu_millis: list.get("cpu").map_or(0, |q| q.millis().max(0)),
            memory_bytes: list.get("memory").map_or(0, |q| q.units().max(0)),
        }
    }
}

/// The amounts that the containers need together at the worst moment.
fn aggregate(pod: &Pod, of: impl Fn(&Container) -> Amounts) -> Amounts {
    Amounts { cpu_millis: pod.peak(|c| of(c).cpu_millis), memory_bytes: pod.peak(|c| of(c).memory_bytes) }
}

/// The pod's total requests: of its containers, or of its own `resources`, plus its overhead.
pub fn pod_requests(pod: &Pod) -> Amounts {
    Amounts {
        cpu_millis: pod.request("cpu", Quantity::millis),
        memory_bytes: pod.request("memory", Quantity::units),
    }
}

/// The pod's total limits; 0 means no limit. The overhead is added only to an amount that is limited.
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

/// The values of a pod's own cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCgroup {
    /// CPU shares; [`super::cpu_weight`] converts them to a weight.
    pub cpu_shares: u64,
    /// CPU quota in microseconds per [`CPU_PERIOD_US`]; `None` is unlimited.
    pub cpu_quota: Option<i64>,
    /// Memory limit in bytes; `None` is unlimited.
    pub memory_limit: Option<i64>,
    /// Huge page limits in bytes by page size (`2MB`). Page sizes that are not listed are limited to 0.
    pub hugepages: BTreeMap<String, i64>,
    /// Limit of processes and threads; `None` is unlimited.
    pub pids_limit: Option<i64>,
}

/// The cgroup values of a pod. CPU and memory are limited only where every container, or the pod itself, has
/// a limit, because a container without a limit may use all that the node has.
pub fn pod_cgroup(pod: &Pod, pids_limit: Option<i64>) -> PodCgroup {
    let limits = pod_limits(pod);
    let own = pod.resources.as_ref().map(|r| Amounts::of(&r.limits)).unwrap_or_default();
    let all = |amount: fn(Amounts) -> i64| {
        let of = |c: &Container| amount(Amounts::of(&c.resources.limits));
        // As in the kubelet, the limits of the sidecars beside an init container count towards its limit.
        let mut sidecars = 0_i64;
        let init = pod.init_containers.iter().all(|c| {
            let moment = sidecars.saturating_add(of(c));
            sidecars = if c.sidecar { moment } else { sidecars };
            moment > 0
        });
        amount(own) > 0 || (init && pod.containers.iter().all(|c| of(c) > 0))
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
        hugepages: hugepages(pod),
        pids_limit: pids_limit.filter(|n| *n > 0),
    }
}

/// The pod's total request of huge pages, by page size.
fn hugepages(pod: &Pod) -> BTreeMap<String, i64> {
    let containers = pod.init_containers.iter().chain(&pod.containers).map(|c| &c.resources);
    let names = containers.chain(&pod.resources).flat_map(|r| r.requests.keys());
    names.filter_map(|name| Some((page_size(name)?, pod.request(name, Quantity::units)))).collect()
}

/// The shares of all burstable pods together: the sum of their requests.
pub fn burstable_shares<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> u64 {
    let sum = pods
        .into_iter()
        .filter(|p| p.qos() == QosClass::Burstable)
        .fold(0i64, |sum, p| sum.saturating_add(pod_requests(p).cpu_millis));
    cpu_shares(sum)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{container, pod, resources, sidecar, with_overhead},
        *,
    };

    const MI: i64 = 1 << 20;

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
            // Sidecars count beside the main containers …
            (vec![side("cpu=200m,memory=5Mi")], amounts(350, 115)),
            // … and beside the init containers that follow them, not those before.
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
            (
                "an init beside a limited sidecar",
                pod("u", vec![sidecar("", "cpu=1,memory=8Mi"), container("", "cpu=2")], vec![full()]),
                (3072, Some(300_000), Some(72)),
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
    fn a_pod_may_use_the_huge_pages_that_it_requests() {
        let main = || {
            vec![
                container("", "hugepages-2Mi=4Mi,memory=1Mi"),
                container("", "hugepages-2Mi=2Mi,hugepages-1Gi=1Gi"),
            ]
        };
        let p = pod("u", vec![container("", "hugepages-2Mi=8Mi")], main());
        let of = |p: &Pod| {
            pod_cgroup(p, None).hugepages.into_iter().map(|(size, n)| (size, n / MI)).collect::<Vec<_>>()
        };
        assert_eq!(of(&p), [("1GB".to_owned(), 1024), ("2MB".to_owned(), 8)]);
        assert_eq!(of(&pod("u", vec![], main()[..1].to_vec())), [("2MB".to_owned(), 4)]);
        let by_the_pod = Pod {
            resources: Some(resources("", "hugepages-2Mi=16Mi")),
            ..pod("u", vec![], vec![container("", "")])
        };
        assert_eq!(of(&by_the_pod), [("2MB".to_owned(), 16)]);
        assert_eq!(of(&pod("u", vec![], vec![container("cpu=1", "")])), []);
    }

    #[test]
    fn burstable_pods_share_by_the_sum_of_their_requests() {
        let burstable = pod("a", vec![], vec![container("cpu=500m", "")]);
        let guaranteed = pod("b", vec![], vec![container("", "cpu=8,memory=1Mi")]);
        let best_effort = pod("c", vec![], vec![container("", "")]);
        assert_eq!(burstable_shares([&burstable, &guaranteed, &best_effort, &burstable]), 1024);
        assert_eq!(burstable_shares([&guaranteed]), MIN_SHARES);
    }
}
