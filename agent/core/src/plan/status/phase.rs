//! Phase of a pod (getPhase in `pkg/kubelet/kubelet_pods.go`).

use crate::{
    model::{Origin, RestartPolicy},
    plan::planner::Planner,
    status::{ContainerState, ContainerStatus, Phase, Truth},
};

/// The phase. A pod that had to end and of which no process and no volume is left has failed, unless its containers
/// tell another end (`TerminatePod`, `pkg/kubelet/status`). The kubelet makes an exception of static pods.
pub(super) fn phase(
    d: &Planner<'_>,
    init: &[ContainerStatus],
    mains: &[ContainerStatus],
    terminal: Option<Phase>,
) -> Phase {
    let phase = by_containers(d, init, mains, terminal);
    let is_static = matches!(d.pod.origin, Origin::StaticFile(_));
    let left = !d.seen.runtime_answers || !d.is_gone();
    if phase.is_terminal() || d.memory.ending.is_none() || left || is_static { phase } else { Phase::Failed }
}

fn by_containers(
    d: &Planner<'_>,
    init: &[ContainerStatus],
    mains: &[ContainerStatus],
    terminal: Option<Phase>,
) -> Phase {
    let alive = d.anything_alive() || d.seen.containers.keys().any(|id| d.being_recorded(id));
    if let Some(phase) = terminal.filter(|_| !alive) {
        return phase;
    }
    let started =
        mains.iter().any(|c| !matches!(c.state, ContainerState::Waiting { .. }) || c.last_state.is_some());
    let init_pending = !started
        && d.pod
            .init_containers
            .iter()
            .zip(init)
            .any(|(spec, s)| if spec.sidecar { s.started != Some(true) } else { s.ready != Truth::True });
    if init_pending {
        return Phase::Pending;
    }
    let never_ran =
        mains.iter().any(|c| matches!(c.state, ContainerState::Waiting { .. }) && c.last_state.is_none());
    if never_ran || mains.is_empty() {
        return Phase::Pending;
    }
    let running = mains.iter().any(|c| matches!(c.state, ContainerState::Running { .. }));
    let stopped = || mains.iter().all(|c| !matches!(c.state, ContainerState::Running { .. }));
    if !running && stopped() && d.memory.ending.is_some() && !alive {
        let well = mains.iter().all(|c| exit_code(c) == Some(0));
        return if well { Phase::Succeeded } else { Phase::Failed };
    }
    debug_assert!(d.pod.restart_policy != RestartPolicy::Never || running || alive || terminal.is_none());
    Phase::Running
}

/// Keeps the phase from moving backwards when containers or sandbox are removed, and notes it in the memory.
pub(super) fn forwards(d: &mut Planner<'_>, phase: Phase) -> Phase {
    let phase = match d.memory.phase {
        Some(before) if before.is_terminal() => before,
        Some(before) => before.max(phase),
        None => phase,
    };
    d.memory.phase = Some(phase);
    phase
}

fn exit_code(c: &ContainerStatus) -> Option<i32> {
    match &c.state {
        ContainerState::Terminated(t) => Some(t.exit_code),
        _ => c.last_state.as_ref().map(|t| t.exit_code),
    }
}
