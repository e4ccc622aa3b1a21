//! Services and EndpointSlices.

use super::{
    ManifestContext, ServiceEntry, check, container,
    field::{FieldError, FieldPath, shorten},
    identity,
    objects::{names, strict},
    probe,
    security::choice,
};
use crate::ServiceRanges;
use berth_core::{
    ids::{Namespace, PodKey, PodName},
    model::{
        Endpoint, EndpointPort, EndpointSlice, PortRef, Service, ServicePort, ServiceType, SourceRange,
        TrafficPolicy, conditions,
    },
    time::Wall,
};
use k8s_openapi::{
    api::{core::v1 as api, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// Affinity lasts so long where nothing else is said (`core/v1` DefaultClientIPServiceAffinitySeconds).
const AFFINITY_S: u32 = 10_800;

/// Labels by which another proxy, or none, serves a Service.
const FOREIGN: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A Service, checked and with the API server's defaults. Addresses and node ports that it does not name are given to
/// it later, when all files are known.
pub(super) fn service(
    at: &FieldPath<'_>,
    value: &Value,
    ctx: &ManifestContext,
) -> Result<ServiceEntry, FieldError> {
    let mut object: api::Service = strict(at, value)?;
    let (namespace, name) = names(at, &object.metadata)?;
    let meta_at = &at.key("metadata");
    // A Service's name is one label of a DNS name, and begins with a letter (DNS-1035).
    check::id(&meta_at.key("name"), Namespace::new(name.as_str()))
        .map_err(|f| FieldError { reason: f.reason.replace("namespace", "service name"), ..f })?;
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(meta_at.key("name").error(format!("service name {name:?} must begin with a letter")));
    }
    let key = PodKey { namespace, name: check::id(&meta_at.key("name"), PodName::new(name))? };
    let spec_at = &at.key("spec");
    let spec = object.spec.as_ref().ok_or_else(|| spec_at.error("is required"))?;
    let kind = choice(
        &spec_at.key("type"),
        spec.type_.as_deref().filter(|t| !t.is_empty()).or(Some("ClusterIP")),
        &[
            ("ClusterIP", ServiceType::ClusterIp),
            ("NodePort", ServiceType::NodePort),
            ("LoadBalancer", ServiceType::LoadBalancer),
            ("ExternalName", ServiceType::ExternalName),
        ],
    )?;
    let external_name = external_name(&spec_at.key("externalName"), kind, spec)?;
    let (cluster_ips, headless) = cluster_ips(spec_at, kind, spec)?;
    let labels = object.metadata.labels.as_ref();
    check::labels(&spec_at.key("selector"), spec.selector.as_ref().unwrap_or(&BTreeMap::new()))?;
    let policy = |field: &'static str, word: &Option<String>| {
        let words = [("Cluster", TrafficPolicy::Cluster), ("Local", TrafficPolicy::Local)];
        choice(&spec_at.key(field), word.as_deref().filter(|w| !w.is_empty()).or(Some("Cluster")), &words)
    };
    let status = object.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_deref());
    let service = Service {
        uid: uid(&object.metadata, &key),
        created: created(&object.metadata, ctx),
        kind,
        cluster_ips,
        headless,
        external_ips: addresses(&spec_at.key("externalIPs"), spec.external_ips.as_deref())?,
        load_balancer_ips: load_balancer(&at.key("status"), status.unwrap_or_default())?,
        source_ranges: ranges(
            &spec_at.key("loadBalancerSourceRanges"),
            spec.load_balancer_source_ranges.as_deref().unwrap_or_default(),
        )?,
        ports: ports(&spec_at.key("ports"), spec, headless || kind == ServiceType::ExternalName)?,
        selector: pairs(spec.selector.as_ref()),
        affinity_s: affinity(spec_at, spec)?,
        internal_policy: policy("internalTrafficPolicy", &spec.internal_traffic_policy)?,
        external_policy: policy("externalTrafficPolicy", &spec.external_traffic_policy)?,
        health_check_node_port: match spec.health_check_node_port {
            None | Some(0) => None,
            Some(port) => Some(check::port(&spec_at.key("healthCheckNodePort"), port)?),
        },
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        external_name,
        foreign: labels.is_some_and(|l| FOREIGN.iter().any(|f| l.contains_key(*f))),
        key,
    };
    belongs_together(spec_at, spec, kind)?;
    if let Some(ranges) = &ctx.services {
        within(spec_at, spec, &service, ranges)?;
    }
    let created_given = object.metadata.creation_timestamp.is_some();
    object.metadata.namespace = Some(service.key.namespace.to_string());
    object.metadata.uid = Some(service.uid.to_string());
    object.metadata.creation_timestamp.get_or_insert_with(|| time(service.created));
    let raw = serde_json::to_value(&object).map_err(|e| at.error(e.to_string()))?;
    Ok(ServiceEntry { service, raw, created_given })
}

