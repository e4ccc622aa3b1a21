//! [`NodeExecutor`] with its parts, and the actions that need no module of their own.
//!
//! Owns: the connection to containerd (set by [`crate::pump`], which redials), the watchers of pause
//! processes, and the claims, which know the pod of each container. Every action ends within [`timeout_of`].
//!
//! Blocking work (mounts, cgroups, namespaces) runs on blocking threads, one piece at a time for each area of
//! a pod ([`crate::pod_locks`]). So a stuck mount delays only its own pod and takes one thread only.

use crate::{
    ServiceLister,
    claims::Claims,
    credential_plugins::CredentialPlugins,
    foreground::Foreground,
    image_users::ImageUsers,
    metrics,
    pod_locks::{Area, PodLocks},
    pull_records::PullRecords,
    pulls::Pulls,
    slots::{Slot, Slots},
};
use berth_core::{
    admit::admit,
    error::Chain,
    ids::{BootId, ContainerId, ContainerName, PodUid},
    image::pull_record::VerificationPolicy,
    model::{NodeInfo, Pod, Probe},
    plan::{Action, Failure},
    probe::ProbeResult,
    roots::Roots,
    sync::lock,
};
use berth_network::Network;
use berth_node::cgroup::CgroupTree;
use berth_pods::{ActionResult, Context, Executor, NodeEvent, NodeProcess, ObservedChange, PodSnapshot};
use berth_probe::Prober;
use berth_runtime::{
    Runtime,
    spec::{HostFacts, sandbox_sysctls},
};
use berth_volumes::{PodFacts, Volumes};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, spawn_blocking},
};

/// Settings and facts of the node on which the executor acts.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The agent's paths and names.
    pub roots: Roots,
    /// The id of the current boot.
    pub boot: BootId,
    /// The facts of the node, read again at each use.
    pub node: watch::Receiver<Arc<NodeInfo>>,
    /// The most processes that a pod may have. `None` sets no limit.
    pub pids_limit: Option<i64>,
    /// Facts of the host that container specs depend on.
    pub host: HostFacts,
    /// The Services for the environment variables of containers.
    pub services: ServiceLister,
    /// Plugins that give credentials for images.
    pub plugins: CredentialPlugins,
    /// Which present images serve a pod only after a look at its credentials.
    pub verification: VerificationPolicy,
}

/// Whether the kernel has `mount_setattr(AT_RECURSIVE)` (Linux 5.12). Every OCI runtime that setup accepts
/// has the mount option `rro`, which uses that call.
pub fn recursive_read_only() -> bool {
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(12))
}

/// The executor of a real node, which joins the adapters.
pub struct NodeExecutor {
    pub(crate) config: NodeConfig,
    pub(crate) runtime: Mutex<Option<Runtime>>,
    pub(crate) logd: Arc<berth_logd::client::Client>,
    pub(crate) network: Network,
    pub(crate) volumes: Volumes,
    pub(crate) cgroups: CgroupTree,
    pub(crate) prober: Prober,
    pub(crate) incoming: mpsc::Sender<NodeEvent>,
    pub(crate) pauses: Mutex<BTreeMap<PodUid, (NodeProcess, AbortHandle)>>,
    pub(crate) specs: Mutex<HashMap<ContainerId, Arc<serde_json::Value>>>,
    pub(crate) users: ImageUsers,
    pub(crate) images: Mutex<HashMap<String, (std::time::Instant, berth_runtime::Image)>>,
    pub(crate) pulls: Pulls,
    pub(crate) records: PullRecords,
    pub(crate) starts: Slots,
    pub(crate) sandboxes: Slots,
    pub(crate) removals: Slots,
    pub(crate) foreground: Foreground,
    pub(crate) pod_locks: PodLocks,
    /// The pods and runs that this agent process works on, and the pod of each known run.
    pub(crate) claims: Claims,
}

impl std::fmt::Debug for NodeExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeExecutor").field("node", &self.node().name).finish_non_exhaustive()
    }
}

