//! The groups and networks of the pods, named for a reading, and the counts of pods.

use crate::agent::status_manager::{PodState, StatusManager};
use berth_core::{
    ids::{Attempt, ContainerId, ContainerName, SandboxAttempt},
    model::{Origin, Pod, VolumeSource},
    resources::{CgroupFacts, ContainerResources, pod_cgroup},
    roots::Roots,
    status::{ContainerState, ContainerStatus, Phase, PodStatus},
};
use berth_node::CgroupTree;
use berth_stats::{
    network,
    reading::{ContainerReading, Group, Limits, NodeReading, PodReading, SandboxReading},
    render::agent::PodCounts,
};
use berth_volumes::metrics::plugin_name;
use std::{collections::BTreeMap, path::PathBuf};

fn positive(limit: Option<i64>) -> Option<u64> {
    limit.and_then(|n| u64::try_from(n).ok())
}

/// The groups of the node, without usage.
pub(super) fn named(roots: &Roots, cgroups: &CgroupTree, pods: &[PodState]) -> NodeReading {
    let group = |path: PathBuf| Group { path, ..Group::default() };
    let above = cgroups.paths_above();
    let all = above.first().cloned().unwrap_or_else(|| roots.cgroup_root.clone());
    NodeReading {
        above: above.into_iter().map(group).collect(),
        system: vec![("pods", group(all))],
        // A pod whose containers have all ended has no group.
        pods: pods
            .iter()
            .filter(|state| !state.status.phase.is_terminal())
            .map(|state| pod_reading(cgroups, state))
            .collect(),
        ..NodeReading::default()
    }
}

fn pod_reading(cgroups: &CgroupTree, state: &PodState) -> PodReading {
    let (pod, status) = (&state.pod, &state.status);
    let values = pod_cgroup(pod, None);
    let path = cgroups.pod_path(pod);
    let limits = Limits {
        cpu_shares: Some(values.cpu_shares),
        cpu_quota: positive(values.cpu_quota),
        memory: positive(values.memory_limit),
        tasks: None,
    };
    let own_network = !pod.namespaces.host_network && !status.pod_ips.is_empty();
    PodReading {
        uid: pod.uid.clone(),
        key: pod.key.clone(),
        sandbox: own_network.then(|| SandboxReading {
            id: sandbox_name(pod),
            group: Group { path: cgroups.pause_path(pod), started: status.start_time, ..Group::default() },
            interfaces: Vec::new(),
        }),
        containers: running(status).filter_map(|(c, id, at)| container(pod, &path, c, id, at)).collect(),
        group: Group { path, started: status.start_time, limits, ..Group::default() },
    }
}

/// A name of the pod's sandbox that is the same for the pod's whole life.
fn sandbox_name(pod: &Pod) -> String {
    let Ok(name) = ContainerName::new("sandbox") else { return pod.uid.to_string() };
    ContainerId::derive(&pod.uid, SandboxAttempt(0), &name, Attempt(u32::MAX)).to_string()
}

type Run<'a> = (&'a ContainerStatus, &'a ContainerId, berth_core::time::Wall);

fn running(status: &PodStatus) -> impl Iterator<Item = Run<'_>> {
    status.all_containers().filter_map(|c| match c.state {
        ContainerState::Running { started_at } => Some((c, c.id.as_ref()?, started_at)),
        _ => None,
    })
}

fn container(
    pod: &Pod,
    pod_path: &std::path::Path,
    status: &ContainerStatus,
    id: &ContainerId,
    started: berth_core::time::Wall,
) -> Option<ContainerReading> {
    let own = pod.container(&status.name)?;
    let values = ContainerResources::of(pod, own, CgroupFacts::default());
    Some(ContainerReading {
        name: status.name.clone(),
        id: id.clone(),
        image: status.image.clone(),
        group: Group {
            path: pod_path.join(id.as_str()),
            started: Some(started),
            limits: Limits {
                cpu_shares: Some(values.cpu_shares),
                cpu_quota: positive(values.cpu_quota),
                memory: positive(values.memory_limit),
                tasks: None,
            },
            ..Group::default()
        },
    })
}

/// Reads the counters of the host's interfaces and of each pod's.
pub(super) fn read_networks(reading: &mut NodeReading, roots: &Roots) {
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    reading.interfaces = network::parse(&read());
    let pods: Vec<(usize, PathBuf)> = reading
        .pods
        .iter()
        .enumerate()
        .filter(|(_, pod)| pod.sandbox.is_some())
        .map(|(n, pod)| (n, roots.sandbox_dir(&pod.uid).join("net")))
        .collect();
    let paths: Vec<&PathBuf> = pods.iter().map(|(_, path)| path).collect();
    let mut found = Vec::new();
    let entered = berth_sys::ns::in_each_net_ns(&paths, |n| found.push((n, network::parse(&read()))));
    if let Err(error) = entered {
        tracing::warn!(%error, "cannot read the networks of pods");
    }
    for (n, interfaces) in found {
        let pod = pods.get(n).and_then(|(at, _)| reading.pods.get_mut(*at));
        if let Some(sandbox) = pod.and_then(|pod| pod.sandbox.as_mut()) {
            sandbox.interfaces = interfaces;
        }
    }
}

/// The pods by state.
pub(super) fn counts(status: &StatusManager) -> PodCounts {
    let mut counts =
        PodCounts { containers: BTreeMap::from([("exited", 0), ("running", 0)]), ..PodCounts::default() };
    for PodState { pod, status, desired } in status.pod_states() {
        let is_static = matches!(pod.origin, Origin::StaticFile(_));
        let add = |(of_files, others): (u64, u64)| {
            if is_static { (of_files + 1, others) } else { (of_files, others + 1) }
        };
        if desired {
            counts.desired = add(counts.desired);
            let ephemeral = u64::try_from(pod.ephemeral_containers.len()).unwrap_or(0);
            counts.ephemeral = counts.ephemeral.saturating_add(ephemeral);
        }
        let active = !matches!(status.phase, Phase::Succeeded | Phase::Failed);
        if active {
            counts.active = add(counts.active);
            for volume in pod.mounted_volumes() {
                let set_up = u64::from(!status.pod_ips.is_empty());
                if !matches!(volume.source, VolumeSource::NotYet { .. }) {
                    let entry = counts.volumes.entry(plugin_name(&volume.source)).or_default();
                    *entry = (entry.0 + 1, entry.1 + set_up);
                }
            }
        }
        let mut runs = 0;
        for c in status.all_containers() {
            match c.state {
                ContainerState::Running { .. } => runs += 1,
                ContainerState::Terminated(_) => *counts.containers.entry("exited").or_default() += 1,
                ContainerState::Waiting { .. } => {}
            }
        }
        *counts.containers.entry("running").or_default() += runs;
        counts.running += u64::from(runs > 0);
    }
    counts
}
