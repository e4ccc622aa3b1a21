//! Table reconciler: ids, generations and conflicts of all Services, and the writes that follow from a
//! change.
//!
//! [`TableReconciler::change_services`] and [`TableReconciler::change_slices`] take changes into memory.
//! [`TableReconciler::sync`] carries them out and works only on the Services that changed. Before the sources are [`listed`](TableReconciler::listed) no
//! table is written: the entries that an earlier agent left keep answering. The first sync, and the sync
//! after a failed write, read the tables, adopt ids and generations of ports whose backends are the same, and
//! write only the entries that differ.
//!
//! The order of the writes of one sync, and the treatment of entries that do not fit into a table, stand in
//! [`write`]. A failure in one address family does not stop the other.

mod adopt;
mod claims;
mod diff;
mod family;
mod notices;
mod port;
mod stale;
mod write;

use crate::{
    Difference, HealthCheck, Net, NodeFacts, Notice, TableError, Tables, Transport, compile,
    metrics::NoLocalEndpoints, tables::FamilyTables,
};
use berth_core::{
    ids::PodKey,
    model::{EndpointSlice, Service},
    shared::Changes,
    time::{Boottime, Wall},
};
use berth_ebpf_abi::{V4, V6};
use berth_ebpf_loader::Frontend;
use family::Family;
use port::{Numbered, Owner};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use write::Writing;

/// Time after which no eBPF program still uses a value that was overwritten: a program cannot outlive an RCU
/// grace period.
pub const REST: Duration = Duration::from_millis(100);

/// Most triggers that are kept until the next sync; those beyond are not counted.
const MOST_TRIGGERS: usize = 10_000;

/// Stale backend: a backend of a UDP port that left the sets and no longer serves. The clients' sockets to it
/// are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StaleBackend {
    /// The backend's address.
    pub address: IpAddr,
    /// The backend's port, in host byte order.
    pub port: u16,
    /// The Service port's id in the tables.
    pub service: u32,
    /// A frontend of the port through which clients reached the backend.
    pub frontend: Frontend,
}

/// Result of a sync.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Stale UDP backends.
    pub stale: Vec<StaleBackend>,
    /// Notices for the owners of Services. Each notice is returned once.
    pub notices: Vec<Notice>,
    /// Entries put into the tables.
    pub put: usize,
    /// Entries taken out of the tables.
    pub deleted: usize,
    /// Whether the tables of IPv4 and of IPv6 were changed.
    pub changed: [bool; 2],
    /// Triggers of the slices that the tables follow since this sync, each with whether it is of IPv6.
    pub programmed: Vec<(bool, Wall)>,
    /// Ports without a local endpoint, IPv4 and IPv6.
    pub no_local: [NoLocalEndpoints; 2],
    /// Time of the next sync: old chunks may be deleted then, or entries that did not fit are tried again.
    pub due: Option<Boottime>,
}

/// Meaning of an id in the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// [`berth_ebpf_abi::Service::id`].
    pub id: u32,
    /// Whether the id belongs to the IPv6 tables.
    pub v6: bool,
    /// The Service.
    pub service: PodKey,
    /// The port's name.
    pub port: Arc<str>,
    /// The protocol.
    pub transport: Transport,
    /// The frontends: address (unspecified for a NodePort) and port. Port 0 is the bare address.
    pub frontends: Vec<(IpAddr, u16)>,
}

/// One Service with its slices and the ids of its ports.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Arc<Service>>,
    /// In order of their names. Nearly all Services have one, for which a tree would keep room for eleven.
    slices: Vec<Arc<EndpointSlice>>,
    v4: Vec<Numbered>,
    v6: Vec<Numbered>,
    notified: Vec<crate::NoticeReason>,
    /// Ports without a local endpoint, IPv4 and IPv6.
    no_local: [NoLocalEndpoints; 2],
}

/// Table reconciler of both address families: the wanted objects, the ids of Service ports and a mirror of
/// the tables.
#[derive(Debug)]
pub struct TableReconciler {
    node: NodeFacts,
    entries: HashMap<PodKey, Entry>,
    /// The Service of each slice, as of the slice's last version.
    slices: HashMap<PodKey, PodKey>,
    dirty: BTreeSet<PodKey>,
    v4: Family<V4>,
    v6: Family<V6>,
    ids: Ids,
    listed: bool,
    stale: Vec<StaleBackend>,
    notices: Vec<Notice>,
    health_checks: BTreeMap<PodKey, HealthCheck>,
    /// Whether the health checks differ from the last told ones.
    health_checks_changed: bool,
    /// Whether a sync has succeeded.
    compiled: bool,
    /// Sums over all Services, IPv4 and IPv6.
    no_local: [NoLocalEndpoints; 2],
    /// Triggers of slices that are not in the tables yet, with their family.
    triggers: Vec<(bool, Wall)>,
}

