//! One round of work at the kernel: the order of its parts, and the retries.
//!
//! The parts of a round are independent: a failed part is logged and retried, and the other parts still run.

use super::{Config, device_links::DeviceLinks, node, pods::Pods};
use crate::{
    AttachOutcome, Cause, DatapathBackend, HostNetwork, NodeFacts, Notice, StaleBackend, TableError,
    TableReconciler, metrics,
};
use berth_core::{error::Chain, ids::PodUid, time::Boottime};
use berth_ebpf_loader::{DeviceRole, StalePeer};
use berth_sys::clock;
use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// First pause before a failed round is retried. The pause doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Interval of the removal of expired connections; the longer one holds while there are no connections.
const COLLECT: Duration = Duration::from_secs(30);
const COLLECT_SELDOM: Duration = Duration::from_secs(120);

/// Time until the programs for packets are asked for again while they are loaded.
const LOADED: Duration = Duration::from_millis(20);

/// Failed part of a round.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot open the tables of Services")]
    Open(#[source] Cause),
    #[error("cannot keep the maps of the node")]
    Node(#[source] TableError),
    #[error("cannot keep the maps of the pods")]
    Pods(#[source] TableError),
    #[error("cannot keep the tables of Services")]
    Services(#[source] TableError),
    #[error("{0}")]
    NotYet(String),
    #[error("cannot attach the hooks")]
    Hooks(#[source] Cause),
    #[error("cannot read the links of devices")]
    Links(#[source] Cause),
    #[error("cannot attach to device {0}")]
    Attach(u32, #[source] Cause),
    #[error("cannot detach from device {0}")]
    Detach(u32, #[source] Cause),
    #[error("cannot collect old connections")]
    Collect(#[source] Cause),
}

/// Kernel side of the engine: tables, node maps, pod maps, links of devices, hooks and sockets.
pub(super) struct Datapath<K: DatapathBackend> {
    cfg: Config,
    kernel: K,
    maps: Option<K::Maps>,
    host: Arc<HostNetwork>,
    facts: NodeFacts,
    /// Whether the maps of the node may be out of date.
    node_behind: bool,
    pods: Pods,
    /// Devices with attached programs.
    links: DeviceLinks,
    /// Whether the links of devices must be read: an earlier agent may have left links, or another program
    /// may have removed some.
    links_behind: bool,
    /// Texts of the last failures, so that each is logged once.
    logged: Vec<String>,
    retry: Option<(Boottime, Duration)>,
    /// Earliest time and text of the next attempt after a failed sync. Reading all tables again is expensive.
    tables_again: Option<(Boottime, String)>,
    /// Pending notices for the owners of Services.
    notices: Vec<Notice>,
    collect_at: Boottime,
    reconcile_at: Boottime,
    /// Stale backends whose sockets are not ended yet, by the frontends that lost them, as recorded on disk.
    /// `None` until the record of an earlier process is read.
    dead: Option<HashSet<StalePeer>>,
    /// Whether the hooks were attached in the last round.
    hooked: bool,
    /// The last shortcomings that the kernel side reported.
    shortcomings: Vec<String>,
}

/// Times at which the engine must run another round.
pub(super) type Due = Vec<Boottime>;

impl<K: DatapathBackend> Datapath<K> {
    pub(super) fn new(cfg: Config, mut kernel: K) -> Datapath<K> {
        let host = kernel.host_network().unwrap_or_default();
        Datapath {
            facts: node::facts(&cfg, &host),
            host,
            kernel,
            maps: None,
            node_behind: true,
            pods: Pods::default(),
            links: DeviceLinks::default(),
            links_behind: true,
            logged: Vec::new(),
            retry: None,
            tables_again: None,
            notices: Vec::new(),
            collect_at: Boottime::default(),
            reconcile_at: clock::boottime() + cfg.reconcile,
            dead: None,
            hooked: false,
            shortcomings: Vec::new(),
            cfg,
        }
    }

    /// Facts about the node that the choice of endpoints depends on.
    pub(super) fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// Failures of the last round, one line each.
    pub(super) fn failures(&self) -> &[String] {
        &self.logged
    }

    /// Shortcomings of a data plane that works, one line each.
    pub(super) fn shortcomings(&self) -> &[String] {
        &self.shortcomings
    }

    /// Takes the pending notices. Each notice is returned once.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Whether the hooks are attached.
    pub(super) fn hooked(&self) -> bool {
        self.hooked
    }

    /// Marks a pod as new, changed or gone.
    pub(super) fn pod_changed(&mut self, uid: &PodUid) {
        self.pods.changed(uid);
    }

    /// The node's facts, where they differ from before.
    pub(super) fn node_changed(&mut self) -> Option<NodeFacts> {
        self.host = self.kernel.host_network()?;
        self.node_behind = true;
        let now = node::facts(&self.cfg, &self.host);
        if now == self.facts {
            return None;
        }
        self.facts = now.clone();
        Some(now)
    }

    /// Opens the tables, for which programs may have to be loaded. Nothing is attached or written.
    pub(super) fn prepare(&mut self, now: Boottime) {
        if self.maps.is_some() || self.retry.is_some_and(|(at, _)| now < at) {
            return;
        }
        match self.kernel.open() {
            Ok(maps) => self.maps = Some(maps),
            Err(cause) => self.log_failures(&[Failure::Open(cause)], now),
        }
    }

    /// Brings the kernel to the wanted state; what is `doubted` is compared with it first. Returns the times of the next
    /// rounds.
    pub(super) fn round(
        &mut self,
        reconciler: &mut TableReconciler,
        seen: &BTreeMap<PodUid, crate::ObservedPod>,
        now: Boottime,
        doubted: bool,
    ) -> Due {
        if doubted {
            self.reconcile_at = self.reconcile_at.min(now);
        }
        if now >= self.reconcile_at && self.maps.is_some() && self.kernel.is_lost() {
            tracing::error!("the programs and tables of Services are pinned no more: they are made again");
            self.begin_again(reconciler);
            self.retry = None;
        }
        let mut due = Due::new();
        let failures = match self.maps.take() {
            Some(maps) => self.with(maps, reconciler, seen, now, &mut due),
            // Loading programs is expensive: a change alone does not retry it before its time.
            None if self.retry.is_some_and(|(at, _)| now < at) => {
                due.extend(self.retry.map(|(at, _)| at));
                return due;
            }
            None => match self.kernel.open() {
                Ok(maps) => self.with(maps, reconciler, seen, now, &mut due),
                Err(cause) => vec![Failure::Open(cause)],
            },
        };
        self.log_failures(&failures, now);
        due.extend(self.retry.map(|(at, _)| at));
        due
    }

    /// Takes nothing in the kernel for granted any more.
    fn begin_again(&mut self, reconciler: &mut TableReconciler) {
        self.maps = None;
        self.tables_again = None;
        self.hooked = false;
        self.node_behind = true;
        self.links_behind = true;
        self.pods = Pods::default();
        reconciler.replaced();
    }

    fn log_failures(&mut self, failures: &[Failure], now: Boottime) {
        let texts: Vec<String> = failures.iter().map(|f| Chain(f).to_string()).collect();
        for error in texts.iter().filter(|text| !self.logged.contains(text)) {
            tracing::error!(%error, "Services are not brought up to date; tried again");
        }
        if texts.is_empty() {
            if !self.logged.is_empty() {
                tracing::info!("Services are brought up to date again");
            }
            self.retry = None;
        } else {
            let pause = match self.retry {
                // A change woke the engine before the retry was due, so the pause stays.
                Some((at, _)) if now < at => None,
                Some((_, pause)) => Some((pause * 2).min(LONGEST_RETRY)),
                None => Some(FIRST_RETRY),
            };
            if let Some(pause) = pause {
                self.retry = Some((clock::boottime() + pause, pause));
            }
        }
        self.logged = texts;
    }

    /// Runs the parts of a round with open maps. Tables are written before the hooks are attached, so that
    /// the first program finds all entries. A pod's device is attached before the pod's endpoint is
    /// published; only while the programs for packets are still loaded, sockets are answered without them.
    fn with(
        &mut self,
        mut maps: K::Maps,
        reconciler: &mut TableReconciler,
        seen: &BTreeMap<PodUid, crate::ObservedPod>,
        now: Boottime,
        due: &mut Due,
    ) -> Vec<Failure> {
        let mut failures = Vec::new();
        // Periodic reconciliation: state that sends no event is checked.
        let slow_net = now >= self.reconcile_at;
        if slow_net {
            self.pods.all_changed(seen);
            self.links_behind = true;
        }
        let all_loaded = match self.kernel.has_packet_programs() {
            Ok(all_loaded) => all_loaded,
            // The tables are opened again when a retry is due.
            Err(cause) => {
                self.begin_again(reconciler);
                return vec![Failure::Open(cause)];
            }
        };
        failures.extend(self.keep_node(&mut maps).err().map(Failure::Node));
        failures.extend(self.pods.keep(&self.kernel, &mut maps, seen).err().map(Failure::Pods));
        if slow_net {
            self.reconcile(&mut maps, reconciler, &mut failures);
            self.reconcile_at = now + self.cfg.reconcile;
        }
        due.push(self.reconcile_at);
        self.read_links(&mut failures);
        if all_loaded {
            let ready = |uid: &PodUid| seen.get(uid).is_some_and(|pod| pod.status.is_ready());
            let first = self.links.missing(self.pods.devices_of(ready).map(|index| (index, DeviceRole::Pod)));
            self.attach(first, &mut failures);
        }
        self.keep_tables(&mut maps, reconciler, now, due, &mut failures);
        let hooks = self.kernel.attach_hooks(slow_net);
        self.hooked = all_loaded && hooks.is_ok();
        failures.extend(hooks.err().map(Failure::Hooks));
        if !all_loaded {
            due.push(now + LOADED);
            self.maps = Some(maps);
            return failures;
        }
        self.end_sockets(seen);
        due.extend(self.devices(now, &mut failures));
        if now >= self.collect_at {
            let collected = self.kernel.collect_flows(&maps);
            let any = *collected.as_ref().unwrap_or(&true);
            failures.extend(collected.err().map(Failure::Collect));
            self.look_for_shortcomings(&maps);
            self.collect_at = now + if any { COLLECT } else { COLLECT_SELDOM };
        }
        due.push(self.collect_at);
        self.maps = Some(maps);
        failures
    }

    fn look_for_shortcomings(&mut self, maps: &K::Maps) {
        let now = self.kernel.shortcomings(maps);
        for shortcoming in now.iter().filter(|now| !self.shortcomings.contains(now)) {
            tracing::warn!(shortcoming, "a part of the Service data plane is missing");
        }
        self.shortcomings = now;
    }

    /// Compares the maps with the written entries. Repairs entries that another program deleted or altered.
    fn reconcile(
        &mut self,
        maps: &mut K::Maps,
        reconciler: &mut TableReconciler,
        failures: &mut Vec<Failure>,
    ) {
        let mut mended: usize = 0;
        let mut took = |done: Result<usize, TableError>, failed: fn(TableError) -> Failure| match done {
            Ok(count) => mended = mended.saturating_add(count),
            Err(error) => failures.push(failed(error)),
        };
        took(node::keep(&self.cfg, &self.host, maps), Failure::Node);
        took(self.pods.reconcile(maps), Failure::Pods);
        took(reconciler.reconcile(maps), Failure::Services);
        if mended > 0 {
            tracing::warn!(
                entries = mended,
                "entries of the maps were not as this agent wrote them; they are mended"
            );
        }
    }

    fn keep_node(&mut self, maps: &mut K::Maps) -> Result<(), TableError> {
        if self.node_behind {
            // The number of written entries is not needed here.
            let _written = node::keep(&self.cfg, &self.host, maps)?;
            self.node_behind = false;
        }
        Ok(())
    }

    /// Fill level of the maps of the pods: name, entries, capacity.
    pub(super) fn fill_levels(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        self.pods.fill_level().into_iter()
    }

    fn keep_tables(
        &mut self,
        maps: &mut K::Maps,
        reconciler: &mut TableReconciler,
        now: Boottime,
        due: &mut Due,
        failures: &mut Vec<Failure>,
    ) {
        if let Some((again, failed)) = self.tables_again.as_ref().filter(|(again, _)| now < *again) {
            due.push(*again);
            failures.push(Failure::NotYet(failed.clone()));
            return;
        }
        self.tables_again = None;
        let (kernel, dead) = (&mut self.kernel, &mut self.dead);
        let dead = dead.get_or_insert_with(|| or_warned(kernel.recorded_stale(), "read"));
        let announce = |stale: &[StaleBackend]| {
            dead.extend(stale.iter().map(lost));
            or_warned(kernel.record_stale(dead), "write");
        };
        let begun = Instant::now();
        let synced = reconciler.sync_announced(maps, clock::boottime, announce);
        metrics::set_pending(reconciler.pending());
        match synced {
            Ok(outcome) => {
                metrics::count_sync(&outcome, begun.elapsed(), clock::wall());
                due.extend(outcome.due);
                self.notices.extend(outcome.notices);
            }
            Err(error) => {
                let failure = Failure::Services(error);
                let again = now + FIRST_RETRY;
                self.tables_again = Some((again, Chain(&failure).to_string()));
                due.push(again);
                failures.push(failure);
            }
        }
    }

    /// Reads the links of devices from their pins. An earlier agent may have left links at devices that are
    /// uplinks no more.
    fn read_links(&mut self, failures: &mut Vec<Failure>) {
        if !self.links_behind {
            return;
        }
        match self.kernel.attached() {
            Ok(pinned) => {
                self.links.read(pinned, self.pods.devices());
                self.links_behind = false;
            }
            Err(cause) => failures.push(Failure::Links(cause)),
        }
    }

    /// Attaches programs to new devices and detaches them from unwanted ones. A deleted device has taken its
    /// links along. Returns the time at which devices must be looked at again.
    fn devices(&mut self, now: Boottime, failures: &mut Vec<Failure>) -> Option<Boottime> {
        let uplinks = self.host.uplinks.keys().map(|index| (*index, DeviceRole::Uplink));
        let pods = self.pods.devices().iter().map(|index| (*index, DeviceRole::Pod));
        // The device of a pod stays one, also where it looks like an uplink.
        let wanted: BTreeMap<u32, DeviceRole> = uplinks.chain(pods).collect();
        let missing = self.links.missing(wanted.iter().map(|(index, role)| (*index, *role)));
        self.attach(missing, failures);
        let unwanted = self.links.unwanted(&wanted, now);
        for index in unwanted.now {
            match self.kernel.detach(index) {
                Ok(()) => self.links.detached(index),
                Err(cause) => failures.push(Failure::Detach(index, cause)),
            }
        }
        unwanted.next
    }

    fn attach(&mut self, devices: Vec<(u32, DeviceRole)>, failures: &mut Vec<Failure>) {
        if devices.is_empty() {
            return;
        }
        for (index, role, done) in self.kernel.attach(&devices) {
            match done {
                AttachOutcome::Done => self.links.attached(index, role),
                AttachOutcome::Gone => {}
                AttachOutcome::Failed(cause) => failures.push(Failure::Attach(index, cause)),
            }
        }
    }

    /// Ends connected UDP sockets, in every pod and on the host, that use a stale backend through a frontend
    /// that lost it. The tables no longer show these backends, so their record is removed last.
    fn end_sockets(&mut self, seen: &BTreeMap<PodUid, crate::ObservedPod>) {
        let Some(dead) = self.dead.as_mut().filter(|dead| !dead.is_empty()) else { return };
        let ended = self.kernel.end_sockets(dead, &mut seen.keys());
        if ended > 0 {
            let backends: HashSet<SocketAddr> = dead.iter().map(|lost| lost.backend).collect();
            tracing::info!(ended, backends = backends.len(), "ended UDP sockets to stale backends");
        }
        dead.clear();
        or_warned(self.kernel.record_stale(dead), "remove");
    }
}

fn lost(stale: &StaleBackend) -> StalePeer {
    StalePeer { backend: SocketAddr::new(stale.address, stale.port), frontend: Some(stale.frontend) }
}

/// Returns the result, or a default with a warning. Without the record, sockets stay with a stale backend
/// only where the agent dies within the same round.
fn or_warned<T: Default>(done: Result<T, Cause>, op: &'static str) -> T {
    done.unwrap_or_else(|error| {
        tracing::warn!(error = %Chain(&*error), op, "cannot keep the record of stale backends");
        T::default()
    })
}
