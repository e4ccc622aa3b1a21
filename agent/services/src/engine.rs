//! Service engine: turns objects and pods into kernel tables, names in the cluster's DNS zone, and notices
//! for owners.
//!
//! The engine owns the [`TableReconciler`], the kernel side and the last observation of the world. Its owner
//! gives it a thread ([`Engine::run`]), because calls block for microseconds, and for milliseconds at the
//! first attachment to a device. A channel wakes the engine when sources, a pod's address or readiness, or
//! the node's devices changed. The engine then asks [`ServiceInputs`] and [`DatapathBackend`] for the
//! changes. The cost of a step follows the size of the change: a wake compares pods by pointer, and reads
//! other things only where they differ.
//!
//! Invariants: no entry is deleted from the tables before every source has listed and every wanted pod was
//! observed (or ten seconds passed since the runtime first answered), so that an agent that has just started
//! does not take endpoints for lost. The hooks are attached after the tables are filled.
//!
//! On failure (no BPF file system, programs rejected) pods run without the failed part. The failure is logged
//! once and the step is retried, and programs and tables already in the kernel keep working. A periodic
//! reconciliation, which a failed self-test brings forward, checks the networks of all pods, the links of devices
//! and hooks, and compares the maps with the written entries. It repairs whatever another program removed or
//! altered.

mod datapath;
mod device_links;
mod endpoint_slice_controller;
mod node;
mod pods;
mod publisher;
mod source_merge;

use crate::{
    DatapathBackend, DatapathHealth, Notice, ObservedPod, SelfTestService, ServiceInputs, SourceChanges,
    TableReconciler, metrics,
};
use berth_core::{
    ids::{PodKey, PodUid},
    model::{EndpointSlice, Service},
    shared::Changes,
    time::Boottime,
};
use berth_sys::clock;
use datapath::Datapath;
use endpoint_slice_controller::{EndpointSliceController, SOURCE};
use publisher::DebouncedPublisher;
use source_merge::SourceMerge;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

/// Time after the runtime's first answer from which pods that were never observed no longer hold up the
/// tables.
const PATIENCE: Duration = Duration::from_secs(10);

/// Interval of the checks while sources or pods are still missing at the start.
const STARTING: Duration = Duration::from_millis(200);

/// Time to collect a burst of changes into one published zone.
const NAMES_SETTLE: Duration = Duration::from_millis(50);

/// Time to collect a burst of changes into one write of the ids.
const IDS_SETTLE: Duration = Duration::from_millis(200);

/// Highest number of published notices.
const NOTICES: usize = 1000;

/// Configuration of the engine.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name.
    pub node: Arc<str>,
    /// The node's zone, label `topology.kubernetes.io/zone`; empty where it has none.
    pub zone: Arc<str>,
    /// The networks of Services, with their prefix lengths.
    pub networks: Vec<(IpAddr, u8)>,
    /// Interval of the periodic reconciliation of everything that sends no event: pods' networks, links of
    /// devices and hooks, entries of the maps.
    pub reconcile: Duration,
    /// First new id, from the earlier agent; see [`TableReconciler::new`].
    pub next_id: u32,
    /// The Service of the self-test, which is in the tables beside those of the sources.
    pub self_test: Option<SelfTestService>,
}

/// Service engine over a kernel side `K` and the node's inputs `N`.
pub struct Engine<K: DatapathBackend, N: ServiceInputs> {
    node: N,
    reconciler: TableReconciler,
    datapath: Datapath<K>,
    services: SourceMerge<Service>,
    slices: SourceMerge<EndpointSlice>,
    made: EndpointSliceController,
    names: DebouncedPublisher,
    ids: DebouncedPublisher,
    /// The last observation of each pod.
    pods: BTreeMap<PodUid, ObservedPod>,
    /// Changed pods, in their earlier and their present state, until their slices are computed again.
    moved: Vec<ObservedPod>,
    /// Time of the runtime's first answer.
    answered: Option<Boottime>,
    open: bool,
    /// The last reported health.
    health: DatapathHealth,
}

