//! Addresses of a Service.

use crate::convert::{
    check,
    field::{FieldError, FieldPath, shorten},
};
use berth_core::model::{ServiceType, SourceRange};
use k8s_openapi::api::core::v1 as api;
use std::net::IpAddr;

/// `clusterIPs` or `clusterIP`, at most one of each family, and whether the Service is headless.
pub(super) fn cluster_ips(
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

/// Whether no Service and no endpoint can have the address: those that never leave their machine or link, and
/// the unspecified one (`ValidateNonSpecialIP`).
pub(in crate::convert) fn unusable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local
}

/// `externalIPs`.
pub(super) fn external(at: &FieldPath<'_>, texts: Option<&[String]>) -> Result<Vec<IpAddr>, FieldError> {
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

/// Addresses of load balancers that forward packets with their destination unchanged. A load balancer of mode
/// Proxy answers under its own address, so that is left out.
pub(super) fn load_balancer(
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

/// `loadBalancerSourceRanges`.
pub(super) fn source_ranges(at: &FieldPath<'_>, texts: &[String]) -> Result<Vec<SourceRange>, FieldError> {
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
