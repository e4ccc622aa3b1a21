//! Services on this node: runs the engine of [`berth_services`] on a thread of its own and wakes
//! it.
//!
//! A task wakes the thread when a source, a pod's address or readiness, or a device of the node
//! changes, and starts a new thread after a panic or for a new zone. The engine's page says what a
//! wake-up does and what happens on failure.

mod health_check_ports;
mod limits;

pub(crate) use health_check_ports::HealthChecks;
pub(crate) use limits::Limits;

use super::{
    host_network::Host,
    node::NodeWatch,
    service_inputs::{self, AgentInputs, PodsOfNode},
    services_health::ServicesHealth,
    sources::Latest,
    status_manager::StatusManager,
};
use berth_core::roots::Roots;
use berth_services::{
    ClearPods, Config, Engine, LinuxDatapath, LinuxDatapathConfig, OnStale, PodNetworks, SelfTest,
    SelfTestService, Sizes,
};
use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread,
    time::Duration,
};
use tokio::task::{JoinHandle, spawn_blocking};

/// Pause before a new thread is started after a panic.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// Interval of the comparison of the kernel's maps with their wanted contents, which takes some ten
/// milliseconds at 10,000 Services.
const RECONCILE: Duration = Duration::from_secs(120);

/// Configuration of the engine and of the data plane.
#[derive(Debug, Clone)]
pub(crate) struct ServicesConfig {
    pub(crate) roots: Roots,
    /// This program, for the child that loads the eBPF programs.
    pub(crate) exe: PathBuf,
    /// The cgroup to whose sockets the hooks are attached; `None` where the machine has no cgroup2.
    pub(crate) cgroup: Option<PathBuf>,
    /// Where the network namespaces of pods are found.
    pub(crate) networks: PodNetworks,
    /// The pods whose packets may bypass the host's stack.
    pub(crate) clear: ClearPods,
    /// What else is to be done about backends that serve no more.
    pub(crate) stale: OnStale,
    /// Whether a self-test's Service is in the tables.
    pub(crate) self_test: bool,
    /// The options of the agent.
    pub(crate) options: ServiceOptions,
}

/// Options of Services, from the agent's arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceOptions {
    /// The networks of ClusterIPs.
    pub(crate) networks: Vec<(IpAddr, u8)>,
    /// The capacities of the maps.
    pub(crate) sizes: Sizes,
}

/// The parts of the agent from which the engine reads, and to which it reports.
#[derive(Clone)]
pub(crate) struct EngineInputs {
    pub(crate) status: Arc<StatusManager>,
    pub(crate) latest: Latest,
    pub(crate) pods: PodsOfNode,
    pub(crate) host: Host,
    pub(crate) node: NodeWatch,
    /// The health of Services, for the status page.
    pub(crate) health: ServicesHealth,
    /// The ports at which load balancers ask for the health of Services.
    pub(crate) health_checks: HealthChecks,
    /// Whether this node makes the EndpointSlices of Services; a control plane makes them otherwise.
    pub(crate) makes_endpoints: bool,
}

/// The task that wakes the engine's thread.
pub(crate) struct Services {
    task: JoinHandle<()>,
    health_check_ports: JoinHandle<()>,
}

impl Services {
    /// Ends the task, and the thread with it. Tables, hooks and names stay.
    pub(crate) fn end(self) {
        self.task.abort();
        self.health_check_ports.abort();
    }
}

/// Starts the task and the thread.
pub(crate) fn start(config: ServicesConfig, inputs: EngineInputs, changed: Latest) -> Services {
    let health_check_ports = tokio::spawn(health_check_ports::serve(
        config.roots.node_name.clone(),
        inputs.health_checks.clone(),
        inputs.health.clone(),
        Arc::clone(&inputs.status),
    ));
    let self_test = config.self_test.then(|| open_self_test(&config.roots, &inputs)).flatten();
    Services { task: tokio::spawn(wake_engine(config, inputs, changed, self_test)), health_check_ports }
}

