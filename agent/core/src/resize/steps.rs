//! The order in which a resize is set on the pod's cgroup and on its containers (`doPodResizeAction`,
//! `pkg/kubelet/kuberuntime`): a pod's limit grows before those of its containers and shrinks after them.

use super::CpuMemory;
use crate::{
    ids::{ContainerId, ContainerName},
    resources::PodCgroup,
};
use serde::{Deserialize, Serialize};

/// A run whose CPU and memory are to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUpdate {
    /// The run.
    pub id: ContainerId,
    /// The container's name.
    pub container: ContainerName,
    /// What is set on the run.
    pub now: CpuMemory,
    /// What is allocated to the container.
    pub wanted: CpuMemory,
}

/// What the pod's own cgroup says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodLimits {
    /// CPU shares.
    pub cpu_shares: u64,
    /// CPU quota in microseconds per period; `None` is unlimited.
    pub cpu_quota: Option<i64>,
    /// Memory limit in bytes; `None` is unlimited.
    pub memory_limit: Option<i64>,
}

/// One step of a resize.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResizeStep {
    /// Set the pod's memory limit, in bytes.
    PodMemory(i64),
    /// Set the pod's CPU quota, in microseconds per period.
    PodQuota(i64),
    /// Set the pod's CPU shares.
    PodShares(u64),
    /// Set the memory of this run, and keep its CPU.
    ContainerMemory(ContainerId),
    /// Set the CPU of this run; its memory is set already.
    ContainerCpu(ContainerId),
}

/// The steps, in their order. A limit of the pod that the wanted resources do not name stays as it is.
pub fn steps(now: PodLimits, wanted: &PodCgroup, updates: &[ContainerUpdate]) -> Vec<ResizeStep> {
    let limit = |value: Option<i64>| value.unwrap_or(i64::MAX);
    let mut steps = Vec::new();
    let memory = wanted.memory_limit.filter(|wanted| Some(*wanted) != now.memory_limit);
    let grows = memory.filter(|wanted| *wanted > limit(now.memory_limit));
    let shrinks = memory.filter(|wanted| *wanted < limit(now.memory_limit));
    steps.extend(grows.map(ResizeStep::PodMemory));
    let runs = in_order(updates, |r| (r.memory_limit, r.memory_request));
    steps.extend(runs.map(ResizeStep::ContainerMemory));
    steps.extend(shrinks.map(ResizeStep::PodMemory));

    let quota = wanted.cpu_quota.filter(|wanted| Some(*wanted) != now.cpu_quota);
    let shares = Some(wanted.cpu_shares).filter(|wanted| *wanted != now.cpu_shares);
    steps.extend(quota.filter(|wanted| *wanted > limit(now.cpu_quota)).map(ResizeStep::PodQuota));
    steps.extend(shares.filter(|wanted| *wanted > now.cpu_shares).map(ResizeStep::PodShares));
    let runs = in_order(updates, |r| (r.cpu_limit, r.cpu_request));
    steps.extend(runs.map(ResizeStep::ContainerCpu));
    steps.extend(shares.filter(|wanted| *wanted < now.cpu_shares).map(ResizeStep::PodShares));
    steps.extend(quota.filter(|wanted| *wanted < limit(now.cpu_quota)).map(ResizeStep::PodQuota));
    steps
}

/// The runs whose value changes: those that give before those that take.
fn in_order(
    updates: &[ContainerUpdate],
    of: fn(&CpuMemory) -> (i64, i64),
) -> impl Iterator<Item = ContainerId> {
    let changes = |give: bool| {
        let changed = updates.iter().filter(move |u| of(&u.now) != of(&u.wanted));
        changed.filter(move |u| (of(&u.wanted) < of(&u.now)) == give).map(|u| u.id.clone())
    };
    changes(true).chain(changes(false)).collect::<Vec<_>>().into_iter()
}

/// Why the memory limits cannot shrink now, in the kubelet's words: one of them is below what is in use. `usage` is the
/// memory in use by the pod, and by a run of it; `None` where it cannot be read.
pub fn shrink_fault(
    now: PodLimits,
    wanted: &PodCgroup,
    updates: &[ContainerUpdate],
    usage: impl Fn(Option<&ContainerId>) -> Option<u64>,
) -> Option<String> {
    let above = |used: u64, limit: i64| i128::from(used) >= i128::from(limit);
    let mut faults = Vec::new();
    if let Some(limit) = wanted.memory_limit.filter(|limit| now.memory_limit.is_none_or(|now| *limit < now)) {
        match usage(None) {
            None => faults.push("missing pod memory usage".to_owned()),
            Some(used) if above(used, limit) => {
                faults.push(format!(
                    "attempting to set pod memory limit ({limit}) below current usage ({used})"
                ));
            }
            Some(_) => {}
        }
    }
    for update in updates {
        let (limit, before) = (update.wanted.memory_limit, update.now.memory_limit);
        if limit == 0 || (before != 0 && limit >= before) {
            continue;
        }
        let name = update.container.as_str();
        match usage(Some(&update.id)) {
            None => faults.push(format!("missing container {name:?} memory usage")),
            Some(used) if above(used, limit) => faults.push(format!(
                "attempting to set container {name:?} memory limit ({limit}) below current usage ({used})"
            )),
            Some(_) => {}
        }
    }
    match faults.as_slice() {
        [] => None,
        [one] => Some(format!("cannot decrease memory limits: {one}")),
        all => Some(format!("cannot decrease memory limits: [{}]", all.join(", "))),
    }
}
