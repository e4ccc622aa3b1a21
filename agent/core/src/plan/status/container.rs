//! Status of a container: its state, its last state, readiness and restarts.

use crate::{
    ids::{ContainerId, ContainerName},
    model::{Container, Pod},
    plan::{
        Action, HookState, Readiness, RunState,
        memory::Retry,
        planner::{ContainerPhase, ContainerRole, Planner},
    },
    status::{ContainerState, ContainerStatus, Terminated, Truth},
};
use std::time::Duration;

/// The reason of a container's end whose cause could not be determined.
const CONTAINER_STATUS_UNKNOWN: &str = "ContainerStatusUnknown";

/// The message of the end of a container of which no record is left.
const LOST: &str = "The container could not be located when the pod was terminated";

/// The message of reason `CrashLoopBackOff`.
fn backoff_message(pod: &Pod, spec: &Container, delay: Duration) -> String {
    let secs = delay.as_secs();
    let shown = match (secs / 60, secs % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    };
    format!(
        "back-off {shown} restarting failed container={} pod={}_{}({})",
        spec.name, pod.key.name, pod.key.namespace, pod.uid
    )
}

pub(super) fn container_status(d: &Planner<'_>, spec: &Container, over: bool) -> ContainerStatus {
    let ephemeral = d.role(&spec.name) == ContainerRole::Ephemeral;
    if (d.memory.ending.is_some() || over || ephemeral)
        && let Some(last) = kept_status(d, &spec.name)
    {
        return last;
    }
    container_status_now(d, spec, over)
}

fn container_status_now(d: &Planner<'_>, spec: &Container, over: bool) -> ContainerStatus {
    let newest = d.newest(&spec.name);
    let run = d.run(&spec.name);
    let phase = d.container_phase(&spec.name);
    let running = matches!(phase, ContainerPhase::Running(_));
    let state = state(d, spec, phase, over);
    let last_state = last_state(d, spec, &state);
    let started = running && run.is_some_and(|r| r.startup_done && r.post_start == HookState::Done);
    let role = d.role(&spec.name);
    let ready = if role == ContainerRole::Ephemeral {
        // The kubelet's probe manager does not know of ephemeral containers.
        Truth::False
    } else if role == ContainerRole::Init {
        // An init container that has finished counts as ready.
        truth(d.init_finished(&spec.name))
    } else if !started {
        Truth::False
    } else {
        match run.map(|r| r.readiness) {
            Some(Readiness::Yes) => Truth::True,
            Some(Readiness::Unknown) => Truth::Unknown,
            _ => Truth::False,
        }
    };
    let set = newest.filter(|_| running).and_then(|(_, c)| c.resources.as_ref());
    ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone(),
        image_id: newest.map(|(_, c)| c.image_id.clone()).unwrap_or_default(),
        id: newest.map(|(id, _)| id.clone()),
        ready,
        started: (role != ContainerRole::Ephemeral).then_some(started),
        restart_count: d.mem(&spec.name).map_or(0, |m| m.restarts),
        state,
        last_state,
        resources: set.filter(|set| **set != spec.resources).cloned(),
        user: newest.and_then(|(_, c)| c.user.clone()),
    }
}

/// The end of the run before the one that the state shows: by the records, or by the API's status where they are lost.
fn last_state(d: &Planner<'_>, spec: &Container, state: &ContainerState) -> Option<Terminated> {
    if d.role(&spec.name) == ContainerRole::Ephemeral {
        return None;
    }
    let newest = d.newest(&spec.name);
    let waiting = matches!(state, ContainerState::Waiting { .. });
    let recorded = match newest.filter(|(_, c)| waiting && c.state.exit().is_some()) {
        Some(dead) => Some(dead),
        None => d.previous(&spec.name),
    };
    if let Some((id, c)) = recorded {
        return c.state.exit().map(|e| e.terminated(id));
    }
    let past = d.mem(&spec.name)?.past.as_ref()?;
    let shown = newest.is_some_and(|(id, _)| past.id.as_ref() == Some(id));
    let end = past.end.as_ref().filter(|_| !shown);
    end.or(past.before.as_ref()).cloned()
}

pub(super) fn truth(b: bool) -> Truth {
    if b { Truth::True } else { Truth::False }
}

fn state(d: &Planner<'_>, spec: &Container, phase: ContainerPhase<'_>, over: bool) -> ContainerState {
    if d.ephemeral_run_lost(spec) {
        let mem = d.mem(&spec.name);
        let end = mem.and_then(|m| m.past.as_ref()?.end.clone());
        let id = mem.and_then(|m| m.run.as_ref()).map(|run| run.id.clone());
        return ContainerState::Terminated(end.unwrap_or_else(|| unknown_end(LOST, id)));
    }
    let ended = ending(d) || over;
    let dead = matches!(phase, ContainerPhase::Dead(..));
    if let Some(retry) = failure_of(d, &spec.name).filter(|_| !(ended && dead)) {
        return ContainerState::Waiting {
            reason: waiting_reason(retry),
            message: Some(waiting_message(retry, spec)),
        };
    }
    match phase {
        ContainerPhase::Running(id) => match d.seen.containers.get(id).map(|c| &c.state) {
            Some(RunState::Running { started_at }) => ContainerState::Running { started_at: *started_at },
            _ => waiting(default_reason(d)),
        },
        ContainerPhase::Dead(id, exit) => {
            if let Some(started_at) = exit.started_at.filter(|_| d.being_recorded(id)) {
                return ContainerState::Running { started_at };
            }
            let again = !ended
                && d.restartable(&spec.name, id, exit)
                && !(d.role(&spec.name) == ContainerRole::Init && exit.init_done());
            let wait = d.back_off(&spec.name, id).filter(|_| again);
            match wait {
                Some((_, delay)) => ContainerState::Waiting {
                    reason: "CrashLoopBackOff".into(),
                    message: Some(backoff_message(d.pod, spec, delay)),
                },
                None => ContainerState::Terminated(exit.terminated(id)),
            }
        }
        ContainerPhase::Starting | ContainerPhase::Never => waiting(default_reason(d)),
    }
}

