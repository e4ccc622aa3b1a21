//! Services on this node: what the sources and the pods say becomes tables in the kernel and names in the zone.
//!
//! Owns one thread (its calls block for microseconds, at a device's first attachment for milliseconds), which is woken
//! by a channel: the sources changed, or a pod's address or readiness did. A task passes the wishes on and starts the
//! thread again should it panic.
//!
//! Invariants: nothing is taken out of the tables before every source has listed and every wanted pod was looked at
//! (or ten seconds after containerd answered), so that an agent that has just started takes no endpoint for lost; the
//! hooks are attached when the tables are full.
//!
//! On failure (no BPF file system, programs refused, a full map) pods run without the part that failed, which is said
//! once and tried again; what is in the kernel goes on.

mod bpffs;
mod datapath;
mod names;
mod node;
mod pods;
mod publish;

use crate::{board::Board, sources::Latest};
use berth_core::{
    ids::{PodKey, PodUid},
    model::{EndpointSlice, Pod, Service},
    roots::Roots,
    status::{ConditionType, PodStatus, Truth},
    time::Boottime,
};
use berth_pods::{DesiredSet, PodReport, node::NodeHands};
use berth_services::{Allocator, Change, Notice};
use berth_source::endpoints::{self, PodFacts};
use berth_sys::clock;
pub(crate) use bpffs::unmount as unmount_bpffs;
use datapath::Datapath;
use names::NamesFile;
use publish::Zones;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};

/// So long after containerd first answered, pods that nobody has looked at do not hold up the others.
const PATIENCE: Duration = Duration::from_secs(10);

/// While something is missing at the start it is looked for this often.
const STARTING: Duration = Duration::from_millis(200);

/// A thread that panicked is started again after this.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// The domain of names where nothing else is said.
pub(crate) const DOMAIN: &str = "cluster.local";

/// What Services depend on besides the objects.
#[derive(Debug, Clone)]
pub(crate) struct ServicesConfig {
    pub(crate) roots: Roots,
    /// This program, for the child that loads the programs.
    pub(crate) exe: PathBuf,
    /// The cgroup whose sockets the hooks serve; `None` where the machine has no cgroup2.
    pub(crate) cgroup: Option<PathBuf>,
    /// The node's own addresses, at which node ports answer.
    pub(crate) node_ips: Vec<IpAddr>,
    /// The networks of Services.
    pub(crate) networks: Vec<(IpAddr, u8)>,
    /// The devices that bring what comes from outside; empty: found by their addresses where the node is the whole
    /// machine.
    pub(crate) uplinks: Vec<String>,
    /// The cluster's domain.
    pub(crate) domain: String,
}

/// A pod as it was last looked at.
#[derive(Debug, Clone)]
pub(crate) struct SeenPod {
    pub(crate) pod: Arc<Pod>,
    pub(crate) status: Arc<PodStatus>,
}

/// The running thread and what wakes it.
pub(crate) struct Services {
    task: JoinHandle<()>,
}

impl Services {
    /// Ends the passing on of wishes, and the thread with it. Tables, hooks and names stay.
    pub(crate) fn end(self) {
        self.task.abort();
    }
}

/// Starts the thread.
pub(crate) fn start(
    config: ServicesConfig,
    board: Arc<Board>,
    latest: Latest,
    hands: Arc<NodeHands>,
    desired: watch::Receiver<Arc<DesiredSet>>,
) -> Services {
    Services { task: tokio::spawn(pass_on(config, board, latest, hands, desired)) }
}

