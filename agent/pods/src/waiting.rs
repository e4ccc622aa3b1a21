//! The report of a wanted pod that has no worker yet. The report claims only what the pod's stored memory
//! holds.

use crate::report::PodReport;
use berth_core::{
    model::{Container, Pod},
    plan::{Memory, Readiness},
    status::{Condition, ConditionType, ContainerState, ContainerStatus, Phase, PodStatus, Truth},
    time::{Now, Wall},
};
use std::{collections::BTreeMap, sync::Arc};

/// Reason for which a wanted pod has no worker yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitReason {
    /// The agent has just started, and containerd has not answered yet.
    Runtime,
    /// Two pods have one name, and the second, which comes from a file, waits for the end of the first.
    Name,
    /// The machine shuts down, and no pod is started any more.
    Shutdown,
    /// The node's labels do not match the pod, which was bound to the node all the same: a label may have been
    /// set just before, and its news may come after the pod's.
    NodeLabels,
    /// The pod's orphan is being removed, and a worker would interfere with the removal.
    Orphan,
}

impl WaitReason {
    /// What the pod waits for, for [`PodStatus::waiting_for`].
    fn text(self) -> &'static str {
        match self {
            WaitReason::Runtime => "containerd to answer",
            WaitReason::Name => "an earlier pod of the same name to be gone",
            WaitReason::Shutdown => "the next boot: the machine is shut down",
            WaitReason::NodeLabels => {
                "the node's labels and taints to match the pod's node selector, affinity and tolerations"
            }
            WaitReason::Orphan => "what an earlier life of the pod left to be removed",
        }
    }

    /// Readiness and conditions that the pod's memory does not hold: unknown as long as containerd has not
    /// answered. In the other cases the pod does not run.
    fn default_truth(self) -> Truth {
        match self {
            WaitReason::Runtime => Truth::Unknown,
            WaitReason::Name | WaitReason::Shutdown | WaitReason::NodeLabels | WaitReason::Orphan => {
                Truth::False
            }
        }
    }
}

/// The conditions that a node sets, in the kubelet's order.
const CONDITIONS: [ConditionType; 5] = [
    ConditionType::PodReadyToStartContainers,
    ConditionType::Initialized,
    ConditionType::Ready,
    ConditionType::ContainersReady,
    ConditionType::PodScheduled,
];

/// The report of a waiting pod. While containerd has not answered, the report shows the pod as remembered,
/// and as unknown without a memory: missing knowledge never makes a pod not ready. A pod that waits for its
/// name or for the removal of its orphan does not run.
pub(crate) fn report(pod: &Arc<Pod>, memory: Option<&Memory>, why: WaitReason, now: Now) -> PodReport {
    let default = why.default_truth();
    let containers = |list: &[Container]| -> Vec<ContainerStatus> {
        list.iter().map(|c| container(c, memory, default, now)).collect()
    };
    let init_containers = containers(&pod.init_containers);
    let mut containers = containers(&pod.containers);
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    let mut ephemeral_containers: Vec<_> =
        pod.ephemeral_containers.iter().map(|c| ephemeral(c, memory, default, now)).collect();
    ephemeral_containers.sort_by(|a, b| a.name.cmp(&b.name));
    let runs = containers.iter().any(|c| matches!(c.state, ContainerState::Running { .. }));
    let conditions = CONDITIONS.into_iter().map(|kind| {
        let default = if kind == ConditionType::PodScheduled { Truth::True } else { default };
        let (status, since) =
            memory.and_then(|m| m.conditions.get(&kind)).copied().unwrap_or((default, now.wall));
        Condition { kind, status, reason: None, message: None, since, generation: None }
    });
    let status = PodStatus {
        start_time: memory.and_then(|m| m.start_time),
        conditions: conditions.collect(),
        init_containers,
        containers,
        ephemeral_containers,
        waiting_for: Some(why.text().to_owned()),
        ..PodStatus::new(if runs { Phase::Running } else { Phase::Pending }, pod.qos())
    };
    PodReport {
        pod: Arc::clone(pod),
        status: Arc::new(status),
        processes: BTreeMap::new(),
        timeline: Vec::new(),
        observed: false,
        gone: false,
        reclaimed: false,
        as_of: now.wall,
    }
}

/// An ephemeral container, whose end is remembered for good.
fn ephemeral(c: &Container, memory: Option<&Memory>, default: Truth, now: Now) -> ContainerStatus {
    let ended = memory.and_then(|m| m.containers.get(&c.name)?.last.clone());
    ended.unwrap_or_else(|| ContainerStatus {
        ready: Truth::False,
        started: None,
        ..container(c, memory, default, now)
    })
}

fn container(c: &Container, memory: Option<&Memory>, default: Truth, now: Now) -> ContainerStatus {
    let remembered = memory.and_then(|m| m.containers.get(&c.name));
    let run = remembered.and_then(|m| m.run.as_ref());
    let started_at = run.filter(|r| r.ended_at.is_none()).and_then(|r| r.started_at);
    let unknown = || {
        let reason = if default == Truth::Unknown { "ContainerStatusUnknown" } else { "ContainerCreating" };
        ContainerState::Waiting { reason: reason.to_owned(), message: None }
    };
    let since = |age: std::time::Duration| {
        Wall(now.wall.0.saturating_sub(i64::try_from(age.as_nanos()).unwrap_or(i64::MAX)))
    };
    ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone(),
        image_id: String::new(),
        id: run.map(|r| r.id.clone()),
        ready: match run.map(|r| r.readiness) {
            Some(Readiness::Yes) => Truth::True,
            Some(Readiness::No) => Truth::False,
            Some(Readiness::Unknown) | None => default,
        },
        started: run.map(|r| r.startup_done),
        restart_count: remembered.and_then(|m| m.attempt).unwrap_or_default().0,
        state: started_at
            .map_or_else(unknown, |t| ContainerState::Running { started_at: since(now.boottime.since(t)) }),
        last_state: None,
        resources: None,
        user: None,
    }
}
