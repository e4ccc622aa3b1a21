//! Results and errors on standard output.

use crate::{
    attachment::Attachment,
    config::{GATEWAY_V4, GATEWAY_V6},
    error::{Error, Sources},
    version::VERSIONS,
};
use serde_json::{Value, json};
use std::path::Path;

/// An error in the form of the specification.
pub(crate) fn error(error: &Error, version: &str) -> Value {
    json!({
        "cniVersion": version,
        "code": error.code(),
        "msg": error.to_string(),
        "details": Sources(error).to_string(),
    })
}

/// The answer to VERSION.
pub(crate) fn versions(asked: &str) -> Value {
    json!({ "cniVersion": asked, "supportedVersions": VERSIONS })
}

/// The answer to ADD, in the form of the requested version.
pub(crate) fn result(version: &str, attachment: &Attachment, netns: &Path, dns: &Value) -> Value {
    let mut host = json!({ "name": attachment.host_end, "mac": attachment.host_mac.to_string() });
    let mut pod = json!({
        "name": attachment.ifname,
        "mac": attachment.pod_mac.to_string(),
        "sandbox": netns.to_string_lossy(),
    });
    if version == "1.1.0" {
        for interface in [&mut host, &mut pod] {
            interface["mtu"] = attachment.mtu.into();
        }
    }
    let old = version.starts_with("0.");
    let ips = attachment.addresses.iter().map(|address| {
        let mut ip = if address.is_ipv4() {
            json!({ "interface": 1, "address": format!("{address}/32"), "gateway": GATEWAY_V4 })
        } else {
            json!({ "interface": 1, "address": format!("{address}/128"), "gateway": GATEWAY_V6 })
        };
        if old {
            ip["version"] = if address.is_ipv4() { "4" } else { "6" }.into();
        }
        ip
    });
    let mut routes = Vec::new();
    if attachment.has_v4() {
        routes.push(json!({ "dst": "0.0.0.0/0", "gw": GATEWAY_V4 }));
    }
    if attachment.has_v6() {
        routes.push(json!({ "dst": "::/0", "gw": GATEWAY_V6 }));
    }
    routes.extend(attachment.routes.iter().map(|r| json!({ "dst": r.destination, "gw": r.gateway })));
    json!({
        "cniVersion": version,
        "interfaces": [host, pod],
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes,
        "dns": dns,
    })
}
