//! What a decision remembers of the observed state, before it decides.

use super::{
    Action, Exit, ObservedContainer, Readiness, Run, RunState, SandboxState,
    memory::Ending,
    planner::{ContainerRole, Planner},
};
use crate::{
    ids::ContainerId,
    time::{Boottime, Now, Wall},
};
use std::time::Duration;

impl Planner<'_> {
    /// Takes the observed state into the memory: adopts unknown runs, and notes start and end times.
    pub(super) fn remember(&mut self) {
        let now = self.now;
        self.memory.start_time.get_or_insert(now.wall);
        self.memory.start_boottime.get_or_insert(now.boottime);
        if let Some(s) = &self.seen.sandbox {
            let seen = s.sandbox_attempt;
            self.memory.sandbox_attempt = Some(self.memory.sandbox_attempt.map_or(seen, |i| i.max(seen)));
        }
        self.drop_settled_retries();
        let pod = self.pod;
        for spec in pod.all_containers() {
            let Some((id, seen)) = self.newest(&spec.name) else { continue };
            let finished = self.role(&spec.name) == ContainerRole::Init
                && seen.state.exit().is_some_and(Exit::init_done);
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
                    mem.image_pulled = false;
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
            | Action::ResizePod(_)
            | Action::RemovePod => true,
        });
    }

    /// Notes that the pod has to end. The time of its end only ever becomes earlier: a shorter grace period counts from
    /// now, because the pod learns of it now (`gracePeriodShortened`, `pkg/kubelet/pod_workers.go`).
    pub(super) fn note_end(&mut self, end: Option<u32>) {
        let Some(grace) = end else { return };
        let since = self.now.boottime;
        // At least one second (`calculateEffectiveGracePeriod`, `pkg/kubelet/pod_workers.go`), so that a
        // preStop hook has that much time.
        let grace = grace.max(1);
        let due = |e: &Ending| e.since + Duration::from_secs(u64::from(e.grace));
        let next = Ending { since, grace };
        let ending = self.memory.ending.get_or_insert(next);
        if grace < ending.grace && due(&next) < due(ending) {
            *ending = next;
        }
    }
}

/// Converts a wall time to the boot clock, as far as the wall clock allows. The result is never later than
/// now.
pub(super) fn boottime_of(wall: Wall, now: Now) -> Boottime {
    let age = u64::try_from(now.wall.0.saturating_sub(wall.0)).unwrap_or(0);
    Boottime(now.boottime.0.saturating_sub(Duration::from_nanos(age)))
}
