//! Status of a pod as the API server has it: what this node, or an agent before it, reported last, with the conditions
//! of other writers.

use super::{ContainerStatus, Phase, TerminalPhase, Truth};
use crate::{model::Pod, time::Wall};
use std::{collections::BTreeMap, net::IpAddr};

/// `status` of a pod in the API. Of a new pod it is empty but for the phase. Times are in whole seconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ApiStatus {
    /// `phase`.
    pub phase: Option<Phase>,
    /// `reason`.
    pub reason: Option<String>,
    /// `message`.
    pub message: Option<String>,
    /// `startTime`, which the node sets with its first report.
    pub start_time: Option<Wall>,
    /// `podIPs`.
    pub pod_ips: Vec<IpAddr>,
    /// `conditions` of all writers by their types, with `lastTransitionTime`.
    pub conditions: BTreeMap<String, (Truth, Option<Wall>)>,
    /// `initContainerStatuses`, `containerStatuses` and `ephemeralContainerStatuses`.
    pub containers: Vec<ContainerStatus>,
}

impl ApiStatus {
    /// Whether a node has reported on the pod.
    pub fn is_reported(&self) -> bool {
        self.start_time.is_some()
    }

    /// The terminal phase, with its reason and message.
    pub fn terminal(&self) -> Option<TerminalPhase> {
        let phase = self.phase.filter(|phase| phase.is_terminal())?;
        Some(TerminalPhase { phase, reason: self.reason.clone(), message: self.message.clone() })
    }

    /// The conditions that the pod's readiness gates name. A condition that is not there is left out.
    pub fn gates(&self, pod: &Pod) -> BTreeMap<String, Truth> {
        let of = |gate: &String| Some((gate.clone(), self.conditions.get(gate)?.0));
        pod.readiness_gates.iter().filter_map(of).collect()
    }
}
