//! EndpointSlices of Services and the pods they select, where no control plane makes them.
//!
//! Pure. The rules are those of the EndpointSlice controller (`staging/src/k8s.io/endpointslice/utils.go`): a
//! pod with addresses that has not ended is an endpoint; it serves while it is ready, and is ready to be
//! chosen while it serves and does not terminate, or always with `publishNotReadyAddresses`.

use berth_core::{
    ids::{PodKey, PodName},
    model::{
        Endpoint, EndpointDetails, EndpointPort, EndpointSlice, Pod, PortRef, Protocol, Service, ServicePort,
        ServiceType,
    },
    status::{Phase, PodStatus},
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// A pod with its status.
#[derive(Debug, Clone, Copy)]
pub struct EndpointPod<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The status of the pod.
    pub status: &'a PodStatus,
}

/// The slices of all Services that have a selector, in order of their names. A slice equal to the one in
/// `before` keeps its `Arc`.
pub fn slices(
    services: &[Arc<Service>],
    pods: &[EndpointPod<'_>],
    before: &[Arc<EndpointSlice>],
) -> Vec<Arc<EndpointSlice>> {
    let mut by_namespace: HashMap<&str, Vec<&EndpointPod<'_>>> = HashMap::new();
    for pod in pods.iter().filter(|p| is_endpoint(p)) {
        by_namespace.entry(pod.pod.key.namespace.as_str()).or_default().push(pod);
    }
    let known: HashMap<&PodKey, &Arc<EndpointSlice>> = before.iter().map(|s| (&s.key, s)).collect();
    let mut all = Vec::new();
    for service in services.iter().filter(|s| s.kind != ServiceType::ExternalName && !s.selector.is_empty()) {
        let there = by_namespace.get(service.key.namespace.as_str()).map(Vec::as_slice).unwrap_or_default();
        for slice in of_service(service, there) {
            match known.get(&slice.key).filter(|old| ****old == slice) {
                Some(old) => all.push(Arc::clone(old)),
                None => all.push(Arc::new(slice)),
            }
        }
    }
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all
}

/// Whether the pod can be an endpoint: it has an address and has not ended.
fn is_endpoint(pod: &EndpointPod<'_>) -> bool {
    !pod.status.pod_ips.is_empty() && !matches!(pod.status.phase, Phase::Succeeded | Phase::Failed)
}

/// Ports of a slice: name, protocol and number of each.
type Ports = Vec<(Arc<str>, Protocol, u16)>;

/// The slices of one Service: one for each family and set of port numbers. A named port may have another
/// number in each pod.
fn of_service(service: &Service, pods: &[&EndpointPod<'_>]) -> Vec<EndpointSlice> {
    let selected = pods.iter().filter(|p| selects(service, p.pod));
    let mut slices: BTreeMap<(bool, Ports), Vec<(&PodName, Endpoint)>> = BTreeMap::new();
    for pod in selected {
        let ports: Vec<_> = service
            .ports
            .iter()
            .filter_map(|p| Some((Arc::clone(&p.name), p.protocol, number(p, pod.pod)?)))
            .collect();
        if ports.is_empty() && !service.ports.is_empty() {
            continue;
        }
        for v6 in families(service) {
            let Some(address) = pod.status.pod_ips.iter().find(|ip| ip.is_ipv6() == v6) else { continue };
            let key = (v6, ports.clone());
            slices.entry(key).or_default().push((&pod.pod.key.name, endpoint(service, pod, *address)));
        }
    }
    let slice = |((v6, ports), mut endpoints): ((bool, Ports), Vec<(&PodName, Endpoint)>)| {
        endpoints.sort_by(|(a_pod, a), (b_pod, b)| (a.address, a_pod).cmp(&(b.address, b_pod)));
        Some(EndpointSlice {
            key: name(service, v6, &ports)?,
            service: service.key.clone(),
            v6,
            ports: ports
                .into_iter()
                .map(|(name, protocol, port)| EndpointPort { name, protocol, port })
                .collect(),
            endpoints: endpoints.into_iter().map(|(_, endpoint)| endpoint).collect(),
            triggered: None,
        })
    };
    slices.into_iter().filter_map(slice).collect()
}

/// The families (true: IPv6) of the Service's addresses. A headless Service has endpoints of both.
fn families(service: &Service) -> Vec<bool> {
    if service.headless {
        return vec![false, true];
    }
    let mut families: Vec<bool> = service.cluster_ips.iter().map(IpAddr::is_ipv6).collect();
    families.dedup();
    families
}

fn selects(service: &Service, pod: &Pod) -> bool {
    service.selector.iter().all(|(key, value)| pod.labels.get(&**key).is_some_and(|v| **v == **value))
}

/// The port's number in that pod; `None` for a name that no main container or sidecar of the pod has.
fn number(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target {
        PortRef::Number(number) => Some(*number),
        PortRef::Name(name) => {
            let sidecars = pod.init_containers.iter().filter(|c| c.sidecar);
            let ports = pod.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
            let mut named = ports.filter(|p| p.name.as_deref() == Some(name) && p.protocol == port.protocol);
            named.next().map(|p| p.port)
        }
    }
}

fn endpoint(service: &Service, pod: &EndpointPod<'_>, address: IpAddr) -> Endpoint {
    let serving = pod.status.is_ready();
    let terminating = pod.status.terminating;
    let dns = &pod.pod.dns;
    let named = dns.subdomain.as_deref() == Some(service.key.name.as_str());
    let hostname = dns.hostname.as_deref().filter(|h| named && !h.is_empty()).map(Into::into);
    let endpoint = Endpoint {
        address,
        ready: service.publish_not_ready || (serving && !terminating),
        serving,
        terminating,
        node: Some(pod.pod.node.as_str().into()),
        details: None,
    };
    endpoint.with(EndpointDetails { hostname, ..EndpointDetails::default() })
}

/// The name of a slice: a function of Service, family and ports.
fn name(service: &Service, v6: bool, ports: &[(Arc<str>, Protocol, u16)]) -> Option<PodKey> {
    let mut hash = Sha256::new();
    hash.update([u8::from(v6)]);
    for (name, protocol, port) in ports {
        hash.update(name.as_bytes());
        hash.update(format!("\0{protocol:?}\0{port}\0"));
    }
    let digest = hash.finalize();
    let suffix: String = digest.iter().take(5).map(|b| format!("{b:02x}")).collect();
    let name = PodName::new(format!("{}-{suffix}", service.key.name)).ok()?;
    Some(PodKey { namespace: service.key.namespace.clone(), name })
}

#[cfg(test)]
mod tests;
