//! Status of a pod: phase, conditions and container states (getPhase in `pkg/kubelet/kubelet_pods.go`,
//! `pkg/kubelet/status/generate.go`).

mod conditions;
mod container;
mod phase;
mod waiting_for;

use super::{SandboxState, planner::Planner};
use crate::status::{ConditionType, ContainerStatus, Phase, PodStatus, Truth};
use conditions::{conditions, is_initialized, shows_sandbox};
use container::{container_status, keep_terminated, terminate_waiting};
use phase::{forwards, phase};
use waiting_for::waiting_for;

/// Builds the status, and notes in the memory the last transition of each condition.
pub(super) fn status(d: &mut Planner<'_>, terminal: Option<Phase>) -> PodStatus {
    let pod = d.pod;
    if d.memory.rejected {
        return rejected(d);
    }
    let over = terminal.is_some();
    let mut init: Vec<ContainerStatus> =
        pod.init_containers.iter().map(|c| container_status(d, c, over)).collect();
    let mut mains: Vec<ContainerStatus> =
        pod.containers.iter().map(|c| container_status(d, c, over)).collect();
    let phase = forwards(d, phase(d, &init, &mains, terminal));
    let initialized = is_initialized(d, &init, &mains);
    if phase.is_terminal() && initialized {
        terminate_waiting(d, &mut init);
        terminate_waiting(d, &mut mains);
    }
    if phase.is_terminal() || d.memory.ending.is_some() {
        keep_terminated(d, &init);
        keep_terminated(d, &mains);
    }
    let conditions = conditions(d, phase, initialized, &init, &mains);
    mains.sort_by(|a, b| a.name.cmp(&b.name));
    let failed = d.memory.failed.clone().filter(|_| phase == Phase::Failed);
    let ready = conditions.iter().any(|c| c.kind == ConditionType::Ready && c.status == Truth::True);
    let waiting = if ready { None } else { waiting_for(d, phase, &init, &mains) };
    let (waiting_for, next_try) = waiting.map_or((None, None), |(what, next)| (Some(what), next));
    PodStatus {
        phase,
        reason: failed.as_ref().map(|f| f.reason.clone()),
        message: failed.map(|f| f.message),
        start_time: d.memory.start_time,
        pod_ips: match &d.seen.sandbox {
            Some(s) if s.state == SandboxState::Broken || shows_sandbox(d) => s.ips.clone(),
            // A pod that has ended keeps showing the addresses that it had.
            _ if phase.is_terminal() => d.memory.ips.clone(),
            _ => Vec::new(),
        },
        conditions,
        init_containers: init,
        containers: mains,
        qos: pod.qos(),
        terminating: d.memory.ending.is_some(),
        waiting_for,
        next_try,
    }
}

/// The status of a pod that the node rejected on admission: neither containers nor conditions.
fn rejected(d: &Planner<'_>) -> PodStatus {
    PodStatus {
        reason: d.memory.failed.as_ref().map(|f| f.reason.clone()),
        message: d.memory.failed.as_ref().map(|f| f.message.clone()),
        start_time: d.memory.start_time,
        terminating: d.memory.ending.is_some(),
        waiting_for: d
            .memory
            .failed
            .as_ref()
            .map(|f| format!("{}; it is not tried again: take its manifest away and put it back", f.message)),
        ..PodStatus::new(Phase::Failed, d.pod.qos())
    }
}