async fn pass_on(
    config: ServicesConfig,
    board: Arc<Board>,
    latest: Latest,
    hands: Arc<NodeHands>,
    mut desired: watch::Receiver<Arc<DesiredSet>>,
) {
    loop {
        let world =
            World { board: Arc::clone(&board), latest: Arc::clone(&latest), hands: Arc::clone(&hands) };
        let wake = match spawn(config.clone(), world) {
            Ok(wake) => wake,
            Err(error) => {
                tracing::error!(%error, "no thread for Services");
                tokio::time::sleep(AFTER_PANIC).await;
                continue;
            }
        };
        while wake.send(()).is_ok() {
            tokio::select! {
                changed = desired.changed() => if changed.is_err() {
                    return;
                },
                () = board.endpoints.notified() => {}
            }
            desired.mark_unchanged();
        }
        tracing::error!("the thread of Services ended early; it is started again");
        tokio::time::sleep(AFTER_PANIC).await;
    }
}

/// A network in the form `10.96.0.0/16`.
pub(crate) fn network(text: &str) -> Result<(IpAddr, u8), String> {
    let parsed = text.split_once('/').and_then(|(net, len)| {
        let (net, len): (IpAddr, u8) = (net.parse().ok()?, len.parse().ok()?);
        (len <= if net.is_ipv4() { 32 } else { 128 }).then_some((net, len))
    });
    parsed.ok_or_else(|| "must be an address range such as 10.96.0.0/16".to_owned())
}

/// The cgroup whose sockets the hooks serve.
pub(crate) fn hooks(roots: &Roots) -> Option<PathBuf> {
    let mounts = berth_sys::mount::mounts()
        .inspect_err(|error| tracing::warn!(%error, "the cgroup2 hierarchy is not found"))
        .ok()?;
    let v2 =
        mounts.iter().find(|m| m.fs_type == "cgroup2" && m.mount_point.starts_with(&roots.cgroup_mount))?;
    Some(v2.mount_point.join(&roots.cgroup_hooks))
}

/// Where the thread looks.
struct World {
    board: Arc<Board>,
    latest: Latest,
    hands: Arc<NodeHands>,
}

fn spawn(config: ServicesConfig, world: World) -> std::io::Result<Sender<()>> {
    let (wake, wakes) = channel();
    std::thread::Builder::new()
        .name("berth-services".to_owned())
        .spawn(move || Engine::new(config, world).run(&wakes))?;
    Ok(wake)
}

/// The thread's state.
struct Engine {
    world: World,
    allocator: Allocator,
    datapath: Datapath,
    zones: Zones,
    names: NamesFile,
    services: BTreeMap<PodKey, Arc<Service>>,
    slices: BTreeMap<PodKey, Arc<EndpointSlice>>,
    made: Vec<Arc<EndpointSlice>>,
    /// The pods as last looked at.
    pods: BTreeMap<PodUid, SeenPod>,
    /// When containerd first answered.
    answered: Option<Boottime>,
    open: bool,
}

impl Engine {
    fn new(config: ServicesConfig, world: World) -> Engine {
        let names = NamesFile::open(&config.roots);
        Engine {
            world,
            allocator: Allocator::new(node::facts(&config), names.next_id()),
            zones: Zones::open(&config.roots, &config.domain),
            datapath: Datapath::new(config),
            names,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            made: Vec::new(),
            pods: BTreeMap::new(),
            answered: None,
            open: false,
        }
    }

