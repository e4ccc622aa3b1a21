//! The effects of actions on the node in memory, with the checks of invariants.

use super::Node;
use berth_core::plan::{
    Action, Exit, Failure, Observed, ObservedContainer, ObservedSandbox, RunState, SandboxState,
};
use berth_pods::{
    ActionResult, Context, Executor as _, NodeEvent, NodeProcess, ObservedChange, WorkerMessage,
};
use std::sync::Arc;

impl Node {
    /// Leaves what an action leaves that is cut off half way.
    pub(super) fn carry_out_half(&self, context: &Context, action: &Action) {
        let mut state = self.lock();
        let (stored, seen) = state.pods.entry(context.pod.uid.clone()).or_default();
        stored.get_or_insert_with(|| Arc::clone(&context.pod));
        match action {
            Action::MountVolumes => seen.volumes_present = true,
            Action::UnmountVolumes => seen.volumes_mounted = false,
            Action::MakeSandbox(sandbox_attempt) | Action::TeardownSandbox(sandbox_attempt) => {
                let (sandbox_attempt, state) = (*sandbox_attempt, SandboxState::Broken);
                seen.sandbox = Some(ObservedSandbox { sandbox_attempt, state, ips: Vec::new() });
            }
            Action::Start { container, attempt, sandbox_attempt, id } => {
                let run = ObservedContainer {
                    container: container.clone(),
                    attempt: *attempt,
                    sandbox_attempt: *sandbox_attempt,
                    image_id: "sha256:1".into(),
                    user: None,
                    resources: context.pod.container(container).map(|c| c.resources.clone()),
                    state: RunState::Running { started_at: self.now().wall },
                    task: true,
                };
                seen.containers.insert(id.clone(), run);
            }
            other => panic!("no half of {other:?} is known"),
        }
    }

