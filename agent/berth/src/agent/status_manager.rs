//! Status manager: holds the workers' last reports, publishes them as views, and wakes housekeeping
//! and Services.
//!
//! A view is computed in the worker's task, in about ten microseconds; its JSON is encoded when it
//! is first needed. The lock keeps the views of one pod in the order of its reports. The reports
//! stay here and not in the [`WatchCache`]: the server knows no worker and no API types.

use super::{node::NodeWatch, sources::Latest};
use berth_api::view::{ActionView, ContainerView, PodView, VolumeView};
use berth_cluster::publish::{PodReports, PodToPublish, events::Events};
use berth_core::{
    event::{EventRecord, Involved},
    ids::PodUid,
    model::{NodeInfo, Objects, Origin, Pod, Volume},
    resources::pod_requests,
    status::{ConditionType, ContainerState, ContainerStatus, Phase, PodStatus, Truth},
    sync::lock,
    time::{Boottime, Wall},
    volume::describe,
};
use berth_pods::{DesiredSet, PodReport, Reports};
use berth_server::WatchCache;
use berth_services::ObservedPod;
use berth_source::{
    DesiredPod,
    status::{pod_object, pod_status},
};
use berth_sys::clock;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::{Notify, watch};

/// Holder of the pods' last reports; the [`Reports`] of the workers.
#[derive(Debug)]
pub(crate) struct StatusManager {
    pods: Mutex<BTreeMap<PodUid, Entry>>,
    /// Notified when the set of active pods changes.
    pub(crate) changed: Notify,
    /// Notified when a report may change endpoints of Services.
    pub(crate) endpoints: Notify,
    /// The pods of the API server whose report changed since the publisher took them.
    dirty: Mutex<BTreeSet<PodUid>>,
    /// Notified when `dirty` grows.
    dirtied: Notify,
    cache: WatchCache,
    latest: Latest,
    node: NodeWatch,
    /// Where events of the API server's objects go; `None` without a control plane.
    events: Option<Events>,
}

#[derive(Debug)]
struct Entry {
    report: PodReport,
    /// The pod as Services see it; `None` before its worker has observed it.
    seen: Option<ObservedPod>,
    /// The pod's last state in its source; kept while the pod terminates.
    desired: Option<Arc<DesiredPod>>,
    /// Nothing of the pod is left on the node. Its last report stays until the API server has the pod no more.
    torn_down: bool,
}

/// A pod that has a worker, with its last status.
#[derive(Debug, Clone)]
pub(crate) struct PodState {
    pub(crate) pod: Arc<Pod>,
    pub(crate) status: Arc<PodStatus>,
    /// Whether a source still has the pod.
    pub(crate) desired: bool,
}

impl StatusManager {
    pub(crate) fn new(
        cache: WatchCache,
        latest: Latest,
        node: NodeWatch,
        events: Option<Events>,
    ) -> StatusManager {
        StatusManager {
            pods: Mutex::default(),
            changed: Notify::new(),
            endpoints: Notify::new(),
            dirty: Mutex::default(),
            dirtied: Notify::new(),
            cache,
            latest,
            node,
            events,
        }
    }

    /// Takes an event that an earlier agent of this boot has reported.
    pub(crate) fn remember(&self, event: EventRecord) {
        if let Some(events) = &self.events {
            events.remember(&event);
        }
        self.cache.event(event);
    }

    /// Whether the object of an event is the API server's.
    fn is_of_api(&self, involved: &Involved) -> bool {
        match involved {
            Involved::Pod { uid, .. } => {
                let known = self.entries().get(uid).map(|entry| Arc::clone(&entry.report.pod));
                let pod = known.or_else(|| self.desired(uid).map(|desired| Arc::clone(&desired.pod)));
                // The events of a static pod are its mirror's too: `kubectl describe` asks for them by the static pod's
                // UID, which the mirror names.
                pod.is_some_and(|pod| !matches!(pod.origin, Origin::Manifest(_)))
            }
            Involved::Service { key, uid } => {
                let latest = self.latest.borrow();
                let desired = latest.cluster().and_then(|snapshot| snapshot.services.get(key));
                desired.is_some_and(|desired| desired.service.uid == *uid)
            }
        }
    }

