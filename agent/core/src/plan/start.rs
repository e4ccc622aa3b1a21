//! Plan of a pod that shall run: sandbox and volumes first, then the ephemeral containers, the init containers one
//! after the other, and the main containers.

use super::{
    Action, HookState, Run, RunState, SandboxState, StopCause,
    backoff::after_failure,
    memory::{ContainerMemory, Stop},
    planner::{ContainerPhase, ContainerRole, Planner, start},
};
use crate::{
    event::Event,
    ids::{Attempt, ContainerId, ContainerName, SandboxAttempt},
    model::Container,
    resize::Allocation,
    time::Boottime,
};
use std::time::Duration;

/// How long a failed pull shows its error before it shows its back-off.
const PULL_FAILURE_SHOWN: Duration = Duration::from_secs(2);

/// Whether the containers after this one in the start order may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StartOrder {
    /// They may start.
    Continue,
    /// They wait for this one.
    Wait,
}

impl Planner<'_> {
    pub(super) fn sync(&mut self) {
        if !self.seen.volumes_mounted && self.unknown_of_volumes().is_none() {
            self.emit(Action::MountVolumes);
        }
        self.ensure_sandbox();
        let pod = self.pod;
        // A container that restarts for its resources begins to stop with the others below.
        self.sync_resize();
        // Running containers come first, whatever the other containers wait for.
        for spec in pod.all_containers() {
            self.sync_running(spec);
        }
        // Ephemeral containers have no place in the start order: they start while init containers run (`SyncPod`,
        // `pkg/kubelet/kuberuntime`).
        for spec in &pod.ephemeral_containers {
            self.ensure_running(spec);
        }
        // Then the next containers in the start order begin.
        for spec in &pod.init_containers {
            if self.sync_init(spec) == StartOrder::Wait {
                return;
            }
        }
        for spec in &pod.containers {
            if self.sync_main(spec) == StartOrder::Wait {
                return;
            }
        }
    }

    fn ensure_sandbox(&mut self) {
        match &self.seen.sandbox {
            None => {
                let used = self.seen.containers.values().map(|c| c.sandbox_attempt).max();
                let next = used.map_or(SandboxAttempt(0), |i| SandboxAttempt(i.0.saturating_add(1)));
                let sandbox_attempt = self.memory.sandbox_attempt.map_or(next, |i| i.max(next));
                if self.in_flight(|a| matches!(a, Action::TeardownSandbox(_) | Action::MakeSandbox(_))) {
                    return;
                }
                if self.emit(Action::MakeSandbox(sandbox_attempt)) {
                    if used.is_some() {
                        self.events.push(Event::normal(
                            "SandboxChanged",
                            "Pod sandbox changed, it will be killed and re-created.",
                        ));
                    }
                    self.memory.sandbox_attempt = Some(sandbox_attempt);
                    self.memory.cgroup = Some(Allocation::of(self.pod));
                }
            }
            Some(s) if s.state == SandboxState::NoPause => {
                let sandbox_attempt = s.sandbox_attempt;
                self.emit(Action::EnsurePause(sandbox_attempt));
            }
            Some(_) => {}
        }
    }

    /// Plans the next step of a running container: what follows its start, or its stop.
    fn sync_running(&mut self, spec: &Container) {
        if let ContainerPhase::Running(id) = self.container_phase(&spec.name) {
            self.stop_changed(spec, id);
            if self.run(&spec.name).is_some_and(|r| r.stop.is_some()) {
                self.continue_stop(spec, id, true);
            } else {
                self.after_start(spec);
            }
        }
    }

    /// Stops a running container whose image the pod changed. The next run begins whatever the restart
    /// policy. Of a container's fields the kubelet compares the image alone (`pickFieldsToHash`,
    /// `pkg/kubelet/container`), and never that of a plain init container or of an ephemeral one.
    fn stop_changed(&mut self, spec: &Container, id: &ContainerId) {
        let begins = |r: &Run| &r.id != id || r.started_at.is_none() || r.stop.is_some();
        if self.is_plain_init(spec)
            || self.role(&spec.name) == ContainerRole::Ephemeral
            || self.run(&spec.name).is_none_or(begins)
            || !self.image_changed(&spec.name)
        {
            return;
        }
        let message = if spec.sidecar {
            format!("Init container {} definition changed", spec.name)
        } else {
            format!("Container {} definition changed, will be restarted", spec.name)
        };
        self.events.push(Event::normal("Killing", message).of(&spec.name));
        self.stop_run(spec, id, StopCause::Changed, self.pod.grace_seconds);
    }

    fn sync_init(&mut self, spec: &Container) -> StartOrder {
        if spec.sidecar {
            self.ensure_running(spec);
            let up = match self.container_phase(&spec.name) {
                ContainerPhase::Running(id) => self.run(&spec.name).is_some_and(|r| {
                    &r.id == id && r.startup_done && r.post_start == HookState::Done && r.started_at.is_some()
                }),
                _ => false,
            };
            return if up || self.init_passed(spec) { StartOrder::Continue } else { StartOrder::Wait };
        }
        if self.init_finished(&spec.name) {
            // The status shows the container as running until its end is stored. No container starts beside
            // it.
            let ended = self.newest(&spec.name).map(|(id, _)| id);
            return if ended.is_some_and(|id| self.being_recorded(id)) {
                StartOrder::Wait
            } else {
                StartOrder::Continue
            };
        }
        self.ensure_running(spec);
        StartOrder::Wait
    }

    /// Whether a container after this sidecar has already a run in the current sandbox. A sidecar that dies
    /// or restarts later does not delay such containers.
    fn init_passed(&self, spec: &Container) -> bool {
        let later = self.pod.init_containers.iter().skip_while(|c| c.name != spec.name).skip(1);
        let sandbox_attempt = self.ready_sandbox();
        later
            .chain(&self.pod.containers)
            .any(|c| self.newest(&c.name).is_some_and(|(_, s)| Some(s.sandbox_attempt) == sandbox_attempt))
    }

    /// Keeps a main container running. Main containers start in the order of the spec, and a postStart hook
    /// delays the containers after it until the hook ends. A container that fails to start delays no other.
    fn sync_main(&mut self, spec: &Container) -> StartOrder {
        self.ensure_running(spec);
        if spec.post_start.is_none() {
            return StartOrder::Continue;
        }
        match self.container_phase(&spec.name) {
            ContainerPhase::Never | ContainerPhase::Starting
                if self.start_failed(&spec.name) || self.unknown_of_env(spec).is_some() =>
            {
                StartOrder::Continue
            }
            ContainerPhase::Never | ContainerPhase::Starting => StartOrder::Wait,
            ContainerPhase::Dead(..) => StartOrder::Continue,
            ContainerPhase::Running(id) => {
                let done =
                    self.run(&spec.name).is_some_and(|r| &r.id == id && r.post_start == HookState::Done);
                if done { StartOrder::Continue } else { StartOrder::Wait }
            }
        }
    }

    /// Whether the last try to start a container failed, also while the next try is in flight.
    fn start_failed(&self, container: &ContainerName) -> bool {
        self.memory.retries.keys().any(
            |a| matches!(a, Action::EnsureImage(c) | Action::Start { container: c, .. } if c == container),
        )
    }

    /// Starts a container that does not run, or sets the time at which it may start.
    fn ensure_running(&mut self, spec: &Container) {
        match self.container_phase(&spec.name) {
            ContainerPhase::Running(_) => {}
            ContainerPhase::Starting => {
                let Some((id, seen)) =
                    self.newest(&spec.name).filter(|(_, s)| s.state == RunState::NotStarted)
                else {
                    return;
                };
                // A run that had started and has no task any more is lost, not interrupted in its start.
                // `record_exits` stores its exit.
                let lost = self.run(&spec.name).is_some_and(|r| &r.id == id && r.started_at.is_some())
                    || self.in_flight(|a| matches!(a, Action::RecordExit { id: i, .. } if i == id));
                if !lost && Some(seen.sandbox_attempt) == self.ready_sandbox() {
                    self.begin(spec, seen.attempt);
                }
            }
            ContainerPhase::Never if self.ephemeral_run_lost(spec) => {}
            ContainerPhase::Never => {
                let begun = self.mem(&spec.name).and_then(|m| m.attempt);
                self.begin(spec, begun.map_or(Attempt(0), |a| self.after_unrecorded(spec, a)));
            }
            ContainerPhase::Dead(id, exit) => {
                let recorded =
                    matches!(self.seen.containers.get(id).map(|c| &c.state), Some(RunState::Recorded(_)));
                let old_sandbox =
                    self.seen.containers.get(id).map(|c| c.sandbox_attempt) != self.ready_sandbox();
                let init_again = old_sandbox && self.ready_sandbox().is_some() && self.is_plain_init(spec);
                if !recorded || !(init_again || self.restartable(&spec.name, id, exit)) {
                    return;
                }
                let attempt = self.seen.containers.get(id).map_or(Attempt(0), |c| c.attempt);
                let begun = self.mem(&spec.name).and_then(|m| m.attempt).unwrap_or(attempt);
                if begun > attempt {
                    self.begin(spec, self.after_unrecorded(spec, begun));
                    return;
                }
                if let Some((until, _)) = self.back_off(&spec.name, id) {
                    self.wake(until);
                    self.emit_backoff_event(spec, id);
                    return;
                }
                let counted = self.counted(&spec.name, id);
                if self.begin(spec, attempt.next()) {
                    self.mem_mut(&spec.name).backoff = counted;
                }
            }
        }
    }

    /// The attempt that follows a run of which no record is there: the same one where it only began, and the next one
    /// where it had started, so that its record is lost.
    fn after_unrecorded(&self, spec: &Container, begun: Attempt) -> Attempt {
        let started = self.run(&spec.name).is_some_and(|r| r.started_at.is_some());
        if started { begun.next() } else { begun }
    }

    fn is_plain_init(&self, spec: &Container) -> bool {
        self.role(&spec.name) == ContainerRole::Init
    }

    /// Whether this is an ephemeral container that has had its run, of which no record is left. There is no other run.
    pub(super) fn ephemeral_run_lost(&self, spec: &Container) -> bool {
        let had_run = |m: &ContainerMemory| {
            let past = m.past.as_ref().is_some_and(|past| past.id.is_some() || past.end.is_some());
            past || m.last.is_some() || m.run.as_ref().is_some_and(|run| run.started_at.is_some())
        };
        self.role(&spec.name) == ContainerRole::Ephemeral
            && self.newest(&spec.name).is_none()
            && self.mem(&spec.name).is_some_and(had_run)
    }

    /// Takes a failed pull as one that waits for its back-off, once its failure was shown, and emits the kubelet's events
    /// for that. The kubelet does so in the sync after the failure.
    fn note_pull_back_off(&mut self, spec: &Container) {
        let (now, action) = (self.now.boottime, Action::EnsureImage(spec.name.clone()));
        if self.memory.in_flight.contains(&action) {
            return;
        }
        let Some(retry) = self.memory.retries.get_mut(&action) else { return };
        if retry.backing_off || retry.failure.reason != "ErrImagePull" {
            return;
        }
        let failed_at = retry.not_before.0.saturating_sub(after_failure(&action, retry.failures));
        let due = Boottime(failed_at) + PULL_FAILURE_SHOWN;
        if due > now {
            self.wake(due);
            return;
        }
        retry.backing_off = true;
        let text = format!("Back-off pulling image {:?}", spec.image);
        self.events.push(Event::normal("BackOff", text).of(&spec.name));
        self.events.push(Event::warning("Failed", "Error: ImagePullBackOff").of(&spec.name));
    }

    fn emit_backoff_event(&mut self, spec: &Container, id: &crate::ids::ContainerId) {
        let key = &self.pod.key;
        let message = format!(
            "Back-off restarting failed container {} in pod {}_{}({})",
            spec.name, key.name, key.namespace, self.pod.uid
        );
        let mem = self.mem_mut(&spec.name);
        if mem.backoff_event_for.as_ref() == Some(id) {
            return;
        }
        mem.backoff_event_for = Some(id.clone());
        self.events.push(Event::warning("BackOff", message).of(&spec.name));
    }

    /// Begins a run once image, sandbox and volumes are ready and no object of its environment is unknown. The
    /// image check begins at once, without waiting for the others. Returns whether the start was emitted.
    fn begin(&mut self, spec: &Container, attempt: Attempt) -> bool {
        if !self.mem(&spec.name).is_some_and(|m| m.image_ready) {
            if self.awaited_pull_secret().is_some() {
                return false;
            }
            self.emit(Action::EnsureImage(spec.name.clone()));
            self.note_pull_back_off(spec);
            return false;
        }
        if self.unknown_of_env(spec).is_some() || self.waits_for_resize() {
            return false;
        }
        let Some(sandbox_attempt) = self.ready_sandbox().filter(|attempt| self.volumes_ready(*attempt))
        else {
            return false;
        };
        if self.in_flight(|a| matches!(a, Action::Start { container, .. } if container == &spec.name)) {
            return false;
        }
        let action = start(self.pod, spec, attempt, sandbox_attempt);
        let Action::Start { id, .. } = &action else { return false };
        let id = id.clone();
        if !self.emit(action) {
            return false;
        }
        let mem = self.mem_mut(&spec.name);
        mem.attempt = Some(attempt);
        if mem.run.as_ref().is_none_or(|r| r.id != id) {
            mem.run = Some(Run::begun(id, &spec.image));
        }
        true
    }

    /// Plans what follows a start: the postStart hook, then startup and readiness where no probe decides
    /// them.
    fn after_start(&mut self, spec: &Container) {
        let Some(run) = self.run(&spec.name).cloned() else { return };
        if run.started_at.is_none() {
            return;
        }
        let hook = Action::PostStart { container: spec.name.clone(), id: run.id.clone() };
        let mut next = run.clone();
        match run.post_start {
            HookState::NotYet if spec.post_start.is_some() => {
                let begun = self.emit(hook);
                next.post_start = if begun { HookState::Begun } else { HookState::NotYet };
            }
            HookState::NotYet => next.post_start = HookState::Done,
            HookState::Begun if !self.in_flight(|a| a == &hook) => next.post_start = HookState::Done,
            _ => {}
        }
        if next.post_start == HookState::Done {
            next.startup_done |= spec.startup.is_none();
            if next.startup_done && spec.readiness.is_none() {
                next.readiness = super::Readiness::Yes;
            }
        }
        if next != run {
            self.mem_mut(&spec.name).run = Some(next);
        }
    }

    /// Marks a run as stopping, unless it is already.
    pub(super) fn stop_run(
        &mut self,
        spec: &Container,
        id: &crate::ids::ContainerId,
        cause: StopCause,
        grace: u32,
    ) {
        let since = self.now.boottime;
        if let Some(run) = self.run_mut(&spec.name, id) {
            run.stop.get_or_insert(Stop {
                cause,
                since,
                grace,
                pre_stop: HookState::NotYet,
                signalled: None,
                signal_sent: false,
                killed: None,
            });
        }
    }
}