    fn run(mut self, wakes: &Receiver<()>) {
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
    fn round(&mut self) -> Option<Duration> {
        let now = clock::boottime();
        let listed = self.gather();
        if !self.open {
            if !self.may_open(listed, now) {
                return Some(STARTING);
            }
            self.open = true;
            self.allocator.listed();
        }
        self.feed(listed);
        if let Some(facts) = self.datapath.node_changed() {
            self.allocator.set_node(facts);
        }
        let (notices, mut due) = self.datapath.round(&mut self.allocator, &self.pods, now);
        notices.iter().for_each(tell);
        due.extend(self.names.keep(&self.allocator, &notices, now));
        due.extend(self.zones.keep(&self.services, &self.slices, now));
        due.into_iter().min().map(|at| at.since(clock::boottime()))
    }

    /// Whether enough is known for what is absent to count as gone.
    fn may_open(&mut self, listed: bool, now: Boottime) -> bool {
        if !listed {
            return false;
        }
        if self.answered.is_none() && self.world.hands.runtime().is_ok() {
            self.answered = Some(now);
        }
        let latest = self.world.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = latest.iter().flat_map(|s| s.pods.keys()).all(|uid| self.pods.contains_key(uid));
        all || self.answered.is_some_and(|at| now.since(at) > PATIENCE)
    }

    /// Looks at the sources and the pods. Whether all sources have listed.
    fn gather(&mut self) -> bool {
        let latest = self.world.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let listed = latest.iter().all(|s| s.listed);
        let on_board = self.world.board.seen();
        self.pods.retain(|uid, _| on_board.contains_key(uid));
        // One that is not looked at just now is as it was.
        self.pods.extend(on_board.into_iter().filter_map(|(uid, seen)| Some((uid, seen?))));
        listed
    }

    /// What changed goes to the allocator.
    fn feed(&mut self, listed: bool) {
        let latest = self.world.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let services: BTreeMap<PodKey, Arc<Service>> = latest
            .iter()
            .flat_map(|s| &s.services)
            .map(|s| (s.service.key.clone(), Arc::clone(&s.service)))
            .collect();
        let list: Vec<Arc<Service>> = services.values().cloned().collect();
        let facts: Vec<PodFacts<'_>> =
            self.pods.values().map(|p| PodFacts { pod: &p.pod, status: &p.status }).collect();
        let made = endpoints::slices(&list, &facts, &self.made);
        let by_hand = latest.iter().flat_map(|s| &s.slices);
        let slices: BTreeMap<PodKey, Arc<EndpointSlice>> =
            by_hand.chain(&made).map(|s| (s.key.clone(), Arc::clone(s))).collect();
        self.made = made;
        let (allocator, names, zones) = (&mut self.allocator, &mut self.names, &mut self.zones);
        let mut changed = |change| {
            if matches!(change, Change::Service(_) | Change::ServiceGone(_)) {
                names.changed();
            }
            zones.changed();
            allocator.change(change);
        };
        differences(&mut self.services, services, listed, Change::Service, Change::ServiceGone, &mut changed);
        differences(&mut self.slices, slices, listed, Change::Slice, Change::SliceGone, &mut changed);
    }
}

/// What is new or other now, and what is gone; the latter only where all is known.
fn differences<T>(
    before: &mut BTreeMap<PodKey, Arc<T>>,
    now: BTreeMap<PodKey, Arc<T>>,
    all: bool,
    new: impl Fn(Arc<T>) -> Change,
    gone: impl Fn(PodKey) -> Change,
    tell: &mut impl FnMut(Change),
) {
    if all {
        before.retain(|key, _| {
            let stays = now.contains_key(key);
            if !stays {
                tell(gone(key.clone()));
            }
            stays
        });
    }
    for (key, object) in now {
        if before.get(&key).is_none_or(|old| !Arc::ptr_eq(old, &object)) {
            tell(new(Arc::clone(&object)));
            before.insert(key, object);
        }
    }
}

fn tell(notice: &Notice) {
    tracing::warn!(service = %notice.service, reason = notice.why.reason(), "{}", notice.why);
}

/// A pod that has been looked at: its worker has decided on it, and its readiness is known.
pub(crate) fn looked_at(report: &PodReport) -> Option<SeenPod> {
    let unknown = report.status.condition(ConditionType::Ready).is_some_and(|c| c.status == Truth::Unknown);
    (!report.decisions.is_empty() && !unknown)
        .then(|| SeenPod { pod: Arc::clone(&report.pod), status: Arc::clone(&report.status) })
}

/// Whether endpoints may follow from the difference.
pub(crate) fn matters(before: &PodReport, now: &PodReport) -> bool {
    let of = |r: &PodReport| {
        let s = &r.status;
        (s.phase, s.terminating, s.is_ready(), s.pod_ips.clone(), looked_at(r).is_some())
    };
    of(before) != of(now) || !Arc::ptr_eq(&before.pod, &now.pod) && before.pod != now.pod
}