    /// The active pods in the kubelet's sense: those that are not terminated (`GetActivePods`).
    pub(crate) fn active_pods(&self) -> Vec<Arc<Pod>> {
        self.entries()
            .values()
            .filter(|e| active(&e.report) && !e.torn_down)
            .map(|e| Arc::clone(&e.report.pod))
            .collect()
    }

    /// The pods that have a worker, as Services see them; `None` for a pod that its worker has not
    /// observed yet.
    pub(crate) fn seen(&self) -> BTreeMap<PodUid, Option<ObservedPod>> {
        let entries = self.entries();
        let there = entries.iter().filter(|(_, e)| !e.torn_down);
        there.map(|(uid, e)| (uid.clone(), e.seen.clone())).collect()
    }

    /// The pod of this name and its last status. Where a pod has taken the name of one that is still ending, the newer one.
    pub(crate) fn named(&self, namespace: &str, name: &str) -> Option<(Arc<Pod>, Arc<PodStatus>)> {
        let entries = self.entries();
        let is = |pod: &Pod| pod.key.namespace.as_str() == namespace && pod.key.name.as_str() == name;
        let named = entries.values().filter(|entry| is(&entry.report.pod));
        let found =
            named.max_by_key(|e| (self.desired(&e.report.pod.uid).is_some(), !e.report.status.terminating));
        if let Some(entry) = found {
            return Some((Arc::clone(&entry.report.pod), Arc::clone(&entry.report.status)));
        }
        // A pod that its worker has not reported on yet.
        let desired = self.latest.borrow().pods().into_values().find(|desired| is(&desired.pod))?;
        let status = PodStatus::new(Phase::Pending, desired.pod.qos());
        Some((Arc::clone(&desired.pod), Arc::new(status)))
    }

    /// The pod of this UID and its last status.
    pub(crate) fn state(&self, uid: &PodUid) -> Option<(Arc<Pod>, Arc<PodStatus>)> {
        let entries = self.entries();
        let report = &entries.get(uid)?.report;
        Some((Arc::clone(&report.pod), Arc::clone(&report.status)))
    }

    /// The pods of which something is left on the node, with their last statuses.
    pub(crate) fn pod_states(&self) -> Vec<PodState> {
        let entries = self.entries();
        let there = entries.values().filter(|e| !e.torn_down);
        let state = |e: &Entry| PodState {
            pod: Arc::clone(&e.report.pod),
            status: Arc::clone(&e.report.status),
            desired: self.desired(&e.report.pod.uid).is_some(),
        };
        there.map(state).collect()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<PodUid, Entry>> {
        lock(&self.pods)
    }

    fn desired(&self, uid: &PodUid) -> Option<Arc<DesiredPod>> {
        self.latest.borrow().pod(uid).cloned()
    }

    fn publish(&self, entry: &Entry) {
        let node = Arc::clone(&self.node.borrow());
        let objects = self.latest.borrow().objects();
        self.cache.publish(view(&entry.report, entry.desired.as_deref(), &node, &objects));
    }

    fn host_ips(&self) -> Vec<IpAddr> {
        self.node.borrow().ips.clone()
    }

    /// Publishes changes of the node's addresses: the `hostIP` of every pod, the `podIP` of pods
    /// with host network. Ends with the watch.
    pub(crate) async fn follow_node(self: Arc<Self>) {
        let mut node = self.node.clone();
        let mut shown = self.host_ips();
        while node.changed().await.is_ok() {
            let now = node.borrow_and_update().ips.clone();
            if now == shown {
                continue;
            }
            for entry in self.entries().values_mut() {
                entry.seen = observed_pod(&entry.report, &now);
                self.publish(entry);
            }
            shown = now;
            self.endpoints.notify_one();
        }
    }

    /// Publishes changes of pods in their sources that cause no report of a worker. Ends with the
    /// sources.
    pub(crate) async fn follow(self: Arc<Self>, mut desired: watch::Receiver<Arc<DesiredSet>>) {
        while desired.changed().await.is_ok() {
            desired.mark_unchanged();
            let mut entries = self.entries();
            for (uid, _) in
                entries.extract_if(.., |uid, entry| entry.torn_down && self.desired(uid).is_none())
            {
                self.cache.remove(&uid);
            }
            for (uid, entry) in entries.iter_mut() {
                let now = self.desired(uid);
                let same = match (&now, &entry.desired) {
                    (Some(now), Some(shown)) => Arc::ptr_eq(now, shown) || now == shown,
                    // A terminating pod keeps its last state.
                    (None, _) => true,
                    (Some(_), None) => false,
                };
                if !same {
                    entry.desired = now;
                    self.publish(entry);
                }
            }
        }
    }
}

impl StatusManager {
    fn mark_dirty(&self, uid: PodUid) {
        lock(&self.dirty).insert(uid);
        self.dirtied.notify_one();
    }
}

impl PodReports for StatusManager {
    async fn dirty(&self) {
        loop {
            let dirtied = self.dirtied.notified();
            if !lock(&self.dirty).is_empty() {
                return;
            }
            dirtied.await;
        }
    }