/// Fields that mean something with others only (`ValidateService`).
fn belongs_together(
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
    families(at, spec, kind)
}

/// `ipFamilies` and `ipFamilyPolicy` by themselves and beside the addresses.
fn families(at: &FieldPath<'_>, spec: &api::ServiceSpec, kind: ServiceType) -> Result<(), FieldError> {
    let given = spec.ip_families.as_deref().unwrap_or_default();
    let policy = spec.ip_family_policy.as_deref();
    let (families_at, policy_at) = (&at.key("ipFamilies"), &at.key("ipFamilyPolicy"));
    if kind == ServiceType::ExternalName && !(given.is_empty() && policy.is_none()) {
        return Err(families_at.error("ipFamilies and ipFamilyPolicy may not be set for type ExternalName"));
    }
    for (index, family) in given.iter().enumerate() {
        if !matches!(family.as_str(), "IPv4" | "IPv6") {
            return Err(families_at
                .index(index)
                .error(format!("{:?} must be IPv4 or IPv6", shorten(family))));
        }
        if given.iter().take(index).any(|f| f == family) {
            return Err(families_at.index(index).error(format!("{family} is there twice")));
        }
    }
    let known = [("SingleStack", ()), ("PreferDualStack", ()), ("RequireDualStack", ())];
    choice(policy_at, policy, &known)?;
    let addresses = || {
        spec.cluster_ips
            .iter()
            .flatten()
            .chain(spec.cluster_ips.is_none().then_some(&spec.cluster_ip).into_iter().flatten())
    };
    if policy == Some("SingleStack") && (given.len() > 1 || addresses().count() > 1) {
        return Err(policy_at.error("SingleStack goes with one address and one family alone"));
    }
    let parsed = addresses().filter_map(|a| a.parse::<IpAddr>().ok());
    for (ip, family) in parsed.zip(given) {
        if ip.is_ipv6() != (family == "IPv6") {
            return Err(families_at.error(format!("{ip} is not of its family, {family}")));
        }
    }
    Ok(())
}

/// What the API server's allocators refuse: addresses and node ports that are not theirs, families that the node has
/// not.
fn within(
    at: &FieldPath<'_>,
    spec: &api::ServiceSpec,
    service: &Service,
    ranges: &ServiceRanges,
) -> Result<(), FieldError> {
    let networks = || {
        let all: Vec<String> = ranges.networks.iter().map(|(net, len)| format!("{net}/{len}")).collect();
        all.join(", ")
    };
    for (index, port) in service.ports.iter().enumerate() {
        if let Some(number) = port.node_port.filter(|n| !ranges.node_ports.contains(n)) {
            let (first, last) = (ranges.node_ports.start(), ranges.node_ports.end());
            let at = &at.key("ports");
            return Err(at.index(index).key("nodePort").error(format!("{number} must be {first} to {last}")));
        }
    }
    if let Some(ip) = service.cluster_ips.iter().find(|ip| !ranges.holds(**ip)) {
        return Err(at.key("clusterIP").error(format!(
            "{ip} is no address of the Services' networks, {} (--service-cidr); leave it out to be given one",
            networks()
        )));
    }
    if service.headless || service.kind == ServiceType::ExternalName {
        return Ok(());
    }
    let offered = |v6: bool| ranges.networks.iter().any(|(net, _)| net.is_ipv6() == v6);
    let missing = spec.ip_families.iter().flatten().enumerate().find(|(_, f)| !offered(f.as_str() == "IPv6"));
    if let Some((index, family)) = missing {
        let at = &at.key("ipFamilies");
        return Err(at.index(index).error(format!(
            "{family} is not configured on this node: Services have addresses of {} (--service-cidr)",
            networks()
        )));
    }
    if spec.ip_family_policy.as_deref() == Some("RequireDualStack") && !(offered(false) && offered(true)) {
        return Err(at.key("ipFamilyPolicy").error(format!(
            "RequireDualStack needs networks of both families, and Services have addresses of {} (--service-cidr)",
            networks()
        )));
    }
    Ok(())
}

