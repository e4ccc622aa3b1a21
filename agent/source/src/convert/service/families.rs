//! `ipFamilies` and `ipFamilyPolicy` of a Service.

use crate::convert::{
    check::choice,
    field::{FieldError, FieldPath, shorten},
};
use berth_core::model::ServiceType;
use k8s_openapi::api::core::v1 as api;
use std::net::IpAddr;

/// Checks both fields by themselves and against the addresses.
pub(super) fn families(
    at: &FieldPath<'_>,
    spec: &api::ServiceSpec,
    kind: ServiceType,
) -> Result<(), FieldError> {
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
