//! An EndpointSlice.

use super::{
    check::{self, choice},
    field::{FieldError, FieldPath},
    metadata::names,
    ports::protocol,
    service::unusable,
};
use berth_core::{
    ids::{Namespace, PodKey, PodName},
    model::{Endpoint, EndpointDetails, EndpointPort, EndpointSlice, conditions},
    time::Wall,
};
use k8s_openapi::{api::discovery::v1 as discovery, jiff::Timestamp};

/// Label with the name of the slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Annotation with the time of the change that led to the slice.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// An EndpointSlice: endpoints of one family, labelled with their Service's name.
pub(crate) fn endpoint_slice(
    at: &FieldPath<'_>,
    object: &discovery::EndpointSlice,
) -> Result<EndpointSlice, FieldError> {
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
        let protocol = protocol(&at.key("protocol"), p.protocol.as_deref())?;
        // Without a number it means all ports, which no Service port can be.
        let Some(number) = p.port else { continue };
        let port = check::port(&at.key("port"), number)?;
        ports.push(EndpointPort { name: p.name.as_deref().unwrap_or_default().into(), protocol, port });
    }
    let triggered = object.metadata.annotations.as_ref().and_then(|a| a.get(TRIGGERED));
    let triggered = triggered.and_then(|t| t.parse::<Timestamp>().ok());
    let at = &at.key("endpoints");
    let endpoint = |(index, e)| endpoint(&at.index(index), e, v6);
    let endpoints = object.endpoints.iter().flatten().enumerate().map(endpoint);
    let mut endpoints: Vec<Endpoint> = endpoints.collect::<Result<_, _>>()?;
    // A cluster has a hundred thousand endpoints.
    endpoints.shrink_to_fit();
    ports.shrink_to_fit();
    Ok(EndpointSlice {
        key: PodKey { namespace, name: check::id(&meta_at.key("name"), PodName::new(name))? },
        service,
        v6,
        ports,
        endpoints,
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
    let details = EndpointDetails {
        zone_hints: zones.iter().map(|z| z.name.as_str().into()).collect(),
        node_hints: nodes.iter().map(|n| n.name.as_str().into()).collect(),
        hostname: e.hostname.as_deref().map(Into::into),
    };
    let endpoint = Endpoint {
        address,
        ready,
        serving,
        terminating,
        node: e.node_name.as_deref().map(Into::into),
        details: None,
    };
    Ok(endpoint.with(details))
}