fn uid(meta: &ObjectMeta, key: &PodKey) -> Arc<str> {
    let given = meta.uid.as_deref().filter(|u| !u.is_empty());
    given.map_or_else(|| identity::of_object("Service", &key.namespace, &key.name).into(), Into::into)
}

fn created(meta: &ObjectMeta, ctx: &ManifestContext) -> Wall {
    let given = meta.creation_timestamp.as_ref().and_then(|t| i64::try_from(t.0.as_nanosecond()).ok());
    given.map_or(ctx.now, Wall)
}

fn time(at: Wall) -> Time {
    Time(Timestamp::from_second(at.seconds()).unwrap_or_default())
}

fn pairs(map: Option<&BTreeMap<String, String>>) -> Vec<(Arc<str>, Arc<str>)> {
    map.into_iter().flatten().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect()
}

fn external_name(
    at: &FieldPath<'_>,
    kind: ServiceType,
    spec: &api::ServiceSpec,
) -> Result<Option<Arc<str>>, FieldError> {
    if kind != ServiceType::ExternalName {
        return Ok(None);
    }
    let name = spec.external_name.as_deref().unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name);
    check::object_name(at, name)?;
    Ok(Some(name.into()))
}

/// `clusterIPs` or `clusterIP`, at most one of each family, and whether the Service is headless.
fn cluster_ips(
    at: &FieldPath<'_>,
    kind: ServiceType,
    spec: &api::ServiceSpec,
) -> Result<(Vec<IpAddr>, bool), FieldError> {
    let given = |texts: &[&str]| -> Vec<String> {
        texts.iter().filter(|t| !t.is_empty()).map(|t| (*t).to_owned()).collect()
    };
    let one = given(&[spec.cluster_ip.as_deref().unwrap_or_default()]);
    let many: Vec<String> = spec.cluster_ips.iter().flatten().filter(|t| !t.is_empty()).cloned().collect();
    let at = &at.key(if many.is_empty() { "clusterIP" } else { "clusterIPs" });
    if let (Some(one), Some(first)) = (one.first(), many.first())
        && one != first
    {
        return Err(at.error(format!("the first must be clusterIP, {:?}", shorten(one))));
    }
    let texts = if many.is_empty() { one } else { many };
    let headless = texts.iter().any(|t| t == "None");
    if kind == ServiceType::ExternalName && !texts.is_empty() {
        return Err(at.error("must not be set for type ExternalName"));
    }
    if headless {
        if matches!(kind, ServiceType::NodePort | ServiceType::LoadBalancer) {
            return Err(at.error("cannot be None for types NodePort and LoadBalancer"));
        }
        if texts.len() > 1 {
            return Err(at.error("None stands alone"));
        }
        return Ok((Vec::new(), true));
    }
    let ips: Vec<IpAddr> = texts.iter().map(|t| check::address(at, t)).collect::<Result<_, _>>()?;
    let same_family =
        ips.iter().filter(|ip| ip.is_ipv4()).count() > 1 || ips.iter().filter(|ip| ip.is_ipv6()).count() > 1;
    if same_family {
        return Err(at.error("may hold one address of each family"));
    }
    if let Some(ip) = ips.iter().find(|ip| unusable(**ip)) {
        return Err(at.error(format!("{ip} cannot be a Service's address")));
    }
    Ok((ips, false))
}

/// Addresses that never leave their machine or link, and "any" (`ValidateNonSpecialIP`).
fn unusable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local
}

