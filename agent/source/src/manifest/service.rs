//! Services of manifests: their metadata completed, and their addresses and node ports checked against
//! the ranges of this node.

use super::{ManifestContext, ServiceEntry, identity, typed::strict};
use crate::{
    ServiceRanges,
    convert::{
        self,
        field::{FieldError, FieldPath},
    },
};
use berth_core::{
    ids::PodKey,
    model::{Service, ServiceType},
    time::Wall,
};
use k8s_openapi::{
    api::core::v1 as api,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use serde_json::Value;

/// A Service object as the model has it, and the object itself with its metadata completed.
pub(super) fn entry(
    at: &FieldPath<'_>,
    value: &Value,
    ctx: &ManifestContext,
) -> Result<ServiceEntry, FieldError> {
    let mut object: api::Service = strict(at, value)?;
    let key = convert::service_key(at, &object.metadata)?;
    let created_given = object.metadata.creation_timestamp.is_some();
    let created = complete(&mut object.metadata, key, ctx);
    let service = convert::service(at, &object, created)?;
    if let (Some(ranges), Some(spec)) = (&ctx.services, &object.spec) {
        within_ranges(&at.key("spec"), spec, &service, ranges)?;
    }
    let raw = serde_json::to_value(&object).map_err(|e| at.error(e.to_string()))?;
    Ok(ServiceEntry { service, raw, created_given })
}

/// Completes namespace, UID and creation time in the object, and returns the latter.
fn complete(meta: &mut ObjectMeta, key: PodKey, ctx: &ManifestContext) -> Wall {
    let given = meta.creation_timestamp.as_ref().and_then(|t| i64::try_from(t.0.as_nanosecond()).ok());
    let created = given.map_or(ctx.now, Wall);
    if meta.uid.as_deref().unwrap_or_default().is_empty() {
        meta.uid = Some(identity::of_object("Service", &key.namespace, &key.name));
    }
    meta.namespace = Some(key.namespace.to_string());
    let seconds = || Time(Timestamp::from_second(created.seconds()).unwrap_or_default());
    meta.creation_timestamp.get_or_insert_with(seconds);
    created
}

/// Refuses what the API server's allocators would: addresses and node ports outside of the ranges, and
/// families without a network.
fn within_ranges(
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

#[cfg(test)]
mod tests;