    pub(super) fn carry_out(&self, context: &Context, action: &Action) -> Result<ActionResult, Failure> {
        let needs_runtime =
            !matches!(action, Action::MountVolumes | Action::UnmountVolumes | Action::MakeSandbox(_));
        let mut state = self.lock();
        if needs_runtime && !state.up {
            return Err(Failure::new("RuntimeNotReady", "containerd does not answer"));
        }
        let uid = context.pod.uid.clone();
        let mut broken = Vec::new();
        let started_at = self.now().wall;
        let unstartable = action.container().is_some_and(|c| state.unstartable.contains(c));
        let ends_at_once = action.container().is_some_and(|c| state.ends_at_once.contains(c));
        let pid = 1000 + u32::try_from(state.log.len()).unwrap();
        let events = state.events.clone();
        let (stored, seen) = state.pods.entry(uid.clone()).or_default();
        stored.get_or_insert_with(|| Arc::clone(&context.pod));
        let runs =
            |seen: &Observed| seen.containers.values().any(|c| matches!(c.state, RunState::Running { .. }));
        let mut performed = ActionResult::default();
        let mut message = None;
        match action {
            Action::MountVolumes | Action::UnmountVolumes => {
                let mounted = *action == Action::MountVolumes;
                if !mounted && runs(seen) {
                    broken.push(format!("{uid}: volumes unmounted under a running container"));
                }
                (seen.volumes_mounted, seen.volumes_present) = (mounted, mounted);
                performed.changes.push(ObservedChange::Volumes { mounted, present: mounted });
            }
            Action::MakeSandbox(sandbox_attempt) | Action::EnsurePause(sandbox_attempt) => {
                if matches!(action, Action::MakeSandbox(_)) && seen.sandbox.is_some() {
                    broken.push(format!("{uid}: sandbox made over {:?}", seen.sandbox));
                }
                let broken_by_pause =
                    matches!(action, Action::EnsurePause(_)) && context.pod.namespaces.share_pid;
                let state = if broken_by_pause { SandboxState::Broken } else { SandboxState::Ready };
                let ips = vec!["10.0.0.1".parse().unwrap()];
                seen.sandbox = Some(ObservedSandbox { sandbox_attempt: *sandbox_attempt, state, ips });
                performed.changes.push(ObservedChange::Sandbox(seen.sandbox.clone()));
            }
            Action::TeardownSandbox(_) => {
                if runs(seen) {
                    broken.push(format!("{uid}: sandbox taken down under a running container"));
                }
                seen.sandbox = None;
                performed.changes.push(ObservedChange::Sandbox(None));
            }
            Action::EnsureImage(_) | Action::PostStart { .. } | Action::PreStop { .. } => {}
            Action::Start { container, attempt, sandbox_attempt, id } => {
                let other = seen.containers.iter().find(|(o, c)| {
                    &c.container == container && *o != id && !matches!(c.state, RunState::Recorded(_))
                });
                if let Some((other, c)) = other {
                    broken.push(format!("{uid}: {container} started beside {other}: {:?}", c.state));
                }
                if !seen.volumes_mounted || seen.sandbox.is_none() {
                    broken.push(format!("{uid}: {container} started without volumes or sandbox"));
                }
                let run = seen.containers.entry(id.clone()).or_insert_with(|| ObservedContainer {
                    container: container.clone(),
                    attempt: *attempt,
                    sandbox_attempt: *sandbox_attempt,
                    image_id: "sha256:1".into(),
                    user: None,
                    resources: context.pod.container(container).map(|c| c.resources.clone()),
                    state: RunState::NotStarted,
                    task: false,
                });
                let mut process = None;
                if run.state == RunState::NotStarted {
                    (run.state, run.task) = (RunState::Running { started_at }, true);
                    process = Some(NodeProcess { pid, start_time: u64::from(pid) });
                }
                if unstartable {
                    let exit = Exit {
                        code: 128,
                        reason: Some("StartError".into()),
                        message: Some("no such file".into()),
                        ..Exit::unknown(started_at)
                    };
                    (run.state, run.task) = (RunState::Ended(exit), false);
                    process = None;
                }
                performed.changes.push(ObservedChange::Container(id.clone(), Box::new(run.clone()), process));
                performed.events = events;
                if ends_at_once {
                    let exit = Exit {
                        code: 7,
                        at: started_at,
                        oom: false,
                        reason: None,
                        message: None,
                        started_at: None,
                    };
                    run.state = RunState::Ended(exit.clone());
                    message = Some(WorkerMessage::Exit(id.clone(), exit));
                } else if let Some(process) = process {
                    state.processes.insert(id.clone(), process);
                }
            }
            Action::Signal { id, .. } | Action::Kill { id, .. } => {
                let code = if matches!(action, Action::Kill { .. }) { 137 } else { 143 };
                if let Some(exit) = self.end(&mut state, &uid, id, code) {
                    message = Some(WorkerMessage::Exit(id.clone(), exit));
                }
            }
            Action::RecordExit { id, exit, .. } => match seen.containers.get_mut(id) {
                Some(c) => {
                    if matches!(c.state, RunState::Running { .. }) {
                        broken.push(format!("{uid}: exit of running {id} recorded: {:?}", exit.0));
                    }
                    c.state = RunState::Recorded(exit.0.clone());
                    performed.changes.push(ObservedChange::Recorded(id.clone(), exit.0.clone()));
                }
                None => performed.changes.push(ObservedChange::Removed(id.clone())),
            },
            Action::Reap { id, .. } => {
                if let Some(c) = seen.containers.get_mut(id) {
                    c.task = false;
                }
                performed.changes.push(ObservedChange::Reaped(id.clone()));
            }
            Action::Remove { id, .. } => {
                if seen.containers.get(id).is_some_and(|c| matches!(c.state, RunState::Running { .. })) {
                    broken.push(format!("{uid}: running {id} removed"));
                }
                seen.containers.remove(id);
                performed.changes.push(ObservedChange::Removed(id.clone()));
            }
            Action::ResizePod(resize) => {
                for update in &resize.0.updates {
                    let spec = context.pod.container(&update.container);
                    let Some(resources) = spec.map(|c| c.resources.clone()) else { continue };
                    if let Some(c) = seen.containers.get_mut(&update.id) {
                        c.resources = Some(resources.clone());
                    }
                    performed.changes.push(ObservedChange::Resized(update.id.clone(), resources));
                }
            }
            Action::RemovePod => {
                if seen.sandbox.is_some() || seen.volumes_present || !seen.containers.is_empty() {
                    broken.push(format!("{uid}: removed, and leaves {seen:?}"));
                }
                state.pods.remove(&uid);
            }
        }
        state.violations.extend(broken);
        drop(state);
        if let Some(message) = message {
            // The exit event is queued before the action reports its end.
            let sender = self.incoming.lock().unwrap().clone();
            if let Some(sender) = sender {
                sender.try_send(NodeEvent::One(uid, message)).ok();
            }
        }
        Ok(performed)
    }
}
