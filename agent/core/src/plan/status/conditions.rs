//! Conditions of a pod (`pkg/kubelet/status/generate.go`).

use super::container::truth;
use crate::{
    model::Container,
    plan::{SandboxState, planner::Planner},
    status::{Condition, ConditionType, ContainerState, ContainerStatus, Phase, Truth},
};

/// Names of the init containers that still delay the containers after them.
fn incomplete<'p>(d: &Planner<'p>, init: &[ContainerStatus]) -> Vec<&'p str> {
    let done = |spec: &Container, s: &ContainerStatus| match spec.sidecar {
        true => s.started == Some(true),
        false => s.ready == Truth::True,
    };
    d.pod
        .init_containers
        .iter()
        .zip(init)
        .filter(|(c, s)| !done(c, s))
        .map(|(c, _)| c.name.as_str())
        .collect()
}

/// Whether condition Initialized is true. Once true, or once a main container has started, the condition
/// stays true, also while a sidecar or the sandbox is created again.
pub(super) fn is_initialized(d: &Planner<'_>, init: &[ContainerStatus], mains: &[ContainerStatus]) -> bool {
    let before = d.memory.conditions.get(&ConditionType::Initialized).is_some_and(|c| c.0 == Truth::True);
    let started = || mains.iter().any(|c| !matches!(c.state, ContainerState::Waiting { .. }));
    before || incomplete(d, init).is_empty() || started()
}

/// Whether the status shows a whole sandbox. Sandbox and volumes are created at the same time. The status
/// shows the sandbox only once both are there, as in the kubelet, where the sandbox follows the volumes.
pub(super) fn shows_sandbox(d: &Planner<'_>) -> bool {
    let sandbox = d.seen.sandbox.as_ref().filter(|s| s.state != SandboxState::Broken);
    let before = d.memory.conditions.get(&ConditionType::PodReadyToStartContainers);
    sandbox.is_some_and(|s| {
        d.seen.volumes_mounted
            || before.is_some_and(|c| c.0 == Truth::True)
            || d.seen.containers.values().any(|c| c.sandbox_attempt == s.sandbox_attempt)
    })
}

pub(super) fn conditions(
    d: &mut Planner<'_>,
    phase: Phase,
    initialized: bool,
    init: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Vec<Condition> {
    let may_start = shows_sandbox(d);
    let mut list = Vec::with_capacity(6);
    list.push(condition(d, ConditionType::PodReadyToStartContainers, truth(may_start), None, None));

    let (status, reason, message) = if phase == Phase::Succeeded {
        (Truth::True, Some("PodCompleted"), None)
    } else if initialized {
        (Truth::True, None, None)
    } else {
        let names = incomplete(d, init);
        (
            Truth::False,
            Some("ContainersNotInitialized"),
            Some(format!("containers with incomplete status: [{}]", names.join(" "))),
        )
    };
    list.push(condition(d, ConditionType::Initialized, status, reason, message));

    let sidecars = d.pod.init_containers.iter().zip(init).filter(|(spec, _)| spec.sidecar).map(|(_, s)| s);
    let counted: Vec<&ContainerStatus> = sidecars.chain(mains).collect();
    let unready: Vec<&str> =
        counted.iter().filter(|c| c.ready == Truth::False).map(|c| c.name.as_str()).collect();
    let unknown = counted.iter().any(|c| c.ready == Truth::Unknown);
    let (status, reason, message) = match phase {
        Phase::Succeeded => (Truth::False, Some("PodCompleted"), None),
        Phase::Failed => (Truth::False, Some("PodFailed"), None),
        _ if !unready.is_empty() => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            (Truth::False, Some("ContainersNotReady"), Some(message))
        }
        _ if unknown => (Truth::Unknown, Some("ReadinessNotYetKnown"), None),
        _ => (Truth::True, None, None),
    };
    let missing = if status == Truth::True { missing_gates(d, &list) } else { Vec::new() };
    let ready = if missing.is_empty() {
        (status, reason, message.clone())
    } else {
        (Truth::False, Some("ReadinessGatesNotReady"), Some(missing.join(", ")))
    };
    list.push(condition(d, ConditionType::Ready, ready.0, ready.1, ready.2));
    list.push(condition(d, ConditionType::ContainersReady, status, reason, message));
    list.push(condition(d, ConditionType::PodScheduled, Truth::True, None, None));
    list.extend(resize_conditions(d, phase));
    list
}

/// The conditions of a resize. A pod that has ended has none (`determinePodResizeStatus`). Both are true all the time, so
/// the time is that of the reason.
fn resize_conditions(d: &mut Planner<'_>, phase: Phase) -> Vec<Condition> {
    if phase.is_terminal() {
        (d.memory.resize, d.memory.resize_pending) = (None, None);
        return Vec::new();
    }
    let mut list = Vec::new();
    let before = d.memory.resize_pending.take();
    if let Some(resize) = &d.pod.pending_resize {
        let same = before.filter(|(reason, _)| *reason == resize.reason);
        let since = same.map_or(d.now.wall, |(_, since)| since);
        d.memory.resize_pending = Some((resize.reason, since));
        list.push(Condition {
            kind: ConditionType::PodResizePending,
            status: Truth::True,
            reason: Some(resize.reason.name().to_owned()),
            message: Some(resize.message.clone()),
            since,
            generation: resize.generation,
        });
    }
    if let Some(resize) = &d.memory.resize {
        list.push(Condition {
            kind: ConditionType::PodResizeInProgress,
            status: Truth::True,
            reason: resize.error.as_ref().map(|_| "Error".to_owned()),
            message: resize.error.clone(),
            since: resize.since,
            generation: resize.generation,
        });
    }
    list
}

/// The readiness gates that do not hold, in words. Of the node's own conditions a gate can name those that precede
/// Ready, which are in `before`; the others do not exist for it.
fn missing_gates(d: &Planner<'_>, before: &[Condition]) -> Vec<String> {
    let own = |gate: &str| {
        ConditionType::ALL.iter().any(|c| c.name() == gate && *c != ConditionType::DisruptionTarget)
    };
    let mut missing = Vec::new();
    for gate in &d.pod.readiness_gates {
        let shown = match before.iter().find(|c| c.kind.name() == gate) {
            Some(condition) => Some(condition.status),
            None if own(gate) => None,
            None => d.gates.get(gate).copied(),
        };
        match shown {
            Some(Truth::True) => {}
            Some(status) => missing.push(format!(
                "the status of pod readiness gate {gate:?} is not \"True\", but {}",
                status.name()
            )),
            None => missing
                .push(format!("corresponding condition of pod readiness gate {gate:?} does not exist.")),
        }
    }
    missing
}

fn condition(
    d: &mut Planner<'_>,
    kind: ConditionType,
    status: Truth,
    reason: Option<&str>,
    message: Option<String>,
) -> Condition {
    let now = d.now.wall;
    let entry = d.memory.conditions.entry(kind).or_insert((status, now));
    if entry.0 != status {
        *entry = (status, now);
    }
    Condition { kind, status, reason: reason.map(str::to_owned), message, since: entry.1, generation: None }
}
