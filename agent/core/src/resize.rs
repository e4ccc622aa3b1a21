//! In-place resize of a pod's resources. The API server takes a new `resources` of a bound pod by the subresource
//! `resize`, and leaves it to the node whether it is possible. This node does not resize: the pod runs on with the
//! resources that it has, and its condition PodResizePending says Infeasible (KEP-1287; `handlePodResourcesResize`,
//! `pkg/kubelet/allocation`).

use crate::{
    event::Event,
    ids::ContainerName,
    model::{Container, Pod},
};
use std::sync::Arc;

/// The message of the condition.
pub const RESIZE_MESSAGE: &str =
    "this node does not resize pods in place: the pod runs on with the resources that it was started with";

/// The pod as the node runs it: `wanted`, with the resources of `allocated`, which is the same pod as the node runs it
/// now.
pub fn with_allocated_resources(wanted: &Arc<Pod>, allocated: &Pod) -> Arc<Pod> {
    // The spec of such a pod is not known.
    if wanted.unsupported.is_some() || allocated.unsupported.is_some() {
        return Arc::clone(wanted);
    }
    let of = |name: &ContainerName| allocated.container(name).map(|c| &c.resources);
    let same = |c: &Container| of(&c.name).is_none_or(|resources| *resources == c.resources);
    if wanted.all_containers().all(same) && wanted.resources == allocated.resources {
        return Arc::clone(wanted);
    }
    let mut pod =
        Pod { resize_infeasible: true, resources: allocated.resources.clone(), ..(**wanted).clone() };
    for container in pod.init_containers.iter_mut().chain(&mut pod.containers) {
        if let Some(resources) = of(&container.name) {
            container.resources = resources.clone();
        }
    }
    Arc::new(pod)
}

/// The event about a resize that this node refuses. `before` is the pod as it was before its newest change: an event is
/// told once for each generation of the spec.
pub fn refused_resize(before: &Pod, pod: &Pod) -> Option<Event> {
    let told = before.resize_infeasible && before.generation == pod.generation;
    (pod.resize_infeasible && !told)
        .then(|| Event::warning("ResizeInfeasible", format!("Pod resize Infeasible: {RESIZE_MESSAGE}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::PodKey, model::Resources};

    fn pod(generation: i64, cpu: &str) -> Arc<Pod> {
        let key = PodKey { namespace: "ns".parse().unwrap(), name: "p".parse().unwrap() };
        let requests = [("cpu".to_owned(), cpu.parse().unwrap())].into();
        let container = Container::new("c".parse().unwrap(), "i");
        let resources = Resources { requests, ..Resources::default() };
        Arc::new(Pod {
            generation: Some(generation),
            containers: vec![Container { resources, ..container }],
            ..Pod::new("u".parse().unwrap(), key, "n".parse().unwrap())
        })
    }

    #[test]
    fn a_resized_pod_keeps_its_resources_and_takes_the_rest_of_the_new_spec() {
        let (first, resized) = (pod(1, "1"), pod(2, "2"));
        let run = with_allocated_resources(&resized, &first);
        assert_eq!(run.containers, first.containers);
        assert_eq!((run.resize_infeasible, run.generation), (true, Some(2)));
        assert!(refused_resize(&first, &run).is_some());
        // A further change of the spec keeps the first resources, and another resize is told of again.
        let again = with_allocated_resources(&pod(3, "3"), &run);
        assert_eq!(again.containers, first.containers);
        assert!(refused_resize(&run, &again).is_some());
        assert_eq!(refused_resize(&again, &again), None);
        // A resize that is taken back leaves nothing.
        let back = with_allocated_resources(&pod(4, "1"), &again);
        assert_eq!(back, pod(4, "1"));
        assert_eq!(refused_resize(&again, &back), None);
    }

    #[test]
    fn a_pod_that_is_not_resized_is_shared() {
        let same = pod(2, "1");
        assert!(Arc::ptr_eq(&with_allocated_resources(&same, &pod(1, "1")), &same));
        assert_eq!(refused_resize(&pod(1, "1"), &same), None);
    }
}
