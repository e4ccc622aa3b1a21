//! Services and their endpoints, as the node's Service tables and names need them. Made by sources from v1.Service and
//! discovery.k8s.io/v1 EndpointSlice; the raw objects stay with the source.

use crate::{
    ids::PodKey,
    model::{PortRef, Protocol},
    time::Wall,
};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, sync::Arc};

/// `spec.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum ServiceType {
    /// ClusterIP; headless where there are no cluster addresses.
    #[default]
    ClusterIp,
    /// NodePort.
    NodePort,
    /// LoadBalancer.
    LoadBalancer,
    /// ExternalName.
    ExternalName,
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// One entry of `spec.ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The name, empty where a Service has one unnamed port. Endpoint ports are found by it.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port of the virtual addresses.
    pub port: u16,
    /// `targetPort`.
    pub target: PortRef,
    /// The port on every node.
    pub node_port: Option<u16>,
}

/// An address range, as in `loadBalancerSourceRanges`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SourceRange {
    /// The network.
    pub net: IpAddr,
    /// The prefix length.
    pub len: u8,
}

/// A checked v1.Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub key: PodKey,
    /// `metadata.uid`; a source without a control plane makes one from the key.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp`: the older Service keeps an address or port that two claim.
    pub created: Wall,
    /// The type.
    pub kind: ServiceType,
    /// `clusterIPs`; empty for headless Services and ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress` addresses whose ipMode is not Proxy.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`.
    pub source_ranges: Vec<SourceRange>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// `selector`; empty where endpoints are made by hand.
    pub selector: Vec<(Arc<str>, Arc<str>)>,
    /// Seconds of ClientIP affinity (default 10800), none for `sessionAffinity: None`.
    pub affinity_s: Option<u32>,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `externalName`, without a dot at its end.
    pub external_name: Option<Arc<str>>,
    /// Carries `service.kubernetes.io/service-proxy-name` or `service.kubernetes.io/headless`: another proxy serves it.
    pub foreign: bool,
}

/// One endpoint of a slice. Only the first address counts, as in kube-proxy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// `conditions.ready`, true where absent.
    pub ready: bool,
    /// `conditions.serving`, true where absent.
    pub serving: bool,
    /// `conditions.terminating`, false where absent.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `hints.forZones`.
    pub zone_hints: Vec<Arc<str>>,
    /// `hints.forNodes`.
    pub node_hints: Vec<Arc<str>>,
    /// `hostname`, the name of this endpoint below a headless Service's.
    pub hostname: Option<Arc<str>>,
    /// `targetRef.name` where it is a Pod.
    pub pod: Option<Arc<str>>,
}

/// Conditions of an endpoint, ready, serving and terminating, as they count where the slice leaves them out: kube-proxy
/// takes an absent `ready` and an absent `serving` for true, whatever the other says.
pub fn conditions(
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
) -> (bool, bool, bool) {
    (ready.unwrap_or(true), serving.unwrap_or(true), terminating.unwrap_or(false))
}

/// One entry of a slice's `ports`. An entry without a number means all ports and is left out by sources.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EndpointPort {
    /// The Service port's name.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The number on these endpoints.
    pub port: u16,
}

/// A checked discovery.k8s.io/v1 EndpointSlice of address type IPv4 or IPv6, with a Service's name on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub key: PodKey,
    /// The Service it belongs to, by label `kubernetes.io/service-name`, in the slice's namespace.
    pub service: PodKey,
    /// Whether the addresses are IPv6.
    pub v6: bool,
    /// The ports, of all its endpoints.
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`.
    pub triggered: Option<Wall>,
}