/// Container starts at once for each processor. Five starts wait for disks and locks as much as they compute.
const STARTS_PER_CPU: usize = 5;
/// Sandboxes made at once for each processor. The kernel creates networks one after the other and waits in
/// between (RTNL, grace periods of RCU). Sandboxes have slots of their own for two reasons: the processors
/// start containers meanwhile, and the first of many pods does not wait for the sandboxes of all others.
const SANDBOXES_PER_CPU: usize = 2;
/// Tasks and records of ended pods deleted at once for each processor. containerd executes a program for each
/// deleted task. Nobody waits for that, but many clients may wait for the ends of other pods.
const REMOVALS_PER_CPU: usize = 1;

/// Deadline of a volume refresh.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(120);
/// Deadline of listing the orphans, and of removing one.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(180);

/// Deadline of an action. Hooks have limits of their own, below this one.
fn timeout_of(action: &Action) -> Duration {
    Duration::from_secs(match action {
        Action::MakeSandbox(_) | Action::TeardownSandbox(_) => 90,
        // Longer than two calls of a CSI driver, whose error names the driver and the volume.
        Action::MountVolumes | Action::UnmountVolumes => 300,
        Action::Start { .. } => 120,
        // A pull ends by itself where it makes no progress.
        Action::EnsureImage(_) => 24 * 3600,
        Action::PostStart { .. } | Action::PreStop { .. } => 24 * 3600,
        _ => 60,
    })
}

/// Whether somebody waits for this action: a start, or an end up to the release of what the pod holds. Not counted are
/// hooks and pulls, which take as long as users make them, and the removals themselves.
fn is_foreground(action: &Action) -> bool {
    match action {
        Action::MountVolumes
        | Action::MakeSandbox(_)
        | Action::EnsurePause(_)
        | Action::Start { .. }
        | Action::Signal { .. }
        | Action::Kill { .. }
        | Action::RecordExit { .. }
        | Action::ResizePod(_)
        | Action::TeardownSandbox(_)
        | Action::UnmountVolumes => true,
        Action::EnsureImage(_)
        | Action::PostStart { .. }
        | Action::PreStop { .. }
        | Action::Reap { .. }
        | Action::Remove { .. }
        | Action::RemovePod => false,
    }
}

impl NodeExecutor {
    /// Joins the adapters to an executor. Node events go to `incoming`.
    #[allow(clippy::too_many_arguments, reason = "the adapters, handed in once by the wiring")]
    pub fn new(
        config: NodeConfig,
        logd: Arc<berth_logd::client::Client>,
        network: Network,
        volumes: Volumes,
        cgroups: CgroupTree,
        prober: Prober,
        incoming: mpsc::Sender<NodeEvent>,
    ) -> NodeExecutor {
        let records = PullRecords::new(&config.roots.pod_state, config.verification.clone());
        NodeExecutor {
            config,
            runtime: Mutex::new(None),
            logd,
            network,
            volumes,
            cgroups,
            prober,
            incoming,
            pauses: Mutex::default(),
            specs: Mutex::default(),
            users: ImageUsers::default(),
            images: Mutex::default(),
            pulls: Pulls::default(),
            records,
            starts: Slots::of_each_processor(STARTS_PER_CPU),
            sandboxes: Slots::of_each_processor(SANDBOXES_PER_CPU),
            removals: Slots::of_each_processor(REMOVALS_PER_CPU),
            foreground: Foreground::default(),
            pod_locks: PodLocks::default(),
            claims: Claims::default(),
        }
    }

    /// The connection to containerd.
    ///
    /// # Errors
    ///
    /// `RuntimeNotReady` until containerd has answered once.
    pub fn runtime(&self) -> Result<Runtime, Failure> {
        lock(&self.runtime)
            .clone()
            .ok_or_else(|| Failure::new("RuntimeNotReady", "containerd has not answered yet"))
    }

    /// The newest facts of the node.
    pub(crate) fn node(&self) -> Arc<NodeInfo> {
        Arc::clone(&self.config.node.borrow())
    }