fn addresses(at: &FieldPath<'_>, texts: Option<&[String]>) -> Result<Vec<IpAddr>, FieldError> {
    let address = |(index, text): (usize, &String)| {
        let at = &at.index(index);
        let ip = check::address(at, text)?;
        if unusable(ip) {
            return Err(at.error(format!("{ip} cannot be a Service's address")));
        }
        Ok(ip)
    };
    texts.unwrap_or_default().iter().enumerate().map(address).collect()
}

/// Addresses of load balancers that hand packets on with their destination unchanged: those of mode Proxy answer
/// themselves.
fn load_balancer(
    at: &FieldPath<'_>,
    ingress: &[api::LoadBalancerIngress],
) -> Result<Vec<IpAddr>, FieldError> {
    let at = &at.key("loadBalancer");
    let at = &at.key("ingress");
    let mut found = Vec::new();
    for (index, i) in ingress.iter().enumerate() {
        let Some(text) = i.ip.as_deref().filter(|t| !t.is_empty()) else { continue };
        let ip = check::address(&at.index(index).key("ip"), text)?;
        if i.ip_mode.as_deref() != Some("Proxy") {
            found.push(ip);
        }
    }
    Ok(found)
}

fn ranges(at: &FieldPath<'_>, texts: &[String]) -> Result<Vec<SourceRange>, FieldError> {
    let range = |(index, text): (usize, &String)| {
        let text = text.trim();
        let parsed = text.split_once('/').and_then(|(net, len)| {
            let net: IpAddr = net.parse().ok()?;
            let len: u8 = len.parse().ok()?;
            (len <= if net.is_ipv4() { 32 } else { 128 }).then_some(SourceRange { net, len })
        });
        parsed.ok_or_else(|| {
            at.index(index).error(format!("{:?} is no address range such as 10.0.0.0/8", shorten(text)))
        })
    };
    texts.iter().enumerate().map(range).collect()
}

fn affinity(at: &FieldPath<'_>, spec: &api::ServiceSpec) -> Result<Option<u32>, FieldError> {
    let word = spec.session_affinity.as_deref().filter(|w| !w.is_empty()).or(Some("None"));
    let on = choice(&at.key("sessionAffinity"), word, &[("None", false), ("ClientIP", true)])?;
    let seconds = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    let seconds = match seconds {
        None => AFFINITY_S,
        Some(v) => u32::try_from(v).ok().filter(|v| (1..=86_400).contains(v)).ok_or_else(|| {
            at.key("sessionAffinityConfig").error(format!("timeoutSeconds {v} must be 1 to 86400"))
        })?,
    };
    Ok(on.then_some(seconds))
}

