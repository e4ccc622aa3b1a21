//! The ports at which load balancers ask for the health of Services (`healthCheckNodePort`): a plain HTTP server each, as
//! kube-proxy has them.
//!
//! Owns a task for each port; they end with the Service, and with the agent. A port that another program has, a kube-proxy
//! that still runs for example, is tried again until it is free; the Service's owner hears of it by an event.

use super::super::{plain_http, services_health::ServicesHealth, status_manager::StatusManager};
use berth_core::{
    event::{Event, EventRecord, Involved},
    ids::{NodeName, PodKey},
};
use berth_nodeapi::{
    health::Answer,
    proxy::{ServiceHealth, service_health},
};
use berth_pods::Reports as _;
use berth_services::HealthCheck;
use berth_sys::clock;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// The health checks of all Services. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct HealthChecks(Arc<watch::Sender<BTreeMap<PodKey, HealthCheck>>>);

impl Default for HealthChecks {
    fn default() -> HealthChecks {
        HealthChecks(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

impl HealthChecks {
    /// Replaces all of them.
    pub(crate) fn set(&self, checks: BTreeMap<PodKey, HealthCheck>) {
        self.0.send_replace(checks);
    }
}

/// Serves the ports of the health checks. Never ends by itself; the servers end with this task.
pub(super) async fn serve(
    node: NodeName,
    checks: HealthChecks,
    health: ServicesHealth,
    status: Arc<StatusManager>,
) {
    let mut changed = checks.0.subscribe();
    let mut servers = JoinSet::new();
    let mut served: BTreeMap<(PodKey, u16), AbortHandle> = BTreeMap::new();
    loop {
        let wanted: BTreeMap<(PodKey, u16), Arc<str>> = changed
            .borrow_and_update()
            .iter()
            .map(|(key, check)| ((key.clone(), check.port), Arc::clone(&check.uid)))
            .collect();
        served.retain(|of, server| {
            let stays = wanted.contains_key(of);
            if !stays {
                server.abort();
            }
            stays
        });
        for (of, uid) in wanted {
            if served.contains_key(&of) {
                continue;
            }
            let (key, port) = of.clone();
            let answer = answer(key.clone(), changed.clone(), health.clone());
            let server = servers.spawn(serve_port(node.clone(), key, uid, port, answer, Arc::clone(&status)));
            served.insert(of, server);
        }
        // Ends that were asked for are taken out of the set.
        while servers.try_join_next().is_some() {}
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn answer(
    key: PodKey,
    checks: watch::Receiver<BTreeMap<PodKey, HealthCheck>>,
    health: ServicesHealth,
) -> Answer {
    service_health(move || {
        let health = health.clone();
        let (namespace, name) = (key.namespace.as_str().to_owned(), key.name.as_str().to_owned());
        let local_endpoints = checks.borrow().get(&key).map_or(0, |check| check.local_endpoints);
        Box::pin(async move {
            ServiceHealth { namespace, name, local_endpoints, answers: health.answers().await.is_ok() }
        })
    })
}

async fn serve_port(
    node: NodeName,
    key: PodKey,
    uid: Arc<str>,
    port: u16,
    answer: Answer,
    status: Arc<StatusManager>,
) {
    // The sender lives as long as this task.
    let (_alive, stop) = watch::channel(());
    plain_http::serve(every_address(port), answer, stop, |error| {
        // The reason and the text are kube-proxy's (`pkg/proxy/healthcheck/service_health.go`).
        let message =
            format!("node {node} failed to start healthcheck {:?} on port {port}: {error}", key.to_string());
        let involved = Involved::Service { key: key.clone(), uid: Arc::clone(&uid) };
        let event = Event::warning("FailedToStartServiceHealthcheck", message);
        status.event(EventRecord::once(involved, event, clock::wall()));
    })
    .await;
}

/// The port at every address of the node, in both families where the kernel has both.
fn every_address(port: u16) -> SocketAddr {
    if Path::new("/proc/net/if_inet6").exists() {
        (Ipv6Addr::UNSPECIFIED, port).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, port).into()
    }
}
