//! The node's statistics: reads them when somebody asks, and answers with what `berth-stats` renders.
//!
//! One reading at a time. A reading serves every question that comes within [`FRESH`] of it, so that the cost of
//! many askers is bounded. Readings run on blocking threads; a question waits [`DEADLINE`] at most.
//!
//! Disks are read for `/stats/summary` alone: capacity at each question, usage of directories and layers at most
//! once a minute ([`disks`]).

mod disks;
mod facts;
mod families;
mod pod_volumes;
mod pods;
mod remote_volumes;

use super::certificates::ServingTls;
use super::{
    cluster::KUBELET_VERSION,
    csi::PluginWatch,
    node::NodeWatch,
    status_manager::{PodState, StatusManager},
};
use berth_core::{roots::Roots, sync::lock};
use berth_executor::NodeExecutor;
use berth_kube::pool::Pool;
use berth_node::CgroupTree;
use berth_nodeapi::{Boxed, Statistics, Unavailable};
use berth_pods::DesiredSet;
use berth_stats::{
    cgroup::{Depth, GroupMounts},
    process::{self, ProcessUse},
    reading::{NodeReading, Rates, fill},
    render::{
        agent::{self, AgentFacts},
        cadvisor, resource, summary,
    },
};
use berth_sys::clock;
use bytes::Bytes;
use disks::Disks;
use facts::MachineFacts;
use pod_volumes::PodVolume;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    time::timeout,
};

/// The time for which a reading serves other questions.
const FRESH: Duration = Duration::from_secs(1);

/// Deadline of a question.
const DEADLINE: Duration = Duration::from_secs(10);

/// The node's statistics; clones share their state.
#[derive(Clone)]
pub(crate) struct NodeStatistics(Arc<Inner>);

struct Inner {
    roots: Roots,
    node: NodeWatch,
    status: Arc<StatusManager>,
    executor: Arc<NodeExecutor>,
    cgroups: CgroupTree,
    mounts: GroupMounts,
    machine: MachineFacts,
    desired: watch::Receiver<Arc<DesiredSet>>,
    csi: PluginWatch,
    pool: Pool,
    serving: ServingTls,
    rates: Mutex<Rates>,
    disks: Disks,
    /// The last reading and its depth. The lock is held while another is made.
    last: AsyncMutex<Option<(Depth, Arc<NodeReading>)>>,
}

/// The parts of the agent that are read.
pub(crate) struct Parts {
    pub(crate) roots: Roots,
    pub(crate) node: NodeWatch,
    pub(crate) status: Arc<StatusManager>,
    pub(crate) executor: Arc<NodeExecutor>,
    pub(crate) cgroups: CgroupTree,
    pub(crate) desired: watch::Receiver<Arc<DesiredSet>>,
    pub(crate) csi: PluginWatch,
    pub(crate) pool: Pool,
    pub(crate) serving: ServingTls,
}

impl NodeStatistics {
    pub(crate) fn new(parts: Parts) -> NodeStatistics {
        let Parts { roots, node, status, executor, cgroups, desired, csi, pool, serving } = parts;
        let mounts = mounts(&cgroups);
        let machine = MachineFacts::read(&roots);
        NodeStatistics(Arc::new(Inner {
            disks: Disks::new(&roots),
            roots,
            node,
            status,
            executor,
            cgroups,
            mounts,
            machine,
            desired,
            csi,
            pool,
            serving,
            rates: Mutex::default(),
            last: AsyncMutex::default(),
        }))
    }

    /// `/metrics/resource`.
    async fn resource_text(&self) -> Result<Vec<u8>, Unavailable> {
        let reading = self.reading(Depth::Basic).await?;
        blocking(move || resource::render(&reading)).await
    }

    /// `/metrics/cadvisor`.
    async fn cadvisor_text(&self) -> Result<Vec<u8>, Unavailable> {
        let reading = self.reading(Depth::Full).await?;
        let inner = Arc::clone(&self.0);
        blocking(move || cadvisor::render(&reading, &inner.machine.machine)).await
    }

    /// `/stats/summary`.
    async fn summary_text(&self, only_cpu_and_memory: bool) -> Result<Vec<u8>, Unavailable> {
        let depth = if only_cpu_and_memory { Depth::Basic } else { Depth::Full };
        let reading = self.reading(depth).await?;
        let inner = Arc::clone(&self.0);
        if only_cpu_and_memory {
            return blocking(move || summary::render(&reading, &inner.machine.summary(), None)).await;
        }
        let pods = inner.status.pod_states();
        let asked = inner.asked_volumes(&pods);
        let disks = inner.disks.read(&inner.roots, pods, inner.executor.runtime().ok(), asked).await;
        blocking(move || summary::render(&reading, &inner.machine.summary(), Some(&disks))).await
    }

    /// `/metrics`.
    async fn metrics_text(&self) -> Result<Vec<u8>, Unavailable> {
        let inner = Arc::clone(&self.0);
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let claims = inner.disks.claims(inner.asked_volumes(&inner.status.pod_states())).await;
        blocking(move || {
            let facts = AgentFacts { claims, ..inner.agent_facts(process::read_own(), tasks) };
            agent::render(&facts, &families::all())
        })
        .await
    }

