//! ClientIdentity dials, as people write it.

use crate::{error::Error, names, state, v1};
use berth_api::view::PodView;
use std::net::{IpAddr, SocketAddr};

/// ClientIdentity dials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A socket in the node's own network, also a pod's.
    Node,
    /// A pod of this node, by its addresses.
    Pod {
        /// Those.
        ips: Vec<IpAddr>,
    },
    /// Somebody elsewhere.
    Outside {
        /// From here.
        ip: IpAddr,
        /// From this port.
        port: Option<u16>,
    },
}

/// What an address is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Is {
    Pod,
    Node,
    Neither,
}

/// Finds who is meant by `node`, `outside:ADDRESS[:PORT]`, an address, or a pod's name.
pub(crate) fn find(
    text: &str,
    pods: &[PodView],
    is: impl Fn(IpAddr) -> Result<Is, Error>,
) -> Result<Source, Error> {
    if text == "node" {
        return Ok(Source::Node);
    }
    if let Some(rest) = text.strip_prefix("outside:") {
        let bare = rest.strip_prefix('[').and_then(|r| r.strip_suffix(']')).unwrap_or(rest);
        let ip = bare.parse::<IpAddr>().map(|ip| (ip, None));
        let found = ip.or_else(|_| rest.parse::<SocketAddr>().map(|at| (at.ip(), Some(at.port()))));
        let wrong = |_| Error::Usage(format!("{rest:?} is no address, with or without a port"));
        let (ip, port) = found.map_err(wrong)?;
        return Ok(Source::Outside { ip: ip.to_canonical(), port });
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        return match is(ip)? {
            Is::Pod => Ok(Source::Pod { ips: vec![ip] }),
            Is::Node => Ok(Source::Node),
            Is::Neither => Err(Error::NotFound(format!(
                "{ip} is neither a pod of this node nor the node: for somebody elsewhere write outside:{ip}"
            ))),
        };
    }
    let meant = names::resolve(text, &state::candidates(pods))?;
    let Some(view) = pods.get(meant.pod) else {
        return Err(Error::NotFound(format!("no pod is named {text:?}")));
    };
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
        let is = |ip: IpAddr| {
            Ok(match ip.to_string().as_str() {
                "10.244.0.5" => Is::Pod,
                "192.0.2.1" => Is::Node,
                _ => Is::Neither,
            })
        };
        match find(text, &pods, is) {
            Ok(Source::Node) => "node".to_owned(),
            Ok(Source::Pod { ips }) => format!("pod {ips:?}"),
            Ok(Source::Outside { ip, port }) => format!("outside {ip} {port:?}"),
            Err(e) => format!("{}: {e}", e.code()),
        }
    }

    #[test]
    fn sources_mean_what_they_say() {
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
            ("outside:me", "2: \"me\" is no address, with or without a port"),
            ("none", "4: pod default/none has no address"),
            (
                "nobody",
                "4: no pod or container is named \"nobody\"; `berth status` tells of manifests that are refused",
            ),
            (
                "10.244.0.6",
                "4: 10.244.0.6 is neither a pod of this node nor the node: for somebody elsewhere write outside:10.244.0.6",
            ),
        ] {
            assert_eq!(found(text), what, "{text}");
        }
    }
}
