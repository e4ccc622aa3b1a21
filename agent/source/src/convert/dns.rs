//! `dnsPolicy`, `dnsConfig`, host names and `hostAliases` of a pod.

use super::{
    check::{self, choice},
    field::{FieldError, FieldPath, shorten},
};
use berth_core::{
    ids::{Namespace, PodName},
    model::{DnsPolicy, PodDns},
};
use k8s_openapi::api::core::v1 as api;
use std::net::IpAddr;

/// Limits of the API server (`MaxDNSNameservers`, `MaxDNSSearchPaths`, `MaxDNSSearchListChars`).
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

/// The pod's DNS settings.
pub(super) fn dns(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<PodDns, FieldError> {
    let policy = choice(
        &at.key("dnsPolicy"),
        spec.dns_policy.as_deref(),
        &[
            ("ClusterFirst", DnsPolicy::ClusterFirst),
            ("ClusterFirstWithHostNet", DnsPolicy::ClusterFirstWithHostNet),
            ("Default", DnsPolicy::Default),
            ("None", DnsPolicy::None),
        ],
    )?;
    let config = spec.dns_config.clone().unwrap_or_default();
    let config_at = &at.key("dnsConfig");
    Ok(PodDns {
        policy,
        nameservers: nameservers(config_at, &config, policy)?,
        searches: searches(config_at, &config)?,
        options: options(config_at, &config)?,
        hostname: label(&at.key("hostname"), spec.hostname.as_deref())?,
        subdomain: label(&at.key("subdomain"), spec.subdomain.as_deref())?,
        hostname_as_fqdn: spec.set_hostname_as_fqdn.unwrap_or(false),
        host_aliases: host_aliases(&at.key("hostAliases"), spec)?,
    })
}

fn nameservers(
    at: &FieldPath<'_>,
    config: &api::PodDNSConfig,
    policy: DnsPolicy,
) -> Result<Vec<IpAddr>, FieldError> {
    let at = &at.key("nameservers");
    let mut found = Vec::new();
    for (index, server) in config.nameservers.iter().flatten().enumerate() {
        found.push(check::address(&at.index(index), server)?);
    }
    if found.len() > MAX_NAMESERVERS {
        return Err(at.error(format!("must not hold more than {MAX_NAMESERVERS}")));
    }
    if policy == DnsPolicy::None && found.is_empty() {
        return Err(at.error("must hold at least one with dnsPolicy None"));
    }
    Ok(found)
}

fn searches(at: &FieldPath<'_>, config: &api::PodDNSConfig) -> Result<Vec<String>, FieldError> {
    let at = &at.key("searches");
    let found = config.searches.clone().unwrap_or_default();
    // Each name but the first has a blank before it in resolv.conf.
    let characters = found.iter().map(|s| s.len().saturating_add(1)).sum::<usize>();
    if found.len() > MAX_SEARCHES || characters > MAX_SEARCH_CHARACTERS + 1 {
        return Err(at.error(format!(
            "must not hold more than {MAX_SEARCHES} names or {MAX_SEARCH_CHARACTERS} characters"
        )));
    }
    for (index, search) in found.iter().enumerate() {
        // The API allows a trailing dot, the root alone, and underscores within.
        let name = search.strip_suffix('.').unwrap_or(search).replace('_', "-");
        let good = search == "." || name.split('.').all(|p| PodName::new(p.trim_matches('-')).is_ok());
        if !good || name.len() > 253 {
            return Err(at.index(index).error(format!("{:?} is no domain name", shorten(search))));
        }
    }
    Ok(found)
}

fn options(
    at: &FieldPath<'_>,
    config: &api::PodDNSConfig,
) -> Result<Vec<(String, Option<String>)>, FieldError> {
    let at = &at.key("options");
    let mut found = Vec::new();
    for (index, option) in config.options.iter().flatten().enumerate() {
        let at = &at.index(index);
        let name = option.name.clone().unwrap_or_default();
        let value = option.value.clone();
        if name.is_empty() {
            return Err(at.key("name").error("is required"));
        }
        if format!("{name}{}", value.as_deref().unwrap_or_default()).chars().any(char::is_whitespace) {
            return Err(at.error("must not contain blanks or line ends"));
        }
        found.push((name, value));
    }
    Ok(found)
}

/// A DNS label; an empty text counts as absent.
fn label(at: &FieldPath<'_>, text: Option<&str>) -> Result<Option<String>, FieldError> {
    let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(None) };
    check::id(at, Namespace::new(text))
        .map_err(|e| FieldError { reason: e.reason.replace("namespace ", ""), ..e })
        .map(|label| Some(label.to_string()))
}

fn host_aliases(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<Vec<(IpAddr, Vec<String>)>, FieldError> {
    let mut found = Vec::new();
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let at = &at.index(index);
        let names = alias.hostnames.clone().unwrap_or_default();
        let names_at = &at.key("hostnames");
        for (number, name) in names.iter().enumerate() {
            check::object_name(&names_at.index(number), name)
                .map_err(|e| FieldError { reason: e.reason.replace("object name", "host name"), ..e })?;
        }
        found.push((check::address(&at.key("ip"), &alias.ip)?, names));
    }
    Ok(found)
}