/// Opens the self-test and gives it to the health. Returns its Service.
fn open_self_test(roots: &Roots, inputs: &EngineInputs) -> Option<SelfTestService> {
    let test = SelfTest::open(roots)
        .inspect_err(|error| tracing::warn!(%error, "cannot open the sockets of the self-test of Services"))
        .ok()?;
    let service = test.service()?;
    inputs.health.test_by(Arc::new(test), inputs.host.clone());
    Some(service)
}

async fn wake_engine(
    config: ServicesConfig,
    inputs: EngineInputs,
    mut sources: Latest,
    self_test: Option<SelfTestService>,
) {
    let (mut host, mut node) = (inputs.host.clone(), inputs.node.clone());
    loop {
        let zone = node.borrow_and_update().zone().to_owned();
        let (wake, thread) = match spawn(config.clone(), inputs.clone(), self_test.clone()) {
            Ok(spawned) => spawned,
            Err(error) => {
                tracing::error!(%error, "cannot start the thread of Services; tried again");
                tokio::time::sleep(AFTER_PANIC).await;
                continue;
            }
        };
        let mut moved = false;
        while !moved && wake.send(()).is_ok() {
            tokio::select! {
                changed = sources.changed() => if changed.is_err() {
                    return;
                },
                () = inputs.status.endpoints.notified() => {}
                () = inputs.health.doubted() => {}
                changed = host.changed() => if changed.is_err() {
                    return;
                },
                changed = node.changed() => if changed.is_err() {
                    return;
                },
            }
            sources.mark_unchanged();
            host.mark_unchanged();
            moved = node.borrow_and_update().zone() != zone;
        }
        if moved {
            // An engine keeps its zone. The tables stay until the next engine has read them.
            tracing::info!("the node's zone has changed: the thread of Services is started again");
            drop(wake);
            // A panic of the thread that ends is in the log already.
            spawn_blocking(move || thread.join().is_ok()).await.ok();
            continue;
        }
        tracing::error!("the thread of Services has panicked; it is started again");
        tokio::time::sleep(AFTER_PANIC).await;
    }
}

fn spawn(
    config: ServicesConfig,
    inputs: EngineInputs,
    self_test: Option<SelfTestService>,
) -> std::io::Result<(Sender<()>, thread::JoinHandle<()>)> {
    let (wake, wakes) = channel();
    let run = move || {
        let ServicesConfig {
            roots,
            exe,
            cgroup,
            networks: pod_networks,
            clear,
            stale,
            self_test: _,
            options,
        } = config;
        let ServiceOptions { networks, sizes } = options;
        let EngineInputs { status, latest, pods, host, node, health, health_checks, makes_endpoints } =
            inputs;
        // One look: a second borrow beside the first would wait for a writer that waits for the first.
        let info = Arc::clone(&node.borrow());
        let stored = service_inputs::stored(&roots);
        let engine = Config {
            node: info.name.as_str().into(),
            zone: info.zone().into(),
            networks,
            reconcile: RECONCILE,
            next_id: stored.next_id,
            self_test,
        };
        let kernel = LinuxDatapath::new(
            LinuxDatapathConfig {
                roots: roots.clone(),
                networks: pod_networks,
                exe,
                cgroup,
                clear,
                stale,
                sizes,
            },
            move || Arc::clone(&host.borrow()),
        );
        let inputs = AgentInputs {
            told: stored.notices,
            roots,
            node,
            status,
            latest,
            pods,
            reported: Vec::new(),
            publisher: None,
            health,
            health_checks,
            makes_endpoints,
        };
        Engine::new(engine, kernel, inputs).run(&wakes);
    };
    let thread = thread::Builder::new().name("berth-services".to_owned()).spawn(run)?;
    Ok((wake, thread))
}

/// The cgroup to whose sockets the hooks are attached.
pub(crate) fn hooks(roots: &Roots) -> Option<PathBuf> {
    berth_services::hooks_group(roots)
        .inspect_err(
            |error| tracing::warn!(%error, "cannot find the cgroup2 hierarchy; sockets get no hooks"),
        )
        .ok()?
}