    /// `/metrics/probes`.
    async fn probes_text(&self) -> Result<Vec<u8>, Unavailable> {
        let booted = self.0.machine.booted;
        blocking(move || {
            agent::render_probes(process::read_own().as_ref(), booted, &berth_pods::metrics::probe_families())
        })
        .await
    }

    /// A reading of at least this depth that is fresh.
    async fn reading(&self, depth: Depth) -> Result<Arc<NodeReading>, Unavailable> {
        let read = async {
            let mut last = self.0.last.lock().await;
            let now = clock::boottime();
            if let Some((_, reading)) = last
                .as_ref()
                .filter(|(known, reading)| *known >= depth && now.since(reading.at.boottime) < FRESH)
            {
                return Ok(Arc::clone(reading));
            }
            let inner = Arc::clone(&self.0);
            let reading = Arc::new(blocking(move || inner.read(depth)).await?);
            *last = Some((depth, Arc::clone(&reading)));
            Ok(reading)
        };
        timeout(DEADLINE, read).await.unwrap_or_else(|_elapsed| Err(late()))
    }
}

type Answer<'a> = Boxed<'a, Result<Bytes, Unavailable>>;

impl Statistics for NodeStatistics {
    fn summary(&self, only_cpu_and_memory: bool) -> Answer<'_> {
        Box::pin(async move { self.summary_text(only_cpu_and_memory).await.map(Bytes::from) })
    }

    fn metrics(&self) -> Answer<'_> {
        Box::pin(async { self.metrics_text().await.map(Bytes::from) })
    }

    fn cadvisor(&self) -> Answer<'_> {
        Box::pin(async { self.cadvisor_text().await.map(Bytes::from) })
    }

    fn resource(&self) -> Answer<'_> {
        Box::pin(async { self.resource_text().await.map(Bytes::from) })
    }

    fn probes(&self) -> Answer<'_> {
        Box::pin(async { self.probes_text().await.map(Bytes::from) })
    }
}

impl Inner {
    fn read(&self, depth: Depth) -> NodeReading {
        let mut reading = pods::named(&self.roots, &self.cgroups, &self.status.pod_states());
        // Groups above the pods are as old as the machine, for all that readers can tell.
        let above = reading.above.iter_mut().chain(reading.system.iter_mut().map(|(_, group)| group));
        for group in above.chain([&mut reading.root]) {
            group.started = Some(self.machine.booted);
        }
        fill(&mut reading, &self.mounts, depth, clock::now());
        if depth == Depth::Full {
            pods::read_networks(&mut reading, &self.roots);
        }
        lock(&self.rates).apply(&mut reading);
        reading
    }

    /// Seconds until the client certificate expires.
    fn client_ttl(&self) -> Option<f64> {
        let identity = self.pool.identity();
        let end = identity.certificate.as_ref()?.not_after.as_second();
        let left = end.saturating_sub(clock::wall().seconds());
        // A certificate does not live for more than 30 bits of seconds by far.
        Some(f64::from(i32::try_from(left).unwrap_or(i32::MAX)))
    }

    /// The volumes that are asked for their numbers.
    fn asked_volumes(&self, pods: &[PodState]) -> Vec<PodVolume> {
        let (objects, plugins) = (Arc::clone(&self.desired.borrow().objects), self.csi.borrow().clone());
        let live = pods.iter().filter(|state| !state.status.phase.is_terminal());
        live.flat_map(|state| pod_volumes::of_pod(&self.roots, &state.pod, &objects, &plugins)).collect()
    }

    fn agent_facts(&self, process: Option<ProcessUse>, tasks: usize) -> agent::AgentFacts {
        agent::AgentFacts {
            node: self.node.borrow().name.to_string(),
            version: KUBELET_VERSION.to_owned(),
            architecture: super::node::architecture(std::env::consts::ARCH),
            cgroup_v2: self.mounts.unified.is_some(),
            booted: self.machine.booted,
            process,
            client_ttl: self.client_ttl(),
            server_ttl: self.serving.ttl_seconds(),
            tasks: u64::try_from(tasks).unwrap_or(u64::MAX),
            pods: pods::counts(&self.status),
            claims: BTreeMap::new(),
            helpers: facts::helpers(&self.cgroups),
        }
    }
}

fn mounts(cgroups: &CgroupTree) -> GroupMounts {
    let mount = |controller| cgroups.mount_of(controller);
    let v1 = |controller| mount(controller).filter(|(_, v2)| !v2).map(|(dir, _)| dir.to_owned());
    let unified = ["memory", "cpu", "pids"].iter().find_map(|c| mount(c).filter(|(_, v2)| *v2));
    GroupMounts {
        unified: unified.map(|(dir, _)| dir.to_owned()),
        cpu: v1("cpu"),
        cpuacct: v1("cpuacct"),
        memory: v1("memory"),
        blkio: v1("blkio"),
        pids: v1("pids"),
    }
}

fn late() -> Unavailable {
    Unavailable(format!("cannot read the statistics: no end within {} s", DEADLINE.as_secs()))
}

/// Runs blocking work within the deadline of a question.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unavailable> {
    match timeout(DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Unavailable(format!("cannot read the statistics: {error}"))),
        Err(_elapsed) => Err(late()),
    }
}
