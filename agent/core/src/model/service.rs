//! Services and their endpoints, as the Service tables and DNS need them. Sources build these values from
//! v1.Service and discovery.k8s.io/v1 EndpointSlice; the raw objects stay in the source.

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
    /// Traffic goes to all endpoints.
    #[default]
    Cluster,
    /// Traffic goes to endpoints of this node only.
    Local,
}

/// One entry of `spec.ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The port's name, by which endpoint ports are found; empty where a Service has one unnamed port.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port number at the Service's virtual addresses.
    pub port: u16,
    /// `targetPort`, the port of the endpoints.
    pub target: PortRef,
    /// `nodePort`, the port number at the addresses of every node.
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
    /// `metadata.uid`. A source without a control plane derives one from the key.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp`. Where two Services claim one address or port, the older one keeps it.
    pub created: Wall,
    /// `spec.type`.
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
    /// `selector`; empty where endpoints are maintained by hand.
    pub selector: Vec<(Arc<str>, Arc<str>)>,
    /// Seconds of `ClientIP` affinity (default 10800); `None` for `sessionAffinity: None`.
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
    /// Another proxy serves the Service, because it carries `service.kubernetes.io/service-proxy-name` or
    /// `service.kubernetes.io/headless`.
    pub foreign: bool,
}

impl Service {
    /// A headless Service without ports and selector, and otherwise with the API's defaults.
    pub fn new(key: PodKey, uid: impl Into<Arc<str>>) -> Service {
        Service {
            key,
            uid: uid.into(),
            created: Wall::default(),
            kind: ServiceType::ClusterIp,
            cluster_ips: Vec::new(),
            headless: true,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            ports: Vec::new(),
            selector: Vec::new(),
            affinity_s: None,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            publish_not_ready: false,
            external_name: None,
            foreign: false,
        }
    }
}

impl Service {
    /// Whether this is the API server's own Service, of whose variables every container has a copy (`masterServices`,
    /// `pkg/kubelet/kubelet_pods.go`).
    pub fn is_kubernetes(&self) -> bool {
        self.key.namespace.as_str() == "default" && self.key.name.as_str() == "kubernetes"
    }

    /// The first ClusterIP; `None` for headless and external Services.
    pub fn primary_cluster_ip(&self) -> Option<IpAddr> {
        self.cluster_ips.first().copied().filter(|_| !self.headless)
    }
}

impl ServicePort {
    /// A port whose endpoints have the same number, without a node port.
    pub fn new(name: &str, protocol: Protocol, port: u16) -> ServicePort {
        ServicePort { name: name.into(), protocol, port, target: PortRef::Number(port), node_port: None }
    }
}

/// One endpoint of a slice. Only its first address counts, as in kube-proxy. A node keeps all endpoints of a cluster, so
/// what few of them have is beside.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The endpoint's first address.
    pub address: IpAddr,
    /// `conditions.ready`, true where absent.
    pub ready: bool,
    /// `conditions.serving`, true where absent.
    pub serving: bool,
    /// `conditions.terminating`, false where absent.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// What few endpoints have; `None` where it would be empty.
    pub details: Option<Box<EndpointDetails>>,
}

/// What few endpoints have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct EndpointDetails {
    /// `hints.forZones`.
    pub zone_hints: Vec<Arc<str>>,
    /// `hints.forNodes`.
    pub node_hints: Vec<Arc<str>>,
    /// `hostname`, the endpoint's name below the name of a headless Service.
    pub hostname: Option<Arc<str>>,
}

impl Endpoint {
    /// A ready endpoint of no node.
    pub fn new(address: IpAddr) -> Endpoint {
        Endpoint { address, ready: true, serving: true, terminating: false, node: None, details: None }
    }

    /// The endpoint with these details.
    #[must_use]
    pub fn with(self, details: EndpointDetails) -> Endpoint {
        let details = (details != EndpointDetails::default()).then(|| Box::new(details));
        Endpoint { details, ..self }
    }

    /// `hints.forZones`.
    pub fn zone_hints(&self) -> &[Arc<str>] {
        self.details.as_ref().map_or(&[], |details| &details.zone_hints)
    }

    /// `hints.forNodes`.
    pub fn node_hints(&self) -> &[Arc<str>] {
        self.details.as_ref().map_or(&[], |details| &details.node_hints)
    }

    /// `hostname`, the endpoint's name below the name of a headless Service.
    pub fn hostname(&self) -> Option<&str> {
        self.details.as_ref()?.hostname.as_deref()
    }
}

/// Conditions ready, serving and terminating of an endpoint, with the defaults for absent ones. As in
/// kube-proxy, an absent `ready` or `serving` is true, whatever the other one says.
pub fn conditions(
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
) -> (bool, bool, bool) {
    (ready.unwrap_or(true), serving.unwrap_or(true), terminating.unwrap_or(false))
}

/// One entry of a slice's `ports`. Sources leave out an entry without a number, which would mean all ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EndpointPort {
    /// The name of the Service port.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port number on the slice's endpoints.
    pub port: u16,
}

/// A checked discovery.k8s.io/v1 EndpointSlice of address type IPv4 or IPv6 that names its Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub key: PodKey,
    /// The slice's Service, by label `kubernetes.io/service-name`, in the slice's namespace.
    pub service: PodKey,
    /// Whether the addresses are IPv6.
    pub v6: bool,
    /// The ports that all endpoints of the slice have.
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`.
    pub triggered: Option<Wall>,
}
