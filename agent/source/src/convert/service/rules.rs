//! Fields of a Service that are allowed only together with others.

use crate::convert::field::{FieldError, FieldPath};
use berth_core::model::ServiceType;
use k8s_openapi::api::core::v1 as api;

/// Refuses fields that mean nothing without another one (`ValidateService`).
pub(super) fn fields_that_depend(
    at: &FieldPath<'_>,
    spec: &api::ServiceSpec,
    kind: ServiceType,
) -> Result<(), FieldError> {
    let refuse = |field: &str, reason: &str| Err(at.key(field).error(reason));
    let load_balancer = kind == ServiceType::LoadBalancer;
    let outside = load_balancer
        || kind == ServiceType::NodePort
        || spec.external_ips.as_ref().is_some_and(|l| !l.is_empty());
    if kind == ServiceType::ClusterIp {
        let ports = spec.ports.iter().flatten().enumerate();
        if let Some((index, _)) = ports.into_iter().find(|(_, p)| p.node_port.is_some_and(|n| n != 0)) {
            let at = &at.key("ports");
            return Err(at.index(index).key("nodePort").error("may not be used when type is ClusterIP"));
        }
    }
    if spec.session_affinity.as_deref().unwrap_or_default() != "ClientIP"
        && spec.session_affinity_config.is_some()
    {
        return refuse("sessionAffinityConfig", "must not be set when sessionAffinity is None");
    }
    if !load_balancer && spec.load_balancer_source_ranges.as_ref().is_some_and(|l| !l.is_empty()) {
        return refuse("loadBalancerSourceRanges", "may be used only when type is LoadBalancer");
    }
    if !load_balancer && spec.allocate_load_balancer_node_ports.is_some() {
        return refuse("allocateLoadBalancerNodePorts", "may be used only when type is LoadBalancer");
    }
    let policy = spec.external_traffic_policy.as_deref().unwrap_or_default();
    if !policy.is_empty() && !outside {
        return refuse(
            "externalTrafficPolicy",
            "may be set only where type is NodePort or LoadBalancer, or there are externalIPs",
        );
    }
    if spec.health_check_node_port.is_some_and(|p| p != 0) && !(load_balancer && policy == "Local") {
        return refuse(
            "healthCheckNodePort",
            "may be set only when type is LoadBalancer and externalTrafficPolicy is Local",
        );
    }
    Ok(())
}