/// Allocator of Service port ids. Ids ascend, so that a freed id stays unused for as long as possible.
#[derive(Debug)]
pub(crate) struct Ids {
    next: u32,
    used: HashSet<u32>,
}

impl Ids {
    fn fresh(&mut self) -> u32 {
        while self.next == 0 || self.used.contains(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.used.insert(id);
        self.next = id.wrapping_add(1);
        id
    }

    fn seen(&mut self, id: u32) {
        self.next = self.next.max(id.saturating_add(1));
    }
}

impl TableReconciler {
    /// New reconciler. New ids start at `next_id`, or above the highest id in the tables. `next_id` is
    /// [`TableReconciler::next_id`] of the earlier agent, so that no id is reused soon.
    pub fn new(node: NodeFacts, next_id: u32) -> TableReconciler {
        TableReconciler {
            node,
            entries: HashMap::new(),
            slices: HashMap::new(),
            dirty: BTreeSet::new(),
            v4: Family::default(),
            v6: Family::default(),
            ids: Ids { next: next_id.max(1), used: HashSet::new() },
            listed: false,
            stale: Vec::new(),
            notices: Vec::new(),
            health_checks: BTreeMap::new(),
            health_checks_changed: true,
            compiled: false,
            no_local: Default::default(),
            triggers: Vec::new(),
        }
    }

    /// Takes changes of Services into memory. A Service equal to the known one makes no later work.
    pub fn change_services(&mut self, changes: Changes<Service>) {
        for gone in changes.gone {
            if let Some(entry) = self.entries.get_mut(&gone.key)
                && entry.service.take().is_some()
            {
                self.dirty.insert(gone.key.clone());
            }
        }
        for service in changes.now {
            let entry = self.entries.entry(service.key.clone()).or_default();
            if entry.service.as_ref() != Some(&service) {
                self.dirty.insert(service.key.clone());
                entry.service = Some(service);
            }
        }
    }

    /// Takes changes of slices into memory. A slice equal to the known one makes no later work.
    pub fn change_slices(&mut self, changes: Changes<EndpointSlice>) {
        for gone in changes.gone {
            self.drop_slice(&gone.key);
        }
        for slice in changes.now {
            if self.slices.get(&slice.key).is_some_and(|owner| *owner != slice.service) {
                self.drop_slice(&slice.key);
            }
            let entry = self.entries.entry(slice.service.clone()).or_default();
            let at = entry.slices.binary_search_by(|known| known.key.cmp(&slice.key));
            let known = at.ok().and_then(|at| entry.slices.get(at));
            // A slice that was there before this agent says nothing of how long the tables took.
            if let (true, Some(triggered)) = (self.compiled, slice.triggered)
                && known.is_none_or(|known| known.triggered != Some(triggered))
                && self.triggers.len() < MOST_TRIGGERS
            {
                self.triggers.push((slice.v6, triggered));
            }
            if known != Some(&slice) {
                self.dirty.insert(slice.service.clone());
                self.slices.insert(slice.key.clone(), slice.service.clone());
                let at = match at {
                    Ok(at) => {
                        entry.slices.remove(at);
                        at
                    }
                    Err(at) => {
                        entry.slices.reserve_exact(1);
                        at
                    }
                };
                entry.slices.insert(at, slice);
            }
        }
    }

    fn drop_slice(&mut self, key: &PodKey) {
        let Some(owner) = self.slices.remove(key) else { return };
        if let Some(entry) = self.entries.get_mut(&owner)
            && let Ok(at) = entry.slices.binary_search_by(|known| known.key.cmp(key))
        {
            entry.slices.remove(at);
            self.dirty.insert(owner);
        }
    }

    /// Sets the node's name, zone and addresses. Where they differ, the next sync computes every Service
    /// again.
    pub fn set_node(&mut self, node: NodeFacts) {
        if self.node != node {
            self.node = node;
            self.dirty.extend(self.entries.keys().cloned());
        }
    }

    /// Marks that every source has listed. Syncs write the tables from now on.
    pub fn listed(&mut self) {
        self.listed = true;
    }

