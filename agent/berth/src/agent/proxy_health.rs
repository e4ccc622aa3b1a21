//! kube-proxy's ports for health and metrics ([`berth_nodeapi::proxy`]): their options, and the tasks that serve them. A
//! node of a control plane has them, whoever runs its pods.
//!
//! The node is healthy while Services are answered: the hooks are attached, the tables follow the API server's objects, and a
//! self-test's connections are answered.
//!
//! kube-proxy has the same ports. While one runs they are its own: each is tried again until it is free.

use super::{plain_http, services_health::ServicesHealth};
use berth_cluster::publish::node::NewestNode;
use berth_core::metrics::ReadFamily;
use berth_nodeapi::{
    Boxed,
    proxy::{self, Proxy},
};
use berth_sys::clock;
use serde_json::Value;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::{sync::watch, task::JoinHandle};

/// What the cluster autoscaler marks a node with that it is about to delete.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Options of the proxy's health.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProxyArgs {
    /// Address of the health of Services (`/healthz`, `/livez`) on a node of a control plane.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    proxy_healthz_bind_address: IpAddr,
    /// Port of the health of Services; 0: none.
    #[arg(long, value_name = "PORT", default_value_t = 10256)]
    proxy_healthz_port: u16,
    /// Address of the metrics of Services (`/metrics`, `/proxyMode`) on a node of a control plane.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    proxy_metrics_bind_address: IpAddr,
    /// Port of the metrics of Services; 0: none.
    #[arg(long, value_name = "PORT", default_value_t = 10249)]
    proxy_metrics_port: u16,
    /// A second port of the health of Services, on the loopback address, that no kube-proxy has: for this agent's own
    /// probes. None without it.
    #[arg(long, value_name = "PORT", requires = "services_only")]
    probe_port: Option<u16>,
}

/// The running servers. They end with this value.
pub(super) struct ProxyHealth {
    stop: watch::Sender<()>,
    tasks: Vec<JoinHandle<()>>,
}

impl ProxyHealth {
    /// Ends the servers.
    pub(super) fn end(self) {
        drop(self.stop);
        for task in self.tasks {
            task.abort();
        }
    }
}

/// Starts the servers.
pub(super) fn start(args: &ProxyArgs, services: ServicesHealth, node: NewestNode) -> ProxyHealth {
    let (stop, stopped) = watch::channel(());
    let health = proxy::health(Arc::new(Served { services, node }));
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ports = [
        (args.proxy_healthz_bind_address, args.proxy_healthz_port, Arc::clone(&health)),
        (args.proxy_metrics_bind_address, args.proxy_metrics_port, proxy::metrics(metrics)),
        (loopback, args.probe_port.unwrap_or_default(), health),
    ];
    let served = ports.into_iter().filter(|(_, port, _)| *port != 0);
    let tasks = served.map(|(address, port, answer)| {
        tokio::spawn(plain_http::serve(SocketAddr::new(address, port), answer, stopped.clone(), |_taken| ()))
    });
    ProxyHealth { tasks: tasks.collect(), stop }
}

/// What the data plane, the client of the API server and the health count, and what the process uses.
fn metrics() -> Vec<u8> {
    let mut families: Vec<&'static dyn ReadFamily> = Vec::new();
    families.extend(berth_services::metrics::families());
    families.extend(proxy::families());
    families.extend(berth_kube::metrics::families());
    berth_stats::render::agent::render_process(
        berth_stats::process::read_own().as_ref(),
        clock::booted(),
        &families,
    )
}

struct Served {
    services: ServicesHealth,
    node: NewestNode,
}

impl Proxy for Served {
    fn answers(&self) -> Boxed<'_, Result<(), String>> {
        Box::pin(self.services.answers())
    }

    fn lives(&self) -> bool {
        self.services.carries()
    }

    fn is_eligible(&self) -> bool {
        // A Node that is not known yet says nothing against it.
        self.node.get().is_none_or(|node| is_eligible(&node))
    }
}

fn is_eligible(node: &Value) -> bool {
    let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
    node["metadata"]["deletionTimestamp"].is_null() && !taints.any(|taint| taint["key"] == TO_BE_DELETED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_eligible_until_it_is_deleted_or_the_autoscaler_marks_it() {
        assert!(is_eligible(&json!({"metadata": {}, "spec": {"taints": [{"key": "other"}]}})));
        assert!(!is_eligible(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})));
        assert!(!is_eligible(&json!({"spec": {"taints": [{"key": TO_BE_DELETED}]}})));
    }
}
