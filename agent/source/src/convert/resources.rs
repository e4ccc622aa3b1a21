//! Requests, limits and references to them.

use super::{
    check,
    field::{FieldError, FieldPath, shorten},
};
use berth_core::{
    ids::ContainerName,
    model::{ResourceFieldRef, ResourceList, Resources},
    quantity::Quantity,
};
use k8s_openapi::{api::core::v1 as api, apimachinery::pkg::api::resource};
use std::collections::BTreeMap;

/// The owner of requests and limits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ResourceOwner {
    Container,
    Pod,
}

/// Requests and limits. No limit may be below its request; a missing request equals its limit.
pub(super) fn resources(
    at: &FieldPath<'_>,
    r: Option<&api::ResourceRequirements>,
    owner: ResourceOwner,
) -> Result<Resources, FieldError> {
    let Some(r) = r else { return Ok(Resources::default()) };
    if r.claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return Err(at.key("claims").error("resource claims are not supported yet"));
    }
    let limits = list(&at.key("limits"), r.limits.as_ref(), owner)?;
    let mut requests = list(&at.key("requests"), r.requests.as_ref(), owner)?;
    let requests_at = &at.key("requests");
    for (name, request) in &requests {
        let at = &requests_at.key(name);
        let Some(limit) = limits.get(name) else {
            if !overcommits(name) {
                return Err(at.error(format!(
                    "{name} cannot be overcommitted: it needs a limit equal to the request"
                )));
            }
            continue;
        };
        let below = |of: fn(&Quantity) -> i64| of(request) > of(limit);
        if below(Quantity::millis) || below(Quantity::units) {
            return Err(at.error(format!("must not exceed the {name} limit of {}", limit.as_str())));
        }
        if !overcommits(name) && request.units() != limit.units() {
            return Err(at.error(format!("must equal the {name} limit of {}", limit.as_str())));
        }
    }
    for (name, limit) in &limits {
        if owner == ResourceOwner::Container || !requests.contains_key(name) {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
    Ok(Resources { requests, limits })
}

/// Amounts by resource name.
pub(super) fn list(
    at: &FieldPath<'_>,
    list: Option<&BTreeMap<String, resource::Quantity>>,
    owner: ResourceOwner,
) -> Result<ResourceList, FieldError> {
    let mut found = ResourceList::new();
    for (name, amount) in list.into_iter().flatten() {
        let at = &at.key(name);
        resource_name(at, name, owner)?;
        let amount = check::quantity(at, &amount.0)?;
        if name.contains('/') && amount.millis() % 1000 != 0 {
            return Err(at.error(format!("{} must be a whole number", amount.as_str())));
        }
        found.insert(name.clone(), amount);
    }
    Ok(found)
}

fn overcommits(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
}

fn resource_name(at: &FieldPath<'_>, name: &str, owner: ResourceOwner) -> Result<(), FieldError> {
    if matches!(name, "cpu" | "memory") {
        return Ok(());
    }
    if let Some(size) = name.strip_prefix("hugepages-") {
        return check::quantity(at, size).map(drop);
    }
    if owner == ResourceOwner::Pod {
        return Err(at.error("only cpu, memory and hugepages can be set for the pod as a whole"));
    }
    if name == "ephemeral-storage" {
        return Ok(());
    }
    check::qualified_name(at, name)?;
    match name.split_once('/') {
        Some((domain, _)) if domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") => {
            Err(at.error(format!("{:?} is no resource of a container", shorten(name))))
        }
        Some(_) if !name.starts_with("requests.") => Ok(()),
        _ => Err(at.error(format!(
            "{:?} is no resource: cpu, memory, ephemeral-storage, hugepages-<size> or <domain>/<name>",
            shorten(name)
        ))),
    }
}

/// `resourceFieldRef`. One in a volume must name the container.
pub(super) fn field_ref(
    at: &FieldPath<'_>,
    r: &api::ResourceFieldSelector,
    in_volume: bool,
) -> Result<ResourceFieldRef, FieldError> {
    let container = match r.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => Some(check::id(&at.key("containerName"), ContainerName::new(name))?),
        None if in_volume => return Err(at.key("containerName").error("is required in a volume")),
        None => None,
    };
    let resource_at = &at.key("resource");
    let resource = r.resource.split_once('.');
    let known = resource.is_some_and(|(side, name)| {
        matches!(side, "limits" | "requests")
            && (matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-"))
    });
    if !known {
        return Err(resource_at.error(format!(
            "{:?} must be limits. or requests. with cpu, memory, ephemeral-storage or hugepages-<size>",
            shorten(&r.resource)
        )));
    }
    let divisor = match r.divisor.as_ref().map(|q| q.0.as_str()) {
        None | Some("" | "0") => None,
        Some(text) => {
            let at = &at.key("divisor");
            let divisor = check::quantity(at, text)?;
            let cpu = r.resource.ends_with(".cpu");
            let allowed: &[&str] = if cpu {
                &["1m", "1"]
            } else {
                &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"]
            };
            if !allowed.contains(&text) {
                return Err(at.error(format!("{} must be one of {}", shorten(text), allowed.join(", "))));
            }
            Some(divisor)
        }
    };
    Ok(ResourceFieldRef { container, resource: r.resource.clone(), divisor })
}
