//! ConfigMaps, Secrets and Services.

use super::{
    check, container,
    field::{self, At, Fault, shorten},
    probe,
};
use berth_core::{
    ids::{Namespace, PodKey, PodName},
    model::{KeyedData, ServiceStub},
};
use k8s_openapi::{
    ByteString,
    api::core::v1 as api,
    apimachinery::pkg::apis::meta::v1 as meta,
    serde::{Serialize, de::DeserializeOwned},
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// All keys and values of a ConfigMap or Secret together.
const MAX_DATA_BYTES: usize = 1 << 20;

fn strict<T: DeserializeOwned + Serialize>(at: &At<'_>, value: &Value) -> Result<T, Fault> {
    let (object, unknown) = field::typed(at, value)?;
    unknown.into_iter().next().map_or(Ok(object), Err)
}

fn names(at: &At<'_>, meta: &meta::ObjectMeta) -> Result<(Namespace, String), Fault> {
    let at = &at.key("metadata");
    let namespace = meta.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    let namespace = check::id(&at.key("namespace"), Namespace::new(namespace))?;
    let name = meta.name.clone().unwrap_or_default();
    check::object_name(&at.key("name"), &name)?;
    check::labels(&at.key("labels"), meta.labels.as_ref().unwrap_or(&BTreeMap::new()))?;
    check::annotations(&at.key("annotations"), meta.annotations.as_ref().unwrap_or(&BTreeMap::new()))?;
    Ok((namespace, name))
}

/// A ConfigMap: `data` and `binaryData` may not share a key.
pub(super) fn config_map(at: &At<'_>, value: &Value) -> Result<KeyedData, Fault> {
    let object: api::ConfigMap = strict(at, value)?;
    let (namespace, name) = names(at, &object.metadata)?;
    let mut data = BTreeMap::new();
    for (key, text) in object.data.into_iter().flatten() {
        data.insert(key, text.into_bytes());
    }
    let binary_at = &at.key("binaryData");
    for (key, ByteString(bytes)) in object.binary_data.into_iter().flatten() {
        if data.contains_key(&key) {
            return Err(binary_at.key(&key).fault("is also in data"));
        }
        data.insert(key, bytes);
    }
    checked(at, KeyedData { namespace, name, data })
}

/// A Secret: `stringData` wins over `data`.
pub(super) fn secret(at: &At<'_>, value: &Value) -> Result<KeyedData, Fault> {
    let object: api::Secret = strict(at, value)?;
    let (namespace, name) = names(at, &object.metadata)?;
    let mut data = BTreeMap::new();
    for (key, ByteString(bytes)) in object.data.into_iter().flatten() {
        data.insert(key, bytes);
    }
    for (key, text) in object.string_data.into_iter().flatten() {
        data.insert(key, text.into_bytes());
    }
    checked(at, KeyedData { namespace, name, data })
}

fn checked(at: &At<'_>, object: KeyedData) -> Result<KeyedData, Fault> {
    let mut total = 0_usize;
    for (key, value) in &object.data {
        check::data_key(&at.key("data"), key)?;
        total = total.saturating_add(key.len()).saturating_add(value.len());
    }
    if total > MAX_DATA_BYTES {
        return Err(at.key("data").fault(format!("holds {total} bytes, more than {MAX_DATA_BYTES}")));
    }
    Ok(object)
}

/// A Service, checked as far as a node's data plane depends on it.
pub(super) fn service(at: &At<'_>, value: &Value) -> Result<ServiceStub, Fault> {
    let mut object: api::Service = strict(at, value)?;
    let (namespace, name) = names(at, &object.metadata)?;
    let meta_at = &at.key("metadata");
    // A Service's name is one label of a DNS name.
    check::id(&meta_at.key("name"), Namespace::new(name.as_str()))
        .map_err(|f| Fault { reason: f.reason.replace("namespace", "service name"), ..f })?;
    let key = PodKey { namespace, name: check::id(&meta_at.key("name"), PodName::new(name))? };
    let spec_at = &at.key("spec");
    let spec = object.spec.as_ref().ok_or_else(|| spec_at.fault("is required"))?;
    let kind = spec.type_.as_deref().filter(|t| !t.is_empty()).unwrap_or("ClusterIP");
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        return Err(spec_at.key("type").fault(format!(
            "{:?} must be one of ClusterIP, NodePort, LoadBalancer, ExternalName",
            shorten(kind)
        )));
    }
    let external_at = &spec_at.key("externalName");
    if kind == "ExternalName" {
        let external = spec.external_name.as_deref().unwrap_or_default();
        check::object_name(external_at, external.strip_suffix('.').unwrap_or(external))?;
    }
    let headless = spec.cluster_ip.as_deref() == Some("None");
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        return Err(spec_at.key("clusterIP").fault(format!("cannot be None for type {kind}")));
    }
    let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    for address in addresses.filter(|a| !a.is_empty() && a.as_str() != "None") {
        check::address(&spec_at.key("clusterIP"), address)?;
    }
    for (index, address) in spec.external_ips.iter().flatten().enumerate() {
        check::address(&spec_at.key("externalIPs").index(index), address)?;
    }
    check::labels(&spec_at.key("selector"), spec.selector.as_ref().unwrap_or(&BTreeMap::new()))?;
    affinity(spec_at, spec)?;
    service_ports(&spec_at.key("ports"), spec, headless || kind == "ExternalName")?;
    object.metadata.namespace = Some(key.namespace.to_string());
    let object = serde_json::to_value(&object).map_err(|e| at.fault(e.to_string()))?;
    Ok(ServiceStub { key, object })
}