impl<K: DatapathBackend, N: ServiceInputs> Engine<K, N> {
    /// New engine. Only the host's network is read here.
    pub fn new(config: Config, kernel: K, node: N) -> Engine<K, N> {
        let next_id = config.next_id;
        let self_test = config.self_test.clone();
        let datapath = Datapath::new(config, kernel);
        let mut reconciler = TableReconciler::new(datapath.facts().clone(), next_id);
        if let Some(SelfTestService { service, slices }) = self_test {
            reconciler.change_services(Changes { now: vec![service], ..Changes::default() });
            reconciler.change_slices(Changes { now: slices, ..Changes::default() });
        }
        Engine {
            reconciler,
            datapath,
            node,
            services: SourceMerge::default(),
            slices: SourceMerge::default(),
            made: EndpointSliceController::default(),
            names: DebouncedPublisher::new("names of Services are", NAMES_SETTLE),
            ids: DebouncedPublisher::new("names of Services for commands are", IDS_SETTLE),
            pods: BTreeMap::new(),
            moved: Vec::new(),
            answered: None,
            open: false,
            health: DatapathHealth::default(),
        }
    }

    /// Runs a round at each wake and each due time, until all senders of `wakes` are gone.
    pub fn run(mut self, wakes: &Receiver<()>) {
        loop {
            let due = self.round();
            let woken = match due {
                Some(due) => wakes.recv_timeout(due),
                None => wakes.recv().map_err(|_ended| RecvTimeoutError::Disconnected),
            };
            if woken == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            // A burst of wakes makes one round.
            while wakes.try_recv().is_ok() {}
        }
    }

    /// Runs everything that is due. Returns the time until the next round, where one is due.
    pub fn round(&mut self) -> Option<Duration> {
        let now = clock::boottime();
        self.look_at_pods();
        let SourceChanges { listed, services, slices } = self.node.changes();
        services.into_iter().for_each(|(source, changes)| self.services.apply(source, changes));
        slices.into_iter().for_each(|(source, changes)| self.slices.apply(source, changes));
        if !self.open {
            // Loading programs takes most of a second, in which the sources can list.
            self.datapath.prepare(now);
            if !self.may_open(listed, now) {
                return Some(STARTING);
            }
            self.open = true;
            self.reconciler.listed();
        }
        self.feed(listed);
        if let Some(facts) = self.datapath.node_changed() {
            self.reconciler.set_node(facts);
        }
        let doubted = self.node.is_kernel_doubted();
        let due = self.datapath.round(&mut self.reconciler, &self.pods, now, doubted);
        self.tell_health();
        if let Some(checks) = self.reconciler.changed_health_checks() {
            self.node.health_checks(checks);
        }
        let notices = self.datapath.take_notices();
        let published = self.publish(notices, now);
        let due = due.into_iter().chain(published).min();
        due.map(|at| at.since(clock::boottime()))
    }

    fn tell_health(&mut self) {
        let mut failures = self.datapath.failures().to_vec();
        failures.extend_from_slice(self.datapath.shortcomings());
        let unfit = self.reconciler.unfit();
        if unfit > 0 {
            failures.push(format!(
                "the tables are full: {unfit} ways in or ports of Services are left out or served in part (see `berth events` and `berth bpf`)"
            ));
        }
        let fill = self.reconciler.fill_levels().chain(self.datapath.fill_levels());
        let full = fill.filter(|(_, entries, capacity)| is_nearly_full(*entries, *capacity));
        failures.extend(full.map(|(table, ..)| format!("table {table} is nearly full (see `berth bpf`)")));
        let now = DatapathHealth { hooked: self.datapath.hooked(), open: self.open, failures };
        if now != self.health {
            self.node.health(&now);
            self.health = now;
        }
    }