    fn take_dirty(&self) -> BTreeSet<PodUid> {
        std::mem::take(&mut lock(&self.dirty))
    }

    fn report(&self, uid: &PodUid) -> Option<PodToPublish> {
        let node = Arc::clone(&self.node.borrow());
        let pods = self.entries();
        let entry = pods.get(uid)?;
        let (pod, status) = (&entry.report.pod, &entry.report.status);
        let runs = |c: &ContainerStatus| matches!(c.state, ContainerState::Running { .. });
        Some(PodToPublish {
            pod: Arc::clone(pod),
            status: pod_status(pod, status, &node),
            // A readiness that is not known yet would take the pod out of its Services. A worker that has not heard of
            // the source yet does not know the pod's past.
            observed: is_observed(&entry.report) && entry.desired.is_some(),
            may_run: status.all_containers().any(runs),
            reclaimed: entry.report.reclaimed,
        })
    }
}

impl Reports for StatusManager {
    fn pod(&self, report: PodReport) {
        let uid = report.pod.uid.clone();
        let desired = self.desired(&uid);
        let mut pods = self.entries();
        let before = pods.remove(&uid);
        let was_active = before.as_ref().is_some_and(|b| active(&b.report));
        // The classes' cgroups have the sums of the requests.
        let resized =
            before.as_ref().is_some_and(|b| pod_requests(&b.report.pod) != pod_requests(&report.pod));
        let changed = was_active != active(&report) || resized;
        let endpoints = before.as_ref().is_none_or(|b| may_change_endpoints(&b.report, &report));
        let seen = match &before {
            // The same Arcs tell Services that nothing changed.
            Some(before) if !endpoints && same(&before.report, &report) => before.seen.clone(),
            _ => observed_pod(&report, &self.host_ips()),
        };
        let published = !matches!(report.pod.origin, Origin::Manifest(_));
        let entry = Entry {
            report,
            seen,
            desired: desired.or_else(|| before.and_then(|b| b.desired)),
            torn_down: false,
        };
        self.publish(&entry);
        pods.insert(uid.clone(), entry);
        drop(pods);
        if published {
            self.mark_dirty(uid);
        }
        if changed {
            self.changed.notify_one();
        }
        if endpoints {
            self.endpoints.notify_one();
        }
    }

    fn removed(&self, uid: &PodUid) {
        let mut pods = self.entries();
        // The publisher needs the last report until the API server shows it and has deleted the pod.
        let kept = pods.get_mut(uid).filter(|e| e.report.pod.origin == Origin::Cluster);
        let kept = kept.filter(|_| self.desired(uid).is_some()).map(|entry| entry.torn_down = true).is_some();
        if !kept {
            pods.remove(uid);
            self.cache.remove(uid);
        }
        drop(pods);
        if kept {
            self.mark_dirty(uid.clone());
        }
        self.changed.notify_one();
        self.endpoints.notify_one();
    }

