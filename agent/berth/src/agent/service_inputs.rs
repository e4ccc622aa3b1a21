//! The agent as the engine of Services sees it: sources and reports in; the DNS zone,
//! `services.json` and notices out.

use super::{
    node::NodeWatch, services::HealthChecks, services_health::ServicesHealth, sources::Latest,
    status_manager::StatusManager,
};
use crate::dns::DEFAULT_DOMAIN;
use berth_api::services::{NamedPort, ServicesFile};
use berth_core::{
    event::{Event, EventRecord, Involved},
    ids::{PodKey, PodUid},
    model::{EndpointSlice, Service},
    roots::Roots,
    status::{Phase, PodStatus},
    sync::lock,
};
use berth_dns::{PodNames, Publisher, build};
use berth_executor::NodeExecutor;
use berth_pods::Reports as _;
use berth_services::{
    Cause, DatapathHealth, HealthCheck, Named, Notice, ObservedPod, ServiceInputs, SourceChanges,
};
use berth_source::{
    DesiredPod, RawPod, Snapshot,
    controllers::endpoint_slices::{self, EndpointPod},
};
use berth_sys::clock;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

/// Most bytes that are read of `services.json`: some hundred thousand Services.
const MOST: usize = 256 << 20;

/// Implementation of the engine's [`ServiceInputs`] by the parts of the agent.
pub(super) struct AgentInputs {
    pub(super) roots: Roots,
    pub(super) node: NodeWatch,
    pub(super) status: Arc<StatusManager>,
    pub(super) latest: Latest,
    pub(super) pods: PodsOfNode,
    /// The snapshots of the sources at the engine's last question for changes.
    pub(super) reported: Vec<Arc<Snapshot>>,
    /// Publisher of the DNS zone, opened with the first zone.
    pub(super) publisher: Option<Publisher>,
    pub(super) health: ServicesHealth,
    pub(super) health_checks: HealthChecks,
    /// Whether this node makes the EndpointSlices of Services.
    pub(super) makes_endpoints: bool,
    /// The notices of an earlier agent that are still to come again.
    pub(super) told: BTreeSet<String>,
}

/// Who runs the pods of this node.
#[derive(Clone)]
pub(crate) enum PodsOfNode {
    /// This agent.
    Own(Arc<NodeExecutor>),
    /// A kubelet, which reports their addresses to the API server.
    Kubelet(ReportedPods),
}

/// The pods of this node by the statuses that a kubelet has reported. A pod is parsed once a version. Clones share their
/// pods.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReportedPods(Arc<Mutex<BTreeMap<PodUid, ReportedPod>>>);

/// A pod as it was reported, and what was read of it.
type ReportedPod = (Arc<RawPod>, ObservedPod);

impl ReportedPods {
    fn seen(&self, snapshots: &[Arc<Snapshot>]) -> BTreeMap<PodUid, Option<ObservedPod>> {
        let mut known = lock(&self.0);
        let before = std::mem::take(&mut *known);
        for (uid, desired) in snapshots.iter().flat_map(|snapshot| snapshot.pods.iter()) {
            let entry = match before.get(uid) {
                Some((raw, seen)) if Arc::ptr_eq(raw, &desired.raw) => (Arc::clone(raw), seen.clone()),
                earlier => {
                    let status = Arc::new(reported_status(desired));
                    let same = earlier
                        .filter(|(_, seen)| *seen.status == *status && Arc::ptr_eq(&seen.pod, &desired.pod));
                    let now = || ObservedPod { pod: Arc::clone(&desired.pod), status };
                    let seen = same.map_or_else(now, |(_, seen)| seen.clone());
                    (Arc::clone(&desired.raw), seen)
                }
            };
            known.insert(uid.clone(), entry);
        }
        known.iter().map(|(uid, (_, seen))| (uid.clone(), Some(seen.clone()))).collect()
    }
}

/// What Services need of a pod's reported status: its phase and its addresses.
fn reported_status(desired: &DesiredPod) -> PodStatus {
    let object = desired.raw.value();
    let status = &object["status"];
    let phase = match status["phase"].as_str() {
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        _ => Phase::Pending,
    };
    let ips = status["podIPs"].as_array().into_iter().flatten().filter_map(|ip| ip["ip"].as_str());
    PodStatus {
        pod_ips: ips.filter_map(|ip| ip.parse().ok()).collect(),
        ..PodStatus::new(phase, desired.pod.qos())
    }
}

impl AgentInputs {
    fn latest(&self) -> Vec<Arc<Snapshot>> {
        self.latest.borrow().snapshots().cloned().collect()
    }
}

impl ServiceInputs for AgentInputs {
    fn changes(&mut self) -> SourceChanges {
        let latest = self.latest();
        let listed = latest.iter().all(|s| s.listed && !s.slices_pending);
        let mut changes = SourceChanges { listed, ..SourceChanges::default() };
        let nothing = Arc::new(Snapshot::default());
        for (source, now) in latest.iter().enumerate() {
            let before = self.reported.get(source).unwrap_or(&nothing);
            if Arc::ptr_eq(before, now) {
                continue;
            }
            let services = now.services.changes_since(&before.services);
            changes.services.push((source, services.map(|desired| Arc::clone(&desired.service))));
            changes.slices.push((source, now.slices.changes_since(&before.slices)));
        }
        self.reported = latest;
        changes
    }

