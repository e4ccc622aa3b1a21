//! What is shown of a wanted pod that has no worker yet: nothing is known of it, and nothing is claimed.

use crate::report::PodReport;
use berth_core::{
    model::{Container, Pod},
    status::{Condition, ConditionType, ContainerState, ContainerStatus, Phase, PodStatus, Truth},
    time::Wall,
};
use std::{collections::BTreeMap, sync::Arc};

/// The agent has just started.
pub(crate) const RUNTIME: &str = "containerd to answer";
/// One pod after the other.
pub(crate) const NAME: &str = "an earlier pod of the same name to be gone";
/// Nobody else may work on it.
pub(crate) const LEFTOVERS: &str = "what an earlier life of the pod left to be removed";

/// The report. A pod that may be running is shown as unknown, never as not ready; one that waits for its name or for
/// leftovers to go is certainly not running.
pub(crate) fn report(pod: &Arc<Pod>, why: &'static str, now: Wall) -> PodReport {
    let truth = if why == RUNTIME { Truth::Unknown } else { Truth::False };
    let reason = if why == RUNTIME { "ContainerStatusUnknown" } else { "ContainerCreating" };
    let container = |c: &Container| ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone(),
        image_id: String::new(),
        id: None,
        ready: truth,
        started: None,
        restart_count: 0,
        state: ContainerState::Waiting { reason: reason.to_owned(), message: None },
        last_state: None,
    };
    let condition = |kind, status| Condition { kind, status, reason: None, message: None, since: now };
    let mut containers: Vec<ContainerStatus> = pod.containers.iter().map(container).collect();
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    let status = PodStatus {
        phase: Phase::Pending,
        reason: None,
        message: None,
        start_time: None,
        pod_ips: Vec::new(),
        conditions: vec![
            condition(ConditionType::PodReadyToStartContainers, truth),
            condition(ConditionType::Initialized, truth),
            condition(ConditionType::Ready, truth),
            condition(ConditionType::ContainersReady, truth),
            condition(ConditionType::PodScheduled, Truth::True),
        ],
        init_containers: pod.init_containers.iter().map(container).collect(),
        containers,
        qos: pod.qos(),
        terminating: false,
        waiting_for: Some(why.to_owned()),
    };
    PodReport {
        pod: Arc::clone(pod),
        status: Arc::new(status),
        processes: BTreeMap::new(),
        timeline: Vec::new(),
        decisions: Vec::new(),
        gone: false,
        as_of: now,
    }
}
