//! Results and errors of plugins, parsed as untrusted input.

use crate::Error;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{fmt, net::IpAddr};

/// A sandbox's network, as its plugins reported it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod's addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// The host end of the pod's interface, if the plugins named it.
    pub host_interface: Option<String>,
    /// The hardware address of the pod's interface, if the plugins named it.
    pub mac: Option<String>,
    /// The last plugin's result, unchanged.
    pub result: Value,
}

/// Error reported by a failed plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginFailure {
    /// The CNI error code (11: try again later, 50 and 51: not ready), if the plugin gave one.
    pub code: Option<u64>,
    /// `msg` and `details`, or else the end of standard error, or else the exit status.
    pub message: String,
}

impl fmt::Display for PluginFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "code {code}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for PluginFailure {}

/// The longest list in a result. A longer one is invalid.
const LONGEST_LIST: usize = 1024;

impl Attachment {
    /// Parses a result of version 0.3.0 to 1.1.0. Empty output is an empty result.
    pub(crate) fn parse(plugin: &str, bytes: &[u8]) -> Result<Attachment, Error> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Attachment::of(plugin, Value::Object(Map::new()));
        }
        let result = serde_json::from_slice(bytes)
            .map_err(|source| Error::ResultSyntax { plugin: plugin.to_owned(), source })?;
        Attachment::of(plugin, result)
    }

    /// Interprets a result that is already parsed as JSON.
    pub(crate) fn of(plugin: &str, result: Value) -> Result<Attachment, Error> {
        let wrong = |field: String, reason: &str| Error::ResultField {
            plugin: plugin.to_owned(),
            field,
            reason: reason.to_owned(),
        };
        let object = result.as_object().ok_or_else(|| wrong("the result".into(), "is not an object"))?;
        let list = |field: &str| match object.get(field) {
            None | Some(Value::Null) => Ok(&[] as &[Value]),
            Some(Value::Array(list)) if list.len() <= LONGEST_LIST => Ok(list.as_slice()),
            Some(Value::Array(_)) => Err(wrong(field.into(), "is too long")),
            Some(_) => Err(wrong(field.into(), "is not a list")),
        };
        let mut interfaces = Vec::new();
        for (i, interface) in list("interfaces")?.iter().enumerate() {
            let text = |key: &str| match interface.get(key) {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(text)) if text.is_empty() => Ok(None),
                Some(Value::String(text)) => Ok(Some(text.clone())),
                Some(_) => Err(wrong(format!("interfaces[{i}].{key}"), "is not a string")),
            };
            let name = text("name")?.ok_or_else(|| wrong(format!("interfaces[{i}].name"), "is missing"))?;
            if !is_interface_name(&name) {
                return Err(wrong(format!("interfaces[{i}].name"), "is not the name of an interface"));
            }
            interfaces.push((name, text("mac")?, text("sandbox")?.is_some()));
        }
        let mut ips = Vec::new();
        for (i, ip) in list("ips")?.iter().enumerate() {
            let address = ip.get("address").and_then(Value::as_str);
            let address = address.ok_or_else(|| wrong(format!("ips[{i}].address"), "is missing"))?;
            let address: IpNet = address.parse().map_err(|e: ipnet::AddrParseError| {
                wrong(format!("ips[{i}].address"), &format!("is no CIDR: {e}"))
            })?;
            let in_sandbox = match ip.get("interface") {
                None | Some(Value::Null) => true,
                Some(index) => {
                    let index = index.as_u64().and_then(|n| usize::try_from(n).ok());
                    let interface = index.and_then(|n| interfaces.get(n));
                    interface
                        .ok_or_else(|| wrong(format!("ips[{i}].interface"), "is not one of interfaces"))?
                        .2
                }
            };
            if !is_usable(address.addr()) {
                return Err(wrong(format!("ips[{i}].address"), "is not one that a pod can have"));
            }
            if in_sandbox && !ips.contains(&address.addr()) {
                ips.push(address.addr());
            }
        }
        let mac = interfaces.iter().find(|i| i.2).and_then(|i| i.1.clone());
        // Plugins list the host's devices from the outside in: a bridge, then the pair's end.
        let host_interface = interfaces.iter().rfind(|i| !i.2).map(|i| i.0.clone());
        Ok(Attachment { ips, host_interface, mac, result })
    }
}

impl PluginFailure {
    /// Parses a failed plugin's standard output. Falls back to the end of standard error, then to
    /// the exit status.
    pub(crate) fn parse(stdout: &[u8], stderr: &str, ended: &str) -> PluginFailure {
        let error: Map<String, Value> = serde_json::from_slice(stdout).unwrap_or_default();
        let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().trim();
        let parts: Vec<_> = [text("msg"), text("details")].into_iter().filter(|t| !t.is_empty()).collect();
        let message = if !parts.is_empty() {
            parts.join(": ")
        } else if !stderr.trim().is_empty() {
            stderr.trim().to_owned()
        } else {
            ended.to_owned()
        };
        PluginFailure { code: error.get("code").and_then(Value::as_u64), message: printable(&message) }
    }
}

/// A plugin's text without control characters and of bounded length, for events and logs.
fn printable(text: &str) -> String {
    text.chars().take(2048).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':'))
        && !matches!(name, "." | "..")
}

fn is_usable(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}