    /// The pod's addresses: those of its sandbox, or those of the node for a pod in the host's network.
    pub(crate) fn pod_ips(&self, context: &Context) -> Vec<IpAddr> {
        match &context.sandbox {
            Some(_) if context.pod.namespaces.host_network => self.node().ips.clone(),
            Some(sandbox) => sandbox.ips.clone(),
            None => Vec::new(),
        }
    }

    pub(crate) fn facts(&self, context: &Context) -> PodFacts {
        PodFacts { ips: self.pod_ips(context), node: self.node() }
    }

    async fn act(&self, context: Context, action: Action) -> Result<ActionResult, Failure> {
        match action {
            Action::MountVolumes => self.mount_volumes(context).await,
            Action::MakeSandbox(sandbox_attempt) => self.make_sandbox(context, sandbox_attempt).await,
            Action::EnsurePause(sandbox_attempt) => self.ensure_pause(context, sandbox_attempt).await,
            Action::EnsureImage(container) => self.ensure_image(&context, &container).await,
            Action::Start { container, attempt, sandbox_attempt, id } => {
                self.start(context, container, attempt, sandbox_attempt, id).await
            }
            Action::PostStart { container, id } => self.post_start(context, &container, &id).await,
            Action::PreStop { container, id } => self.pre_stop(context, &container, &id).await,
            Action::Signal { container, id } => self.signal(&context, &container, &id, None).await,
            Action::Kill { container, id } => self.signal(&context, &container, &id, Some(9)).await,
            Action::RecordExit { container, id, exit } => {
                self.record_exit(context, &container, id, exit.0).await
            }
            Action::Reap { id, .. } => {
                let _slot = self.removal(&context).await;
                self.reap(&context, id).await
            }
            Action::Remove { container, id } => {
                let _slot = self.removal(&context).await;
                self.remove(&context, &container, id).await
            }
            Action::TeardownSandbox(sandbox_attempt) => {
                self.teardown_sandbox(&context, sandbox_attempt).await
            }
            Action::ResizePod(resize) => Ok(self.resize_pod(context, resize.0).await),
            Action::UnmountVolumes => self.unmount_volumes(context).await,
            Action::RemovePod => self.remove_pod(&context.pod).await,
        }
    }

    /// Waits for the turn of a removal, which gives way to what somebody waits for. What is left of a run whose pod goes
    /// on is removed at once: the next run waits for that.
    async fn removal(&self, context: &Context) -> Option<Slot> {
        if !context.ending {
            return None;
        }
        let begun = tokio::time::Instant::now();
        let slot = self.removals.acquire().await;
        self.foreground.give_way(begun).await;
        Some(slot)
    }

    async fn mount_volumes(&self, context: Context) -> Result<ActionResult, Failure> {
        let (volumes, facts) = (self.volumes.clone(), self.facts(&context));
        let uid = context.pod.uid.clone();
        self.pod_locks
            .blocking(&uid, Area::Files, move || volumes.mount(&context.pod, &facts, &context.objects))
            .await?
            .map_err(|e| not_mounted(&e))?;
        Ok(ActionResult::done(vec![ObservedChange::Volumes { mounted: true, present: true }]))
    }

    async fn unmount_volumes(&self, context: Context) -> Result<ActionResult, Failure> {
        let (volumes, uid) = (self.volumes.clone(), context.pod.uid.clone());
        self.pod_locks
            .blocking(&context.pod.uid, Area::Files, move || volumes.unmount(&uid))
            .await?
            .map_err(|e| Failure::new("FailedUnMount", e.message()))?;
        Ok(ActionResult::done(vec![ObservedChange::Volumes { mounted: false, present: false }]))
    }

