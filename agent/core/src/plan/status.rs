//! Status of a pod: phase, conditions and container states (getPhase in `pkg/kubelet/kubelet_pods.go`,
//! `pkg/kubelet/status/generate.go`).

use super::{
    Action, Readiness, RunState,
    memory::Retry,
    planner::{ContainerPhase, Planner, Role},
};
use crate::{
    ids::{ContainerId, ContainerName},
    model::{Container, Pod, RestartPolicy},
    status::{
        Condition, ConditionType, ContainerState, ContainerStatus, Phase, PodStatus, Terminated, Truth,
    },
    time::Boottime,
};
use std::time::Duration;

/// The reason of a container's end whose cause could not be determined.
const CONTAINER_STATUS_UNKNOWN: &str = "ContainerStatusUnknown";

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
        end_what_never_ran(d, &mut init);
        end_what_never_ran(d, &mut mains);
    }
    if phase.is_terminal() || d.memory.ending.is_some() {
        keep_told(d, &init);
        keep_told(d, &mains);
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
            Some(s) if s.state == super::SandboxState::Broken || sandbox_told(d) => s.ips.clone(),
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

/// Keeps the phase from moving backwards when containers or sandbox are removed, and notes the phase and the
/// time of the pod's end in the memory.
fn forwards(d: &mut Planner<'_>, phase: Phase) -> Phase {
    let phase = match d.memory.phase {
        Some(told) if told.is_terminal() => told,
        Some(told) => told.max(phase),
        None => phase,
    };
    d.memory.phase = Some(phase);
    if phase.is_terminal() {
        d.memory.ended_at.get_or_insert(d.now.wall);
    }
    phase
}

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
fn is_initialized(d: &Planner<'_>, init: &[ContainerStatus], mains: &[ContainerStatus]) -> bool {
    let before = d.memory.conditions.get(&ConditionType::Initialized).is_some_and(|c| c.0 == Truth::True);
    let started = || mains.iter().any(|c| !matches!(c.state, ContainerState::Waiting { .. }));
    before || incomplete(d, init).is_empty() || started()
}

/// Turns the Waiting states of a pod that has ended into failed ones: a container that never ran, or is not
/// known to have ended, counts as failed (`TerminatePod`, `pkg/kubelet/status`).
fn end_what_never_ran(d: &Planner<'_>, containers: &mut [ContainerStatus]) {
    for c in containers {
        if !matches!(c.state, ContainerState::Waiting { .. }) {
            continue;
        }
        let attempt = d.mem(&c.name).and_then(|m| m.attempt).unwrap_or_default();
        let sandbox_attempt = d.memory.sandbox_attempt.unwrap_or_default();
        let id = c.id.clone();
        let id = id.unwrap_or_else(|| ContainerId::derive(&d.pod.uid, sandbox_attempt, &c.name, attempt));
        c.state = ContainerState::Terminated(Terminated {
            exit_code: 137,
            reason: CONTAINER_STATUS_UNKNOWN.to_owned(),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            started_at: None,
            finished_at: d.memory.ended_at.unwrap_or(d.now.wall),
            id,
        });
    }
}

/// The last Terminated status of a container, where its record is removed since or only an older record is
/// left.
fn told_last(d: &Planner<'_>, container: &ContainerName) -> Option<ContainerStatus> {
    let last = d.mem(container)?.last.as_ref()?;
    let unknown =
        matches!(&last.state, ContainerState::Terminated(t) if t.reason == CONTAINER_STATUS_UNKNOWN);
    let newer = d.newest(container).is_some_and(|(id, c)| {
        (last.id.as_ref() == Some(id) && !unknown) || c.attempt.0 > last.restart_count
    });
    let restarts = d.mem(container)?.restarts;
    (!newer).then(|| ContainerStatus { restart_count: restarts.max(last.restart_count), ..last.clone() })
}

/// Keeps the Terminated statuses of a pod that has ended or is ending, for the time after its records are
/// removed.
fn keep_told(d: &mut Planner<'_>, containers: &[ContainerStatus]) {
    for c in containers.iter().filter(|c| matches!(c.state, ContainerState::Terminated(_))) {
        let mem = d.mem_mut(&c.name);
        if mem.last.as_ref() != Some(c) {
            mem.last = Some(c.clone());
        }
    }
}

fn container_status(d: &Planner<'_>, spec: &Container, over: bool) -> ContainerStatus {
    if (d.memory.ending.is_some() || over)
        && let Some(last) = told_last(d, &spec.name)
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
    let last_state: Option<Terminated> = match (&state, newest) {
        (ContainerState::Waiting { .. }, Some((id, c))) if c.state.exit().is_some() => {
            c.state.exit().map(|e| e.terminated(id))
        }
        _ => d.previous(&spec.name).and_then(|(id, c)| c.state.exit().map(|e| e.terminated(id))),
    };
    let started = running && run.is_some_and(|r| r.startup_done && r.post_start == super::HookState::Done);
    let ready = if d.role(&spec.name) == Role::Init {
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
    ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone(),
        image_id: newest.map(|(_, c)| c.image_id.clone()).unwrap_or_default(),
        id: newest.map(|(id, _)| id.clone()),
        ready,
        started: Some(started),
        restart_count: d.mem(&spec.name).map_or(0, |m| m.restarts),
        state,
        last_state,
        user: newest.and_then(|(_, c)| c.user.clone()),
    }
}

fn truth(b: bool) -> Truth {
    if b { Truth::True } else { Truth::False }
}

fn state(d: &Planner<'_>, spec: &Container, phase: ContainerPhase<'_>, over: bool) -> ContainerState {
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
                && !(d.role(&spec.name) == Role::Init && exit.init_done());
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
    pub(super) fn being_recorded(&self, id: &ContainerId) -> bool {
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
        "ErrImagePull" if retry.failures > 1 => "ImagePullBackOff".into(),
        other => other.into(),
    }
}

fn waiting_message(retry: &Retry, spec: &Container) -> String {
    match retry.failure.reason.as_str() {
        "ErrImagePull" if retry.failures > 1 => {
            format!("Back-off pulling image {:?}: ErrImagePull: {}", spec.image, retry.failure.message)
        }
        _ => retry.failure.message.clone(),
    }
}

fn phase(
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

fn exit_code(c: &ContainerStatus) -> Option<i32> {
    match &c.state {
        ContainerState::Terminated(t) => Some(t.exit_code),
        _ => c.last_state.as_ref().map(|t| t.exit_code),
    }
}

/// Whether the status shows a whole sandbox. Sandbox and volumes are created at the same time. The status shows the
/// sandbox only once both are there, as in the kubelet, where the sandbox follows the volumes.
fn sandbox_told(d: &Planner<'_>) -> bool {
    let sandbox = d.seen.sandbox.as_ref().filter(|s| s.state != super::SandboxState::Broken);
    let told = d.memory.conditions.get(&ConditionType::PodReadyToStartContainers);
    sandbox.is_some_and(|s| {
        d.seen.volumes_mounted
            || told.is_some_and(|c| c.0 == Truth::True)
            || d.seen.containers.values().any(|c| c.sandbox_attempt == s.sandbox_attempt)
    })
}

fn conditions(
    d: &mut Planner<'_>,
    phase: Phase,
    initialized: bool,
    init: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Vec<Condition> {
    let may_start = sandbox_told(d);
    let mut list = Vec::with_capacity(5);
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
    let gates = d.pod.readiness_gates.is_empty() || status != Truth::True;
    let ready = if gates {
        (status, reason, message.clone())
    } else {
        // No source sets conditions of others.
        let missing =
            |gate: &String| format!("corresponding condition of pod readiness gate {gate:?} does not exist.");
        let messages: Vec<String> = d.pod.readiness_gates.iter().map(missing).collect();
        (Truth::False, Some("ReadinessGatesNotReady"), Some(messages.join(", ")))
    };
    list.push(condition(d, ConditionType::Ready, ready.0, ready.1, ready.2));
    list.push(condition(d, ConditionType::ContainersReady, status, reason, message));
    list.push(condition(d, ConditionType::PodScheduled, Truth::True, None, None));
    list
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
    Condition { kind, status, reason: reason.map(str::to_owned), message, since: entry.1 }
}

/// One sentence on what keeps the pod from being Ready, and the time of the next try.
fn waiting_for(
    d: &Planner<'_>,
    phase: Phase,
    init: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Option<(String, Option<Boottime>)> {
    if matches!(phase, Phase::Succeeded | Phase::Failed) {
        return None;
    }
    if d.memory.ending.is_some() {
        let left: Vec<&str> = init
            .iter()
            .chain(mains)
            .filter(|c| matches!(c.state, ContainerState::Running { .. }))
            .map(|c| c.name.as_str())
            .collect();
        let what = if left.is_empty() {
            "being cleared away".to_owned()
        } else {
            format!("ending: {} still running", left.join(", "))
        };
        return Some((what, None));
    }
    if !d.seen.runtime_answers {
        return Some(("containerd does not answer; shown is what was last known".to_owned(), None));
    }
    let now = d.now.boottime;
    if let Some((action, retry)) = d.memory.retries.iter().max_by_key(|(_, r)| r.not_before) {
        let whose = action.container().map(|c| format!("container {c}: ")).unwrap_or_default();
        let what = format!("{whose}{}: {}", retry.failure.reason, retry.failure.message);
        return Some((what, Some(retry.not_before)));
    }
    for (spec, c) in d.pod.all_containers().filter_map(|s| Some((s, find(init, mains, &s.name)?))) {
        let name = &spec.name;
        let what = match &c.state {
            ContainerState::Waiting { reason, .. } if reason == "CrashLoopBackOff" => {
                let code = c.last_state.as_ref().map_or(0, |t| t.exit_code);
                let why = match &c.last_state {
                    Some(Terminated { reason, message: Some(message), .. }) if reason == "StartError" => {
                        format!("{reason}: {message}")
                    }
                    _ => format!("exited with code {code}"),
                };
                let wait = d.newest(name).and_then(|(id, _)| d.back_off(name, id));
                let next = wait.map_or(now, |(at, _)| at);
                return Some((format!("container {name}: {why}"), Some(next)));
            }
            ContainerState::Running { .. } if d.role(name) == Role::Init => {
                format!("init container {name} to finish")
            }
            ContainerState::Running { .. } if c.started != Some(true) => {
                format!("container {name}: startup probe or postStart hook{}", because(d, name))
            }
            ContainerState::Running { .. } if c.ready != Truth::True => {
                format!("container {name}: readiness probe{}", because(d, name))
            }
            ContainerState::Waiting { reason, .. } if reason != "PodInitializing" => {
                format!("container {name} to start")
            }
            _ => continue,
        };
        return Some((what, None));
    }
    Some(("containers to start".to_owned(), None))
}

/// The message of the last failing startup or readiness probe, as a suffix.
fn because(d: &Planner<'_>, name: &ContainerName) -> String {
    d.run(name).and_then(|r| r.unready_because.as_ref()).map(|m| format!(": {m}")).unwrap_or_default()
}

fn find<'c>(
    init: &'c [ContainerStatus],
    mains: &'c [ContainerStatus],
    name: &ContainerName,
) -> Option<&'c ContainerStatus> {
    init.iter().chain(mains).find(|c| &c.name == name)
}
