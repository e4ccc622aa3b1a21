//! The agent's wiring on one page: what is made, what is handed to whom, in which order it starts and ends.

use crate::{
    backend::Local,
    board::Board,
    dns::Dns,
    host_network, local, lock, node,
    services::{self, Given, Limits, ServicesConfig, Sight},
    sources,
};
use anyhow::{Context as _, bail};
use berth_core::{model::NodeLabels, roots::Roots};
use berth_network::{MasqueradeConfig, Network, NetworkConfig};
use berth_node::cgroup::CgroupTree;
use berth_pods::{
    ManagerConfig, Store,
    node::{HostIps, NodeConfig, NodeExecutor, pump, recursive_read_only},
};
use berth_probe::{Prober, ProberConfig};
use berth_runtime::{RuntimeConfig, spec::HostFacts};
use berth_services::ClearPods;
use berth_services::HostNetworkConfig;
use berth_source::ServiceRanges;
use berth_sys::{clock, memory, mount, service};
use berth_volumes::Volumes;
use clap::Args;
use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};

/// How long the manager may take to end.
const GOODBYE: Duration = Duration::from_secs(5);

/// The label of the node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Pods have come to rest when nothing of them has changed for so long.
const REST: Duration = Duration::from_secs(3);

/// Options of `berth agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Run without a control plane.
    #[arg(long)]
    standalone: bool,
    /// Run the pods of this directory of manifests.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Run the pods of this directory by the kubelet's rules for static pods (`staticPodPath`).
    #[arg(long, value_name = "DIR")]
    static_pods: Option<PathBuf>,
    /// The node's addresses; where not given, the address of the default route's device, followed as it changes.
    #[arg(long = "node-ip", value_name = "IP")]
    node_ips: Vec<IpAddr>,
    /// A label of the node, for pods' node selectors and affinity; besides those that every node has
    /// (`kubernetes.io/hostname`, `/os`, `/arch`).
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = node::label)]
    node_labels: Vec<(String, String)>,
    /// Addresses of the cluster's DNS.
    #[arg(long, value_name = "IP")]
    cluster_dns: Vec<IpAddr>,
    /// Answer the cluster's names on this node, at the addresses of --cluster-dns.
    #[arg(long, requires = "cluster_dns")]
    serve_dns: bool,
    /// The cluster's DNS domain; with --serve-dns `cluster.local` where not given.
    #[arg(long, value_name = "DOMAIN")]
    cluster_domain: Option<String>,
    /// Networks of Services' addresses, one of each family at most; a Service that names no address gets one of the
    /// first.
    #[arg(long = "service-cidr", value_name = "CIDR", value_parser = services::network, default_value = "10.96.0.0/16")]
    service_cidrs: Vec<(IpAddr, u8)>,
    /// A device that brings what comes from outside, for NodePorts; without, those of the default routes and every other
    /// with an address of the node, but none where the socket hooks are on a part of the machine only.
    #[arg(long = "uplink", value_name = "DEVICE")]
    uplinks: Vec<String>,
    /// Run pods without Services.
    #[arg(long)]
    no_services: bool,
    /// Masquerade what pods send out of the cluster.
    #[arg(long)]
    masquerade: bool,
    /// With --masquerade: what pods send there keeps its source; give the pod networks of the other nodes.
    #[arg(long = "non-masquerade-cidr", value_name = "CIDR", requires = "masquerade")]
    non_masquerade_cidrs: Vec<ipnet::IpNet>,
    /// Ways into Services over IPv4 that the node has room for (two or three a port); half as many over IPv6. Like the
    /// next two for maps that are made anew: after `berth reset` or a boot.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    max_service_entries: Option<u32>,
    /// Backends of Services with affinity, and chunks of 16 backends of Services with more than four, likewise.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    max_backend_entries: Option<u32>,
    /// Clients that stay with a backend (sessionAffinity: ClientIP), likewise; beyond it the longest unseen are forgotten.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    max_affinity_entries: Option<u32>,
    /// TCP connections in use over IPv4 that are translated packet by packet (by node ports, mostly); half as many over IPv6,
    /// half as many of UDP, a quarter as many that begin or end. 65536, or twice as many from 8 GiB of memory on. Likewise.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    max_connections: Option<u32>,
    /// Processes a pod may have at most.
    #[arg(long, value_name = "N")]
    pod_pids_limit: Option<i64>,
    /// The runc shim's binary; looked up where not given.
    #[arg(long, value_name = "FILE")]
    shim: Option<PathBuf>,
    /// The OCI runtime's binary; looked up where not given.
    #[arg(long, value_name = "FILE")]
    runc: Option<PathBuf>,
    /// Shims kept ready.
    #[arg(long, default_value_t = 2, value_name = "N")]
    shim_pool: usize,
}

