//! The effects of actions, and the ends of processes, in the true state of the world.

use super::World;
use berth_core::{
    ids::{Attempt, ContainerId, ContainerName, SandboxAttempt},
    plan::*,
};

impl World<'_> {
    /// Carries out an action in the true state.
    pub(super) fn apply(&mut self, a: &Action) -> Result<(), String> {
        match a {
            Action::MountVolumes => {
                self.truth.volumes_mounted = true;
                self.truth.volumes_present = true;
            }
            Action::UnmountVolumes => {
                self.truth.volumes_mounted = false;
                self.truth.volumes_present = false;
                if self.truth.containers.values().any(|c| matches!(c.state, RunState::Running { .. })) {
                    return Err("volumes unmounted under a running container".into());
                }
            }
            Action::MakeSandbox(i) => {
                self.truth_cgroup = self.sandbox_with.clone();
                if self.truth.sandbox.is_some() {
                    return Err(format!("sandbox {i} made beside {:?}", self.truth.sandbox));
                }
                let ips = vec!["10.0.0.1".parse().map_err(|e| format!("{e}"))?];
                self.truth.sandbox =
                    Some(ObservedSandbox { sandbox_attempt: *i, state: SandboxState::NoPause, ips });
            }
            Action::EnsurePause(_) => {
                if let Some(s) = self.truth.sandbox.as_mut().filter(|s| s.state == SandboxState::NoPause) {
                    s.state = SandboxState::Ready;
                }
            }
            Action::TeardownSandbox(i) => {
                self.check_teardown(&self.truth)?;
                if self.truth.sandbox.as_ref().is_some_and(|s| s.sandbox_attempt == *i) {
                    self.truth.sandbox = None;
                }
            }
            Action::EnsureImage(_) => {}
            Action::Start { container, attempt, sandbox_attempt, id } => {
                self.start(container, *attempt, *sandbox_attempt, id)?
            }
            Action::PostStart { .. } | Action::PreStop { .. } => {}
            Action::Signal { id, .. } | Action::Kill { id, .. } => {
                self.check_stop(a, id)?;
                self.exit(&id.clone(), 137);
            }
            Action::RecordExit { id, exit, .. } => {
                if let Some(c) = self.truth.containers.get_mut(id) {
                    if let RunState::Running { .. } = c.state {
                        return Err(format!("exit of running {id} recorded"));
                    }
                    c.state = RunState::Recorded(exit.0.clone());
                }
            }
            Action::Reap { id, .. } => {
                if let Some(c) = self.truth.containers.get_mut(id) {
                    if !matches!(c.state, RunState::Recorded(_)) {
                        return Err(format!(
                            "task of {id} reaped before its exit was recorded: {:?}",
                            c.state
                        ));
                    }
                    c.task = false;
                }
            }
            Action::Remove { id, .. } => {
                if let Some(RunState::Running { .. }) = self.truth.containers.get(id).map(|c| &c.state) {
                    return Err(format!("running {id} removed"));
                }
                self.truth.containers.remove(id);
            }
            Action::ResizePod(resize) => {
                let resize = resize.0.clone();
                self.truth_cgroup = Some(resize.allocation);
                for update in resize.updates {
                    let wanted = self.allocations.get(&update.wanted).cloned();
                    if let Some(c) = self.truth.containers.get_mut(&update.id) {
                        c.resources = wanted;
                    }
                }
            }
            Action::RemovePod => self.check_nothing_left()?,
        }
        Ok(())
    }

    /// Carries out a part of an action that was interrupted.
    pub(super) fn apply_half(&mut self, a: &Action) {
        match a {
            Action::MountVolumes => self.truth.volumes_present = true,
            Action::UnmountVolumes => self.truth.volumes_mounted = false,
            Action::MakeSandbox(i) if self.truth.sandbox.is_none() => {
                self.truth.sandbox = Some(ObservedSandbox {
                    sandbox_attempt: *i,
                    state: SandboxState::Broken,
                    ips: Vec::new(),
                });
            }
            Action::ResizePod(resize) => {
                let first = resize.0.updates.first();
                let wanted = first.and_then(|u| self.allocations.get(&u.wanted).cloned());
                if let Some(c) = first.and_then(|u| self.truth.containers.get_mut(&u.id)) {
                    c.resources = wanted;
                }
            }
            Action::TeardownSandbox(_) => {
                if let Some(s) = &mut self.truth.sandbox {
                    s.state = SandboxState::Broken;
                }
            }
            Action::Start { container, attempt, sandbox_attempt, id } => {
                self.truth.containers.entry(id.clone()).or_insert_with(|| ObservedContainer {
                    container: container.clone(),
                    attempt: *attempt,
                    sandbox_attempt: *sandbox_attempt,
                    image_id: String::new(),
                    user: None,
                    resources: None,
                    state: RunState::NotStarted,
                    task: false,
                });
            }
            _ => {}
        }
    }

    fn start(
        &mut self,
        container: &ContainerName,
        attempt: Attempt,
        sandbox_attempt: SandboxAttempt,
        id: &ContainerId,
    ) -> Result<(), String> {
        self.check_start(&self.truth, container, sandbox_attempt, id)?;
        let started_at = self.now.wall;
        // An action has the pod of the decision that began it.
        let begun_with = self.begun_with.get(id).cloned();
        self.truth.containers.entry(id.clone()).or_insert_with(|| ObservedContainer {
            container: container.clone(),
            attempt,
            sandbox_attempt,
            image_id: "sha256:1".into(),
            user: None,
            resources: begun_with,
            state: RunState::Running { started_at },
            task: true,
        });
        if let Some(c) = self.truth.containers.get_mut(id)
            && c.state == RunState::NotStarted
        {
            c.state = RunState::Running { started_at };
            c.resources = self.begun_with.get(id).cloned();
            c.task = true;
        }
        Ok(())
    }

    pub(super) fn exit(&mut self, id: &ContainerId, code: i32) {
        let at = self.now.wall;
        let Some(c) = self.truth.containers.get_mut(id) else { return };
        let RunState::Running { started_at } = c.state else { return };
        let started_at = Some(started_at);
        c.state = RunState::Ended(Exit { code, at, oom: false, reason: None, message: None, started_at });
        let ended = c.clone();
        let key = (c.sandbox_attempt, c.container.clone());
        if code == 0 && self.is_plain_init(&key.1) {
            self.finished_inits.insert(key);
        }
        self.note(|| format!("{} exits with {code}", id.short()));
        // The exit event. An exit before its start has ended is reported together with the start.
        if self.truth.runtime_answers
            && let Some(known) = self.agent.seen.containers.get_mut(id)
            && matches!(known.state, RunState::Running { .. })
        {
            *known = ended;
        }
    }
}
