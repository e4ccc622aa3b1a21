//! Total requests and limits of a pod by resource, as the pod's status shows them
//! (`component-helpers/resource` PodRequests and PodLimits).

use crate::{
    model::{Pod, ResourceList, Resources},
    quantity::Quantity,
};

fn add(list: &mut ResourceList, more: &ResourceList) {
    for (name, amount) in more {
        let sum = list.get(name).map_or_else(|| amount.clone(), |q| q.plus(amount));
        list.insert(name.clone(), sum);
    }
}

fn at_least(list: &mut ResourceList, least: &ResourceList) {
    for (name, amount) in least {
        let larger = list.get(name).map_or(amount, |q| q.larger(amount)).clone();
        list.insert(name.clone(), larger);
    }
}

/// The most that the containers name at one time (see [`crate::model::peak`]); a value of the pod itself wins.
fn side(pod: &Pod, of: fn(&Resources) -> &ResourceList) -> ResourceList {
    let (mut sum, mut sidecars, mut peak) = (ResourceList::new(), ResourceList::new(), ResourceList::new());
    for c in &pod.containers {
        add(&mut sum, of(&c.resources));
    }
    for c in &pod.init_containers {
        let mut moment = sidecars.clone();
        add(&mut moment, of(&c.resources));
        at_least(&mut peak, &moment);
        if c.sidecar {
            add(&mut sum, of(&c.resources));
            sidecars = moment;
        }
    }
    at_least(&mut sum, &peak);
    sum.extend(pod.resources.iter().flat_map(|r| of(r).clone()));
    sum
}

impl Pod {
    /// The pod's total requests and limits. Overhead counts to limits only where there are some.
    pub fn total(&self) -> Resources {
        let mut total =
            Resources { requests: side(self, |r| &r.requests), limits: side(self, |r| &r.limits) };
        if let Some(overhead) = &self.overhead {
            add(&mut total.requests, overhead);
            let limited = |name: &String| total.limits.get(name).is_some_and(|q: &Quantity| !q.is_zero());
            let over = overhead.clone().into_iter().filter(|(name, _)| limited(name)).collect();
            add(&mut total.limits, &over);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{container, pod, resources, sidecar, with_overhead},
        *,
    };

    fn shown(list: &ResourceList) -> String {
        list.iter().map(|(name, q)| format!("{name}={}", q.canonical())).collect::<Vec<_>>().join(",")
    }

    /// The values are those that the kubelet published (`tests/golden/status`).
    #[test]
    fn the_worst_moment_counts_and_the_pods_own_values_win() {
        let plain = |containers| pod("u", vec![], containers);
        let own = |requests: &str, limits: &str, pod: Pod| Pod {
            resources: Some(resources(requests, limits)),
            ..pod
        };
        let init = container("cpu=50m,memory=30Mi", "memory=40Mi");
        for (pod, requests, limits) in [
            (plain(vec![container("", "")]), "", ""),
            (plain(vec![container("cpu=0,memory=0", "cpu=100m")]), "cpu=0,memory=0", "cpu=100m"),
            (plain(vec![container("", "cpu=100m"), container("", "")]), "cpu=100m", "cpu=100m"),
            (
                pod("u", vec![init], vec![container("cpu=10m,memory=10Mi", "memory=20Mi")]),
                "cpu=50m,memory=30Mi",
                "memory=40Mi",
            ),
            (
                pod("u", vec![sidecar("memory=10Mi", "")], vec![container("memory=1Gi", "")]),
                "memory=1034Mi",
                "",
            ),
            (
                own("cpu=100m,memory=50Mi", "memory=60Mi", plain(vec![container("cpu=20m", "memory=20Mi")])),
                "cpu=100m,memory=50Mi",
                "memory=60Mi",
            ),
            (
                with_overhead(plain(vec![container("cpu=10m", "memory=1Mi")]), "cpu=10m,memory=10Mi"),
                "cpu=20m,memory=11Mi",
                "memory=11Mi",
            ),
        ] {
            let total = pod.total();
            assert_eq!((shown(&total.requests).as_str(), shown(&total.limits).as_str()), (requests, limits));
        }
    }
}
