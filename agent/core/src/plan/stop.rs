//! Stopping containers in their order, and removing what a pod leaves.

use super::{
    Action, Exit, HookState, Payload, RunState, SandboxState, StopCause,
    planner::{ContainerPhase, ContainerRole, Planner},
};
use crate::{
    event::Event,
    ids::{ContainerId, ContainerName},
    model::Container,
    status::Phase,
};
use std::time::Duration;

/// The least time between the stop signal and SIGKILL (`minimumGracePeriodInSeconds`,
/// `pkg/kubelet/kuberuntime`).
const MINIMUM_GRACE: Duration = Duration::from_secs(2);
/// The time after which a process that survived SIGKILL gets another.
const KILL_AGAIN: Duration = Duration::from_secs(10);

/// The event of a container that SIGKILL has not ended: its user is told what the pod's end waits for.
fn survived(container: &ContainerName) -> Event {
    let text = format!(
        "error killing pod: container {container} has not ended {} s after SIGKILL: a process of it waits in the kernel, \
         as it does for a storage server that does not answer",
        KILL_AGAIN.as_secs()
    );
    Event::warning("FailedKillPod", text).of(container)
}

impl Planner<'_> {
    /// Stores every observed exit, before any decision rests on it. A run whose task is gone without an exit
    /// ended in an unknown way.
    pub(super) fn record_exits(&mut self) {
        let seen = self.seen;
        let current =
            seen.sandbox.as_ref().filter(|s| s.state != SandboxState::Broken).map(|s| s.sandbox_attempt);
        for (id, c) in &seen.containers {
            let container = c.container.clone();
            let exit = match &c.state {
                RunState::Ended(exit) => exit.clone(),
                // The run may have started since the last observation.
                RunState::NotStarted if seen.stale => continue,
                RunState::NotStarted => {
                    let starting = self.in_flight(|a| matches!(a, Action::Start { id: i, .. } if i == id));
                    let ran = self.run(&container).is_some_and(|r| &r.id == id && r.started_at.is_some());
                    let superseded = self.newest(&container).is_some_and(|(newest, _)| newest != id);
                    let homeless = Some(c.sandbox_attempt) != current;
                    if starting || !(ran || superseded || homeless) {
                        continue;
                    }
                    Exit::unknown(self.now.wall)
                }
                _ => continue,
            };
            self.emit(Action::RecordExit { container, id: id.clone(), exit: Payload(exit) });
        }
    }

    /// Stops all running containers within one grace period: main, plain init and ephemeral containers together, then
    /// the sidecars in reverse order, which wait for no ephemeral container. Once the grace period is over, sidecars stop
    /// without waiting any longer (`pkg/kubelet/kuberuntime/kuberuntime_termination_order.go`).
    pub(super) fn stop_containers(&mut self) {
        let pod = self.pod;
        let grace = self.memory.ending.map_or(pod.grace_seconds, |e| e.grace);
        let grace = self.memory.shutdown.map_or(grace, |s| s.grace.min(grace)).max(1);
        let cause = if self.memory.ending.is_some() || self.memory.failed.is_some() || !self.sandbox_lost() {
            StopCause::PodEnds
        } else {
            StopCause::SandboxLost
        };
        let mut turn = true;
        let sidecars = pod.init_containers.iter().rev().filter(|c| c.sidecar);
        let together = pod.containers.iter().chain(pod.init_containers.iter().filter(|c| !c.sidecar));
        let together = together.chain(&pod.ephemeral_containers);
        let order: Vec<(bool, &Container)> =
            together.map(|c| (false, c)).chain(sidecars.map(|c| (true, c))).collect();
        let mut others_alive = false;
        for (sidecar, spec) in order {
            if sidecar {
                turn = !others_alive;
            }
            if let ContainerPhase::Running(id) = self.container_phase(&spec.name) {
                let stopping = self.run(&spec.name).is_some_and(|r| &r.id == id && r.stop.is_some());
                if !stopping {
                    self.events.push(
                        Event::normal("Killing", format!("Stopping container {}", spec.name)).of(&spec.name),
                    );
                }
                self.stop_run(spec, id, cause, grace);
                self.shorten(spec, id, grace);
                self.continue_stop(spec, id, turn);
                others_alive |= self.role(&spec.name) != ContainerRole::Ephemeral;
            } else if self
                .in_flight(|a| matches!(a, Action::Start { container, .. } if container == &spec.name))
            {
                others_alive |= self.role(&spec.name) != ContainerRole::Ephemeral;
            }
        }
        self.kill_strays();
    }

    /// Shortens a stop under way to the grace period of the pod's end or of the shutdown. A stop is never
    /// prolonged.
    fn shorten(&mut self, spec: &Container, id: &ContainerId, grace: u32) {
        let ends = [self.memory.ending, self.memory.shutdown].into_iter().flatten();
        let Some(ending) = ends.max_by_key(|e| e.since) else { return };
        if let Some(stop) = self.run_mut(&spec.name, id).and_then(|r| r.stop.as_mut()) {
            // Whole seconds upwards: the container has all of its grace period.
            let used = ending.since.since(stop.since).as_nanos().div_ceil(1_000_000_000);
            let total = u32::try_from(used).unwrap_or(u32::MAX).saturating_add(grace);
            stop.grace = stop.grace.min(total);
        }
    }

    /// Kills stray runs: those that are not their container's newest, or whose container the spec does not
    /// name. Strays have no place in the stop order.
    fn kill_strays(&mut self) {
        let seen = self.seen;
        for (id, c) in &seen.containers {
            let newest = self.newest(&c.container).is_some_and(|(newest, _)| newest == id);
            let named = self.pod.container(&c.container).is_some();
            if matches!(c.state, RunState::Running { .. }) && !(newest && named) {
                let again = self.memory.strays.get(id).map(|t| *t + KILL_AGAIN);
                match again.filter(|t| *t > self.now.boottime) {
                    Some(again) => self.wake(again),
                    None if self.emit(Action::Kill { container: c.container.clone(), id: id.clone() }) => {
                        if self.memory.strays.insert(id.clone(), self.now.boottime).is_some() {
                            self.events.push(survived(&c.container));
                        }
                        self.wake(self.now.boottime + KILL_AGAIN);
                    }
                    None => {}
                }
            }
        }
        self.memory.strays.retain(|id, _| seen.containers.contains_key(id));
    }

    /// Plans the next step of a stop: the preStop hook, then the stop signal once `turn` says that the stop
    /// order has reached the container, then SIGKILL.
    pub(super) fn continue_stop(&mut self, spec: &Container, id: &ContainerId, turn: bool) {
        let now = self.now.boottime;
        let Some(stop) = self.run(&spec.name).filter(|r| &r.id == id).and_then(|r| r.stop.clone()) else {
            return;
        };
        let mut next = stop.clone();
        let deadline = stop.since + Duration::from_secs(u64::from(stop.grace));
        let hook = Action::PreStop { container: spec.name.clone(), id: id.clone() };
        match stop.pre_stop {
            HookState::NotYet if spec.pre_stop.is_none() || stop.grace == 0 => {
                next.pre_stop = HookState::Done
            }
            HookState::NotYet => {
                let begun = self.emit(hook.clone());
                next.pre_stop = if begun { HookState::Begun } else { HookState::NotYet };
            }
            // The hook was begun by an agent that died since. The hook is requested again, within what is
            // left of the grace period.
            HookState::Begun if now < deadline && !self.in_flight(|a| a == &hook) => {
                self.emit(hook.clone());
            }
            _ => {}
        }
        if next.pre_stop != HookState::Done && now < deadline {
            self.wake(deadline);
        } else if turn || now >= deadline {
            self.signal_then_kill(spec, id, &mut next, deadline);
        } else {
            self.wake(deadline);
        }
        if next != stop
            && let Some(run) = self.run_mut(&spec.name, id)
        {
            run.stop = Some(next);
        }
    }

    fn signal_then_kill(
        &mut self,
        spec: &Container,
        id: &ContainerId,
        stop: &mut super::Stop,
        deadline: crate::time::Boottime,
    ) {
        let now = self.now.boottime;
        let (container, id) = (spec.name.clone(), id.clone());
        let Some(signalled) = stop.signalled else {
            if self.emit(Action::Signal { container, id }) {
                stop.signalled = Some(now);
                self.wake(deadline.max(now + MINIMUM_GRACE));
            }
            return;
        };
        if !stop.signal_sent {
            self.emit(Action::Signal { container: container.clone(), id: id.clone() });
        }
        let due =
            deadline.max(signalled + MINIMUM_GRACE).max(stop.killed.map_or(deadline, |k| k + KILL_AGAIN));
        if now < due {
            self.wake(due);
        } else if self.emit(Action::Kill { container: container.clone(), id }) {
            if stop.killed.replace(now).is_some() {
                self.events.push(survived(&container));
            }
            self.wake(now + KILL_AGAIN);
        }
    }

    /// Removes what is left once no process runs: the sandbox, the volumes, the dead containers, and at last
    /// the pod itself. A pod that ended but is still wanted keeps its dead containers, for their logs and
    /// exit codes. Of a pod that shall run and lost its sandbox, only the sandbox is torn down.
    pub(super) fn cleanup(&mut self, terminal: Option<Phase>) {
        let busy = self.in_flight(|a| {
            matches!(a, Action::Start { .. } | Action::MakeSandbox(_) | Action::EnsurePause(_))
        });
        if self.anything_alive() || busy {
            return;
        }
        let ending = self.memory.ending.is_some();
        if let Some(s) = &self.seen.sandbox {
            let sandbox_attempt = s.sandbox_attempt;
            self.emit(Action::TeardownSandbox(sandbox_attempt));
        }
        let unmount = (ending || terminal.is_some()) && self.seen.volumes_present;
        if unmount && !self.in_flight(|a| matches!(a, Action::MountVolumes)) && self.all_recorded() {
            self.emit(Action::UnmountVolumes);
        }
        if !ending {
            return;
        }
        let seen = self.seen;
        let mut left = false;
        for (id, c) in &seen.containers {
            left = true;
            let (container, id) = (c.container.clone(), id.clone());
            match &c.state {
                RunState::Recorded(_) if c.task => {
                    self.emit(Action::Reap { container, id });
                }
                RunState::Recorded(_) | RunState::NotStarted => {
                    self.emit(Action::Remove { container, id });
                }
                _ => {}
            }
        }
        if !left && self.resources_reclaimed() && !self.memory.removed {
            self.emit(Action::RemovePod);
        }
    }

    /// Whether every exit is stored. The volumes stay mounted until then, because termination messages lie in
    /// the pod's directory.
    fn all_recorded(&self) -> bool {
        self.seen.containers.values().all(|c| !matches!(c.state, RunState::Ended(_)))
    }

    fn another_runs(&self, id: &ContainerId) -> bool {
        self.seen
            .containers
            .iter()
            .any(|(other, c)| other != id && matches!(c.state, RunState::Running { .. }))
    }

    /// Reaps and removes dead runs of a pod that is still wanted. A dead task is reaped once its successor
    /// runs or no successor will come, so that the pod's shim stays alive between runs. Records are kept of
    /// the newest run and of the newest dead run before it.
    pub(super) fn collect_dead(&mut self, terminal: Option<Phase>) {
        if self.memory.ending.is_some() {
            return;
        }
        let seen = self.seen;
        for (id, c) in &seen.containers {
            let RunState::Recorded(exit) = &c.state else { continue };
            let (container, id) = (c.container.clone(), id.clone());
            let newest = self.newest(&container).is_some_and(|(n, _)| n == &id);
            let keep = newest || self.previous(&container).is_some_and(|(p, _)| p == &id);
            let successor_runs =
                !newest && matches!(self.container_phase(&container), ContainerPhase::Running(_));
            // The task keeps the shim alive while another container is still to start on it.
            let shim_needed = terminal.is_none() && !self.another_runs(&id);
            let last = newest && !self.restartable(&container, &id, exit) && !shim_needed;
            if c.task && (successor_runs || last || !keep) {
                self.emit(Action::Reap { container, id });
            } else if !c.task && !keep {
                self.emit(Action::Remove { container, id });
            }
        }
    }
}