    /// Whether sources and pods are known well enough for an absent object to count as deleted.
    fn may_open(&mut self, listed: bool, now: Boottime) -> bool {
        if !listed {
            return false;
        }
        if self.answered.is_none() && self.node.runtime_answers() {
            self.answered = Some(now);
        }
        self.node.wanted_pods().iter().all(|uid| self.pods.contains_key(uid))
            || self.answered.is_some_and(|at| now.since(at) > PATIENCE)
    }

    fn look_at_pods(&mut self) {
        let there = self.node.pods();
        let (moved, datapath) = (&mut self.moved, &mut self.datapath);
        self.pods.retain(|uid, pod| {
            let stays = there.contains_key(uid);
            if !stays {
                datapath.pod_changed(uid);
                moved.push(pod.clone());
            }
            stays
        });
        // A pod without a present observation keeps its last one.
        for (uid, now) in there.into_iter().filter_map(|(uid, seen)| Some((uid, seen?))) {
            match self.pods.get_mut(&uid) {
                Some(before) if before.is(&now) => {}
                Some(before) => {
                    datapath.pod_changed(&uid);
                    moved.extend([std::mem::replace(before, now.clone()), now]);
                }
                None => {
                    datapath.pod_changed(&uid);
                    moved.push(now.clone());
                    self.pods.insert(uid, now);
                }
            }
        }
    }

    /// Passes changes of objects to the EndpointSlice controller and the table reconciler.
    fn feed(&mut self, listed: bool) {
        let mut concerned: BTreeSet<PodKey> = BTreeSet::new();
        let services = self.services.settle(listed);
        if !services.is_empty() {
            self.names.changed();
            self.ids.changed();
            self.made.services(&services);
            concerned.extend(services.keys().cloned());
            metrics::count_changes(services.gone.len().saturating_add(services.now.len()), 0);
            self.reconciler.change_services(services);
        }
        for pod in self.moved.drain(..) {
            concerned.extend(self.made.selecting(&pod.pod).cloned());
        }
        if !concerned.is_empty() {
            let pods: Vec<&ObservedPod> = self.pods.values().collect();
            let service = |key: &PodKey| self.services.get(key).cloned();
            let changes = self.made.again(&self.node, concerned, service, &pods);
            self.slices.apply(SOURCE, changes);
        }
        let slices = self.slices.settle(listed);
        if slices.before().chain(&slices.now).any(|slice| names_follow(slice, &self.services)) {
            self.names.changed();
        }
        metrics::count_changes(0, slices.gone.len().saturating_add(slices.now.len()));
        self.reconciler.change_slices(slices);
    }

    /// Publishes notices, ids and names. Returns the times of the next attempts.
    fn publish(&mut self, notices: Vec<Notice>, now: Boottime) -> impl Iterator<Item = Boottime> {
        for notice in notices {
            self.node.notify(&notice);
            self.ids.changed();
        }
        let Engine { node, reconciler, services, slices, .. } = self;
        let notices = || reconciler.notices().take(NOTICES);
        let ids =
            self.ids.keep(now, || node.publish_ids(reconciler.names(), reconciler.next_id(), notices()));
        let names = self.names.keep(now, || node.publish_names(services.all(), slices.all()));
        [ids, names].into_iter().flatten()
    }
}

/// Whether a table is filled to nine tenths or more.
pub(crate) fn is_nearly_full(entries: usize, capacity: usize) -> bool {
    capacity > 0 && entries.saturating_mul(10) >= capacity.saturating_mul(9)
}

/// Whether names of the zone may depend on the slice: headless Services' endpoints have names, and so have
/// endpoints with a hostname.
fn names_follow(slice: &EndpointSlice, services: &SourceMerge<Service>) -> bool {
    services.get(&slice.service).is_some_and(|service| service.headless)
        || slice.endpoints.iter().any(|e| e.hostname().is_some())
}
