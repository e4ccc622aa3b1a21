//! State of one decision: the inputs, the changing memory, the actions and events so far, and the queries
//! that all parts of the decision share.

use super::{
    Action, ActiveProbe, Desired, Exit, HookState, Memory, Observed, ObservedContainer, Run, RunState,
    SandboxState, memory::ContainerMemory,
};
use crate::{
    event::Event,
    ids::{Attempt, ContainerId, ContainerName, SandboxAttempt},
    model::{Container, Pod, ProbeKind},
    refs::{Ref, RefUse, env_refs},
    status::{TerminalPhase, Truth},
    time::{Boottime, Now},
    value::Why,
};
use std::{collections::BTreeMap, time::Duration};

/// How long after the pod's first decision a pull waits for an unknown Secret.
const PULL_SECRETS: Duration = Duration::from_secs(10);

/// An observed run of a container.
type ObservedRun<'a> = (&'a ContainerId, &'a ObservedContainer);

pub(super) struct Planner<'a> {
    pub(super) pod: &'a Pod,
    unknown: &'a BTreeMap<Ref, Why>,
    /// The end of the pod that the API server shows.
    pub(super) shown_terminal: Option<&'a TerminalPhase>,
    /// The conditions that the pod's readiness gates name.
    pub(super) gates: &'a BTreeMap<String, Truth>,
    pub(super) seen: &'a Observed,
    /// The newest observed run of each container, computed once because nearly every query needs it.
    newest: Vec<ObservedRun<'a>>,
    pub(super) memory: Memory,
    pub(super) now: Now,
    pub(super) actions: Vec<Action>,
    pub(super) events: Vec<Event>,
    pub(super) wake_at: Option<Boottime>,
}

/// State of a container by its newest run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerPhase<'a> {
    /// No run of the container is known.
    Never,
    /// A run has begun, and its process has not started yet.
    Starting,
    /// The process of the newest run is running.
    Running(&'a ContainerId),
    /// The newest run ended.
    Dead(&'a ContainerId, &'a Exit),
}

/// The kind of a container: plain init container, sidecar (an init container that restarts always), main container, or
/// ephemeral container (which runs once).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerRole {
    Init,
    Sidecar,
    Main,
    Ephemeral,
}

/// Finds the newest run of each container that has any.
fn newest_runs(seen: &Observed) -> Vec<ObservedRun<'_>> {
    let age = |c: &ObservedContainer| (c.attempt, c.sandbox_attempt);
    let mut newest: Vec<ObservedRun<'_>> = Vec::with_capacity(seen.containers.len());
    for run in &seen.containers {
        match newest.iter_mut().find(|(_, c)| c.container == run.1.container) {
            Some(known) if age(known.1) <= age(run.1) => *known = run,
            Some(_) => {}
            None => newest.push(run),
        }
    }
    newest
}

impl<'a> Planner<'a> {
    pub(super) fn new(desired: &'a Desired, seen: &'a Observed, memory: Memory, now: Now) -> Self {
        Planner {
            pod: &desired.pod,
            unknown: &desired.unknown,
            shown_terminal: desired.terminal.as_ref(),
            gates: &desired.gates,
            seen,
            newest: newest_runs(seen),
            memory,
            now,
            actions: Vec::new(),
            events: Vec::new(),
            wake_at: None,
        }
    }

