//! The downward API: fields of a pod and resources of its containers as text, for variables and files.

use crate::PodFacts;
use berth_core::{
    model::{Container, Pod, ResourceFieldRef},
    quantity::Quantity,
};
use std::{collections::BTreeMap, net::IpAddr};

/// Why a field of the downward API has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The downward API has no field of that path.
    #[error("unsupported fieldPath: {0}")]
    Path(String),
    /// The field has no `['key']`.
    #[error("fieldPath {0:?} does not support subscript")]
    Subscript(String),
    /// The node's address is not known yet.
    #[error("the node has no address yet")]
    NoHostIp,
    /// The downward API has no such resource.
    #[error("unsupported container resource: {0}")]
    Resource(String),
    /// A `resourceFieldRef` in a volume names no container.
    #[error("resourceFieldRef names no container")]
    NoContainer,
    /// The container named by `resourceFieldRef` is not in the pod.
    #[error("container {0} not found")]
    Container(String),
}

/// The value of a `fieldRef`.
pub(crate) fn field(pod: &Pod, facts: &PodFacts, path: &str) -> Result<String, FieldError> {
    if let Some((base, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match base {
            "metadata.labels" => &pod.labels,
            "metadata.annotations" => &pod.annotations,
            _ => return Err(FieldError::Subscript(path.to_owned())),
        };
        return Ok(map.get(key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.key.name.to_string(),
        "metadata.namespace" => pod.key.namespace.to_string(),
        "metadata.uid" => pod.uid.to_string(),
        "metadata.labels" => lines(&pod.labels),
        "metadata.annotations" => lines(&pod.annotations),
        "spec.nodeName" => pod.node.to_string(),
        "spec.serviceAccountName" => pod.service_account.clone(),
        "status.hostIP" => facts.node.ips.first().ok_or(FieldError::NoHostIp)?.to_string(),
        "status.hostIPs" if facts.node.ips.is_empty() => return Err(FieldError::NoHostIp),
        "status.hostIPs" => joined(&facts.node.ips),
        "status.podIP" => facts.ips.first().map(IpAddr::to_string).unwrap_or_default(),
        "status.podIPs" => joined(&facts.ips),
        _ => return Err(FieldError::Path(path.to_owned())),
    })
}

fn joined(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// One `key="value"` a line, sorted by key.
fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(k, v)| format!("{k}={}", quote(v))).collect::<Vec<_>>().join("\n")
}

/// A text between quotes in the format of Go's `strconv.Quote`, which the kubelet uses in these files.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            c if is_printable(c) => out.push(c),
            c if u32::from(c) < 0x80 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// Whether Go prints the character as it is: letters, marks, numbers, punctuation, symbols and the plain space. The
/// standard library escapes a mark only at the start of a text, so a letter is put before it.
fn is_printable(c: char) -> bool {
    let text = String::from_iter(['a', c]);
    c == '\'' || text.escape_debug().eq(text.chars())
}

/// The value of a `resourceFieldRef` for `container`, or for the container that the reference names. A missing limit is
/// that of the pod, else node allocatable; a missing request is 0. The value is in units of the divisor, rounded up.
pub(crate) fn resource(
    pod: &Pod,
    container: Option<&Container>,
    facts: &PodFacts,
    field: &ResourceFieldRef,
) -> Result<String, FieldError> {
    let container = match &field.container {
        Some(name) => pod.container(name).ok_or_else(|| FieldError::Container(name.to_string()))?,
        None => container.ok_or(FieldError::NoContainer)?,
    };
    let unsupported = || FieldError::Resource(field.resource.clone());
    let (side, name) = field.resource.split_once('.').ok_or_else(unsupported)?;
    let plain = matches!(name, "cpu" | "memory" | "ephemeral-storage");
    if !plain && !name.starts_with("hugepages-") {
        return Err(unsupported());
    }
    let amount = match side {
        "requests" => container.resources.requests.get(name),
        "limits" => {
            let own = container.resources.limits.get(name);
            if plain { own.filter(|q| is_set(q)).or_else(|| default_limit(pod, facts, name)) } else { own }
        }
        _ => return Err(unsupported()),
    };
    let divisor = field.divisor.as_ref().filter(|q| is_set(q));
    let (amount, divisor) = if name == "cpu" {
        (amount.map_or(0, Quantity::millis), divisor.map_or(1000, Quantity::millis))
    } else {
        (amount.map_or(0, Quantity::units), divisor.map_or(1, Quantity::units))
    };
    let (amount, divisor) = (i128::from(amount), i128::from(divisor.max(1)));
    let rounded = amount.div_euclid(divisor) + i128::from(amount.rem_euclid(divisor) != 0);
    Ok(rounded.to_string())
}

fn is_set(q: &Quantity) -> bool {
    q.millis() != 0
}

fn default_limit<'a>(pod: &'a Pod, facts: &'a PodFacts, name: &str) -> Option<&'a Quantity> {
    let of_pod = pod
        .resources
        .as_ref()
        .filter(|_| matches!(name, "cpu" | "memory"))
        .and_then(|r| r.limits.get(name))
        .filter(|q| is_set(q));
    of_pod.or_else(|| facts.node.allocatable.get(name))
}

#[cfg(test)]
mod tests;