/// Runs the agent until it is told to stop. The pods run on.
pub(crate) fn run(roots: Roots, mut args: AgentArgs) -> anyhow::Result<()> {
    if !args.standalone {
        bail!("this build runs standalone nodes only: give --standalone and --manifests DIR");
    }
    if args.manifests.is_none() && args.static_pods.is_none() {
        bail!("--standalone needs --manifests DIR or --static-pods DIR");
    }
    if args.serve_dns {
        args.cluster_domain.get_or_insert_with(|| services::DOMAIN.to_owned());
    }
    memory::bound_arenas();
    crate::logging::to_stderr();
    crate::helper();
    // Some seven descriptors a pod. Containers get what they would have without.
    let open_files = match service::raise_descriptor_limit() {
        Ok(before) => Some(before),
        Err(error) => {
            tracing::warn!(%error, "limit of open files cannot be raised");
            None
        }
    };
    for dir in [&roots.runtime_state, &roots.lasting_state, &roots.pod_state] {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let _lock = lock::take(&roots.runtime_state)?;
    mount::make_rshared(&roots.runtime_state).context("share mounts below the runtime state")?;
    mount::make_rshared(&roots.pod_state).context("share mounts below the pod state")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let done = runtime.block_on(serve(roots, args, open_files));
    // Blocking work that hangs (a stuck mount) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// Removes the temporary files of state that an agent was writing when it was killed.
fn remove_unfinished_files(roots: &Roots) {
    for dir in [&roots.runtime_state, &roots.lasting_state] {
        let below = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let below =
            below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
        for dir in std::iter::once(dir.clone()).chain(below) {
            if let Err(error) = berth_sys::fs::remove_unfinished(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "cannot remove unfinished files");
            }
        }
    }
}

async fn serve(roots: Roots, args: AgentArgs, open_files: Option<(u64, u64)>) -> anyhow::Result<()> {
    let boot = clock::boot_id(&roots.boot_id).context("read the boot id")?;
    let exe = std::env::current_exe().context("find this program")?;

    let cgroups = CgroupTree::open(&roots).context("find the cgroup hierarchies")?;
    cgroups.prepare().context("make the cgroups")?;
    let allocatable = node::allocatable(&roots);
    if let Err(error) = cgroups.limit_all(&allocatable) {
        let error = anyhow::Error::new(error);
        tracing::warn!(
            error = format!("{error:#}"),
            "cannot limit all pods together to the node's resources"
        );
    }
    let masquerade = masquerade(&args);
    let network = Network::open(&roots, NetworkConfig { masquerade, ..NetworkConfig::default() })
        .context("open the network")?;
    if let Err(error) = network.prepare_host().await {
        // What runs goes on; new sandboxes fail with the reason until it works, and `berth status` tells.
        let error = anyhow::Error::new(error);
        tracing::error!(
            error = format!("{error:#}"),
            "cannot prepare the host's network; tried again with the next pod"
        );
    }
    remove_unfinished_files(&roots);
    let prober = ProberConfig {
        helper_group: group(&cgroups, "probe-exec"),
        ..ProberConfig::new("/proc/self/exe", cgroups.roots())
    };
    let prober = Prober::new(prober).context("set up probes")?;

    let logd = Arc::new(berth_logd::client::Client::new(roots.logd_socket()));
    let roots_file = roots.runtime_state.join("roots.json");
    let text = serde_json::to_vec_pretty(&roots).context("encode the roots")?;
    berth_sys::fs::write_atomic(&roots_file, &text, 0o600).context("write the roots file")?;
    let spawn_logd = async || {
        let args = ["logd".as_ref(), "--roots".as_ref(), roots_file.as_os_str()];
        let pid = berth_logd::spawn_detached(&roots, &exe, args)?;
        if let Err(error) = cgroups.join_helper("logd", pid) {
            tracing::warn!(%error, "logd runs outside its cgroup");
        }
        Ok(())
    };

    let served: &[IpAddr] = if args.serve_dns { &args.cluster_dns } else { &[] };
    let dns = Dns::new(&roots, &roots_file, &exe, &cgroups, served, args.cluster_domain.as_deref());
    let watched_dns = dns.as_ref().map(Dns::watched);
    let dns = async {
        match &dns {
            Some(dns) => dns.supervise().await,
            None => std::future::pending().await,
        }
    };

    let (incoming_tx, incoming) = mpsc::channel(1024);
    let (host_network, following) = host_network::start(HostNetworkConfig {
        node_ips: args.node_ips.clone(),
        uplinks: args.uplinks.clone(),
        cluster_dns: args.cluster_dns.clone(),
        whole_machine: roots.cgroup_hooks.as_os_str().is_empty(),
        service_networks: if args.no_services { Vec::new() } else { args.service_cidrs.clone() },
    });
    let host_ips = {
        let host = host_network.clone();
        HostIps::new(move || host.borrow().host_ips())
    };
    let mut host = HostFacts::read("/proc".as_ref(), "/sys".as_ref(), "/dev".as_ref(), &roots.cgroup_mount)
        .context("look at the node")?;
    host.open_files = open_files;
    let labels = node::labels(&roots, &args.node_labels);
    let ranges = ServiceRanges {
        networks: args.service_cidrs.clone(),
        node_ports: berth_core::ports::NODE_PORTS,
        reserved: args.cluster_dns.clone(),
    };
    let given = given(&args, &labels, node::memory());
    let cache = berth_server::WatchCache::default();
    let (sources, desired) =
        sources::start(&roots, args.manifests.clone(), args.static_pods.clone(), ranges, &cache);
    let config = NodeConfig {
        roots: roots.clone(),
        boot: boot.clone(),
        host_ips,
        cluster_dns: args.cluster_dns.clone(),
        cluster_domain: args.cluster_domain.clone(),
        pids_limit: args.pod_pids_limit,
        allocatable,
        labels: labels.clone(),
        host,
        services: sources::lister(&sources.latest),
        recursive_read_only: recursive_read_only(),
    };
    let executor = Arc::new(NodeExecutor::new(
        config,
        Arc::clone(&logd),
        network.clone(),
        Volumes::new(&roots),
        cgroups.clone(),
        prober,
        incoming_tx.clone(),
    ));
    let board = Arc::new(Board::new(cache.clone(), Arc::clone(&sources.latest), host_network.clone()));
    let health = services::Shown::default();
    let attached = network.clone();
    let local = Local {
        roots: roots.clone(),
        cache,
        executor: Arc::clone(&executor),
        network,
        logd: Arc::clone(&logd),
        dirs: args.manifests.iter().chain(&args.static_pods).cloned().collect(),
        latest: Arc::clone(&sources.latest),
        host: host_network.clone(),
        services: (!args.no_services).then(|| health.clone()),
        dns: watched_dns,
        since: clock::wall(),
        pods: incoming_tx,
    };
    let serving = local::start(local, &board, &desired).await?;

    let runtime_config = RuntimeConfig {
        shim_binary: args.shim,
        shim_pool: args.shim_pool,
        shim_group: group(&cgroups, "shims"),
        runc_binary: args.runc,
        runc_root: Some(roots.runtime_state.join("runc")),
        ..RuntimeConfig::new(roots.clone(), boot.clone())
    };
    let pumping = tokio::spawn(pump(Arc::clone(&executor), runtime_config));
    let house = tokio::spawn(keep_house(Arc::clone(&board), cgroups.clone()));

    let services = (!args.no_services).then(|| {
        let config = ServicesConfig {
            roots: roots.clone(),
            exe: exe.clone(),
            cgroup: services::hooks(&roots),
            clear: ClearPods::new(move |pod| attached.stays_clear_of_host(pod)),
            given,
        };
        let sight = Sight {
            board: Arc::clone(&board),
            latest: Arc::clone(&sources.latest),
            executor: Arc::clone(&executor),
            host: host_network.clone(),
            health,
        };
        services::start(config, sight, sources.changed.clone())
    });

    let (stop, stopped) = oneshot::channel();
    let store = Store::open(&roots, &boot).context("open the memory store")?;
    let manager = tokio::spawn(berth_pods::run(ManagerConfig {
        executor: Arc::clone(&executor),
        reports: board,
        store,
        desired,
        incoming,
        stop: stopped,
    }));
    tracing::info!(node = %roots.node_name, "agent runs");
    if let Err(error) = service::ready() {
        tracing::warn!(%error, "the service manager is not told that the agent is ready");
    }

    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        never = berth_logd::supervise(&roots, &logd, spawn_logd) => match never {},
        never = dns => match never {},
    }
    tracing::info!("agent ends; pods run on");
    // Where the manager has ended by itself nobody listens.
    stop.send(()).ok();
    if tokio::time::timeout(GOODBYE, manager).await.is_err() {
        tracing::warn!("pods' workers did not end in time");
    }
    if let Some(services) = services {
        services.end();
    }
    serving.shutdown().await;
    for task in [pumping, house, following] {
        task.abort();
    }
    sources.shutdown().await.context("end the sources")?;
    if let Ok(runtime) = executor.runtime() {
        runtime.shutdown().await;
    }
    Ok(())
}

