//! Status of a pod: phase, conditions and container states (getPhase in `pkg/kubelet/kubelet_pods.go`,
//! `pkg/kubelet/status/generate.go`).

mod conditions;
mod container;
mod phase;
mod waiting_for;

use super::{ObservedSandbox, SandboxState, planner::Planner};
use crate::status::{ConditionType, ContainerState, ContainerStatus, Phase, PodStatus, Truth};
use conditions::{conditions, is_initialized, shows_sandbox};
pub(super) use container::unknown_end;
use container::{container_status, keep_terminated, terminate_waiting};
use phase::{forwards, phase};
use std::net::IpAddr;
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
    let mut ephemeral: Vec<ContainerStatus> =
        pod.ephemeral_containers.iter().map(|c| container_status(d, c, over)).collect();
    // Such a container never runs again, so its end is kept in any case.
    keep_terminated(d, &ephemeral);
    let phase = forwards(d, phase(d, &init, &mains, terminal));
    let initialized = is_initialized(d, &init, &mains);
    if phase.is_terminal() {
        let begun = if initialized { init.len() } else { begun(&init) };
        terminate_waiting(&mut init[..begun]);
        if initialized {
            terminate_waiting(&mut mains);
        }
    }
    if phase.is_terminal() || d.memory.ending.is_some() {
        keep_terminated(d, &init);
        keep_terminated(d, &mains);
    }
    let conditions = conditions(d, phase, initialized, &init, &mains);
    mains.sort_by(|a, b| a.name.cmp(&b.name));
    ephemeral.sort_by(|a, b| a.name.cmp(&b.name));
    let (reason, message) = why_ended(d, phase);
    let ready = conditions.iter().any(|c| c.kind == ConditionType::Ready && c.status == Truth::True);
    let waiting = if ready { None } else { waiting_for(d, phase, &init, &mains, &ephemeral) };
    let (waiting_for, next_try) = waiting.map_or((None, None), |(what, next)| (Some(what), next));
    PodStatus {
        observed_generation: pod.generation,
        phase,
        reason,
        message,
        start_time: d.memory.start_time,
        pod_ips: addresses(d, phase),
        conditions,
        init_containers: init,
        containers: mains,
        ephemeral_containers: ephemeral,
        qos: pod.qos(),
        terminating: d.memory.ending.is_some(),
        waiting_for,
        next_try,
    }
}

/// The addresses of the sandbox; of a pod that has ended or is ending those that it showed before.
fn addresses(d: &mut Planner<'_>, phase: Phase) -> Vec<IpAddr> {
    let shown = |s: &&ObservedSandbox| s.state == SandboxState::Broken || shows_sandbox(d);
    match d.seen.sandbox.as_ref().filter(shown).filter(|s| !s.ips.is_empty()) {
        Some(sandbox) => {
            d.memory.ips.clone_from(&sandbox.ips);
            sandbox.ips.clone()
        }
        None if phase.is_terminal() || d.memory.ending.is_some() => d.memory.ips.clone(),
        None => Vec::new(),
    }
}

/// How many init containers, from the first on, have begun or had to: all up to the last that has run, and at least the
/// first (`initializedContainers`, `pkg/kubelet/status`).
fn begun(init: &[ContainerStatus]) -> usize {
    let ran =
        |c: &ContainerStatus| !matches!(c.state, ContainerState::Waiting { .. }) || c.last_state.is_some();
    init.iter().rposition(ran).map_or(1, |last| last + 1).min(init.len())
}

/// Reason and message of the phase: those of the node, else those that the API server shows with the same phase.
fn why_ended(d: &Planner<'_>, phase: Phase) -> (Option<String>, Option<String>) {
    if let Some(failed) = d.memory.failed.as_ref().filter(|_| phase == Phase::Failed) {
        return (Some(failed.reason.clone()), Some(failed.message.clone()));
    }
    let shown = d.shown_terminal.filter(|shown| shown.phase == phase);
    shown.map_or((None, None), |shown| (shown.reason.clone(), shown.message.clone()))
}

/// The status of a pod that the node rejected on admission: neither containers nor conditions.
fn rejected(d: &Planner<'_>) -> PodStatus {
    PodStatus {
        observed_generation: d.pod.generation,
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
