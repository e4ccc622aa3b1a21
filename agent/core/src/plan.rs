//! Decision over one pod: a pure function of the desired pod, the observed world and the pod's memory.
//!
//! [`plan`] is level-triggered: the same world yields the same actions, except for those in flight. The
//! worker hands the actions to the executor, which carries them out in any order and at its own pace. The
//! worker reports the end of each action with [`learn`], updates [`Observed`], and calls [`plan`] again on
//! each change and at `wake_at`.
//!
//! Invariants, checked by the histories in `tests/histories.rs`:
//! - An action in flight is not emitted again. After its end the action may be emitted again, if the world
//!   still requires it.
//! - Losing [`Memory`], or the agent, at any step kills no live container, re-runs no finished init container
//!   and turns no readiness to false.
//! - An exit is recorded before the container's next attempt starts.
//! - While containerd does not answer, no action is emitted and nothing counts as failed.

mod action;
mod backoff;
mod from_api;
mod learn;
mod memory;
mod observed;
mod planner;
mod remember;
mod resize;
mod restart;
mod start;
mod status;
mod stop;
mod terminal;

pub use action::{Action, Failure, Payload};
pub use learn::{Fact, learn};
pub use memory::{Ending, HookState, Memory, PastRun, Readiness, Run, Stop, StopCause};
pub use observed::{Exit, Observed, ObservedContainer, ObservedSandbox, RunState, SandboxState};
pub use resize::PodResize;

use crate::{
    event::Event,
    ids::{ContainerId, ContainerName},
    model::{Pod, ProbeKind},
    refs::Ref,
    status::{PodStatus, TerminalPhase, Truth},
    time::{Boottime, Now},
    value::Why,
};
use std::{collections::BTreeMap, sync::Arc};

/// The wanted pod, and whether it shall run or end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The pod's specification.
    pub pod: Arc<Pod>,
    /// Grace period in seconds of a pod that shall end; `None` while the pod shall run. A later, smaller
    /// value shortens the grace period, counted from the first decision with it. No value prolongs it.
    pub end: Option<u32>,
    /// The end of the pod that the API server shows already: what runs of the pod ends, and no container
    /// starts any more.
    pub terminal: Option<TerminalPhase>,
    /// The conditions of other writers that the pod's readiness gates name, by their types.
    pub gates: BTreeMap<String, Truth>,
    /// The pod's references to objects that are unknown, each with the reason. What is made of such an object waits:
    /// the volumes, or the start of the container.
    pub unknown: BTreeMap<Ref, Why>,
}

impl Desired {
    /// The wanted pod, of which every object is known or absent.
    pub fn new(pod: Arc<Pod>, end: Option<u32>) -> Desired {
        Desired { pod, end, terminal: None, gates: BTreeMap::new(), unknown: BTreeMap::new() }
    }

    /// The pod that no source wants any more: the grace period is the spec's, or the shorter one that the pod was given
    /// before.
    pub fn unwanted(self) -> Desired {
        let grace = self.pod.grace_seconds;
        Desired { end: Some(self.end.map_or(grace, |end| end.min(grace))), ..self }
    }
}

impl From<Arc<Pod>> for Desired {
    fn from(pod: Arc<Pod>) -> Desired {
        Desired::new(pod, None)
    }
}

impl From<Pod> for Desired {
    fn from(pod: Pod) -> Desired {
        Arc::new(pod).into()
    }
}

/// A probe that should be active now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActiveProbe {
    /// The run that is probed.
    pub id: ContainerId,
    /// The container's name.
    pub container: ContainerName,
    /// Startup, liveness or readiness.
    pub kind: ProbeKind,
    /// When the run started.
    pub started_at: Boottime,
}

/// The result of [`plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The memory after this decision. The worker stores it before any of `actions` begins.
    pub memory: Memory,
    /// The actions to begin now, in any order and all at once.
    pub actions: Vec<Action>,
    /// The probes that should be active. The worker ends all others.
    pub probes: Vec<ActiveProbe>,
    /// The status to publish.
    pub status: PodStatus,
    /// The events that this decision causes.
    pub events: Vec<Event>,
    /// When the worker has to call [`plan`] again even if nothing changes.
    pub wake_at: Option<Boottime>,
    /// The pod is ending, its containers are dead and their exits stored, and its volumes are unmounted. The
    /// network may still be on the way down.
    pub gone: bool,
    /// The pod is gone and its network is released. Only records of its containers may be left: its object may go
    /// (`canBeDeleted`, `pkg/kubelet/status/status_manager.go`, waits for no record either).
    pub reclaimed: bool,
    /// Nothing of the pod is left, and its worker ends.
    pub finished: bool,
}

/// Decides which actions, probes, events and status follow for one pod.
pub fn plan(desired: &Desired, seen: &Observed, memory: &Memory, now: Now) -> Plan {
    let mut d = planner::Planner::new(desired, seen, memory.clone(), now);
    d.remember();
    d.note_allocation();
    d.note_end(desired.end);
    let terminal = d.terminal().or_else(|| d.shut_down());
    if seen.runtime_answers {
        d.record_exits();
        if d.memory.ending.is_some() || terminal.is_some() || d.sandbox_lost() {
            d.stop_containers();
            d.cleanup(terminal);
        } else if desired.pod.unsupported.is_none() {
            d.sync();
        }
        d.collect_dead(terminal);
    }
    let probes = d.probes();
    let gone = d.memory.ending.is_some() && d.is_gone();
    let reclaimed = gone && seen.runtime_answers && d.resources_reclaimed();
    let finished = d.memory.removed;
    let status = status::status(&mut d, terminal);
    Plan {
        status,
        probes,
        gone,
        reclaimed,
        finished,
        memory: d.memory,
        actions: d.actions,
        events: d.events,
        wake_at: d.wake_at,
    }
}
