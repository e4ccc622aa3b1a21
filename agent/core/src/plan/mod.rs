//! What should happen to a pod next: a pure function over what is wanted, what is seen and what is remembered.
//!
//! [`plan`] is level-triggered: given the same world it asks for the same actions, except for those in flight. The
//! shell carries the actions out in any order and at its own pace, reports each end with [`learn`], updates
//! [`Observed`] and calls [`plan`] again on each change and at `wake_at`.
//!
//! Invariants, held by the histories in `tests/histories.rs`:
//! - an action in flight is not emitted again; after its end it may be, where the world still asks for it;
//! - losing [`Memory`], or the agent, at any step kills no live container, re-runs no finished init container and
//!   turns no readiness to false;
//! - an exit is recorded before its container's next attempt starts;
//! - while containerd does not answer nothing is asked of it, and nothing counts as failed.

mod action;
mod backoff;
mod learn;
mod memory;
mod observed;
mod planner;
mod start;
mod status;
mod stop;

pub use action::{Action, Failure, Payload};
pub use learn::{Fact, learn};
pub use memory::{Ending, HookState, Memory, Readiness, Run, Stop, StopCause};
pub use observed::{Exit, Observed, ObservedContainer, ObservedSandbox, RunState, SandboxState};

use crate::{
    event::Event,
    ids::{ContainerId, ContainerName},
    model::{Pod, ProbeKind},
    status::PodStatus,
    time::{Boottime, Now},
};
use std::sync::Arc;

/// What the source wants of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Set when it shall go: the grace in seconds. A later, smaller one shortens it; it is never prolonged.
    pub end: Option<u32>,
}

/// A probe that should be going on now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActiveProbe {
    /// The run that is asked.
    pub id: ContainerId,
    /// The container's name.
    pub container: ContainerName,
    /// Which probe.
    pub kind: ProbeKind,
    /// When the run started.
    pub started_at: Boottime,
}

/// The answer of [`plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// To be stored before any of `actions` is begun.
    pub memory: Memory,
    /// To be begun now, in any order, all at once.
    pub actions: Vec<Action>,
    /// The probes that should be going on; all others end.
    pub probes: Vec<ActiveProbe>,
    /// To be published.
    pub status: PodStatus,
    /// What happened by this decision.
    pub events: Vec<Event>,
    /// When to ask again although nothing changed.
    pub wake_at: Option<Boottime>,
    /// Nobody can meet the pod any more: its containers are dead and its volumes unmounted.
    pub gone: bool,
    /// Nothing of the pod is left; its worker ends.
    pub finished: bool,
}

/// Decides what happens next to one pod.
pub fn plan(desired: &Desired, seen: &Observed, memory: &Memory, now: Now) -> Plan {
    let mut d = planner::Planner::new(&desired.pod, seen, memory.clone(), now);
    d.remember();
    d.note_end(desired.end);
    let terminal = d.terminal().or_else(|| d.shut_down());
    if seen.runtime_answers {
        d.record_exits();
        if d.memory.ending.is_some() || terminal.is_some() || d.sandbox_lost() {
            d.stop_containers();
            d.clear_away(terminal);
        } else {
            d.keep_running();
        }
        d.collect_dead(terminal);
    }
    let probes = d.probes();
    let gone = d.memory.ending.is_some() && d.is_gone();
    let finished = d.memory.removed;
    let status = status::status(&mut d, terminal);
    Plan {
        status,
        probes,
        gone,
        finished,
        memory: d.memory,
        actions: d.actions,
        events: d.events,
        wake_at: d.wake_at,
    }
}
