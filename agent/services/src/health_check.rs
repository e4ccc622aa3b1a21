//! Health of a Service on this node, as load balancers ask for it at the Service's `healthCheckNodePort`.

use crate::NodeFacts;
use berth_core::model::{EndpointSlice, Service, ServiceType, TrafficPolicy};
use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

/// A port at which load balancers ask whether this node has endpoints of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service's `metadata.uid`.
    pub uid: Arc<str>,
    /// `healthCheckNodePort`.
    pub port: u16,
    /// Number of the node's ready endpoints; without one the node is to get no traffic.
    pub local_endpoints: usize,
}

/// The health check of a Service; `None` where it has none. Only a LoadBalancer that sends traffic to the endpoints of each
/// node alone has one (`NeedsHealthCheck`, `pkg/api/v1/service/util.go`). Endpoints are counted by address
/// (`LocalReadyEndpoints`, `pkg/proxy/endpointschangetracker.go`). kube-proxy counts each address family by itself; here the
/// family with more of them counts.
pub(crate) fn health_check(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    node: &NodeFacts,
) -> Option<HealthCheck> {
    let port = service.health_check_node_port?;
    if service.kind != ServiceType::LoadBalancer || service.external_policy != TrafficPolicy::Local {
        return None;
    }
    let local_of = |v6: bool| -> BTreeSet<IpAddr> {
        let endpoints = slices.iter().filter(|slice| slice.v6 == v6).flat_map(|slice| &slice.endpoints);
        let local =
            endpoints.filter(|e| e.ready && !node.name.is_empty() && e.node.as_ref() == Some(&node.name));
        local.map(|e| e.address).collect()
    };
    let local_endpoints = local_of(false).len().max(local_of(true).len());
    Some(HealthCheck { uid: Arc::clone(&service.uid), port, local_endpoints })
}
