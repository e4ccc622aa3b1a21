//! What a worker knows of its pod: the last look, and everything it heard since.
//!
//! Pure: times come in as values. Rules: an exit that was seen is never unseen; an exit that comes before the end of
//! its start is kept for it; what changed after a look began, or is being changed by an action in flight, stays as the
//! worker knows it; what a look could not find out changes nothing.

use crate::executor::{Change, PodSnapshot, Process};
use berth_core::{
    ids::{ContainerId, ContainerName},
    plan::{Action, Exit, Observed, ObservedContainer, RunState, SandboxState},
    time::Boottime,
};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of one pod.
#[derive(Debug, Default)]
pub(crate) struct PodCache {
    /// The pod as `plan` sees it.
    pub(crate) seen: Observed,
    /// The processes of what runs.
    pub(crate) processes: BTreeMap<ContainerId, Process>,
    /// Exits that came before the end of their start.
    early: BTreeMap<ContainerId, Exit>,
    /// Runs of which the kernel killed something for memory.
    oomed: BTreeSet<ContainerId>,
    /// When a run was last heard of.
    changed: BTreeMap<ContainerId, Boottime>,
    sandbox_changed: Option<Boottime>,
    volumes_changed: Option<Boottime>,
    runtime_lost: Option<Boottime>,
    /// When an action failed of which only a look can tell what it left.
    failed: Option<Boottime>,
}

/// A run that has ended, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) container: ContainerName,
    pub(crate) exit: Exit,
}

impl PodCache {
    /// Takes what an action changed.
    pub(crate) fn apply(&mut self, change: Change, at: Boottime) -> Option<Ended> {
        let run = match &change {
            Change::Sandbox(_) => {
                self.sandbox_changed = Some(at);
                None
            }
            Change::Volumes { .. } => {
                self.volumes_changed = Some(at);
                None
            }
            Change::Container(id, ..)
            | Change::Recorded(id, _)
            | Change::Reaped(id)
            | Change::Removed(id) => Some(id.clone()),
        };
        let removed = matches!(change, Change::Removed(_));
        change.apply(&mut self.seen, &mut self.processes);
        let id = run?;
        self.changed.insert(id.clone(), at);
        if removed {
            self.early.remove(&id);
            self.oomed.remove(&id);
            return None;
        }
        let ended = self.end_early(&id);
        self.mark_oom(&id);
        ended
    }

    /// An action failed. True where a look has to tell what it left.
    pub(crate) fn failed(&mut self, action: &Action, at: Boottime) -> bool {
        let was = (self.seen.sandbox.clone(), self.seen.volumes_mounted, self.seen.volumes_present);
        let stale = std::mem::take(&mut self.seen.stale);
        self.seen.failed(action);
        let failed = self.seen.stale;
        if failed {
            self.failed = Some(at);
        }
        self.seen.stale |= stale;
        if was.0 != self.seen.sandbox {
            self.sandbox_changed = Some(at);
        }
        if (was.1, was.2) != (self.seen.volumes_mounted, self.seen.volumes_present) {
            self.volumes_changed = Some(at);
        }
        failed
    }

    /// A process of the pod ended.
    pub(crate) fn exit(&mut self, id: ContainerId, exit: Exit, at: Boottime) -> Option<Ended> {
        match self.seen.containers.get(&id).map(|c| &c.state) {
            Some(RunState::Ended(_) | RunState::Recorded(_)) => return None,
            Some(RunState::Running { .. } | RunState::NotStarted) | None => {}
        }
        self.changed.insert(id.clone(), at);
        self.early.insert(id.clone(), exit);
        self.end_early(&id)
    }

    /// Ends a run whose exit is known already.
    fn end_early(&mut self, id: &ContainerId) -> Option<Ended> {
        let c = self.seen.containers.get_mut(id)?;
        match c.state {
            RunState::NotStarted => None,
            RunState::Running { started_at } => {
                let mut exit = self.early.remove(id)?;
                exit.started_at.get_or_insert(started_at);
                exit.oom |= self.oomed.contains(id);
                let ended = Ended { container: c.container.clone(), exit: exit.clone() };
                c.state = RunState::Ended(exit);
                self.processes.remove(id);
                Some(ended)
            }
            RunState::Ended(_) | RunState::Recorded(_) => {
                self.early.remove(id);
                None
            }
        }
    }

    /// The kernel killed something of that run for memory. Where its end was already stored it is stored once more.
    pub(crate) fn oom(&mut self, id: ContainerId) {
        self.oomed.insert(id.clone());
        self.mark_oom(&id);
    }

    fn mark_oom(&mut self, id: &ContainerId) {
        if !self.oomed.contains(id) {
            return;
        }
        let Some(c) = self.seen.containers.get_mut(id) else { return };
        if let RunState::Ended(exit) | RunState::Recorded(exit) = &c.state
            && !exit.oom
        {
            c.state = RunState::Ended(Exit { oom: true, ..exit.clone() });
        }
    }

