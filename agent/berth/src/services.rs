//! Services on this node: starts the engine of [`berth_services`] on a thread of its own and wakes it.
//!
//! A task passes the wishes on (the sources changed, a pod's address or readiness did, the kernel told of a device) and
//! starts the thread again should it panic. What becomes of them, and what happens on failure, stands with the engine.

mod limits;
mod world;

pub(crate) use limits::Limits;
pub(crate) use world::Shown;

use crate::{board::Board, host_network::Host, sources::Latest};
use berth_core::{
    roots::Roots,
    status::{ConditionType, Truth},
};
use berth_pods::{PodReport, node::NodeExecutor};
pub(crate) use berth_services::ObservedPod;
use berth_services::{ClearPods, Config, Engine, LinuxDatapath, LinuxDatapathConfig, Sizes};
use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};
use world::World;

/// A thread that panicked is started again after this.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// Between two comparisons of the maps in the kernel with what was written to them: some ten milliseconds at 10,000
/// Services.
const RECONCILE: Duration = Duration::from_secs(120);

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
    /// The pods whose packets may go past the host's stack.
    pub(crate) clear: ClearPods,
    /// What options and labels say.
    pub(crate) given: Given,
}

/// What options and the node's labels say of Services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    /// The node's zone; empty where it has none.
    pub(crate) zone: String,
    /// The networks of Services.
    pub(crate) networks: Vec<(IpAddr, u8)>,
    /// How many entries the maps take.
    pub(crate) sizes: Sizes,
    /// The cluster's domain.
    pub(crate) domain: String,
}

/// Where the engine looks.
#[derive(Clone)]
pub(crate) struct Sight {
    pub(crate) board: Arc<Board>,
    pub(crate) latest: Latest,
    pub(crate) executor: Arc<NodeExecutor>,
    pub(crate) host: Host,
    /// Where it is shown how Services are.
    pub(crate) health: Shown,
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
pub(crate) fn start(config: ServicesConfig, sight: Sight, changed: watch::Receiver<()>) -> Services {
    Services { task: tokio::spawn(pass_on(config, sight, changed)) }
}

async fn pass_on(config: ServicesConfig, sight: Sight, mut sources: watch::Receiver<()>) {
    let mut host = sight.host.clone();
    loop {
        let wake = match spawn(config.clone(), sight.clone()) {
            Ok(wake) => wake,
            Err(error) => {
                tracing::error!(%error, "no thread for Services");
                tokio::time::sleep(AFTER_PANIC).await;
                continue;
            }
        };
        while wake.send(()).is_ok() {
            tokio::select! {
                changed = sources.changed() => if changed.is_err() {
                    return;
                },
                () = sight.board.endpoints.notified() => {}
                changed = host.changed() => if changed.is_err() {
                    return;
                },
            }
            sources.mark_unchanged();
            host.mark_unchanged();
        }
        tracing::error!("the thread of Services ended early; it is started again");
        tokio::time::sleep(AFTER_PANIC).await;
    }
}

fn spawn(config: ServicesConfig, sight: Sight) -> std::io::Result<Sender<()>> {
    let (wake, wakes) = channel();
    let run = move || {
        let ServicesConfig { roots, exe, cgroup, clear, given } = config;
        let Given { zone, networks, sizes, domain } = given;
        let engine = Config {
            node: roots.node_name.as_str().into(),
            zone: zone.into(),
            networks,
            reconcile: RECONCILE,
            next_id: world::next_id(&roots),
        };
        let Sight { board, latest, executor, host, health } = sight;
        let kernel = LinuxDatapath::new(
            LinuxDatapathConfig { roots: roots.clone(), exe, cgroup, clear, sizes },
            move || Arc::clone(&host.borrow()),
        );
        let world =
            World { roots, domain, board, latest, executor, told: Vec::new(), publisher: None, health };
        Engine::new(engine, kernel, world).run(&wakes);
    };
    std::thread::Builder::new().name("berth-services".to_owned()).spawn(run)?;
    Ok(wake)
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
    berth_services::hooks_group(roots)
        .inspect_err(|error| tracing::warn!(%error, "the cgroup2 hierarchy is not found"))
        .ok()?
}

/// Whether the pod has been looked at: its worker has decided on it, and its readiness is known.
fn is_looked_at(report: &PodReport) -> bool {
    let unknown = report.status.condition(ConditionType::Ready).is_some_and(|c| c.status == Truth::Unknown);
    !report.decisions.is_empty() && !unknown
}

/// A pod that has been looked at. One in the host's network that has an address has those of the node.
pub(crate) fn looked_at(report: &PodReport, host_ips: &[IpAddr]) -> Option<ObservedPod> {
    if !is_looked_at(report) {
        return None;
    }
    let mut status = Arc::clone(&report.status);
    if report.pod.namespaces.host_network && !status.pod_ips.is_empty() && status.pod_ips != host_ips {
        Arc::make_mut(&mut status).pod_ips = host_ips.to_vec();
    }
    Some(ObservedPod { pod: Arc::clone(&report.pod), status })
}

/// Whether endpoints may follow from the difference.
pub(crate) fn matters(before: &PodReport, now: &PodReport) -> bool {
    let of = |r: &PodReport| {
        let s = &r.status;
        (s.phase, s.terminating, s.is_ready(), s.pod_ips.clone(), is_looked_at(r))
    };
    of(before) != of(now) || !Arc::ptr_eq(&before.pod, &now.pod) && before.pod != now.pod
}
