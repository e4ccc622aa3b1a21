//! One round at the kernel: its order, what is tried again and when.

use super::{Config, node, pods::Pods};
use crate::{Allocator, Attachment, Cause, Kernel, NodeFacts, Notice, Stale, TableError, chain};
use berth_core::{ids::PodUid, time::Boottime};
use berth_ebpf_loader::{Lost, Role};
use berth_sys::clock;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
    time::Duration,
};

/// What failed is tried again after this, then after twice as long, and so on.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Between two looks for connections that are too old; longer while there are none.
const COLLECT: Duration = Duration::from_secs(30);
const COLLECT_SELDOM: Duration = Duration::from_secs(120);

/// What of a round did not work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("open the tables of Services")]
    Open(#[source] Cause),
    #[error("{0}")]
    NotYet(String),
    #[error("keep the maps of the node")]
    Node(#[source] TableError),
    #[error("keep the maps of the pods")]
    Pods(#[source] TableError),
    #[error("keep the tables of Services")]
    Services(#[source] TableError),
    #[error("attach the hooks")]
    Hooks(#[source] Cause),
    #[error("attach to device {0}")]
    Attach(u32, #[source] Cause),
    #[error("detach from device {0}")]
    Detach(u32, #[source] Cause),
    #[error("collect old connections")]
    Collect(#[source] Cause),
}

/// Everything that is done to the kernel.
pub(super) struct Datapath<K: Kernel> {
    cfg: Config,
    kernel: K,
    maps: Option<K::Maps>,
    facts: NodeFacts,
    /// The maps of the node may not be what they should be.
    node_behind: bool,
    pods: Pods,
    /// The devices for outside traffic: those that there are, those that programs were attached to.
    uplinks: BTreeSet<u32>,
    attached: BTreeSet<u32>,
    /// What was said of the last failure, so that it is said once.
    told: Option<String>,
    retry: Option<(Boottime, Duration)>,
    collect_at: Boottime,
    /// Backends whose sockets are to be ended, by the ways in that lost them, as noted; none until the note of an earlier
    /// process was read.
    dead: Option<HashSet<Lost>>,
}

/// What a round has to tell, also where it failed half way.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) notices: Vec<Notice>,
    /// When to come again, at the latest.
    pub(super) due: Vec<Boottime>,
}

impl<K: Kernel> Datapath<K> {
    pub(super) fn new(cfg: Config, mut kernel: K) -> Datapath<K> {
        let devices = kernel.devices().unwrap_or_default();
        Datapath {
            facts: node::facts(&cfg, &devices),
            uplinks: node::uplinks(&cfg, &devices),
            kernel,
            maps: None,
            node_behind: true,
            pods: Pods::default(),
            attached: BTreeSet::new(),
            told: None,
            retry: None,
            collect_at: Boottime::default(),
            dead: None,
            cfg,
        }
    }

    /// The node as endpoints are chosen by it.
    pub(super) fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// The pod came, changed or went.
    pub(super) fn pod_changed(&mut self, uid: &PodUid) {
        self.pods.changed(uid);
    }

    /// The node's facts where they are others than before.
    pub(super) fn node_changed(&mut self) -> Option<NodeFacts> {
        let devices = self.kernel.devices()?;
        self.uplinks = node::uplinks(&self.cfg, &devices);
        let now = node::facts(&self.cfg, &devices);
        if now == self.facts {
            return None;
        }
        self.facts = now.clone();
        self.node_behind = true;
        Some(now)
    }

    /// Brings the kernel to what is wanted.
    pub(super) fn round(
        &mut self,
        allocator: &mut Allocator,
        seen: &BTreeMap<PodUid, crate::SeenPod>,
        now: Boottime,
    ) -> Done {
        let mut done = Done::default();
        match self.try_round(allocator, seen, now, &mut done) {
            Ok(()) => {
                if self.told.take().is_some() {
                    tracing::info!("Services are brought up to date again");
                }
                self.retry = None;
            }
            Err(Failure::NotYet(_)) => done.due.extend(self.retry.map(|(at, _)| at)),
            Err(error) => {
                let text = chain(&error);
                if self.told.as_ref() != Some(&text) {
                    tracing::error!(error = text, "Services are not brought up to date; tried again");
                    self.told = Some(text);
                }
                let pause = match self.retry {
                    // Woken by a change before its time.
                    Some((at, _)) if now < at => None,
                    Some((_, pause)) => Some((pause * 2).min(LONGEST_RETRY)),
                    None => Some(FIRST_RETRY),
                };
                if let Some(pause) = pause {
                    self.retry = Some((clock::boottime() + pause, pause));
                }
                done.due.extend(self.retry.map(|(at, _)| at));
            }
        }
        done
    }

    fn try_round(
        &mut self,
        allocator: &mut Allocator,
        seen: &BTreeMap<PodUid, crate::SeenPod>,
        now: Boottime,
        done: &mut Done,
    ) -> Result<(), Failure> {
        let mut maps = match self.maps.take() {
            Some(maps) => maps,
            None => self.open(now)?,
        };
        let result = self.with(&mut maps, allocator, seen, now, done);
        self.maps = Some(maps);
        result
    }

    fn open(&mut self, now: Boottime) -> Result<K::Maps, Failure> {
        // Loading is dear: a change alone does not try it again.
        if self.retry.is_some_and(|(at, _)| now < at) {
            return Err(Failure::NotYet(self.told.clone().unwrap_or_default()));
        }
        self.kernel.open().map_err(Failure::Open)
    }

    /// The tables first: what fails after them is tried again without holding them up.
    fn with(
        &mut self,
        maps: &mut K::Maps,
        allocator: &mut Allocator,
        seen: &BTreeMap<PodUid, crate::SeenPod>,
        now: Boottime,
        done: &mut Done,
    ) -> Result<(), Failure> {
        let node = self.keep_node(maps).map_err(Failure::Node);
        let slow_net = now >= self.collect_at;
        if slow_net {
            self.pods.all_changed(seen);
        }
        let pods = self.pods.keep(&self.kernel, maps, seen).map_err(Failure::Pods);
        let (kernel, dead) = (&mut self.kernel, &mut self.dead);
        let dead = dead.get_or_insert_with(|| or_told(kernel.noted_dead(), "read"));
        let announce = |stale: &[Stale]| {
            dead.extend(stale.iter().map(lost));
            or_told(kernel.note_dead(dead), "write");
        };
        let outcome = allocator.sync_announced(maps, clock::boottime, announce).map_err(Failure::Services)?;
        done.due.extend(outcome.due);
        done.notices = outcome.notices;
        self.end_sockets(seen);
        node.and(pods)?;
        self.kernel.attach_hooks().map_err(Failure::Hooks)?;
        self.devices()?;
        if slow_net {
            let any = self.kernel.collect_flows(maps).map_err(Failure::Collect)?;
            self.collect_at = now + if any { COLLECT } else { COLLECT_SELDOM };
        }
        done.due.push(self.collect_at);
        Ok(())
    }

    fn keep_node(&mut self, maps: &mut K::Maps) -> Result<(), TableError> {
        if self.node_behind {
            node::keep(&self.cfg, &self.facts, maps)?;
            self.node_behind = false;
        }
        Ok(())
    }

    /// Attaches what is new; what is gone took its links along.
    fn devices(&mut self) -> Result<(), Failure> {
        let uplinks: BTreeSet<u32> = self.uplinks.difference(self.pods.devices()).copied().collect();
        let mut wanted: Vec<(u32, Role)> = self.pods.unattached().map(|i| (i, Role::Pod)).collect();
        wanted.extend(uplinks.difference(&self.attached).map(|i| (*i, Role::Uplink)));
        let mut failed = None;
        if !wanted.is_empty() {
            for (index, role, done) in self.kernel.attach(&wanted) {
                match (done, role) {
                    (Attachment::Done, Role::Pod) => self.pods.attached(index),
                    (Attachment::Done, Role::Uplink) => drop(self.attached.insert(index)),
                    (Attachment::Gone, _) => {}
                    (Attachment::Failed(cause), _) => failed = Some(Failure::Attach(index, cause)),
                }
            }
        }
        if let Some(failed) = failed {
            return Err(failed);
        }
        for index in self.attached.difference(&uplinks).copied().collect::<Vec<_>>() {
            self.kernel.detach(index).map_err(|cause| Failure::Detach(index, cause))?;
            self.attached.remove(&index);
        }
        for index in self.pods.gone() {
            self.kernel.detach(index).map_err(|cause| Failure::Detach(index, cause))?;
        }
        Ok(())
    }

    /// Ends connected UDP sockets that came by a way in whose backend is gone, in every pod and on the host. The tables do
    /// not show these backends any more: the note of them goes last.
    fn end_sockets(&mut self, seen: &BTreeMap<PodUid, crate::SeenPod>) {
        let Some(dead) = self.dead.as_mut().filter(|dead| !dead.is_empty()) else { return };
        let ended = self.kernel.end_sockets(dead, &mut seen.keys());
        if ended > 0 {
            let backends: HashSet<SocketAddr> = dead.iter().map(|lost| lost.backend).collect();
            tracing::info!(ended, backends = backends.len(), "ended UDP sockets to backends that are gone");
        }
        dead.clear();
        or_told(self.kernel.note_dead(dead), "remove");
    }
}

fn lost(stale: &Stale) -> Lost {
    Lost { backend: SocketAddr::new(stale.address, stale.port), front: Some(stale.front) }
}

/// Without the note only an agent that dies within the same round leaves sockets with a backend that is gone.
fn or_told<T: Default>(done: Result<T, Cause>, op: &'static str) -> T {
    done.unwrap_or_else(|error| {
        tracing::warn!(error = chain(&*error), op, "note of backends that are gone");
        T::default()
    })
}