    /// The pause process is gone.
    pub(crate) fn pause_died(&mut self, at: Boottime) {
        if let Some(s) = self.seen.sandbox.as_mut().filter(|s| s.state == SandboxState::Ready) {
            s.state = SandboxState::NoPause;
            self.sandbox_changed = Some(at);
        }
    }

    /// containerd does not answer.
    pub(crate) fn runtime_lost(&mut self, at: Boottime) {
        self.seen.runtime_answers = false;
        self.runtime_lost = Some(at);
    }

    /// containerd answers, and the node shows neither containers nor a sandbox of the pod.
    pub(crate) fn nothing_there(&mut self, taken: Boottime, in_flight: &BTreeSet<Action>) {
        let mut snapshot = PodSnapshot::nothing(taken);
        snapshot.seen.volumes_present = self.seen.volumes_present;
        self.merge(snapshot, in_flight);
    }

    /// Takes a whole new look at the pod.
    pub(crate) fn merge(&mut self, snapshot: PodSnapshot, in_flight: &BTreeSet<Action>) -> Vec<Ended> {
        let PodSnapshot { seen, processes, unsure, taken } = snapshot;
        let busy = |test: fn(&Action) -> bool| in_flight.iter().any(test);
        let later = |at: Option<Boottime>| at.is_some_and(|t| t >= taken);
        let old = std::mem::replace(&mut self.seen, seen);
        if self.runtime_lost.is_some_and(|t| t > taken) {
            self.seen.runtime_answers = false;
        }
        self.seen.stale = old.stale && self.failed.is_some_and(|t| t > taken);
        let sandbox_busy = busy(|a| {
            matches!(a, Action::MakeSandbox(_) | Action::EnsurePause(_) | Action::TeardownSandbox(_))
        });
        if sandbox_busy || later(self.sandbox_changed) {
            self.seen.sandbox = old.sandbox;
        }
        let volumes_busy = busy(|a| matches!(a, Action::MountVolumes | Action::UnmountVolumes));
        if volumes_busy || later(self.volumes_changed) {
            self.seen.volumes_mounted = old.volumes_mounted;
            self.seen.volumes_present = old.volumes_present;
        } else {
            self.seen.volumes_mounted |= old.volumes_mounted && self.seen.volumes_present;
        }

        let new = std::mem::take(&mut self.seen.containers);
        let ids: BTreeSet<ContainerId> = old.containers.keys().chain(new.keys()).cloned().collect();
        let (mut before, mut now) = (old.containers, new);
        let mut ended = Vec::new();
        for id in ids {
            let (was, is) = (before.remove(&id), now.remove(&id));
            let in_hand = in_flight.iter().any(|a| touches(a, &id));
            let known = if in_hand || later(self.changed.get(&id).copied()) {
                was
            } else {
                let ran = was.as_ref().is_some_and(|c| matches!(c.state, RunState::Running { .. }));
                let known = is.map(|is| merge_container(was, is, unsure.contains(&id)));
                if let Some(c) = known.as_ref().filter(|_| ran)
                    && let Some(exit) = c.state.exit()
                {
                    ended.push(Ended { container: c.container.clone(), exit: exit.clone() });
                }
                known
            };
            if let Some(known) = known {
                self.seen.containers.insert(id, known);
            }
        }
        self.processes.extend(processes);
        let runs = &self.seen.containers;
        self.processes
            .retain(|id, _| runs.get(id).is_some_and(|c| matches!(c.state, RunState::Running { .. })));
        self.changed.retain(|id, t| runs.contains_key(id) || *t >= taken);
        let ids: Vec<ContainerId> = runs.keys().cloned().collect();
        for id in ids {
            ended.extend(self.end_early(&id));
            self.mark_oom(&id);
        }
        ended
    }
}

/// What is known of a run after a look at it.
fn merge_container(was: Option<ObservedContainer>, is: ObservedContainer, unsure: bool) -> ObservedContainer {
    let Some(was) = was else { return is };
    if unsure {
        return was;
    }
    let task = is.task;
    match (&was.state, &is.state) {
        // An exit that was seen is not unseen.
        (RunState::Ended(_) | RunState::Recorded(_), RunState::Running { .. })
        | (RunState::Ended(_), RunState::Ended(_)) => was,
        (RunState::Ended(_) | RunState::Recorded(_), RunState::NotStarted) => {
            ObservedContainer { task, ..was }
        }
        (RunState::Running { started_at }, RunState::Ended(exit)) => {
            let started_at = Some(*started_at);
            ObservedContainer { state: RunState::Ended(Exit { started_at, ..exit.clone() }), ..is }
        }
        _ => is,
    }
}

/// Whether an action is changing what is known of that run.
fn touches(action: &Action, run: &ContainerId) -> bool {
    matches!(
        action,
        Action::Start { .. } | Action::RecordExit { .. } | Action::Reap { .. } | Action::Remove { .. }
    ) && action.run() == Some(run)
}
