//! Services on this node: starts the engine of [`berth_services`] on a thread of its own and wakes it.
//!
//! A task passes the wishes on (the sources changed, a pod's address or readiness did, the kernel told of a device) and
//! starts the thread again should it panic. What becomes of them, and what happens on failure, stands with the engine.

mod world;

use crate::{board::Board, sources::Latest};
use berth_core::{
    roots::Roots,
    status::{ConditionType, Truth},
};
use berth_pods::{PodReport, node::NodeHands};
pub(crate) use berth_services::SeenPod;
use berth_services::{Config, DeviceEvents, Engine, Linux, LinuxConfig};
use std::{
    future::pending,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    time::Duration,
};
use tokio::{io::unix::AsyncFd, sync::watch, task::JoinHandle};
use world::World;

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

/// Where the engine looks.
#[derive(Clone)]
pub(crate) struct Sight {
    pub(crate) board: Arc<Board>,
    pub(crate) latest: Latest,
    pub(crate) hands: Arc<NodeHands>,
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
    let events = DeviceEvents::open(config.uplinks.clone())
        .inspect_err(|error| tracing::warn!(%error, "devices are looked at once a second at most, when Services change"))
        .ok();
    #[expect(
        deprecated,
        reason = "an OwnedFd stays the same descriptor and open, which is what the other one asks for"
    )]
    let told =
        events.as_ref().and_then(|events| AsyncFd::new(events.as_fd().try_clone_to_owned().ok()?).ok());
    loop {
        let wake = match spawn(config.clone(), sight.clone(), events.clone()) {
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
                () = device_changed(told.as_ref(), events.as_ref()) => {}
            }
            sources.mark_unchanged();
        }
        tracing::error!("the thread of Services ended early; it is started again");
        tokio::time::sleep(AFTER_PANIC).await;
    }
}

/// Ends when the kernel has told of a device that matters.
async fn device_changed(told: Option<&AsyncFd<OwnedFd>>, events: Option<&DeviceEvents>) {
    let (Some(told), Some(events)) = (told, events) else { return pending().await };
    while let Ok(mut ready) = told.readable().await {
        ready.clear_ready();
        if events.drain() {
            return;
        }
    }
    // The runtime ends.
    pending().await
}

fn spawn(config: ServicesConfig, sight: Sight, events: Option<DeviceEvents>) -> std::io::Result<Sender<()>> {
    let (wake, wakes) = channel();
    let run = move || {
        let ServicesConfig { roots, exe, cgroup, node_ips, networks, uplinks, domain } = config;
        let engine = Config {
            node: roots.node_name.as_str().into(),
            node_ips,
            networks,
            uplinks: uplinks.clone(),
            whole_machine: roots.cgroup_hooks.as_os_str().is_empty(),
            next_id: world::next_id(&roots),
        };
        let kernel = Linux::new(LinuxConfig { roots: roots.clone(), exe, cgroup, uplinks }, events);
        let Sight { board, latest, hands } = sight;
        let world = World { roots, domain, board, latest, hands, told: Vec::new(), publisher: None };
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
