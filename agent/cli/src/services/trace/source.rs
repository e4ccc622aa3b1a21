//! Parsing of the client of a traced connection.

use crate::{error::Error, names, state, v1};
use berth_api::view::PodView;
use std::net::{IpAddr, SocketAddr};

/// The client of a traced connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A socket in the node's network namespace, also of a pod with host network.
    Node,
    /// A pod of this node.
    Pod {
        /// Its addresses.
        ips: Vec<IpAddr>,
    },
    /// A client outside of the node.
    Outside {
        /// Its address.
        ip: IpAddr,
        /// Its source port; `None` for any.
        port: Option<u16>,
    },
}

/// To whom on this node an address belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressKind {
    Pod,
    Node,
    Neither,
}

/// Parses `node`, `outside:ADDRESS[:PORT]`, an address of this node or of a pod, or a pod's name.
pub(crate) fn find(
    text: &str,
    pods: &[PodView],
    kind: impl Fn(IpAddr) -> Result<AddressKind, Error>,
) -> Result<Source, Error> {
    if text == "node" {
        return Ok(Source::Node);
    }
    if let Some(rest) = text.strip_prefix("outside:") {
        let bare = rest.strip_prefix('[').and_then(|r| r.strip_suffix(']')).unwrap_or(rest);
        let ip = bare.parse::<IpAddr>().map(|ip| (ip, None));
        let found = ip.or_else(|_| rest.parse::<SocketAddr>().map(|at| (at.ip(), Some(at.port()))));
        let wrong = |_| Error::Usage(format!("{rest:?} is neither an address nor an address and port"));
        let (ip, port) = found.map_err(wrong)?;
        return Ok(Source::Outside { ip: ip.to_canonical(), port });
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        return match kind(ip)? {
            AddressKind::Pod => Ok(Source::Pod { ips: vec![ip] }),
            AddressKind::Node => Ok(Source::Node),
            AddressKind::Neither => Err(Error::NotFound(format!(
                "{ip} belongs neither to a pod of this node nor to the node: for a client outside write outside:{ip}"
            ))),
        };
    }
    let resolved = names::resolve(text, &state::candidates(pods))?;
    let Some(view) = pods.get(resolved.pod) else { return Err(Error::no_pod(text)) };
    let pod = v1::Pod::of(view);
    if pod.spec.host_network {
        return Ok(Source::Node);
    }
    let ips: Vec<IpAddr> = pod.status.pod_ips.iter().filter_map(|a| a.ip.parse().ok()).collect();
    if ips.is_empty() {
        return Err(Error::NotFound(format!("pod {} has no address", view.key)));
    }
    Ok(Source::Pod { ips })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(text: &str) -> String {
        let pod = |name: &str, ip: &str, host: bool| -> PodView {
            let ips: Vec<_> =
                Some(ip).filter(|ip| !ip.is_empty()).map(|ip| json!({"ip": ip})).into_iter().collect();
            serde_json::from_value(json!({
                "uid": name, "key": {"namespace": "default", "name": name},
                "object": {"spec": {"hostNetwork": host}, "status": {"podIPs": ips}},
            }))
            .unwrap()
        };
        let pods =
            [pod("web-0", "10.244.0.5", false), pod("hostly", "192.0.2.1", true), pod("none", "", false)];
        let kind = |ip: IpAddr| {
            Ok(match ip.to_string().as_str() {
                "10.244.0.5" => AddressKind::Pod,
                "192.0.2.1" => AddressKind::Node,
                _ => AddressKind::Neither,
            })
        };
        match find(text, &pods, kind) {
            Ok(Source::Node) => "node".to_owned(),
            Ok(Source::Pod { ips }) => format!("pod {ips:?}"),
            Ok(Source::Outside { ip, port }) => format!("outside {ip} {port:?}"),
            Err(e) => format!("{}: {e}", e.code()),
        }
    }

    #[test]
    fn clients_are_parsed_by_every_form() {
        for (text, what) in [
            ("node", "node"),
            ("web", "pod [10.244.0.5]"),
            ("default/web-0", "pod [10.244.0.5]"),
            ("10.244.0.5", "pod [10.244.0.5]"),
            ("::ffff:10.244.0.5", "pod [10.244.0.5]"),
            ("192.0.2.1", "node"),
            ("hostly", "node"),
            ("outside:198.51.100.9", "outside 198.51.100.9 None"),
            ("outside:198.51.100.9:1234", "outside 198.51.100.9 Some(1234)"),
            ("outside:[fd00::9]:1234", "outside fd00::9 Some(1234)"),
            ("outside:fd00::9", "outside fd00::9 None"),
            ("outside:me", "2: \"me\" is neither an address nor an address and port"),
            ("none", "4: pod default/none has no address"),
            (
                "nobody",
                "4: no pod or container is named \"nobody\"; `berth status` lists manifests that cannot be used",
            ),
            (
                "10.244.0.6",
                "4: 10.244.0.6 belongs neither to a pod of this node nor to the node: for a client outside write outside:10.244.0.6",
            ),
        ] {
            assert_eq!(found(text), what, "{text}");
        }
    }
}
