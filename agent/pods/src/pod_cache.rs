//! Cache of one pod, owned by its worker: the last observation, and every message and change since.
//!
//! The cache is pure: times come in as values. Rules:
//!
//! - A known exit is never replaced by a running state.
//! - An exit that arrives before its start has ended is kept for that start.
//! - A snapshot does not override what changed after the observation began, or what an action in flight is
//!   changing.
//! - What an observation could not read changes nothing.

use crate::executor::{NodeProcess, ObservedChange, PodSnapshot};
use berth_core::{
    ids::{ContainerId, ContainerName},
    plan::{Action, Exit, Observed, ObservedContainer, RunState, SandboxState},
    time::Boottime,
};
use std::collections::{BTreeMap, BTreeSet};

/// The cached state of one pod.
#[derive(Debug, Default)]
pub(crate) struct PodCache {
    /// The pod's observed state, as `plan` takes it.
    pub(crate) seen: Observed,
    /// The processes of the running containers.
    pub(crate) processes: BTreeMap<ContainerId, NodeProcess>,
    /// Exits that arrived before their start had ended.
    early: BTreeMap<ContainerId, Exit>,
    /// Container runs in which the OOM killer ended a process.
    oomed: BTreeSet<ContainerId>,
    /// The last moment at which a change or an exit of a run arrived.
    changed: BTreeMap<ContainerId, Boottime>,
    sandbox_changed: Option<Boottime>,
    volumes_changed: Option<Boottime>,
    runtime_lost: Option<Boottime>,
    /// The moment of the last failed action whose effect only an observation can show.
    failed: Option<Boottime>,
}

/// A container run that has ended, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedRun {
    pub(crate) container: ContainerName,
    pub(crate) exit: Exit,
}

impl PodCache {
    /// Applies a change that an action made. Returns the run that ended by it.
    pub(crate) fn apply(&mut self, change: ObservedChange, at: Boottime) -> Option<EndedRun> {
        let run = match &change {
            ObservedChange::Sandbox(_) => {
                self.sandbox_changed = Some(at);
                None
            }
            ObservedChange::Volumes { .. } => {
                self.volumes_changed = Some(at);
                None
            }
            ObservedChange::Container(id, ..)
            | ObservedChange::Recorded(id, _)
            | ObservedChange::Reaped(id)
            | ObservedChange::Resized(id, _)
            | ObservedChange::Removed(id) => Some(id.clone()),
        };
        let removed = matches!(change, ObservedChange::Removed(_));
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

    /// Takes note of a failed action. Returns true where an observation has to show what the action left.
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

    /// Takes that the pod mounts volumes that it did not mount before: they are not all mounted any more.
    pub(crate) fn more_volumes(&mut self, at: Boottime) {
        if std::mem::take(&mut self.seen.volumes_mounted) {
            self.volumes_changed = Some(at);
        }
    }

    /// Takes the exit of a process of the pod. Returns the run that ended by it.
    pub(crate) fn exit(&mut self, id: ContainerId, exit: Exit, at: Boottime) -> Option<EndedRun> {
        match self.seen.containers.get(&id).map(|c| &c.state) {
            Some(RunState::Ended(_) | RunState::Recorded(_)) => return None,
            Some(RunState::Running { .. } | RunState::NotStarted) | None => {}
        }
        self.changed.insert(id.clone(), at);
        self.early.insert(id.clone(), exit);
        self.end_early(&id)
    }

    /// Ends a running container whose exit has arrived already.
    fn end_early(&mut self, id: &ContainerId) -> Option<EndedRun> {
        let c = self.seen.containers.get_mut(id)?;
        match c.state {
            RunState::NotStarted => None,
            RunState::Running { started_at } => {
                let mut exit = self.early.remove(id)?;
                exit.started_at.get_or_insert(started_at);
                exit.oom |= self.oomed.contains(id);
                let ended = EndedRun { container: c.container.clone(), exit: exit.clone() };
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

    /// Marks a run in which the OOM killer ended a process. A stored exit returns to the state before
    /// storing, so that the exit is stored again with the mark.
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

    /// Takes note that the pause process is gone.
    pub(crate) fn pause_died(&mut self, at: Boottime) {
        if let Some(s) = self.seen.sandbox.as_mut().filter(|s| s.state == SandboxState::Ready) {
            s.state = SandboxState::NoPause;
            self.sandbox_changed = Some(at);
        }
    }

    /// Takes note that containerd does not answer.
    pub(crate) fn runtime_lost(&mut self, at: Boottime) {
        self.seen.runtime_answers = false;
        self.runtime_lost = Some(at);
    }

    /// Takes note that containerd answers and that the node has neither a container nor a sandbox of the pod.
    pub(crate) fn nothing_there(&mut self, taken: Boottime, in_flight: &BTreeSet<Action>) {
        let mut snapshot = PodSnapshot::nothing(taken);
        snapshot.seen.volumes_present = self.seen.volumes_present;
        self.merge(snapshot, in_flight);
    }

    /// Merges a snapshot into the cache. Returns the runs that have ended since the last one.
    pub(crate) fn merge(&mut self, snapshot: PodSnapshot, in_flight: &BTreeSet<Action>) -> Vec<EndedRun> {
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
                    ended.push(EndedRun { container: c.container.clone(), exit: exit.clone() });
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

/// The state of a run after an observation of it.
fn merge_container(was: Option<ObservedContainer>, is: ObservedContainer, unsure: bool) -> ObservedContainer {
    let Some(was) = was else { return is };
    if unsure {
        return was;
    }
    let task = is.task;
    match (&was.state, &is.state) {
        // A known exit stays: the snapshot may be older than the exit.
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

/// Whether an action is changing the state of that run.
fn touches(action: &Action, run: &ContainerId) -> bool {
    matches!(
        action,
        Action::Start { .. } | Action::RecordExit { .. } | Action::Reap { .. } | Action::Remove { .. }
    ) && action.run() == Some(run)
}
