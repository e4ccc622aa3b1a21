//! The ports of the proxy's health ([`berth_nodeapi::proxy`]): their options, and the tasks that serve them.
//!
//! The node is healthy while Services are answered: the hooks are attached and the tables follow the API server's objects.

use super::super::service_inputs::ServicesHealth;
use berth_cluster::publish::node::NewestNode;
use berth_nodeapi::{
    health, listen,
    proxy::{self, Proxy},
};
use serde_json::Value;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// What the cluster autoscaler marks a node with that it is about to delete.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Options of the proxy's health.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProxyArgs {
    /// Address of the health of Services (`/healthz`, `/livez`); with --services-only.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    proxy_healthz_bind_address: IpAddr,
    /// Port of the health of Services; 0: none.
    #[arg(long, value_name = "PORT", default_value_t = 10256)]
    proxy_healthz_port: u16,
    /// Address of `/proxyMode`; with --services-only.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    proxy_metrics_bind_address: IpAddr,
    /// Port of `/proxyMode`; 0: none.
    #[arg(long, value_name = "PORT", default_value_t = 10249)]
    proxy_metrics_port: u16,
}

/// The sockets, taken before the parts of the agent start.
pub(super) struct Sockets {
    health: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

impl ProxyArgs {
    /// Takes the ports.
    pub(super) fn listen(&self) -> Result<Sockets, berth_nodeapi::Error> {
        let on = |address, port| (port != 0).then(|| listen(SocketAddr::new(address, port))).transpose();
        Ok(Sockets {
            health: on(self.proxy_healthz_bind_address, self.proxy_healthz_port)?,
            metrics: on(self.proxy_metrics_bind_address, self.proxy_metrics_port)?,
        })
    }
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
pub(super) fn start(sockets: Sockets, services: ServicesHealth, node: NewestNode) -> ProxyHealth {
    let (stop, stopped) = watch::channel(());
    let served = Arc::new(Served { services, node });
    let on = |listener: Option<TcpListener>, answer| {
        Some(tokio::spawn(health::serve(answer, listener?, stopped.clone())))
    };
    let tasks = [on(sockets.health, proxy::health(served)), on(sockets.metrics, proxy::mode())];
    ProxyHealth { stop, tasks: tasks.into_iter().flatten().collect() }
}

struct Served {
    services: ServicesHealth,
    node: NewestNode,
}

impl Proxy for Served {
    fn answers(&self) -> bool {
        self.services.answers()
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
