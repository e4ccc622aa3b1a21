//! The wiring of the agent: its parts, their connections, and the order in which they start and
//! end.

mod api_error;
pub(crate) mod args;
mod certificates;
mod client_command;
mod cluster;
mod cluster_dns;
mod control_plane;
mod credential_providers;
mod csi;
mod exec_session;
mod host_network;
mod housekeeping;
mod image_args;
mod image_collection;
mod image_requests;
mod local_api;
mod local_server;
mod memory;
mod node;
mod node_api;
mod plain_http;
mod provisioner;
mod proxy_health;
mod service_inputs;
mod services;
mod services_health;
mod services_only;
mod sources;
mod statistics;
mod status_manager;

use self::{
    args::{AgentArgs, masquerade, node_info, service_options},
    certificates::ServingTls,
    cluster::ControlPlane,
    cluster_dns::ClusterDns,
    image_collection::ImageCollection,
    local_api::LocalApi,
    service_inputs::PodsOfNode,
    services::{EngineInputs, HealthChecks, ServicesConfig},
    services_health::ServicesHealth,
    statistics::NodeStatistics,
    status_manager::StatusManager,
};
use crate::{dns::DEFAULT_DOMAIN, lock};
use anyhow::{Context as _, bail};
use berth_cluster::ImageAccounts;
use berth_core::roots::Roots;
use berth_executor::{NodeConfig, NodeExecutor, pump};
use berth_network::{Network, NetworkConfig};
use berth_node::cgroup::CgroupTree;
use berth_pods::{ManagerConfig, MemoryStore};
use berth_probe::{Prober, ProberConfig};
use berth_runtime::{RuntimeConfig, spec::HostFacts};
use berth_services::{ClearPods, HostNetworkConfig, OnStale, PodNetworks};
use berth_source::{ServiceRanges, provisioned::ProvisionedVolumes};
use berth_sys::{clock, mount, service};
use berth_volumes::{CsiDrivers, Volumes};
use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};

/// Deadline for the manager to end.
const GOODBYE: Duration = Duration::from_secs(5);