/// What pods send out of the cluster is masqueraded so.
fn masquerade(args: &AgentArgs) -> Option<MasqueradeConfig> {
    args.masquerade.then(|| MasqueradeConfig { non_masquerade_cidrs: args.non_masquerade_cidrs.clone() })
}

/// What options and labels say of Services, on a machine with so many bytes of memory.
fn given(args: &AgentArgs, labels: &NodeLabels, memory: Option<u64>) -> Given {
    let limits = Limits {
        services: args.max_service_entries,
        backends: args.max_backend_entries,
        affinity: args.max_affinity_entries,
        connections: args.max_connections,
    };
    Given {
        zone: labels.get(ZONE).cloned().unwrap_or_default(),
        networks: args.service_cidrs.clone(),
        sizes: limits.sizes(memory),
        domain: args.cluster_domain.clone().unwrap_or_else(|| services::DOMAIN.to_owned()),
    }
}

/// The cgroup of helpers that are to be no part of the service that starts them.
fn group(cgroups: &CgroupTree, name: &str) -> Option<PathBuf> {
    cgroups.helper_group(name).unwrap_or_else(|error| {
        tracing::warn!(%error, name, "helpers stay in the agent's cgroup");
        None
    })
}

/// The QoS groups follow the sum of what their pods ask for; when pods have come to rest, the memory that their changes
/// took is given back.
async fn keep_house(board: Arc<Board>, cgroups: CgroupTree) {
    let mut restless = false;
    loop {
        let changed = board.changed.notified();
        if !restless {
            changed.await;
        } else if tokio::time::timeout(REST, changed).await.is_err() {
            restless = false;
            let given_back = tokio::task::spawn_blocking(|| {
                memory::give_back();
                memory::let_go_of_text();
            });
            if given_back.await.is_err() {
                tracing::warn!("memory was not given back");
            }
            continue;
        }
        restless = true;
        // One update for a burst.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (board, cgroups) = (Arc::clone(&board), cgroups.clone());
        let updated = tokio::task::spawn_blocking(move || {
            let pods = board.active_pods();
            cgroups.update_qos(&pods.iter().map(AsRef::as_ref).collect::<Vec<_>>())
        });
        if let Ok(Err(error)) = updated.await {
            tracing::warn!(%error, "QoS cgroups not updated");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: AgentArgs,
    }

    fn given_by(options: &[&str]) -> (Given, Option<MasqueradeConfig>) {
        let Command { args } = Command::try_parse_from([&["agent"], options].concat()).unwrap();
        let roots = Roots::defaults("n1".parse().unwrap());
        let labels = node::labels(&roots, &args.node_labels);
        (given(&args, &labels, Some(1 << 30)), masquerade(&args))
    }

    #[test]
    fn options_reach_services_and_the_masquerade() {
        let (given, masquerade) = given_by(&[]);
        assert_eq!((given.zone.as_str(), given.domain.as_str()), ("", "cluster.local"));
        assert_eq!((given.sizes, masquerade), (berth_services::Sizes::default(), None));
        let (given, masquerade) = given_by(&[
            "--node-label=topology.kubernetes.io/zone=east",
            "--cluster-domain=example",
            "--service-cidr=10.7.0.0/16",
            "--masquerade",
            "--non-masquerade-cidr=10.8.0.0/16",
            "--non-masquerade-cidr=fd00:8::/64",
            "--max-service-entries=16",
            "--max-backend-entries=18",
            "--max-affinity-entries=20",
            "--max-connections=64",
        ]);
        assert_eq!((given.zone.as_str(), given.domain.as_str()), ("east", "example"));
        assert_eq!(given.networks, [("10.7.0.0".parse().unwrap(), 16)]);
        let sizes = given.sizes;
        assert_eq!((sizes.services, sizes.members, sizes.affinity), ([16, 8], [18, 9], [20, 10]));
        assert_eq!(sizes.assured, [64, 32]);
        let exempt = masquerade.unwrap().non_masquerade_cidrs;
        assert_eq!(exempt, ["10.8.0.0/16".parse().unwrap(), "fd00:8::/64".parse().unwrap()]);
        // Without a masquerade it says nothing.
        assert!(Command::try_parse_from(["agent", "--non-masquerade-cidr=10.8.0.0/16"]).is_err());
    }
}
