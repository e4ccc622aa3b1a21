//! What the sources and the pods say becomes tables in the kernel, names in the zone, and notices for owners.
//!
//! Owns the [`TableReconciler`], the kernel and what was last seen of the world. No thread of its own: whoever owns the
//! engine gives it one ([`Engine::run`]), because its calls block for microseconds, at a device's first attachment for
//! milliseconds, and wakes it by a channel: the sources changed, a pod's address or readiness did, or the node's
//! devices. The engine then asks [`ServiceInputs`] and [`DatapathBackend`] what changed, and each step costs what did: a wake compares
//! the pods by pointer, everything else is looked at only where it is other than before.
//!
//! Invariants: nothing is taken out of the tables before every source has listed and every wanted pod was looked at (or
//! ten seconds after the runtime answered), so that an agent that has just started takes no endpoint for lost; the hooks
//! are attached when the tables are full.
//!
//! On failure (no BPF file system, programs refused) pods run without the part that failed, which is said once and tried
//! again; what is in the kernel goes on. The slow net beneath: now and then the networks of all pods are looked at, the
//! links of devices and hooks, and the maps are compared with what was written to them; what somebody else took away or
//! altered is mended.

mod datapath;
mod endpoint_slice_controller;
mod node;
mod pods;
mod publisher;
mod source_merge;

use crate::{
    Change, DatapathBackend, DatapathHealth, Edits, Notice, ObservedPod, ServiceInputs, TableReconciler,
};
use berth_core::{
    ids::{PodKey, PodUid},
    model::{EndpointSlice, Service},
    time::Boottime,
};
use berth_sys::clock;
use datapath::Datapath;
use endpoint_slice_controller::EndpointSliceController;
use publisher::DebouncedPublisher;
use source_merge::{Changed, SourceMerge};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

/// So long after the runtime first answered, pods that nobody has looked at do not hold up the others.
const PATIENCE: Duration = Duration::from_secs(10);

/// While something is missing at the start it is looked for this often.
const STARTING: Duration = Duration::from_millis(200);

/// A burst of changes makes one zone.
const NAMES_SETTLE: Duration = Duration::from_millis(50);

/// A burst of changes is written once.
const IDS_SETTLE: Duration = Duration::from_millis(200);

/// So many notices are published.
const NOTICES: usize = 1000;

/// What the engine is told of its node once.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name.
    pub node: Arc<str>,
    /// The node's zone, label `topology.kubernetes.io/zone`; empty where it has none.
    pub zone: Arc<str>,
    /// The networks of Services, with their prefix lengths.
    pub networks: Vec<(IpAddr, u8)>,
    /// Between two looks for what nobody tells of: pods' networks, links of devices and hooks, entries of the maps.
    pub reconcile: Duration,
    /// Where the ids of the agent before went on; see [`TableReconciler::new`].
    pub next_id: u32,
}

/// See the module's page.
pub struct Engine<K: DatapathBackend, N: ServiceInputs> {
    node: N,
    reconciler: TableReconciler,
    datapath: Datapath<K>,
    services: SourceMerge<Service>,
    slices: SourceMerge<EndpointSlice>,
    made: EndpointSliceController,
    names: DebouncedPublisher,
    ids: DebouncedPublisher,
    /// The pods as last looked at.
    pods: BTreeMap<PodUid, ObservedPod>,
    /// Pods as they were before they changed, and as they are, until slices were made of them.
    moved: Vec<ObservedPod>,
    /// When the runtime first answered.
    answered: Option<Boottime>,
    open: bool,
    /// As it was last told.
    health: DatapathHealth,
}

impl<K: DatapathBackend, N: ServiceInputs> Engine<K, N> {
    /// Nothing is done yet but to look at the host's network.
    pub fn new(config: Config, kernel: K, node: N) -> Engine<K, N> {
        let next_id = config.next_id;
        let datapath = Datapath::new(config, kernel);
        Engine {
            reconciler: TableReconciler::new(datapath.facts().clone(), next_id),
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

    /// Rounds, whenever woken or due, until nobody can wake it any more.
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
            // One round for a burst.
            while wakes.try_recv().is_ok() {}
        }
    }

    /// Everything that is to be done now; how long until the next time, where there is one.
    pub fn round(&mut self) -> Option<Duration> {
        let now = clock::boottime();
        self.look_at_pods();
        let Edits { listed, services, slices } = self.node.edits();
        services.into_iter().for_each(|edit| self.services.apply(edit));
        slices.into_iter().for_each(|edit| self.slices.apply(edit));
        if !self.open {
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
        let due = self.datapath.round(&mut self.reconciler, &self.pods, now);
        self.tell_health();
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

    /// Whether enough is known for what is absent to count as gone.
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
        // One that is not looked at just now is as it was.
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

    /// What changed goes to the allocator.
    fn feed(&mut self, listed: bool) {
        let mut concerned: BTreeSet<PodKey> = BTreeSet::new();
        for Changed { key, before, now } in self.services.settle(listed) {
            self.names.changed();
            self.ids.changed();
            self.made.service(before.as_deref(), now.as_deref());
            concerned.insert(key.clone());
            self.reconciler.change(match now {
                Some(service) => Change::Service(service),
                None => Change::ServiceGone(key),
            });
        }
        for pod in self.moved.drain(..) {
            concerned.extend(self.made.selecting(&pod.pod).cloned());
        }
        if !concerned.is_empty() {
            let pods: Vec<&ObservedPod> = self.pods.values().collect();
            let service = |key: &PodKey| self.services.get(key).cloned();
            let edit = self.made.again(&self.node, concerned, service, &pods);
            self.slices.apply(edit);
        }
        for Changed { key, before, now } in self.slices.settle(listed) {
            let both = [before.as_deref(), now.as_deref()];
            if both.into_iter().flatten().any(|slice| names_follow(slice, &self.services)) {
                self.names.changed();
            }
            self.reconciler.change(match now {
                Some(slice) => Change::Slice(slice),
                None => Change::SliceGone(key),
            });
        }
    }

    /// Tells what is to be told; when to come again.
    fn publish(&mut self, notices: Vec<Notice>, now: Boottime) -> impl Iterator<Item = Boottime> {
        for notice in notices {
            self.node.tell(&notice);
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

/// From nine tenths on.
pub(crate) fn is_nearly_full(entries: usize, capacity: usize) -> bool {
    capacity > 0 && entries.saturating_mul(10) >= capacity.saturating_mul(9)
}

/// Whether names of the zone may follow from the slice: those of a headless Service's endpoints, and of endpoints that
/// have a name of their own.
fn names_follow(slice: &EndpointSlice, services: &SourceMerge<Service>) -> bool {
    services.get(&slice.service).is_some_and(|service| service.headless)
        || slice.endpoints.iter().any(|e| e.hostname.is_some())
}