fn affinity(at: &At<'_>, spec: &api::ServiceSpec) -> Result<(), Fault> {
    let words = [
        ("sessionAffinity", &spec.session_affinity, ["None", "ClientIP"]),
        ("externalTrafficPolicy", &spec.external_traffic_policy, ["Cluster", "Local"]),
        ("internalTrafficPolicy", &spec.internal_traffic_policy, ["Cluster", "Local"]),
    ];
    for (field, word, allowed) in words {
        if let Some(word) = word.as_deref().filter(|w| !w.is_empty() && !allowed.contains(w)) {
            return Err(at.key(field).fault(format!(
                "{:?} must be one of {}",
                shorten(word),
                allowed.join(", ")
            )));
        }
    }
    let timeout = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    match timeout {
        Some(v) if !(1..=86400).contains(&v) => {
            Err(at.key("sessionAffinityConfig").fault(format!("timeoutSeconds {v} must be 1 to 86400")))
        }
        _ => Ok(()),
    }
}

fn service_ports(at: &At<'_>, spec: &api::ServiceSpec, may_be_none: bool) -> Result<(), Fault> {
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !may_be_none {
        return Err(at.fault("must hold at least one port"));
    }
    let mut names = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for (index, p) in ports.iter().enumerate() {
        let at = &at.index(index);
        let name = p.name.clone().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            return Err(at.key("name").fault("is required where there is more than one port"));
        }
        if !name.is_empty() {
            check::id(&at.key("name"), Namespace::new(name.as_str()))
                .map_err(|f| Fault { reason: f.reason.replace("namespace", "port name"), ..f })?;
        }
        if !names.insert(name.clone()) {
            return Err(at.key("name").fault(format!("{name:?} is there twice")));
        }
        let port = check::port(&at.key("port"), p.port)?;
        let protocol = container::protocol(&at.key("protocol"), p.protocol.as_deref())?;
        if !taken.insert((protocol, port)) {
            return Err(at.key("port").fault(format!("{port} is there twice")));
        }
        if let Some(target) = &p.target_port {
            probe::port_ref(&at.key("targetPort"), target)?;
        }
        match p.node_port {
            None | Some(0) => {}
            Some(node_port) => check::port(&at.key("nodePort"), node_port).map(drop)?,
        }
    }
    Ok(())
}