impl Planner<'_> {
    /// Whether the end of a run is observed and its termination message is being read. Reading takes
    /// milliseconds, and the status shows the run as running until then, so that the exit appears together
    /// with its message. If storing the exit fails, the status shows the exit without the message.
    pub(in crate::plan) fn being_recorded(&self, id: &ContainerId) -> bool {
        let recording = |a: &Action| matches!(a, Action::RecordExit { id: i, .. } if i == id);
        matches!(self.seen.containers.get(id).map(|c| &c.state), Some(RunState::Ended(exit)) if exit.started_at.is_some())
            && self.in_flight(recording)
            && !self.memory.retries.keys().any(recording)
    }
}

fn ending(d: &Planner<'_>) -> bool {
    d.memory.ending.is_some() || d.memory.failed.is_some()
}

fn waiting(reason: &str) -> ContainerState {
    ContainerState::Waiting { reason: reason.into(), message: None }
}

/// The Waiting reason of a container that has not run: `PodInitializing` for every container of a pod with
/// init containers, else `ContainerCreating`.
fn default_reason(d: &Planner<'_>) -> &'static str {
    if d.pod.init_containers.is_empty() { "ContainerCreating" } else { "PodInitializing" }
}

/// The failed action that keeps a container from starting, also while the action is being tried again.
fn failure_of<'d>(d: &'d Planner<'_>, container: &ContainerName) -> Option<&'d Retry> {
    if matches!(d.container_phase(container), ContainerPhase::Running(_)) {
        return None;
    }
    d.memory
        .retries
        .iter()
        .find(|(a, _)| {
            matches!(a, Action::EnsureImage(c) | Action::Start { container: c, .. } if c == container)
        })
        .map(|(_, r)| r)
}

fn waiting_reason(retry: &Retry) -> String {
    match retry.failure.reason.as_str() {
        "ErrImagePull" if retry.backing_off => "ImagePullBackOff".into(),
        other => other.into(),
    }
}

fn waiting_message(retry: &Retry, spec: &Container) -> String {
    match retry.failure.reason.as_str() {
        "ErrImagePull" if retry.backing_off => {
            format!("Back-off pulling image {:?}: ErrImagePull: {}", spec.image, retry.failure.message)
        }
        _ => retry.failure.message.clone(),
    }
}

/// Turns the Waiting states of a pod that has ended into failed ones: a container that never ran, or is not
/// known to have ended, counts as failed (`TerminatePod`, `pkg/kubelet/status`).
pub(super) fn terminate_waiting(containers: &mut [ContainerStatus]) {
    for c in containers.iter_mut().filter(|c| matches!(c.state, ContainerState::Waiting { .. })) {
        c.state = ContainerState::Terminated(unknown_end(LOST, c.id.clone()));
    }
}

/// The end of a container whose cause could not be determined.
pub(in crate::plan) fn unknown_end(message: &str, id: Option<ContainerId>) -> Terminated {
    Terminated {
        exit_code: 137,
        reason: CONTAINER_STATUS_UNKNOWN.to_owned(),
        message: Some(message.to_owned()),
        started_at: None,
        finished_at: None,
        id,
    }
}

/// The last Terminated status of a container, unless a record tells of a later run, or more of the same end: its
/// termination message.
fn kept_status(d: &Planner<'_>, container: &ContainerName) -> Option<ContainerStatus> {
    let mem = d.mem(container)?;
    let last = mem.last.as_ref()?;
    let ContainerState::Terminated(end) = &last.state else { return None };
    let known = end.reason != CONTAINER_STATUS_UNKNOWN;
    let newer = d.newest(container).is_some_and(|(id, c)| {
        let same_end =
            || c.state.exit().is_some_and(|exit| exit.code == end.exit_code) && !d.being_recorded(id);
        (last.id.as_ref() == Some(id) && known && same_end()) || c.attempt.0 > last.restart_count
    });
    (!newer).then(|| ContainerStatus { restart_count: mem.restarts.max(last.restart_count), ..last.clone() })
}

/// Keeps the Terminated statuses of a pod that has ended or is ending, for the time after its records are
/// removed.
pub(super) fn keep_terminated(d: &mut Planner<'_>, containers: &[ContainerStatus]) {
    for c in containers.iter().filter(|c| matches!(c.state, ContainerState::Terminated(_))) {
        let mem = d.mem_mut(&c.name);
        if mem.last.as_ref() != Some(c) {
            mem.last = Some(c.clone());
        }
    }
}