    fn event(&self, event: EventRecord) {
        if let Some(events) = &self.events
            && self.is_of_api(&event.involved)
        {
            events.report(&event);
        }
        self.cache.event(event);
    }
}

fn active(report: &PodReport) -> bool {
    !matches!(report.status.phase, Phase::Succeeded | Phase::Failed)
}

/// Whether both reports share pod and status.
fn same(before: &PodReport, now: &PodReport) -> bool {
    Arc::ptr_eq(&before.pod, &now.pod) && Arc::ptr_eq(&before.status, &now.status)
}

fn volume(pod: &Pod, volume: &Volume, objects: &Objects) -> VolumeView {
    let told = describe(pod, volume, objects);
    VolumeView {
        name: volume.name.to_string(),
        kind: told.kind.to_owned(),
        source: told.source,
        claim: told.claim,
        root: told.root,
    }
}

fn view(report: &PodReport, desired: Option<&DesiredPod>, node: &NodeInfo, objects: &Objects) -> PodView {
    let (pod, status) = (&report.pod, &report.status);
    let object = match desired {
        Some(desired) => pod_object(&desired.raw.value(), pod, status, node),
        None => pod_object(&object_of(pod), pod, status, node),
    };
    let now = clock::now();
    let wall = |at: Boottime| {
        let left = i64::try_from(at.since(now.boottime).as_nanos()).unwrap_or(i64::MAX);
        Wall(now.wall.0.saturating_add(left))
    };
    let running = status.all_containers().filter_map(|c| {
        let id = c.id.as_ref()?;
        let process = report.processes.get(id)?;
        Some(ContainerView {
            name: c.name.clone(),
            id: id.clone(),
            pid: process.pid,
            start_time: process.start_time,
            attempt: c.restart_count,
        })
    });
    PodView {
        uid: pod.uid.clone(),
        key: pod.key.clone(),
        object,
        ready: status.is_ready(),
        terminating: status.terminating,
        waiting_for: status.waiting_for.clone(),
        next_try: status.next_try.map(wall),
        file: match &pod.origin {
            Origin::Manifest(file) | Origin::StaticFile(file) => Some(file.clone()),
            Origin::Cluster => None,
        },
        held: desired.and_then(|d| d.held.clone()),
        containers: running.collect(),
        volumes: pod.volumes.iter().map(|v| volume(pod, v, objects)).collect(),
        timeline: report.timeline.iter().map(action).collect(),
        as_of: report.as_of,
        gone: report.gone,
    }
}

fn action(a: &berth_pods::ActionRecord) -> ActionView {
    let ms = |d: std::time::Duration| d.as_secs_f64() * 1000.0;
    ActionView {
        kind: a.kind.to_owned(),
        container: a.container.clone(),
        begun: a.begun,
        took_ms: ms(a.took),
        steps: a.steps.iter().map(|(name, took)| ((*name).to_owned(), ms(*took))).collect(),
        failure: a.failure.clone(),
    }
}

/// The object of a pod that no source has and that an earlier agent started, built from the model.
fn object_of(pod: &Pod) -> Value {
    let containers = |list: &[berth_core::model::Container]| -> Vec<Value> {
        list.iter().map(|c| json!({ "name": c.name, "image": c.image })).collect()
    };
    let mut spec = json!({ "containers": containers(&pod.containers), "nodeName": pod.node });
    for (field, list) in
        [("initContainers", &pod.init_containers), ("ephemeralContainers", &pod.ephemeral_containers)]
    {
        if !list.is_empty() {
            spec[field] = containers(list).into();
        }
    }
    json!({
        "metadata": {
            "name": pod.key.name,
            "namespace": pod.key.namespace,
            "uid": pod.uid,
            "labels": pod.labels,
            "annotations": pod.annotations,
        },
        "spec": spec,
    })
}

/// Whether the worker has observed its pod and the readiness is known.
fn is_observed(report: &PodReport) -> bool {
    let unknown = report.status.condition(ConditionType::Ready).is_some_and(|c| c.status == Truth::Unknown);
    report.observed && !unknown
}

/// The pod as Services see it; `None` before its worker has observed it. A pod with host network
/// and an address has the node's addresses.
fn observed_pod(report: &PodReport, host_ips: &[IpAddr]) -> Option<ObservedPod> {
    if !is_observed(report) {
        return None;
    }
    let mut status = Arc::clone(&report.status);
    if report.pod.namespaces.host_network && !status.pod_ips.is_empty() && status.pod_ips != host_ips {
        Arc::make_mut(&mut status).pod_ips = host_ips.to_vec();
    }
    Some(ObservedPod { pod: Arc::clone(&report.pod), status })
}

/// Whether the difference of two reports may change endpoints.
fn may_change_endpoints(before: &PodReport, now: &PodReport) -> bool {
    let of = |r: &PodReport| {
        let s = &r.status;
        (s.phase, s.terminating, s.is_ready(), s.pod_ips.clone(), is_observed(r))
    };
    of(before) != of(now) || !Arc::ptr_eq(&before.pod, &now.pod) && before.pod != now.pod
}

#[cfg(test)]
mod tests;
