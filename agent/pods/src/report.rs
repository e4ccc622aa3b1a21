//! Reports from workers: the state of their pod after each decision, and events.

use crate::executor::NodeProcess;
use berth_core::{
    event::EventRecord,
    ids::{ContainerId, PodUid},
    model::Pod,
    status::PodStatus,
    time::Wall,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// The state of a pod as its worker knows it.
#[derive(Debug, Clone)]
pub struct PodReport {
    /// The reported pod.
    pub pod: Arc<Pod>,
    /// The pod's status.
    pub status: Arc<PodStatus>,
    /// The processes of the pod's running containers.
    pub processes: BTreeMap<ContainerId, NodeProcess>,
    /// The last actions, newest last.
    pub timeline: Vec<ActionRecord>,
    /// The worker has observed the pod. Before that the status is a remembered one.
    pub observed: bool,
    /// The pod is ending, its containers are dead and its volumes unmounted: no client can reach the pod any
    /// more.
    pub gone: bool,
    /// The pod is gone and its network is released: its object may go. Records of its containers may be left.
    pub reclaimed: bool,
    /// The time of the report.
    pub as_of: Wall,
}

/// An action that ended.
#[derive(Debug, Clone)]
pub struct ActionRecord {
    /// The action's kind ([`berth_core::plan::Action::kind`]).
    pub kind: &'static str,
    /// The action's container. `None` for actions on the whole pod.
    pub container: Option<String>,
    /// The time at which the action began.
    pub begun: Wall,
    /// The action's duration.
    pub took: Duration,
    /// The action's parts and their durations.
    pub steps: Vec<(&'static str, Duration)>,
    /// The failure's text. `None` where the action succeeded.
    pub failure: Option<String>,
}

/// Receiver of reports from the workers and the manager. Calls must not block.
pub trait Reports: Send + Sync + 'static {
    /// Takes the pod's state after a decision. The state may be unchanged.
    fn pod(&self, report: PodReport);
    /// Takes note that nothing of the pod is left.
    fn removed(&self, uid: &PodUid);
    /// Takes an event.
    fn event(&self, event: EventRecord);
}
