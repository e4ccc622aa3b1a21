//! State of one decision: the inputs, the changing memory, the actions and events so far, and the queries
//! that all parts of the decision share.

use super::{
    Action, ActiveProbe, Exit, Memory, Observed, ObservedContainer, Readiness, Run, RunState, SandboxState,
    StopCause,
    backoff::CrashBackoff,
    memory::{ContainerMemory, Ending},
};
use crate::{
    event::Event,
    ids::{Attempt, ContainerId, ContainerName, SandboxAttempt},
    model::{Container, Pod, ProbeKind, RestartPolicy},
    status::Phase,
    time::{Boottime, Now, Wall},
};
use std::time::Duration;

/// An observed run of a container.
type ObservedRun<'a> = (&'a ContainerId, &'a ObservedContainer);

pub(super) struct Planner<'a> {
    pub(super) pod: &'a Pod,
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

/// The kind of a container: plain init container, sidecar (an init container that restarts always), or main
/// container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Init,
    Sidecar,
    Main,
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
    pub(super) fn new(pod: &'a Pod, seen: &'a Observed, memory: Memory, now: Now) -> Self {
        let newest = newest_runs(seen);
        Planner { pod, seen, newest, memory, now, actions: Vec::new(), events: Vec::new(), wake_at: None }
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

    pub(super) fn role(&self, container: &ContainerName) -> Role {
        match self.pod.init_containers.iter().find(|c| &c.name == container) {
            Some(c) if c.sidecar => Role::Sidecar,
            Some(_) => Role::Init,
            None => Role::Main,
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

    /// Takes the observed state into the memory: adopts unknown runs, and notes start and end times.
    pub(super) fn remember(&mut self) {
        let now = self.now;
        self.memory.start_time.get_or_insert(now.wall);
        self.memory.start_boottime.get_or_insert(now.boottime);
        if let Some(s) = &self.seen.sandbox {
            let seen = s.sandbox_attempt;
            self.memory.sandbox_attempt = Some(self.memory.sandbox_attempt.map_or(seen, |i| i.max(seen)));
            if !s.ips.is_empty() && self.memory.ips != s.ips {
                self.memory.ips.clone_from(&s.ips);
            }
        }
        self.drop_settled_retries();
        let pod = self.pod;
        for spec in pod.all_containers() {
            let Some((id, seen)) = self.newest(&spec.name) else { continue };
            let finished =
                self.role(&spec.name) == Role::Init && seen.state.exit().is_some_and(Exit::init_done);
            let has_readiness = spec.readiness.is_some();
            let start_in_flight = self.in_flight(|a| matches!(a, Action::Start { id: i, .. } if i == id));
            let mem = self.mem_mut(&spec.name);
            mem.attempt = Some(mem.attempt.map_or(seen.attempt, |a| a.max(seen.attempt)));
            mem.restarts = mem.restarts.max(seen.attempt.0);
            if finished {
                mem.finished_in = Some(seen.sandbox_attempt);
            }
            let known = mem.run.as_ref().is_some_and(|r| &r.id == id);
            let newer_begun = mem.attempt > Some(seen.attempt) && mem.run.is_some();
            if !known && !newer_begun {
                let mut run = Run::adopted(id.clone());
                if !has_readiness {
                    run.readiness = Readiness::Yes;
                }
                mem.run = Some(run);
            }
            let Some(run) = mem.run.as_mut().filter(|r| &r.id == id) else { continue };
            match &seen.state {
                RunState::Running { started_at } if run.started_at.is_none() && !start_in_flight => {
                    run.started_at = Some(boottime_of(*started_at, now));
                }
                RunState::Ended(exit) | RunState::Recorded(exit) if run.ended_at.is_none() => {
                    run.ended_at = Some(boottime_of(exit.at, now));
                    mem.image_ready = false;
                }
                _ => {}
            }
        }
    }

    /// Drops the retries of failed actions whose effect is observed all the same, or is not wanted any more.
    fn drop_settled_retries(&mut self) {
        let seen = self.seen;
        let state = |id: &ContainerId| seen.containers.get(id).map(|c| &c.state);
        self.memory.retries.retain(|action, _| match action {
            Action::MountVolumes => !seen.volumes_mounted,
            Action::UnmountVolumes => seen.volumes_present,
            // A broken sandbox is torn down before the next try. Its teardown is no success of the creation,
            // so the retry and its back-off stay.
            Action::MakeSandbox(_) => seen.sandbox.as_ref().is_none_or(|s| s.state == SandboxState::Broken),
            Action::EnsurePause(_) => seen.sandbox.as_ref().is_some_and(|s| s.state == SandboxState::NoPause),
            Action::TeardownSandbox(i) => seen.sandbox.as_ref().is_some_and(|s| s.sandbox_attempt == *i),
            // A start in an earlier sandbox, or one that a newer run has replaced, is not tried again.
            Action::Start { id, container, attempt, sandbox_attempt } => {
                let sandbox = seen.sandbox.as_ref().map(|s| s.sandbox_attempt);
                let newer = |c: &ObservedContainer| &c.container == container && c.attempt > *attempt;
                matches!(state(id), None | Some(RunState::NotStarted))
                    && sandbox.is_none_or(|i| i == *sandbox_attempt)
                    && !seen.containers.values().any(newer)
            }
            Action::Signal { id, .. } | Action::Kill { id, .. } => {
                matches!(state(id), Some(RunState::Running { .. }))
            }
            Action::RecordExit { id, .. } => {
                matches!(state(id), Some(RunState::Ended(_) | RunState::NotStarted))
            }
            Action::Reap { id, .. } => seen.containers.get(id).is_some_and(|c| c.task),
            Action::Remove { id, .. } => seen.containers.contains_key(id),
            Action::EnsureImage(_)
            | Action::PostStart { .. }
            | Action::PreStop { .. }
            | Action::RemovePod => true,
        });
    }

    /// Notes that the pod has to end. The grace period only ever becomes shorter.
    pub(super) fn note_end(&mut self, end: Option<u32>) {
        let Some(grace) = end else { return };
        let since = self.now.boottime;
        // At least one second (`calculateEffectiveGracePeriod`, `pkg/kubelet/pod_workers.go`), so that a
        // preStop hook has that much time.
        let grace = grace.max(1);
        let ending = self.memory.ending.get_or_insert(Ending { since, grace });
        ending.grace = ending.grace.min(grace);
    }

    /// The phase of a pod that has not ended when the machine shuts down, with the kubelet's reason and
    /// message (`pkg/kubelet/nodeshutdown`). The pod stays in the source, and the next boot runs it again.
    pub(super) fn shut_down(&mut self) -> Option<Phase> {
        self.memory.shutdown?;
        const WHY: &str = "Pod was terminated in response to imminent node shutdown.";
        self.memory.failed = Some(super::Failure::new("Terminated", WHY));
        Some(Phase::Failed)
    }

    /// Whether another run follows the dead newest run of a container.
    pub(super) fn restartable(&self, container: &ContainerName, id: &ContainerId, exit: &Exit) -> bool {
        let stop = self.run(container).filter(|r| &r.id == id).and_then(|r| r.stop.as_ref()).map(|s| s.cause);
        let stopped_to_be_followed = matches!(
            stop,
            Some(StopCause::Liveness | StopCause::Startup | StopCause::PostStart | StopCause::SandboxLost)
        );
        // The next run has already begun, so the decision to restart was taken before.
        let begun =
            self.mem(container).and_then(|m| m.attempt) > self.seen.containers.get(id).map(|c| c.attempt);
        match (self.role(container), self.pod.restart_policy) {
            _ if begun || stop == Some(StopCause::Changed) => true,
            (Role::Sidecar, _) => true,
            (_, RestartPolicy::Never) => false,
            (Role::Init, _) => !exit.init_done(),
            (Role::Main, RestartPolicy::Always) => true,
            (Role::Main, RestartPolicy::OnFailure) => exit.code != 0 || stopped_to_be_followed,
        }
    }

    /// The crash back-off that delays the run after the dead newest run of a container: its end and its
    /// length. `None` where the next run may begin at once.
    ///
    /// A run that a failed probe or a changed image ended is followed at once if the back-off since the end
    /// of the run before it was over when it ended. The reason: the kubelet kills and starts in one pass over
    /// the pod and counts from the last end that it knows then (`doBackOff`, `pkg/kubelet/kuberuntime`). A
    /// changed image resets the back-off.
    pub(super) fn back_off(
        &self,
        container: &ContainerName,
        id: &ContainerId,
    ) -> Option<(Boottime, Duration)> {
        let now = self.now.boottime;
        let ended_at = self.run(container).and_then(|r| r.ended_at).unwrap_or(now);
        let backoff = self.crash_back_off(container);
        let at_once = self.killed_by_node(container, id) && self.back_off_ran_out_before(container, ended_at);
        if at_once { None } else { backoff.wait(ended_at, now) }
    }

    /// The crash back-off of a container as it counts once the run after the dead newest run begins now.
    pub(super) fn counted(&self, container: &ContainerName, id: &ContainerId) -> CrashBackoff {
        let now = self.now.boottime;
        let mut backoff = self.crash_back_off(container);
        let ended_at = self.run(container).and_then(|r| r.ended_at).unwrap_or(now);
        let at_once = self.killed_by_node(container, id) && self.back_off_ran_out_before(container, ended_at);
        let counted = if at_once { self.previous_end(container) } else { Some(ended_at) };
        if let Some(end) = counted {
            backoff.count(end, now);
        }
        backoff
    }

    /// Whether the back-off since the end of the previous run was over when the newest run ended.
    fn back_off_ran_out_before(&self, container: &ContainerName, ended_at: Boottime) -> bool {
        let backoff = self.crash_back_off(container);
        self.previous_end(container).is_none_or(|end| backoff.wait(end, ended_at).is_none())
    }

    fn killed_by_node(&self, container: &ContainerName, id: &ContainerId) -> bool {
        let stop = self.run(container).filter(|r| &r.id == id).and_then(|r| r.stop.as_ref());
        stop.is_some_and(|s| matches!(s.cause, StopCause::Liveness | StopCause::Startup | StopCause::Changed))
    }

    /// The crash back-off of a container; the initial one where the pod now names another image.
    fn crash_back_off(&self, container: &ContainerName) -> CrashBackoff {
        let same = self.mem(container).filter(|_| !self.image_changed(container));
        same.map(|m| m.backoff).unwrap_or_default()
    }

    /// Whether the pod names another image than the one that the last run began with. False where the image
    /// of the last run is not known.
    pub(super) fn image_changed(&self, container: &ContainerName) -> bool {
        let wanted = self.pod.container(container).map(|c| c.image.as_str());
        let begun_with = self.run(container).and_then(|r| r.image.as_deref());
        begun_with.is_some_and(|begun| Some(begun) != wanted)
    }

    fn previous_end(&self, container: &ContainerName) -> Option<Boottime> {
        let exit = self.previous(container)?.1.state.exit()?;
        Some(boottime_of(exit.at, self.now))
    }

    /// Whether any run of a main container is on record.
    fn mains_ever_started(&self) -> bool {
        self.pod.containers.iter().any(|c| self.newest(&c.name).is_some())
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

    /// The phase in which the pod ends, once none of its containers will start again.
    pub(super) fn terminal(&mut self) -> Option<Phase> {
        let pod = self.pod;
        // The phase of a pod that has ended is final, even while its containers and volumes are removed.
        if let Some(phase) = self.memory.phase.filter(|p| p.is_terminal()) {
            return Some(phase);
        }
        if self.memory.failed.is_some() {
            return Some(Phase::Failed);
        }
        let by_containers = self.ended_by_itself();
        if by_containers.is_some() {
            return by_containers;
        }
        if self.memory.ending.is_none()
            && let (Some(limit), Some(start)) = (pod.active_deadline_seconds, self.memory.start_boottime)
        {
            let due = start + Duration::from_secs(u64::from(limit));
            if due <= self.now.boottime {
                const WHY: &str = "Pod was active on the node longer than the specified deadline";
                self.memory.failed = Some(super::Failure::new("DeadlineExceeded", WHY));
                self.events.push(Event::normal("DeadlineExceeded", WHY));
                return Some(Phase::Failed);
            }
            self.wake(due);
        }
        None
    }

    /// The phase of a pod whose containers have all ended for good.
    fn ended_by_itself(&self) -> Option<Phase> {
        let pod = self.pod;
        if pod.restart_policy == RestartPolicy::Never && !self.mains_ever_started() {
            let failed = pod
                .init_containers
                .iter()
                .filter(|c| !c.sidecar)
                .any(|c| matches!(self.container_phase(&c.name), ContainerPhase::Dead(_, exit) if !exit.init_done()));
            if failed {
                return Some(Phase::Failed);
            }
        }
        let mut all_well = true;
        for c in &pod.containers {
            match self.container_phase(&c.name) {
                ContainerPhase::Dead(id, exit) if !self.restartable(&c.name, id, exit) => {
                    all_well &= exit.code == 0
                }
                _ => return self.unrecreatable(),
            }
        }
        if pod.containers.is_empty() {
            return None;
        }
        Some(if all_well { Phase::Succeeded } else { Phase::Failed })
    }

    /// Phase Failed for a pod with restart policy Never that lost its sandbox after one of its containers
    /// ran. Such a pod gets no second sandbox (`pkg/kubelet/kuberuntime/util`).
    fn unrecreatable(&self) -> Option<Phase> {
        let lost = self.seen.sandbox.is_none()
            && !self.in_flight(|a| matches!(a, Action::MakeSandbox(_)))
            && self.seen.runtime_answers
            && self.pod.restart_policy == RestartPolicy::Never
            && self
                .pod
                .all_containers()
                .any(|c| self.newest(&c.name).is_some_and(|(_, s)| s.state.exit().is_some()))
            && !self.anything_alive();
        lost.then_some(Phase::Failed)
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
            let Some(started_at) = run.started_at.filter(|_| run.post_start == super::HookState::Done) else {
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

    /// Whether every process of the pod is dead, its exit stored, and no volume is mounted. The network may
    /// still be on the way down; the pod's addresses are not reused before its end.
    pub(super) fn is_gone(&self) -> bool {
        !self.anything_alive()
            && !self.seen.volumes_present
            && !self.seen.containers.values().any(|c| matches!(c.state, RunState::Ended(_)))
            && !self.in_flight(|a| {
                matches!(a, Action::MakeSandbox(_) | Action::MountVolumes | Action::UnmountVolumes)
            })
    }

    /// Whether only container records of the pod are left: every process is dead, and there is no sandbox and
    /// no volume.
    pub(super) fn is_empty_handed(&self) -> bool {
        !self.anything_alive()
            && self.seen.sandbox.is_none()
            && !self.seen.volumes_present
            && !self.in_flight(|a| {
                matches!(
                    a,
                    Action::MakeSandbox(_)
                        | Action::MountVolumes
                        | Action::TeardownSandbox(_)
                        | Action::UnmountVolumes
                )
            })
    }
}

/// Converts a wall time to the boot clock, as far as the wall clock allows. The result is never later than
/// now.
pub(super) fn boottime_of(wall: Wall, now: Now) -> Boottime {
    let age = u64::try_from(now.wall.0.saturating_sub(wall.0)).unwrap_or(0);
    Boottime(now.boottime.0.saturating_sub(Duration::from_nanos(age)))
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