/// Runs the agent until SIGTERM or SIGINT. The pods keep running.
pub(crate) fn run(roots: Roots, mut args: AgentArgs) -> anyhow::Result<()> {
    if !args.standalone && args.kubeconfig.is_none() {
        bail!("give --kubeconfig FILE to join a cluster, or --standalone and --manifests DIR");
    }
    if args.standalone && args.manifests.is_none() && args.static_pods.is_none() {
        bail!("--standalone needs --manifests DIR or --static-pods DIR");
    }
    if let Some(fault) = args.images.policy().fault() {
        bail!("{fault}");
    }
    args.images.verification().map_err(anyhow::Error::msg)?;
    if args.serve_dns {
        args.cluster_domain.get_or_insert_with(|| DEFAULT_DOMAIN.to_owned());
    }
    berth_sys::memory::bound_arenas();
    crate::logging::to_stderr();
    crate::helper();
    // The agent has about seven descriptors a pod open. Containers get the limit from before.
    let open_files = match service::raise_descriptor_limit() {
        Ok(before) => Some(before),
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files; many pods may run out of them");
            None
        }
    };
    let of_pods = (!args.services_only).then_some(&roots.pod_state);
    for dir in [&roots.runtime_state, &roots.lasting_state].into_iter().chain(of_pods) {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let _lock = lock::take(&roots.agent_lock())?;
    if let Some(pods) = of_pods {
        mount::make_rshared(&roots.runtime_state).context("share mounts below the runtime state")?;
        mount::make_rshared(pods).context("share mounts below the pod state")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.spawn(memory::give_back());
    let done = if args.services_only {
        runtime.block_on(services_only::serve(roots.clone(), args))
    } else {
        runtime.block_on(serve(roots.clone(), args, open_files))
    };
    // Blocking work that hangs (a stuck mount) must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// Tells the service manager that the agent is ready, and waits for SIGTERM or SIGINT.
async fn ready_until_told_to_end() -> anyhow::Result<()> {
    if let Err(error) = service::ready() {
        tracing::warn!(%error, "cannot report readiness to the service manager");
    }
    told_to_end().await
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn told_to_end() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

async fn serve(roots: Roots, args: AgentArgs, open_files: Option<(u64, u64)>) -> anyhow::Result<()> {
    let sockets = args.kubeconfig.is_some().then(|| args.node_api.listen()).transpose()?;
    let boot = clock::boot_id(&roots.boot_id).context("read the boot id")?;
    let exe = std::env::current_exe().context("find this program")?;

    let cgroups = CgroupTree::open(&roots).context("find the cgroup hierarchies")?;
    cgroups.prepare().context("make the cgroups")?;
    let node = node_info(&args, &roots);
    if let Err(error) = cgroups.limit_all(&node.allocatable) {
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
        // Running pods are not affected. New sandboxes fail with the reason until this works, and
        // `berth status` shows it.
        let error = anyhow::Error::new(error);
        tracing::error!(
            error = format!("{error:#}"),
            "cannot prepare the host's network; tried again with the next pod"
        );
    }
    housekeeping::remove_unfinished_files(&roots);
    let prober = ProberConfig {
        helper_group: group(&cgroups, "probe-exec"),
        ..ProberConfig::new("/proc/self/exe", cgroups.roots())
    };
    let prober = Prober::new(prober).context("set up probes")?;

    let logd = Arc::new(berth_logd::client::Client::new(roots.logd_socket()));
    let roots_file = roots.roots_file();
    let text = serde_json::to_vec_pretty(&roots).context("encode the roots")?;
    berth_sys::fs::write_atomic(&roots_file, &text, 0o600).context("write the roots file")?;
    let spawn_logd = async || {
        let args = ["logd".as_ref(), "--roots".as_ref(), roots_file.as_os_str()];
        let pid = berth_helper::spawn_detached(&roots.logd_output(), &exe, args)?;
        if let Err(error) = cgroups.join_helper("logd", pid) {
            tracing::warn!(%error, "logd runs outside its cgroup");
        }
        Ok(())
    };

    let served: &[IpAddr] = if args.serve_dns { &args.cluster_dns } else { &[] };
    let dns = ClusterDns::new(&roots, &roots_file, &exe, &cgroups, served, args.cluster_domain.as_deref());
    let dns_health = dns.as_ref().map(ClusterDns::health_check);
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
    let (node, node_object, following_node) = node::publish(node, host_network.clone());
    let mut host = HostFacts::read("/proc".as_ref(), "/sys".as_ref(), "/dev".as_ref(), &roots.cgroup_mount)
        .context("look at the node")?;
    host.open_files = open_files;
    let ranges = ServiceRanges {
        networks: args.service_cidrs.clone(),
        node_ports: berth_core::ports::NODE_PORTS,
        reserved: args.cluster_dns.clone(),
    };
    let service_options = service_options(&args, node::memory());
    let cache = berth_server::WatchCache::default();
    let serving_tls = ServingTls::of(&args);
    let control_plane = match &args.kubeconfig {
        Some(kubeconfig) => {
            Some(ControlPlane::open(kubeconfig.clone(), &roots, &args, serving_tls.clone()).await?)
        }
        None => None,
    };
    let dirs = (args.manifests.clone(), args.static_pods.clone());
    let snapshots = control_plane.as_ref().map(ControlPlane::snapshots);
    let labels = node.borrow().labels.clone();
    // A control plane has its own provisioners.
    let made = control_plane.is_none().then(ProvisionedVolumes::new).transpose();
    let (made, provisioned) = made.context("make a pair of sockets")?.unzip();
    let (sources, desired) = sources::start(&roots, dirs, ranges, &labels, provisioned, snapshots, &cache);
    let plugins = credential_providers::open(
        args.images.image_credential_provider_config.as_deref(),
        args.images.image_credential_provider_bin_dir.as_deref(),
        control_plane.as_ref().map(|control_plane| ImageAccounts::new(control_plane.pool())),
    )?;
    let config = NodeConfig {
        roots: roots.clone(),
        boot: boot.clone(),
        node: node.clone(),
        pids_limit: args.pod_pids_limit,
        host,
        services: sources::lister(&sources.latest),
        plugins,
        verification: args.images.verification().map_err(anyhow::Error::msg)?,
    };
    let registration = csi::start(&roots);
    let drivers = CsiDrivers::new(
        csi::find(registration.plugins()),
        tokio::runtime::Handle::current(),
        control_plane.as_ref().map(ControlPlane::volumes),
    );
    let volumes = Volumes::new(&roots).with_drivers(drivers);
    let executor = Arc::new(NodeExecutor::new(
        config,
        Arc::clone(&logd),
        network.clone(),
        volumes.clone(),
        cgroups.clone(),
        prober,
        incoming_tx.clone(),
    ));
    let events = control_plane.as_ref().map(ControlPlane::events);
    let status = Arc::new(StatusManager::new(cache.clone(), sources.latest.clone(), node.clone(), events));
    let health = ServicesHealth::default();
    let attached = network.clone();
    let images = ImageCollection::new(image_collection::Parts {
        policy: args.images.policy(),
        executor: Arc::clone(&executor),
        status: Arc::clone(&status),
        desired: desired.clone(),
        events: control_plane.as_ref().map(ControlPlane::events),
    });
    let api = LocalApi {
        images: images.clone(),
        roots: roots.clone(),
        cache,
        executor: Arc::clone(&executor),
        network,
        logd: Arc::clone(&logd),
        latest: sources.latest.clone(),
        host: host_network.clone(),
        services: (!args.no_services).then(|| health.clone()),
        dns: dns_health,
        csi: registration.plugins(),
        control_plane: control_plane.as_ref().map(ControlPlane::health),
        since: clock::wall(),
        pods: incoming_tx,
    };
    let proxy = (!args.no_services)
        .then(|| control_plane.as_ref().map(ControlPlane::node))
        .flatten()
        .map(|node| proxy_health::start(&args.proxy, health.clone(), node));
    let node_api = match (&control_plane, sockets) {
        (Some(control_plane), Some(sockets)) => {
            let (api, status, pool) = (api.clone(), Arc::clone(&status), control_plane.pool());
            let serving = serving_tls;
            let statistics = NodeStatistics::new(statistics::Parts {
                roots: roots.clone(),
                node: node.clone(),
                status: Arc::clone(&status),
                executor: Arc::clone(&executor),
                cgroups: cgroups.clone(),
                desired: desired.clone(),
                csi: registration.plugins(),
                pool: pool.clone(),
                serving: serving.clone(),
            });
            let statistics = Arc::new(statistics);
            let parts = node_api::Parts { roots: roots.clone(), api, status, pool, serving, statistics };
            Some(node_api::start(&args, sockets, parts).context("start the node's API")?)
        }
        _ => None,
    };
    let publishing = control_plane.map(|control_plane| {
        control_plane.publish(cluster::Facts {
            boot: boot.clone(),
            node: node.clone(),
            api: api.clone(),
            status: Arc::clone(&status),
            sources: sources.latest.clone(),
            node_object,
            csi: registration.plugins(),
            csi_refresher: registration.refresher(),
            volumes: volumes.clone(),
            port: args.node_api.port(),
        })
    });
    let serving = local_server::start(api, &status, &desired).await?;

    let runtime_config = RuntimeConfig {
        shim_binary: args.shim,
        shim_pool: args.shim_pool,
        shim_group: group(&cgroups, "shims"),
        runc_binary: args.runc,
        runc_root: Some(roots.runc_root()),
        ..RuntimeConfig::new(roots.clone(), boot.clone())
    };
    let pumping = tokio::spawn(pump(Arc::clone(&executor), runtime_config));
    let housekeeping = tokio::spawn(housekeeping::run(Arc::clone(&status), cgroups.clone()));
    let collecting = tokio::spawn(images.run());
    let provisioning = made.map(|out| {
        tokio::spawn(provisioner::run(provisioner::Parts {
            state: roots.lasting_state.clone(),
            latest: sources.latest.clone(),
            plugins: registration.plugins(),
            volumes: volumes.clone(),
            out,
        }))
    });
    let unstaging = tokio::spawn(housekeeping::unstage_volumes(volumes));

    let services = (!args.no_services).then(|| {
        let config = ServicesConfig {
            roots: roots.clone(),
            exe: exe.clone(),
            cgroup: services::hooks(&roots),
            networks: PodNetworks::pinned(&roots),
            clear: ClearPods::new(move |pod| attached.bypasses_host_stack(pod)),
            stale: OnStale::default(),
            self_test: args.kubeconfig.is_some(),
            options: service_options,
        };
        let inputs = EngineInputs {
            status: Arc::clone(&status),
            latest: sources.latest.clone(),
            pods: PodsOfNode::Own(Arc::clone(&executor)),
            host: host_network.clone(),
            node: node.clone(),
            health,
            health_checks: HealthChecks::default(),
            makes_endpoints: args.kubeconfig.is_none(),
        };
        services::start(config, inputs, sources.latest.clone())
    });

    let (stop, stopped) = oneshot::channel();
    let store = MemoryStore::open(&roots, &boot).context("open the memory store")?;
    let manager = tokio::spawn(berth_pods::run(ManagerConfig {
        executor: Arc::clone(&executor),
        reports: status,
        store,
        desired,
        incoming,
        stop: stopped,
    }));
    tracing::info!(node = %roots.node_name, "agent runs");
    tokio::select! {
        told = ready_until_told_to_end() => told?,
        never = berth_logd::supervise(&roots, &logd, spawn_logd) => match never {},
        never = dns => match never {},
    }
    tracing::info!("agent ends; pods keep running");
    // The receiver is gone where the manager has ended by itself.
    stop.send(()).ok();
    if tokio::time::timeout(GOODBYE, manager).await.is_err() {
        tracing::warn!("pods' workers have not ended in time");
    }
    if let Some(services) = services {
        services.end();
    }
    if let Some(proxy) = proxy {
        proxy.end();
    }
    if let Some(node_api) = node_api {
        node_api.shutdown().await;
    }
    serving.shutdown().await;
    let tasks = [pumping, housekeeping, collecting, unstaging, following, following_node];
    for task in tasks.into_iter().chain(provisioning) {
        task.abort();
    }
    drop((publishing, registration));
    sources.shutdown().await.context("end the sources")?;
    if let Ok(runtime) = executor.runtime() {
        runtime.shutdown().await;
    }
    Ok(())
}

/// The cgroup of a helper, outside of the agent's own, so that the service manager does not end it
/// with the agent.
fn group(cgroups: &CgroupTree, name: &str) -> Option<PathBuf> {
    cgroups.helper_group(name).unwrap_or_else(|error| {
        tracing::warn!(%error, name, "helpers stay in the agent's cgroup");
        None
    })
}
