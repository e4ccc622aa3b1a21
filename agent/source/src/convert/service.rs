//! A Service.

mod addresses;
mod families;
mod ports;
mod rules;

use super::{
    check::{self, choice},
    field::{FieldError, FieldPath},
    metadata::names,
};
use berth_core::{
    ids::{Namespace, PodKey, PodName},
    model::{Service, ServiceType, TrafficPolicy},
    time::Wall,
};
use k8s_openapi::{api::core::v1 as api, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use std::{collections::BTreeMap, sync::Arc};

pub(super) use addresses::unusable;

/// Default duration of session affinity in seconds (`core/v1` DefaultClientIPServiceAffinitySeconds).
const AFFINITY_S: u32 = 10_800;

/// Labels of Services that another proxy, or none, serves.
const FOREIGN: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// Namespace and name of a Service, with labels and annotations checked. The name begins with a letter, as every API
/// server accepts it.
pub(crate) fn service_key(at: &FieldPath<'_>, meta: &ObjectMeta) -> Result<PodKey, FieldError> {
    let key = relaxed_key(at, meta)?;
    if key.name.as_str().starts_with(|c: char| c.is_ascii_digit()) {
        let at = &at.key("metadata");
        return Err(at
            .key("name")
            .error(format!("service name {:?} must begin with a letter", key.name.as_str())));
    }
    Ok(key)
}

/// Namespace and name of a Service, whose name is one label of a DNS name. An API server with
/// `RelaxedServiceNameValidation` accepts names that begin with a digit.
fn relaxed_key(at: &FieldPath<'_>, meta: &ObjectMeta) -> Result<PodKey, FieldError> {
    let (namespace, name) = names(at, meta)?;
    let at = &at.key("metadata");
    let at = &at.key("name");
    check::id(at, Namespace::new(name.as_str()))
        .map_err(|e| FieldError { reason: e.reason.replace("namespace", "service name"), ..e })?;
    Ok(PodKey { namespace, name: check::id(at, PodName::new(name))? })
}

/// A Service whose metadata is complete (name, namespace and UID), with the API server's defaults. Addresses
/// and node ports that the object does not name stay open; [`crate::controllers::cluster_ips`] assigns them.
pub(crate) fn service(
    at: &FieldPath<'_>,
    object: &api::Service,
    created: Wall,
) -> Result<Service, FieldError> {
    let key = relaxed_key(at, &object.metadata)?;
    let spec_at = &at.key("spec");
    let spec = object.spec.as_ref().ok_or_else(|| spec_at.error("is required"))?;
    let kind = kind(spec_at, spec)?;
    let external_name = external_name(&spec_at.key("externalName"), kind, spec)?;
    let (cluster_ips, headless) = addresses::cluster_ips(spec_at, kind, spec)?;
    let labels = object.metadata.labels.as_ref();
    check::labels(&spec_at.key("selector"), spec.selector.as_ref().unwrap_or(&BTreeMap::new()))?;
    let status = object.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_deref());
    let mut service = Service {
        uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
        created,
        kind,
        cluster_ips,
        headless,
        external_ips: addresses::external(&spec_at.key("externalIPs"), spec.external_ips.as_deref())?,
        load_balancer_ips: addresses::load_balancer(&at.key("status"), status.unwrap_or_default())?,
        source_ranges: addresses::source_ranges(
            &spec_at.key("loadBalancerSourceRanges"),
            spec.load_balancer_source_ranges.as_deref().unwrap_or_default(),
        )?,
        ports: ports::ports(&spec_at.key("ports"), spec, headless || kind == ServiceType::ExternalName)?,
        selector: pairs(spec.selector.as_ref()),
        affinity_s: affinity(spec_at, spec)?,
        internal_policy: policy(
            &spec_at.key("internalTrafficPolicy"),
            spec.internal_traffic_policy.as_deref(),
        )?,
        external_policy: policy(
            &spec_at.key("externalTrafficPolicy"),
            spec.external_traffic_policy.as_deref(),
        )?,
        health_check_node_port: match spec.health_check_node_port {
            None | Some(0) => None,
            Some(port) => Some(check::port(&spec_at.key("healthCheckNodePort"), port)?),
        },
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        external_name,
        foreign: labels.is_some_and(|l| FOREIGN.iter().any(|f| l.contains_key(*f))),
        key,
    };
    rules::fields_that_depend(spec_at, spec, kind)?;
    families::families(spec_at, spec, kind)?;
    // A cluster has ten thousand Services, each of one port and one or two addresses.
    service.ports.shrink_to_fit();
    service.cluster_ips.shrink_to_fit();
    Ok(service)
}

fn kind(at: &FieldPath<'_>, spec: &api::ServiceSpec) -> Result<ServiceType, FieldError> {
    choice(
        &at.key("type"),
        spec.type_.as_deref(),
        &[
            ("ClusterIP", ServiceType::ClusterIp),
            ("NodePort", ServiceType::NodePort),
            ("LoadBalancer", ServiceType::LoadBalancer),
            ("ExternalName", ServiceType::ExternalName),
        ],
    )
}

fn policy(at: &FieldPath<'_>, word: Option<&str>) -> Result<TrafficPolicy, FieldError> {
    choice(at, word, &[("Cluster", TrafficPolicy::Cluster), ("Local", TrafficPolicy::Local)])
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

/// `sessionAffinity`: its duration in seconds, if on.
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