    fn wanted_pods(&self) -> Vec<PodUid> {
        // The API server's slices say what serves: no pod has to be observed for that.
        if !self.makes_endpoints {
            return Vec::new();
        }
        self.latest().iter().flat_map(|s| s.pods.keys()).cloned().collect()
    }

    fn pods(&self) -> BTreeMap<PodUid, Option<ObservedPod>> {
        match &self.pods {
            PodsOfNode::Own(_) => self.status.seen(),
            PodsOfNode::Kubelet(reported) => reported.seen(&self.latest()),
        }
    }

    fn is_kernel_doubted(&mut self) -> bool {
        self.health.take_doubt()
    }

    fn runtime_answers(&self) -> bool {
        match &self.pods {
            PodsOfNode::Own(executor) => executor.runtime().is_ok(),
            PodsOfNode::Kubelet(_) => true,
        }
    }

    fn endpoints(
        &self,
        services: &[Arc<Service>],
        pods: &[&ObservedPod],
        before: &[Arc<EndpointSlice>],
    ) -> Vec<Arc<EndpointSlice>> {
        if !self.makes_endpoints {
            return Vec::new();
        }
        let facts: Vec<EndpointPod<'_>> =
            pods.iter().map(|p| EndpointPod { pod: &p.pod, status: &p.status }).collect();
        endpoint_slices::slices(services, &facts, before)
    }

    fn publish_names<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Service>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Result<(), Cause> {
        if matches!(self.pods, PodsOfNode::Kubelet(_)) {
            // Nobody answers names on such a node but the cluster's own servers.
            return Ok(());
        }
        let publisher = match &mut self.publisher {
            Some(publisher) => publisher,
            none => none.insert(Publisher::open(&self.roots)?),
        };
        // An unchanged zone is not written again.
        let node = Arc::clone(&self.node.borrow());
        let domain = node.cluster_domain.as_deref().unwrap_or(DEFAULT_DOMAIN);
        let _changed = publisher.publish(build(services, slices, PodNames::Any, domain))?;
        Ok(())
    }

    fn publish_ids(
        &mut self,
        ids: impl Iterator<Item = Named>,
        next_id: u32,
        notices: impl Iterator<Item = Notice>,
    ) -> Result<(), Cause> {
        let mut ports: Vec<NamedPort> = ids.map(port).collect();
        ports.sort_by_key(|p| (p.v6, p.id));
        let mut notices: Vec<String> = notices.map(|n| line(&n)).collect();
        notices.sort();
        let file = ServicesFile { as_of: clock::wall(), ports, notices, next_id };
        Ok(berth_sys::fs::write_atomic(&self.roots.services_file(), &serde_json::to_vec(&file)?, 0o644)?)
    }

    fn health_checks(&mut self, checks: &BTreeMap<PodKey, HealthCheck>) {
        self.health_checks.set(checks.clone());
    }

    fn health(&mut self, health: &DatapathHealth) {
        self.health.set(health);
    }

    fn notify(&mut self, notice: &Notice) {
        tracing::warn!(service = %notice.service, reason = notice.why.reason(), "{}", notice.why);
        let involved = Involved::Service { key: notice.service.clone(), uid: Arc::clone(&notice.uid) };
        let event = Event::warning(notice.why.reason(), notice.why.to_string());
        let record = EventRecord::once(involved, event, clock::wall());
        // The first look at the Services finds again what an earlier agent has reported.
        if self.told.remove(&line(notice)) {
            self.status.remember(record);
        } else {
            self.status.event(record);
        }
    }
}

/// A notice as it is stored.
fn line(notice: &Notice) -> String {
    format!("{}: {}: {}", notice.service, notice.why.reason(), notice.why)
}

fn port(n: Named) -> NamedPort {
    NamedPort {
        id: n.id,
        v6: n.v6,
        service: n.service,
        port: n.port.as_ref().to_owned(),
        protocol: n.transport.to_string(),
        frontends: n.frontends.iter().map(|(address, port)| SocketAddr::new(*address, *port)).collect(),
    }
}

/// What an earlier agent left in its file. Nothing without one.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// The next free id, from 1 on. The engine also starts above all ids in the tables.
    pub(super) next_id: u32,
    /// The notices.
    pub(super) notices: BTreeSet<String>,
}

/// Reads what an earlier agent left. A file that is missing or cannot be read counts as none.
pub(super) fn stored(roots: &Roots) -> Stored {
    let bytes = berth_sys::fs::read_limited(&roots.services_file(), MOST).ok();
    let file = bytes.and_then(|bytes| serde_json::from_slice::<ServicesFile>(&bytes).ok());
    let (next_id, notices) = file.map(|file| (file.next_id, file.notices)).unwrap_or_default();
    Stored { next_id: next_id.max(1), notices: notices.into_iter().collect() }
}