    /// The next new id. The caller stores it over a restart.
    pub fn next_id(&self) -> u32 {
        self.ids.next
    }

    /// The meaning of the ids in the tables.
    pub fn names(&self) -> impl Iterator<Item = Named> {
        self.v4.names().chain(self.v6.names())
    }

    /// Writes all changes to the tables. `clock` is read after values were published.
    ///
    /// # Errors
    /// A table cannot be read or written. A part of the changes may have been written by then. No entry is
    /// torn, and the next sync reads the tables and writes the rest.
    pub fn sync<T: Tables>(
        &mut self,
        tables: &mut T,
        clock: impl Fn() -> Boottime,
    ) -> Result<Outcome, TableError> {
        self.sync_announced(tables, clock, |_stale| {})
    }

    /// Same as [`TableReconciler::sync`], but calls `announce` with the stale backends before any write. An
    /// agent that dies after the writes leaves tables that no longer show these backends. `announce` is not
    /// called where no backend is stale.
    pub fn sync_announced<T: Tables>(
        &mut self,
        tables: &mut T,
        clock: impl Fn() -> Boottime,
        announce: impl FnOnce(&[StaleBackend]),
    ) -> Result<Outcome, TableError> {
        if !self.listed {
            return Ok(Outcome::default());
        }
        let mut outcome = Outcome::default();
        let mut failed = None;
        let adopting = [
            adopt(&mut self.v4, tables, &mut self.ids, &mut failed),
            adopt(&mut self.v6, tables, &mut self.ids, &mut failed),
        ];
        let mut dirty: Vec<PodKey> = mem::take(&mut self.dirty).into_iter().collect();
        if adopting != [false, false] {
            dirty = self.entries.keys().cloned().collect();
            // The Service that holds a key claims the id in the tables. The oldest Service holds it, so it
            // comes first.
            dirty.sort_by_cached_key(|key| {
                let service = self.entries.get(key).and_then(|e| e.service.as_ref());
                service.map(|s| (s.created, Arc::clone(&s.uid)))
            });
        }
        for key in dirty {
            self.compile(&key);
        }
        let [adopting4, adopting6] = adopting;
        if adopting4 {
            self.v4.settle(&mut self.stale);
        }
        if adopting6 {
            self.v6.settle(&mut self.stale);
        }
        if !self.stale.is_empty() {
            announce(&self.stale);
        }
        carry_out(&mut self.v4, tables, &clock, &mut outcome, &mut self.notices, &mut failed);
        carry_out(&mut self.v6, tables, &clock, &mut outcome, &mut self.notices, &mut failed);
        if let Some(error) = failed {
            return Err(error);
        }
        self.compiled = true;
        outcome.programmed = mem::take(&mut self.triggers);
        outcome.no_local = self.no_local;
        outcome.stale = mem::take(&mut self.stale);
        outcome.stale.sort_unstable();
        outcome.stale.dedup();
        outcome.notices = mem::take(&mut self.notices);
        Ok(outcome)
    }

    /// Reads the tables into the mirror. The next sync repairs entries that another program deleted or
    /// altered. Returns the number of entries that differ from the written ones. Reading all tables is
    /// expensive, so callers do this rarely.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn reconcile<T: Tables>(&mut self, tables: &mut T) -> Result<usize, TableError> {
        let mut found: usize = 0;
        if self.v4.synced {
            found = found.saturating_add(self.v4.reconcile(diff::read(tables)?));
        }
        if self.v6.synced {
            found = found.saturating_add(self.v6.reconcile(diff::read(tables)?));
        }
        Ok(found)
    }

    /// Takes the tables for others than those of the last sync: the next one reads them and writes what is missing.
    pub fn replaced(&mut self) {
        self.v4.synced = false;
        self.v6.synced = false;
    }

    /// All notices that hold now.
    pub fn notices(&self) -> impl Iterator<Item = Notice> {
        let compiled = self.entries.iter().flat_map(|(key, entry)| {
            let uid = entry.service.as_ref().map(|s| Arc::clone(&s.uid)).unwrap_or_default();
            entry.notified.iter().map(move |why| Notice {
                service: key.clone(),
                uid: Arc::clone(&uid),
                why: why.clone(),
            })
        });
        compiled.chain(self.v4.notices()).chain(self.v6.notices())
    }