fn ports(
    at: &FieldPath<'_>,
    spec: &api::ServiceSpec,
    may_be_none: bool,
) -> Result<Vec<ServicePort>, FieldError> {
    let given = spec.ports.as_deref().unwrap_or_default();
    if given.is_empty() && !may_be_none {
        return Err(at.error("must hold at least one port"));
    }
    let (mut names, mut taken, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::with_capacity(given.len());
    for (index, p) in given.iter().enumerate() {
        let at = &at.index(index);
        let name = p.name.clone().unwrap_or_default();
        if name.is_empty() && given.len() > 1 {
            return Err(at.key("name").error("is required where there is more than one port"));
        }
        if !name.is_empty() {
            check::id(&at.key("name"), Namespace::new(name.as_str()))
                .map_err(|f| FieldError { reason: f.reason.replace("namespace", "port name"), ..f })?;
        }
        if !names.insert(name.clone()) {
            return Err(at.key("name").error(format!("{name:?} is there twice")));
        }
        let port = check::port(&at.key("port"), p.port)?;
        let protocol = container::protocol(&at.key("protocol"), p.protocol.as_deref())?;
        if !taken.insert((protocol, port)) {
            return Err(at.key("port").error(format!("{port} is there twice")));
        }
        let node_port = match p.node_port {
            None | Some(0) => None,
            Some(number) => Some(check::port(&at.key("nodePort"), number)?),
        };
        if let Some(node_port) = node_port
            && !node_ports.insert((protocol, node_port))
        {
            return Err(at.key("nodePort").error(format!("{node_port} is there twice")));
        }
        let target = match &p.target_port {
            Some(target) => probe::port_ref(&at.key("targetPort"), target)?,
            None => PortRef::Number(port),
        };
        ports.push(ServicePort { name: name.into(), protocol, port, target, node_port });
    }
    Ok(ports)
}

/// An EndpointSlice: addresses of one family with a Service's name on them.
pub(super) fn slice(at: &FieldPath<'_>, value: &Value) -> Result<EndpointSlice, FieldError> {
    let object: discovery::EndpointSlice = strict(at, value)?;
    let (namespace, name) = names(at, &object.metadata)?;
    let meta_at = &at.key("metadata");
    let label_at = &meta_at.key("labels");
    let label_at = &label_at.key(SERVICE_NAME);
    let service = object.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME));
    let service = service.filter(|s| !s.is_empty()).ok_or_else(|| label_at.error("is required"))?;
    let service =
        PodKey { namespace: namespace.clone(), name: check::id(label_at, PodName::new(service.as_str()))? };
    let kind = [("IPv4", false), ("IPv6", true)];
    let v6 = choice(&at.key("addressType"), Some(&object.address_type), &kind)?;
    let mut ports = Vec::new();
    for (index, p) in object.ports.iter().flatten().enumerate() {
        let at = &at.key("ports");
        let at = &at.index(index);
        let protocol = container::protocol(&at.key("protocol"), p.protocol.as_deref())?;
        // Without a number it means all ports, which no Service port can be.
        let Some(number) = p.port else { continue };
        let port = check::port(&at.key("port"), number)?;
        ports.push(EndpointPort { name: p.name.as_deref().unwrap_or_default().into(), protocol, port });
    }
    let triggered = object.metadata.annotations.as_ref().and_then(|a| a.get(TRIGGERED));
    let triggered = triggered.and_then(|t| t.parse::<Timestamp>().ok());
    let at = &at.key("endpoints");
    let endpoint = |(index, e)| endpoint(&at.index(index), e, v6);
    Ok(EndpointSlice {
        key: PodKey { namespace, name: check::id(&meta_at.key("name"), PodName::new(name))? },
        service,
        v6,
        ports,
        endpoints: object.endpoints.iter().flatten().enumerate().map(endpoint).collect::<Result<_, _>>()?,
        triggered: triggered.and_then(|t| i64::try_from(t.as_nanosecond()).ok()).map(Wall),
    })
}

fn endpoint(at: &FieldPath<'_>, e: &discovery::Endpoint, v6: bool) -> Result<Endpoint, FieldError> {
    let at_addresses = &at.key("addresses");
    let first = e.addresses.first().ok_or_else(|| at_addresses.error("must hold at least one address"))?;
    let address = check::address(at_addresses, first)?;
    if address.is_ipv6() != v6 {
        return Err(at_addresses.error(format!("{address} is not of the slice's addressType")));
    }
    if unusable(address) {
        return Err(at_addresses.error(format!("{address} cannot be an endpoint's address")));
    }
    let given = e.conditions.as_ref();
    let (ready, serving, terminating) = conditions(
        given.and_then(|c| c.ready),
        given.and_then(|c| c.serving),
        given.and_then(|c| c.terminating),
    );
    if let Some(hostname) = &e.hostname {
        check::id(&at.key("hostname"), Namespace::new(hostname.as_str()))
            .map_err(|f| FieldError { reason: f.reason.replace("namespace", "hostname"), ..f })?;
    }
    let hints = e.hints.as_ref();
    let zones = hints.and_then(|h| h.for_zones.as_deref()).unwrap_or_default();
    let nodes = hints.and_then(|h| h.for_nodes.as_deref()).unwrap_or_default();
    let pod = e.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"));
    Ok(Endpoint {
        address,
        ready,
        serving,
        terminating,
        node: e.node_name.as_deref().map(Into::into),
        zone: e.zone.as_deref().map(Into::into),
        zone_hints: zones.iter().map(|z| z.name.as_str().into()).collect(),
        node_hints: nodes.iter().map(|n| n.name.as_str().into()).collect(),
        hostname: e.hostname.as_deref().map(Into::into),
        pod: pod.and_then(|p| p.name.as_deref()).map(Into::into),
    })
}

#[cfg(test)]
mod tests;
