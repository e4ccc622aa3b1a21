//! In-place resize of a running pod: its cgroup and its containers, in the order of [`berth_core::resize::steps`]. A step
//! that fails ends the resize; what is set by then stays, and the next try continues from there.

use crate::{NodeExecutor, pod_locks::Area};
use berth_core::{
    error::Chain,
    ids::ContainerId,
    model::{Container, Pod, Resources},
    plan::{Failure, PodResize},
    quantity::Quantity,
    resize::{ContainerUpdate, CpuMemory, ResizeStep, shrink_fault, steps},
    resources::{ContainerResources, pod_cgroup},
};
use berth_node::cgroup::CgroupTree;
use berth_pods::{ActionResult, Context, ObservedChange};
use std::{collections::BTreeMap, sync::Arc};

/// The reason of a failed resize, which the condition PodResizeInProgress has too.
const REASON: &str = "Error";

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(REASON, error.to_string())
}

impl NodeExecutor {
    /// Sets the resources of the pod's allocation.
    pub(crate) async fn resize_pod(&self, context: Context, resize: PodResize) -> ActionResult {
        let mut changes = Vec::new();
        let outcome = self.set_resources(&context.pod, &resize, &mut changes).await;
        ActionResult { outcome, changes, ..ActionResult::default() }
    }

    async fn set_resources(
        &self,
        pod: &Arc<Pod>,
        resize: &PodResize,
        changes: &mut Vec<ObservedChange>,
    ) -> Result<(), Failure> {
        let steps = self.resize_steps(pod, &resize.updates).await?;
        let mut set: BTreeMap<&ContainerId, CpuMemory> = BTreeMap::new();
        for step in steps {
            let memory = matches!(step, ResizeStep::ContainerMemory(_));
            match step {
                ResizeStep::PodMemory(bytes) => {
                    self.of_pod(pod, move |cgroups, pod| cgroups.set_pod_memory(pod, bytes)).await?;
                }
                ResizeStep::PodQuota(quota) => {
                    self.of_pod(pod, move |cgroups, pod| cgroups.set_pod_quota(pod, quota)).await?;
                }
                ResizeStep::PodShares(shares) => {
                    self.of_pod(pod, move |cgroups, pod| cgroups.set_pod_shares(pod, shares)).await?;
                }
                ResizeStep::ContainerMemory(id) | ResizeStep::ContainerCpu(id) => {
                    let Some(update) = resize.updates.iter().find(|u| u.id == id) else { continue };
                    let amounts = set.entry(&update.id).or_insert(update.now);
                    *amounts = if memory {
                        amounts.with_memory(&update.wanted)
                    } else {
                        amounts.with_cpu(&update.wanted)
                    };
                    changes.extend(self.set_container(pod, update, *amounts).await?);
                }
            }
        }
        Ok(())
    }

    async fn resize_steps(
        &self,
        pod: &Arc<Pod>,
        updates: &[ContainerUpdate],
    ) -> Result<Vec<ResizeStep>, Failure> {
        let (cgroups, pids) = (self.cgroups.clone(), self.config.pids_limit);
        let (pod, updates) = (Arc::clone(pod), updates.to_vec());
        let uid = pod.uid.clone();
        let read = move || {
            let wanted = pod_cgroup(&pod, pids);
            let now = cgroups.pod_limits(&pod, wanted.cpu_shares).map_err(|e| failed(Chain(&e)))?;
            let usage = |id: Option<&ContainerId>| {
                let path =
                    id.map_or_else(|| cgroups.pod_cgroup(&pod), |id| cgroups.container_cgroup(&pod, id));
                cgroups.memory_usage(&path)
            };
            match shrink_fault(now, &wanted, &updates, usage) {
                Some(fault) => Err(failed(fault)),
                None => Ok(steps(now, &wanted, &updates)),
            }
        };
        self.pod_locks.blocking(&uid, Area::Sandbox, read).await?
    }

    async fn of_pod(
        &self,
        pod: &Arc<Pod>,
        set: impl FnOnce(&CgroupTree, &Pod) -> Result<(), berth_node::Error> + Send + 'static,
    ) -> Result<(), Failure> {
        let (cgroups, pod) = (self.cgroups.clone(), Arc::clone(pod));
        let uid = pod.uid.clone();
        let done = self.pod_locks.blocking(&uid, Area::Sandbox, move || set(&cgroups, &pod)).await?;
        done.map_err(|e| failed(Chain(&e)))
    }

    /// Sets these amounts on a run and its record. No change where the run has ended.
    async fn set_container(
        &self,
        pod: &Pod,
        update: &ContainerUpdate,
        amounts: CpuMemory,
    ) -> Result<Option<ObservedChange>, Failure> {
        let Some(spec) = pod.container(&update.container) else { return Ok(None) };
        let spec = with_amounts(spec, amounts);
        let wanted = ContainerResources::of(pod, &spec, self.config.host.cgroup_facts());
        let stored = serde_json::to_value(&spec.resources).map_err(failed)?;
        let runtime = self.runtime()?;
        let set = runtime.update_resources(&update.id, &wanted, &[("resources", stored)]).await;
        let set = set.map_err(|e| failed(Chain(&e)))?;
        Ok(set.then(|| ObservedChange::Resized(update.id.clone(), spec.resources)))
    }
}

/// The container with these amounts. An amount that is the container's own keeps its spelling.
fn with_amounts(spec: &Container, amounts: CpuMemory) -> Container {
    let mut spec = spec.clone();
    let Resources { requests, limits } = &mut spec.resources;
    for (list, cpu, memory) in [
        (requests, amounts.cpu_request, amounts.memory_request),
        (limits, amounts.cpu_limit, amounts.memory_limit),
    ] {
        for (name, value, suffix) in [("cpu", cpu, "m"), ("memory", memory, "")] {
            let now = list.get(name).map(|q| if name == "cpu" { q.millis() } else { q.units() });
            if now.unwrap_or(0) == value {
                continue;
            }
            match format!("{value}{suffix}").parse::<Quantity>() {
                Ok(quantity) if value > 0 => drop(list.insert(name.to_owned(), quantity)),
                _ => drop(list.remove(name)),
            }
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_replace_those_that_differ() {
        let list = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), v.parse().unwrap())).collect()
        };
        let resources = Resources {
            requests: list(&[("cpu", "0.5"), ("memory", "64Mi")]),
            limits: list(&[("memory", "64Mi")]),
        };
        let spec = Container { resources, ..Container::new("c".parse().unwrap(), "i") };
        let same = CpuMemory::of(&spec.resources);
        assert_eq!(with_amounts(&spec, same), spec);
        let next = CpuMemory { cpu_limit: 700, memory_limit: 0, ..same };
        let changed = with_amounts(&spec, next);
        assert_eq!(CpuMemory::of(&changed.resources), next);
        assert_eq!(changed.resources.requests, spec.resources.requests);
    }
}