    pub(super) fn wake(&mut self, at: Boottime) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }

    /// Emits an action, unless the action is in flight or waits after a failure. Returns whether it was
    /// emitted.
    pub(super) fn emit(&mut self, action: Action) -> bool {
        if self.memory.in_flight.contains(&action) {
            return false;
        }
        if let Some(until) =
            self.memory.retries.get(&action).map(|r| r.not_before).filter(|t| *t > self.now.boottime)
        {
            self.wake(until);
            return false;
        }
        self.memory.in_flight.insert(action.clone());
        self.actions.push(action);
        true
    }

    pub(super) fn in_flight(&self, test: impl Fn(&Action) -> bool) -> bool {
        self.memory.in_flight.iter().any(test)
    }

    pub(super) fn role(&self, container: &ContainerName) -> ContainerRole {
        match self.pod.init_containers.iter().find(|c| &c.name == container) {
            Some(c) if c.sidecar => ContainerRole::Sidecar,
            Some(_) => ContainerRole::Init,
            None if self.pod.ephemeral_containers.iter().any(|c| &c.name == container) => {
                ContainerRole::Ephemeral
            }
            None => ContainerRole::Main,
        }
    }

    /// The newest observed run of a container.
    pub(super) fn newest(&self, container: &ContainerName) -> Option<ObservedRun<'a>> {
        self.newest.iter().find(|(_, c)| &c.container == container).copied()
    }

    /// The newest dead run before the container's newest run.
    pub(super) fn previous(&self, container: &ContainerName) -> Option<ObservedRun<'a>> {
        let newest = self.newest(container)?.0;
        self.seen
            .containers
            .iter()
            .filter(|(id, c)| &c.container == container && *id != newest && c.state.exit().is_some())
            .max_by_key(|(_, c)| (c.attempt, c.sandbox_attempt))
    }

    pub(super) fn mem(&self, container: &ContainerName) -> Option<&ContainerMemory> {
        self.memory.containers.get(container)
    }

    pub(super) fn mem_mut(&mut self, container: &ContainerName) -> &mut ContainerMemory {
        self.memory.containers.entry(container.clone()).or_default()
    }

    pub(super) fn run(&self, container: &ContainerName) -> Option<&Run> {
        self.mem(container)?.run.as_ref()
    }

    pub(super) fn run_mut(&mut self, container: &ContainerName, id: &ContainerId) -> Option<&mut Run> {
        self.memory.containers.get_mut(container)?.run.as_mut().filter(|r| &r.id == id)
    }

    pub(super) fn container_phase(&self, container: &ContainerName) -> ContainerPhase<'a> {
        let begun = self.in_flight(|a| matches!(a, Action::Start { container: c, .. } if c == container));
        match self.newest(container) {
            None if begun => ContainerPhase::Starting,
            None => ContainerPhase::Never,
            Some((id, c)) => match &c.state {
                RunState::NotStarted => ContainerPhase::Starting,
                RunState::Running { .. } => ContainerPhase::Running(id),
                RunState::Ended(_) | RunState::Recorded(_) if begun => ContainerPhase::Starting,
                RunState::Ended(exit) | RunState::Recorded(exit) => ContainerPhase::Dead(id, exit),
            },
        }
    }

    /// Whether a process of any container of the pod runs or may run: a container runs, a start is in flight,
    /// or an action on a container failed and the pod was not observed since.
    pub(super) fn anything_alive(&self) -> bool {
        self.seen.stale
            || self.in_flight(|a| matches!(a, Action::Start { .. }))
            || self.seen.containers.values().any(|c| matches!(c.state, RunState::Running { .. }))
    }

    /// An unknown object of which files of the volumes are made, if there is one. The volumes wait for it, unless it is
    /// refused: then the mount fails and says so.
    pub(super) fn unknown_of_volumes(&self) -> Option<(&'a Ref, &'a Why)> {
        self.unknown.iter().find(|(r, why)| r.used_for.is_file() && !why.is_refusal())
    }

    /// Whether a container of this sandbox finds the pod's volumes. A restarted agent mounts them again before it knows
    /// them to be mounted, and needs their objects for that. While one of the objects is unknown, the volumes count as
    /// mounted where the sandbox has had a container: that was created after the mounts.
    pub(super) fn volumes_ready(&self, sandbox: SandboxAttempt) -> bool {
        let created = || self.seen.containers.values().any(|c| c.sandbox_attempt == sandbox);
        self.seen.volumes_mounted
            || self.seen.volumes_present && self.unknown.keys().any(|r| r.used_for.is_file()) && created()
    }

    /// An unknown object of which variables of the container are made, if there is one. The container waits for it,
    /// unless it is refused: then the start fails and says so.
    pub(super) fn unknown_of_env(&self, spec: &Container) -> Option<(&'a Ref, &'a Why)> {
        if self.unknown.is_empty() {
            return None;
        }
        env_refs(self.pod, spec)
            .find_map(|r| self.unknown.get_key_value(&r))
            .filter(|(_, why)| !why.is_refusal())
    }

    /// An unknown Secret with a credential for images, if there is one that is still worth a wait: the kubelet reads these
    /// Secrets at each start and pulls without those that it cannot read. The wait ends [`PULL_SECRETS`] after the
    /// pod's first decision, so that no container waits for a control plane that is away.
    pub(super) fn awaited_pull_secret(&mut self) -> Option<(&'a Ref, &'a Why)> {
        let unknown: &'a BTreeMap<Ref, Why> = self.unknown;
        let secret = unknown.iter().find(|(r, why)| r.used_for == RefUse::Pull && !why.is_refusal())?;
        let until = self.memory.start_boottime? + PULL_SECRETS;
        if until <= self.now.boottime {
            return None;
        }
        self.wake(until);
        Some(secret)
    }

    /// The sandbox in which containers can start. Its namespaces are pinned, so containers need pause only
    /// where pause is process 1 of a shared PID namespace.
    pub(super) fn ready_sandbox(&self) -> Option<SandboxAttempt> {
        let pause_needed = self.pod.namespaces.share_pid;
        let usable = |state| match state {
            SandboxState::Ready => true,
            SandboxState::NoPause => !pause_needed,
            SandboxState::Broken => false,
        };
        self.seen.sandbox.as_ref().filter(|s| usable(s.state)).map(|s| s.sandbox_attempt)
    }

    /// Whether an init container has finished in the current sandbox. Where its record is gone, a main
    /// container of the same sandbox proves it.
    pub(super) fn init_finished(&self, container: &ContainerName) -> bool {
        let Some(sandbox_attempt) =
            self.seen.sandbox.as_ref().map(|s| s.sandbox_attempt).or(self.memory.sandbox_attempt)
        else {
            return false;
        };
        self.mem(container).is_some_and(|m| m.finished_in == Some(sandbox_attempt))
            || self
                .pod
                .containers
                .iter()
                .any(|c| self.newest(&c.name).is_some_and(|(_, s)| s.sandbox_attempt == sandbox_attempt))
    }

    /// Whether the sandbox is broken, or containers run or wait to start in a sandbox that does not exist any
    /// more.
    pub(super) fn sandbox_lost(&self) -> bool {
        let current = self.seen.sandbox.as_ref();
        let broken = current.is_some_and(|s| s.state == SandboxState::Broken)
            && !self.in_flight(|a| matches!(a, Action::MakeSandbox(_)));
        let homeless = self.seen.containers.values().any(|c| {
            matches!(c.state, RunState::Running { .. } | RunState::NotStarted)
                && current.is_none_or(|s| s.sandbox_attempt != c.sandbox_attempt)
        });
        broken || homeless
    }

    /// The probes that should be active.
    pub(super) fn probes(&self) -> Vec<ActiveProbe> {
        let mut probes = Vec::new();
        for spec in self.pod.all_containers() {
            let ContainerPhase::Running(id) = self.container_phase(&spec.name) else { continue };
            let Some(run) = self.run(&spec.name).filter(|r| &r.id == id) else { continue };
            let Some(started_at) = run.started_at.filter(|_| run.post_start == HookState::Done) else {
                continue;
            };
            let stopping = run.stop.is_some() || self.memory.ending.is_some();
            let mut add = |kind, wanted: bool| {
                if wanted {
                    probes.push(ActiveProbe {
                        id: id.clone(),
                        container: spec.name.clone(),
                        kind,
                        started_at,
                    });
                }
            };
            add(ProbeKind::Startup, spec.startup.is_some() && !run.startup_done && !stopping);
            add(ProbeKind::Liveness, spec.liveness.is_some() && run.startup_done && !stopping);
            add(ProbeKind::Readiness, spec.readiness.is_some() && run.startup_done);
        }
        probes
    }
}

/// The action that starts this run of a container in this sandbox.
pub(super) fn start(
    pod: &Pod,
    spec: &Container,
    attempt: Attempt,
    sandbox_attempt: SandboxAttempt,
) -> Action {
    let id = ContainerId::derive(&pod.uid, sandbox_attempt, &spec.name, attempt);
    Action::Start { container: spec.name.clone(), attempt, sandbox_attempt, id }
}
