//! `oom_score_adj`: the order in which the kernel kills when the node is out of memory
//! (`pkg/kubelet/qos/policy.go`).

use crate::model::{Container, Pod, QosClass, Resources};

/// Score of guaranteed pods and of pods critical for the node, which are killed almost last.
pub const OOM_GUARANTEED: i32 = -997;
/// Score of best-effort pods, which are killed first.
pub const OOM_BEST_EFFORT: i32 = 1000;
/// Score of the agent and of the processes that pods depend on: the agent's helpers and their shims.
pub const OOM_AGENT: i32 = -999;
/// Score of a pod's pause process.
pub const OOM_SANDBOX: i32 = -998;

/// The `oom_score_adj` of a container on a node with this much memory in bytes. The more memory the container
/// requested, the later it is killed. A sidecar is never killed before the main containers.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i32 {
    if pod.is_node_critical() {
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
    // The score stays above that of a guaranteed pod that uses all memory, and below that of a best-effort
    // pod.
    i32::try_from(adjust.clamp(i128::from(1000 + OOM_GUARANTEED), i128::from(OOM_BEST_EFFORT - 1)))
        .unwrap_or(OOM_BEST_EFFORT - 1)
}

/// The memory that the pod requests beyond its containers' requests, divided among the containers.
fn unassigned_memory_per_container(pod: &Pod) -> i64 {
    let own = pod.resources.as_ref().map_or(0, Resources::memory_request_bytes);
    if own == 0 {
        return 0;
    }
    let assigned = pod.peak(|c| c.resources.memory_request_bytes().max(0));
    let count = i64::try_from(pod.lasting_containers().count()).unwrap_or(i64::MAX).max(1);
    own.saturating_sub(assigned) / count
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{container, pod, resources, sidecar},
        *,
    };
    use crate::model::Origin;

    const MI: i64 = 1 << 20;

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
        // A static pod is critical whatever its priority. Of the two system priority classes only
        // `system-node-critical` is critical for the node.
        let of_file = Pod { origin: Origin::StaticFile("/x".into()), priority: 0, ..only_named };
        assert_eq!(of(&of_file, 0), -997);
        let of_cluster = Pod { priority_class: Some("system-cluster-critical".into()), ..of_file };
        assert_eq!(of(&of_cluster, 0), 1000);
        assert_eq!(oom_score_adj(&single(burst(1)), &burst(1), 0), 3);
    }
}
