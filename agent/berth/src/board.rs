//! What workers report, handed on: to the published views, to the QoS cgroups, to the events.
//!
//! A view is made on the worker's own time, which is some ten microseconds; its JSON is written by whoever first needs
//! it. The lock keeps the views of one pod in the order of its reports.

use crate::{
    host_network::Host,
    services::{ObservedPod, looked_at, matters},
    sources::Latest,
};
use berth_api::view::{ActionView, ContainerView, PodView};
use berth_core::{
    event::EventRecord,
    ids::PodUid,
    model::{Origin, Pod},
    status::Phase,
    sync::lock,
    time::{Boottime, Wall},
};
use berth_pods::{DesiredSet, PodReport, Reports};
use berth_server::WatchCache;
use berth_source::{DesiredPod, status::pod_object};
use berth_sys::clock;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::{Notify, watch};

/// Where reports come together.
#[derive(Debug)]
pub(crate) struct Board {
    pods: Mutex<BTreeMap<PodUid, Entry>>,
    /// A pod became active, or is so no longer.
    pub(crate) changed: Notify,
    /// Endpoints may follow from what a pod's worker told.
    pub(crate) endpoints: Notify,
    cache: WatchCache,
    latest: Latest,
    host: Host,
}

#[derive(Debug)]
struct Entry {
    report: PodReport,
    /// As Services see the pod, where it was looked at.
    seen: Option<ObservedPod>,
    /// As the source last had it; kept while the pod ends.
    desired: Option<Arc<DesiredPod>>,
}

impl Board {
    pub(crate) fn new(cache: WatchCache, latest: Latest, host: Host) -> Board {
        Board {
            pods: Mutex::default(),
            changed: Notify::new(),
            endpoints: Notify::new(),
            cache,
            latest,
            host,
        }
    }

    /// The pods that are active in the kubelet's sense: those that have not come to their end (`GetActivePods`).
    pub(crate) fn active_pods(&self) -> Vec<Arc<Pod>> {
        self.entries().values().filter(|e| active(&e.report)).map(|e| Arc::clone(&e.report.pod)).collect()
    }

    /// The pods that have a worker; without more where it has not looked at its pod yet.
    pub(crate) fn seen(&self) -> BTreeMap<PodUid, Option<ObservedPod>> {
        self.entries().iter().map(|(uid, e)| (uid.clone(), e.seen.clone())).collect()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<PodUid, Entry>> {
        lock(&self.pods)
    }

    fn desired(&self, uid: &PodUid) -> Option<Arc<DesiredPod>> {
        let all = lock(&self.latest);
        all.iter().find_map(|s| s.pods.get(uid)).cloned()
    }

    fn show(&self, entry: &Entry) {
        self.cache.publish(view(&entry.report, entry.desired.as_deref(), &self.host_ips()));
    }

    fn host_ips(&self) -> Vec<IpAddr> {
        self.host.borrow().host_ips()
    }

    /// Shows the node's addresses where they change: as `hostIP` of every pod, as `podIP` of those in the host's network.
    /// Ends with the watch.
    pub(crate) async fn follow_host(self: Arc<Self>) {
        let mut host = self.host.clone();
        let mut shown = self.host_ips();
        while host.changed().await.is_ok() {
            let now = host.borrow_and_update().host_ips();
            if now == shown {
                continue;
            }
            for entry in self.entries().values_mut() {
                entry.seen = looked_at(&entry.report, &now);
                self.show(entry);
            }
            shown = now;
            self.endpoints.notify_one();
        }
    }

    /// Shows what the sources change of a pod while its worker has nothing to tell. Ends with the sources.
    pub(crate) async fn follow(self: Arc<Self>, mut desired: watch::Receiver<Arc<DesiredSet>>) {
        while desired.changed().await.is_ok() {
            desired.mark_unchanged();
            for (uid, entry) in self.entries().iter_mut() {
                let now = self.desired(uid);
                let same = match (&now, &entry.desired) {
                    (Some(now), Some(shown)) => Arc::ptr_eq(now, shown) || now == shown,
                    // Ending: shown as it was.
                    (None, _) => true,
                    (Some(_), None) => false,
                };
                if !same {
                    entry.desired = now;
                    self.show(entry);
                }
            }
        }
    }
}

impl Reports for Board {
    fn pod(&self, report: PodReport) {
        let uid = report.pod.uid.clone();
        let desired = self.desired(&uid);
        let mut pods = self.entries();
        let before = pods.remove(&uid);
        let was_active = before.as_ref().is_some_and(|b| active(&b.report));
        let changed = was_active != active(&report);
        let endpoints = before.as_ref().is_none_or(|b| matters(&b.report, &report));
        let seen = match &before {
            // It keeps its identity, by which others see that nothing changed.
            Some(before) if !endpoints && same(&before.report, &report) => before.seen.clone(),
            _ => looked_at(&report, &self.host_ips()),
        };
        let entry = Entry { report, seen, desired: desired.or_else(|| before.and_then(|b| b.desired)) };
        self.show(&entry);
        pods.insert(uid, entry);
        drop(pods);
        if changed {
            self.changed.notify_one();
        }
        if endpoints {
            self.endpoints.notify_one();
        }
    }

    fn removed(&self, uid: &PodUid) {
        let mut pods = self.entries();
        pods.remove(uid);
        self.cache.remove(uid);
        drop(pods);
        self.changed.notify_one();
        self.endpoints.notify_one();
    }

    fn event(&self, event: EventRecord) {
        self.cache.event(event);
    }
}

fn active(report: &PodReport) -> bool {
    !matches!(report.status.phase, Phase::Succeeded | Phase::Failed)
}

/// Whether neither the pod nor its status was made anew.
fn same(before: &PodReport, now: &PodReport) -> bool {
    Arc::ptr_eq(&before.pod, &now.pod) && Arc::ptr_eq(&before.status, &now.status)
}

fn view(report: &PodReport, desired: Option<&DesiredPod>, node_ips: &[IpAddr]) -> PodView {
    let (pod, status) = (&report.pod, &report.status);
    let object = match desired {
        Some(desired) => pod_object(&desired.raw, pod, status, node_ips),
        None => pod_object(&least(pod), pod, status, node_ips),
    };
    let now = clock::now();
    let wall = |at: Boottime| {
        let left = i64::try_from(at.since(now.boottime).as_nanos()).unwrap_or(i64::MAX);
        Wall(now.wall.0.saturating_add(left))
    };
    let containers = status.init_containers.iter().chain(&status.containers);
    let running = containers.filter_map(|c| {
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

/// A pod that no source has any more, from before the agent's start: its object as far as the model knows it.
fn least(pod: &Pod) -> Value {
    let containers = |list: &[berth_core::model::Container]| -> Vec<Value> {
        list.iter().map(|c| json!({ "name": c.name, "image": c.image })).collect()
    };
    let mut spec = json!({ "containers": containers(&pod.containers), "nodeName": pod.node });
    if !pod.init_containers.is_empty()
        && let Some(spec) = spec.as_object_mut()
    {
        spec.insert("initContainers".to_owned(), containers(&pod.init_containers).into());
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
