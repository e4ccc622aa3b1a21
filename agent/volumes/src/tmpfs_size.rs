//! The size of a memory volume. Its pages count against the pod, so that it need not be larger than the pod's limit.

use crate::PodFacts;
use berth_core::{
    model::{Pod, Resources},
    quantity::Quantity,
};

/// The size in bytes: the least of node allocatable, the pod's memory limit and `size_limit`. `None` if none of them is
/// known; the kernel's default is then half of the memory.
pub(crate) fn tmpfs_size(pod: &Pod, facts: &PodFacts, size_limit: Option<&Quantity>) -> Option<u64> {
    let node = facts.node.allocatable.get("memory").map(Quantity::units);
    [node, pod_memory_limit(pod), size_limit.map(Quantity::units)]
        .into_iter()
        .flatten()
        .filter_map(|v| u64::try_from(v).ok().filter(|v| *v > 0))
        .min()
}

/// The pod's memory limit in bytes: its own, or the most that its containers may use together, if each has a limit.
fn pod_memory_limit(pod: &Pod) -> Option<i64> {
    let own = pod.resources.as_ref().and_then(Resources::memory_limit_bytes);
    let limit = match own {
        Some(limit) => limit,
        None => containers_limit(pod)?,
    };
    let overhead = pod.overhead.as_ref().and_then(|o| o.get("memory")).map_or(0, Quantity::units);
    Some(limit.saturating_add(overhead))
}

fn containers_limit(pod: &Pod) -> Option<i64> {
    let mut sidecars = 0i64;
    let mut starting = 0i64;
    for init in &pod.init_containers {
        let limit = init.resources.memory_limit_bytes()?;
        starting = starting.max(sidecars.saturating_add(limit));
        if init.sidecar {
            sidecars = sidecars.saturating_add(limit);
        }
    }
    let mut running = sidecars;
    for container in &pod.containers {
        running = running.saturating_add(container.resources.memory_limit_bytes()?);
    }
    Some(running.max(starting))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{container, facts, pod};
    use std::sync::Arc;

    fn q(s: &str) -> Quantity {
        s.parse().unwrap()
    }

    #[test]
    fn the_size_of_a_tmpfs_is_the_least_limit() {
        let mut p = pod("p");
        let mut f = facts();
        Arc::make_mut(&mut f.node).allocatable.clear();
        assert_eq!(tmpfs_size(&p, &f, None), None);
        Arc::make_mut(&mut f.node).allocatable.insert("memory".into(), q("8Gi"));
        assert_eq!(tmpfs_size(&p, &f, None), Some(8 << 30));
        assert_eq!(tmpfs_size(&p, &f, Some(&q("1Gi"))), Some(1 << 30));
        assert_eq!(tmpfs_size(&p, &f, Some(&q("0"))), Some(8 << 30));

        p.containers[0].resources.limits.insert("memory".into(), q("64Mi"));
        p.containers.push(container("b"));
        assert_eq!(tmpfs_size(&p, &f, None), Some(8 << 30), "one container has no limit");
        p.containers[1].resources.limits.insert("memory".into(), q("64Mi"));
        assert_eq!(tmpfs_size(&p, &f, Some(&q("1Gi"))), Some(128 << 20));

        let mut init = container("i");
        init.resources.limits.insert("memory".into(), q("512Mi"));
        p.init_containers.push(init);
        assert_eq!(tmpfs_size(&p, &f, Some(&q("1Gi"))), Some(512 << 20));
        p.init_containers[0].sidecar = true;
        assert_eq!(tmpfs_size(&p, &f, Some(&q("1Gi"))), Some(640 << 20));
        p.resources =
            Some(Resources { limits: [("memory".to_owned(), q("96Mi"))].into(), ..Default::default() });
        assert_eq!(tmpfs_size(&p, &f, None), Some(96 << 20));
    }
}
