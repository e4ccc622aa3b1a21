//! The agent with `--services-only`: the Services of a control plane on a node whose pods a kubelet runs, in the place of
//! kube-proxy.
//!
//! Owns the same parts of the Service path as the whole agent: the source of Services and slices, the engine, the node's
//! addresses, the local socket. Pods are known by the API server, and their network namespaces by the processes of their
//! cgroups, whatever has attached them. Nothing of the node or of its pods is reported to the API server but the events of
//! Services; containerd is not asked.
//!
//! On failure it behaves as the whole agent: tables, programs and hooks stay in the kernel after the process, and the next
//! one adopts them.

mod kube_proxy;
mod local_api;

use super::{
    args::{AgentArgs, node_info, service_options},
    certificates::{self, CertificatesHealth, ServingTls},
    cluster::follow_node_object,
    control_plane::ControlPlaneHealth,
    host_network, node, proxy_health, ready_until_told_to_end,
    service_inputs::{PodsOfNode, ReportedPods},
    services::{self, EngineInputs, HealthChecks, ServicesConfig},
    services_health::ServicesHealth,
    sources,
    status_manager::StatusManager,
};
use anyhow::Context as _;
use berth_cluster::{
    ApiPods, ClusterSource, Task,
    publish::{
        RateLimit,
        events::{self, Events},
        node::{NewestNode, start_following},
    },
};
use berth_core::{model::NodeLabels, roots::Roots};
use berth_services::{ClearPods, HostNetworkConfig, KubeletPods, OnStale, PodNetworks};
use berth_source::{ServiceRanges, Source as _};
use berth_sys::clock;
use kube_proxy::KubeProxies;
use local_api::ServicesApi;
use std::sync::Arc;

/// Processes of the machine.
const PROC: &str = "/proc";

/// Runs until SIGTERM or SIGINT. Services are answered on.
pub(super) async fn serve(roots: Roots, args: AgentArgs) -> anyhow::Result<()> {
    let kubeconfig = args.kubeconfig.clone().context("--services-only needs --kubeconfig")?;
    let exe = std::env::current_exe().context("find this program")?;
    let (host, following_host) = host_network::start(HostNetworkConfig {
        node_ips: args.node_ips.clone(),
        uplinks: args.uplinks.clone(),
        cluster_dns: args.cluster_dns.clone(),
        whole_machine: roots.cgroup_hooks.as_os_str().is_empty(),
        service_networks: args.service_cidrs.clone(),
    });
    let (node, node_object, following_node) = node::publish(node_info(&args, &roots), host.clone());
    let pool = berth_cluster::certificates::open(kubeconfig.clone(), None)
        .await
        .context("open the connection to the control plane")?;
    let api = ApiPods::default();
    let source = ClusterSource::of_services(&pool, &roots.node_name, api.clone(), roots.cluster_inputs_dir());
    let newest = NewestNode::default();
    let followed = start_following(&pool, &roots.node_name, newest.clone());
    let objects = Task::spawn(follow_node_object(followed.newest(), node_object));
    let events = Events::new(roots.node_name.clone(), api.clone());
    let sending = events::start(pool.clone(), RateLimit::default(), events.clone());

    let cache = berth_server::WatchCache::default();
    let ranges = ServiceRanges {
        networks: args.service_cidrs.clone(),
        node_ports: berth_core::ports::NODE_PORTS,
        reserved: args.cluster_dns.clone(),
    };
    let (sources, desired) = sources::start(
        &roots,
        (None, None),
        ranges,
        &NodeLabels::new(),
        None,
        Some(source.snapshots()),
        &cache,
    );
    let status =
        Arc::new(StatusManager::new(cache.clone(), sources.latest.clone(), node.clone(), Some(events)));
    let health = ServicesHealth::default();
    let proxies = KubeProxies::watch(PROC.into(), health.clone());
    let control_plane = ControlPlaneHealth {
        pool,
        source: source.health(),
        api,
        unpublished: Default::default(),
        node: newest.clone(),
        certificates: CertificatesHealth::new(
            certificates::client(kubeconfig, &args, &roots).health,
            ServingTls::Own,
        ),
    };
    let local = ServicesApi {
        roots: roots.clone(),
        latest: sources.latest.clone(),
        host: host.clone(),
        services: health.clone(),
        control_plane,
        kube_proxies: proxies.found(),
        since: clock::wall(),
    };
    let serving = local_api::start(local, cache, desired).await?;
    let proxy = proxy_health::start(&args.proxy, health.clone(), newest);
    let engine = services::start(
        ServicesConfig {
            roots: roots.clone(),
            exe,
            cgroup: services::hooks(&roots),
            networks: PodNetworks::of_processes(KubeletPods::below(PROC)),
            // Rules of the host's stack may apply to the packets of every pod: network policies, for example.
            clear: ClearPods::default(),
            stale: OnStale::new(kube_proxy::forget_connections),
            self_test: true,
            options: service_options(&args, node::memory()),
        },
        EngineInputs {
            status,
            latest: sources.latest.clone(),
            pods: PodsOfNode::Kubelet(ReportedPods::default()),
            host,
            node,
            health,
            health_checks: HealthChecks::default(),
            makes_endpoints: false,
        },
        sources.latest.clone(),
    );
    tracing::info!(node = %roots.node_name, "serving Services; a kubelet runs the pods");
    ready_until_told_to_end().await?;
    tracing::info!("agent ends; Services are answered on");
    engine.end();
    proxy.end();
    proxies.end();
    serving.shutdown().await;
    for task in [following_host, following_node] {
        task.abort();
    }
    drop((followed, objects, sending, source));
    sources.shutdown().await.context("end the sources")
}
