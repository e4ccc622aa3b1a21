//! What workers tell: the state of their pod after each decision, and events.

use crate::{executor::Process, worker::PlanRecord};
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
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its status.
    pub status: Arc<PodStatus>,
    /// The processes of its running containers.
    pub processes: BTreeMap<ContainerId, Process>,
    /// The last actions, newest last.
    pub timeline: Vec<ActionRecord>,
    /// The last decisions, newest last.
    pub decisions: Vec<Arc<PlanRecord>>,
    /// Nobody can meet the pod any more.
    pub gone: bool,
    /// When this was so.
    pub as_of: Wall,
}

/// One action that ended.
#[derive(Debug, Clone)]
pub struct ActionRecord {
    /// [`berth_core::plan::Action::kind`].
    pub kind: &'static str,
    /// The container concerned.
    pub container: Option<String>,
    /// When it began.
    pub begun: Wall,
    /// How long it took.
    pub took: Duration,
    /// Its parts.
    pub steps: Vec<(&'static str, Duration)>,
    /// Why it failed, where it did.
    pub failure: Option<String>,
}

/// Where workers tell it. Calls must not block.
pub trait Reports: Send + Sync + 'static {
    /// The pod's state may have changed.
    fn pod(&self, report: PodReport);
    /// Nothing of the pod is left.
    fn removed(&self, uid: &PodUid);
    /// Something happened.
    fn event(&self, event: EventRecord);
}