    async fn remove_pod(&self, pod: &Pod) -> Result<ActionResult, Failure> {
        let (cgroups, uid) = (self.cgroups.clone(), pod.uid.clone());
        self.pod_locks
            .blocking(&pod.uid, Area::Sandbox, move || {
                cgroups.kill_pod(&uid).and_then(|()| cgroups.remove_pod(&uid))
            })
            .await?
            .map_err(|e| Failure::new("FailedKillPod", Chain(&e)))?;
        let runtime = self.runtime()?;
        let (logs, lease) =
            tokio::join!(self.logd.remove_pod(&pod.key, &pod.uid), runtime.release_lease(&pod.uid));
        logs.map_err(|e| Failure::new("FailedKillPod", Chain(&e)))?;
        lease.map_err(|e| Failure::new("FailedKillPod", Chain(&e)))?;
        self.pod_locks.forget(&pod.uid);
        self.claims.forget(&pod.uid);
        Ok(ActionResult::done(Vec::new()))
    }
}

/// A mount failure with the kubelet's reason and message, which names the volume.
fn not_mounted(error: &berth_volumes::Error) -> Failure {
    let event = error.event();
    Failure::new(&event.reason, event.message)
}

/// Runs the work with a deadline, and fails with `DeadlineExceeded` after it.
async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_elapsed| {
        Err(Failure::new("DeadlineExceeded", format!("no end within {} s", limit.as_secs())))
    })
}

/// Runs blocking work on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    spawn_blocking(work)
        .await
        .map_err(|e| Failure::new("InternalError", format!("blocking work ended early: {e}")))
}

impl Executor for NodeExecutor {
    fn suits(&self, pod: &Pod) -> bool {
        let node = self.node();
        pod.selects_node(node.name.as_str(), &node.labels) && pod.tolerates(&node.taints)
    }

    fn oom_killed(&self, pod: &Pod, container: &ContainerId) -> bool {
        self.has_oom_kills(pod, container)
    }

    fn admit(&self, pod: &Pod, others: &[Arc<Pod>]) -> Result<(), Failure> {
        sandbox_sysctls(pod).map_err(|e| Failure::new("SysctlForbidden", Chain(&e)))?;
        admit(&self.node(), others.iter().map(Arc::as_ref), pod)
    }

    async fn perform(&self, context: Context, action: Action) -> ActionResult {
        let (operation, begun) = (metrics::operation(&action), Instant::now());
        let _in_flight = is_foreground(&action).then(|| self.foreground.enter());
        let act = within(timeout_of(&action), self.act(context, action));
        let result = act.await.unwrap_or_else(ActionResult::failed);
        if let Some(operation) = operation {
            metrics::count(operation, begun.elapsed(), result.outcome.is_err());
        }
        result
    }

    async fn observe(&self, pod: &PodUid) -> Result<PodSnapshot, Failure> {
        let begun = Instant::now();
        let observed = self.observe_pod(pod).await;
        metrics::count_relist(begun, observed.is_err());
        observed
    }

    async fn probe(&self, context: Context, id: ContainerId, probe: Probe, of: ContainerName) -> ProbeResult {
        self.probe_container(context, id, probe, of).await
    }

    async fn orphaned_pods(&self, known: BTreeSet<PodUid>) -> Result<BTreeSet<PodUid>, Failure> {
        within(CLEANUP_TIMEOUT, self.list_orphans(known)).await
    }

    async fn cleanup_pod(&self, pod: &PodUid) -> Result<(), Failure> {
        within(CLEANUP_TIMEOUT, self.remove_orphan(pod)).await
    }

    async fn cleanup_node(&self, known: BTreeSet<PodUid>) {
        self.remove_orphaned_files(known).await;
    }

    async fn refresh(&self, context: Context) -> Result<(), Failure> {
        let (volumes, facts) = (self.volumes.clone(), self.facts(&context));
        let (key, uid) = (context.pod.key.clone(), context.pod.uid.clone());
        let refresh = self
            .pod_locks
            .blocking(&uid, Area::Files, move || volumes.refresh(&context.pod, &facts, &context.objects));
        let changed = within(REFRESH_TIMEOUT, refresh).await?.map_err(|e| not_mounted(&e))?;
        if changed {
            tracing::info!(pod = %key, "volumes refreshed");
        }
        Ok(())
    }
}