    /// The health checks of all Services, where they have changed since the last call. The first call returns them once
    /// all Services were compiled.
    pub fn changed_health_checks(&mut self) -> Option<&BTreeMap<PodKey, HealthCheck>> {
        let told = self.listed && self.dirty.is_empty() && mem::take(&mut self.health_checks_changed);
        told.then_some(&self.health_checks)
    }

    /// Number of Services whose changes are not in the tables.
    pub fn pending(&self) -> usize {
        self.dirty.len()
    }

    /// Number of frontends without an entry plus ports that are published in part, because a table is full.
    pub fn unfit(&self) -> usize {
        let of = |keys: usize, ports: usize| keys.saturating_add(ports);
        let v4 = of(self.v4.unfit.keys.len(), self.v4.unfit.ports.len());
        v4.saturating_add(of(self.v6.unfit.keys.len(), self.v6.unfit.ports.len()))
    }

    /// Fill level of each table: name, entries, capacity.
    pub fn fill_levels(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        self.v4.fill_level().into_iter().chain(self.v6.fill_level())
    }

    /// Compiles the objects of one Service to its ports in both families.
    fn compile(&mut self, key: &PodKey) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let (wanted, owner) = match &entry.service {
            Some(service) => {
                let owner =
                    Owner { service: key.clone(), uid: Arc::clone(&service.uid), created: service.created };
                (compile(service, &entry.slices, &self.node), Arc::new(owner))
            }
            None => {
                let owner = Owner { service: key.clone(), uid: "".into(), created: Default::default() };
                (Default::default(), Arc::new(owner))
            }
        };
        let no_local = [NoLocalEndpoints::of(&wanted.v4), NoLocalEndpoints::of(&wanted.v6)];
        for ((sum, before), now) in self.no_local.iter_mut().zip(entry.no_local).zip(no_local) {
            sum.replace(before, now);
        }
        entry.no_local = no_local;
        entry.v4 = self.v4.set(&owner, mem::take(&mut entry.v4), wanted.v4, &mut self.ids, &mut self.stale);
        entry.v6 = self.v6.set(&owner, mem::take(&mut entry.v6), wanted.v6, &mut self.ids, &mut self.stale);
        for why in wanted.notices.iter().filter(|w| !entry.notified.contains(w)) {
            self.notices.push(Notice { service: key.clone(), uid: Arc::clone(&owner.uid), why: why.clone() });
        }
        entry.notified = wanted.notices;
        let before = match &wanted.health_check {
            Some(check) => self.health_checks.insert(key.clone(), check.clone()),
            None => self.health_checks.remove(key),
        };
        self.health_checks_changed |= before != wanted.health_check;
        if entry.service.is_none() && entry.slices.is_empty() {
            self.entries.remove(key);
        }
    }

    /// Compares the tables with the wanted entries. Changes nothing.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn check<T: Tables>(&self, tables: &mut T) -> Result<Vec<Difference>, TableError> {
        let mut found = self.v4.check(tables as &mut dyn FamilyTables<V4>)?;
        found.extend(self.v6.check(tables as &mut dyn FamilyTables<V6>)?);
        Ok(found)
    }
}

/// Reads the tables of a family into its mirror where the mirror is not in sync. Returns whether the mirror
/// was read.
fn adopt<A: Net>(
    family: &mut Family<A>,
    tables: &mut dyn FamilyTables<A>,
    ids: &mut Ids,
    failed: &mut Option<TableError>,
) -> bool {
    if family.synced {
        return false;
    }
    match diff::read(tables) {
        Ok(contents) => {
            family.adopt(contents, ids);
            // The mirror stays in sync until a write fails.
            family.synced = true;
            true
        }
        Err(error) => {
            failed.get_or_insert(error);
            false
        }
    }
}

/// Writes the due changes of a family whose mirror is in sync with the tables.
fn carry_out<A: Net>(
    family: &mut Family<A>,
    tables: &mut dyn FamilyTables<A>,
    clock: &dyn Fn() -> Boottime,
    outcome: &mut Outcome,
    notices: &mut Vec<Notice>,
    failed: &mut Option<TableError>,
) {
    if !family.synced {
        return;
    }
    let before = (outcome.put, outcome.deleted);
    let done = family.carry_out(&mut Writing { tables, clock, outcome, notices });
    if let Some(changed) = outcome.changed.get_mut(usize::from(A::V6)) {
        *changed = (outcome.put, outcome.deleted) != before;
    }
    if let Err(error) = done {
        // A part of the changes may have been written, so the mirror is no longer valid.
        family.synced = false;
        failed.get_or_insert(error);
    }
}
