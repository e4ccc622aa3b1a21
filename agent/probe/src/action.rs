//! Resolution of a probe or hook to the request that is sent.

use crate::Error;
use berth_core::model::{Container, EnvValue, EnvVar, HttpTarget, PortRef, Probe, ProbeAction, expand};
use std::{collections::HashMap, fmt, net::IpAddr};

/// A network probe, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub enum ResolvedAction {
    /// A GET. A status of 200 to 399 is success.
    Http(HttpAction),
    /// A TCP connection. An accepted connection is success.
    Tcp(Endpoint),
    /// `grpc.health.v1.Health/Check` without TLS. SERVING is success.
    Grpc {
        /// The endpoint.
        endpoint: Endpoint,
        /// `service` of the request, possibly empty.
        service: String,
    },
}

/// An HTTP request of a probe or hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAction {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Whether to use TLS. The certificate is not verified.
    pub https: bool,
    /// Path and query as specified. Characters that a URL cannot contain are escaped when the
    /// request is sent.
    pub path: String,
    /// Extra headers in order, without `Host`.
    pub headers: Vec<(String, String)>,
    /// The specified `Host` header, if any.
    pub host_header: Option<String>,
}

/// Host and port of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// Whether the node's own loopback and link-local addresses are allowed. In a host-network pod
    /// these are the pod's addresses; any other pod would reach the node's services with them.
    pub node_local: bool,
}

/// A host by address or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, resolved by the node's resolver for each probe.
    Name(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Address(ip) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl Endpoint {
    fn new(
        host: Option<&str>,
        port: u16,
        pod_ip: Option<IpAddr>,
        node_local: bool,
    ) -> Result<Endpoint, Error> {
        let host = match host.filter(|h| !h.is_empty()) {
            None => Host::Address(pod_ip.ok_or(Error::NoPodAddress)?),
            Some(text) => match text.trim_start_matches('[').trim_end_matches(']').parse() {
                Ok(ip) => Host::Address(ip),
                Err(_) => Host::Name(text.to_owned()),
            },
        };
        // A host-network pod's own address may be any address, so it is always allowed.
        let own = matches!(&host, Host::Address(ip) if Some(*ip) == pod_ip);
        Ok(Endpoint { host, port, node_local: node_local || own })
    }
}

/// Resolves a network probe: ports by name, and the pod's address as the default host.
///
/// `node_local` says whether `host` may be the node's loopback or a link-local address:
/// `hostNetwork`, or true if the node's configuration allows it to all pods. An exec probe is an
/// error here; its command is [`probe_command`].
pub fn resolve(
    probe: &Probe,
    container: &Container,
    pod_ip: Option<IpAddr>,
    node_local: bool,
) -> Result<ResolvedAction, Error> {
    match &probe.action {
        ProbeAction::Http(target) => {
            resolve_http(target, container, pod_ip, node_local).map(ResolvedAction::Http)
        }
        ProbeAction::Tcp { host, port } => {
            let port = number(container, port)?;
            Ok(ResolvedAction::Tcp(Endpoint::new(host.as_deref(), port, pod_ip, node_local)?))
        }
        ProbeAction::Grpc { port, service } => Ok(ResolvedAction::Grpc {
            endpoint: Endpoint::new(None, *port, pod_ip, node_local)?,
            service: service.clone(),
        }),
        ProbeAction::Exec(_) => Err(Error::NotOverTheNetwork),
    }
}

/// Resolves the target of an `httpGet` hook or probe; see [`resolve`].
pub fn resolve_http(
    target: &HttpTarget,
    container: &Container,
    pod_ip: Option<IpAddr>,
    node_local: bool,
) -> Result<HttpAction, Error> {
    let port = number(container, &target.port)?;
    let is_host = |name: &str| name.eq_ignore_ascii_case("host");
    Ok(HttpAction {
        endpoint: Endpoint::new(target.host.as_deref(), port, pod_ip, node_local)?,
        https: target.https,
        path: target.path.clone(),
        headers: target.headers.iter().filter(|(n, _)| !is_host(n)).cloned().collect(),
        host_header: target.headers.iter().find(|(n, v)| is_host(n) && !v.is_empty()).map(|(_, v)| v.clone()),
    })
}

fn number(container: &Container, port: &PortRef) -> Result<u16, Error> {
    container.port(port).filter(|p| *p != 0).ok_or_else(|| Error::NoSuchPort {
        port: match port {
            PortRef::Number(n) => n.to_string(),
            PortRef::Name(name) => name.clone(),
        },
    })
}

/// The command of an exec probe with `$(VAR)` and `$$` expanded. Only literal `env` entries are
/// known. Entries from other sources expand to nothing, and an unknown name stays as written.
/// (Commands of hooks are not expanded.)
pub fn probe_command(command: &[String], env: &[EnvVar]) -> Vec<String> {
    let values: HashMap<&str, &str> = env
        .iter()
        .map(|var| match &var.value {
            EnvValue::Text(text) => (var.name.as_str(), text.as_str()),
            _ => (var.name.as_str(), ""),
        })
        .collect();
    command.iter().map(|word| expand(word, |name| values.get(name).copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probes_host_defaults_to_the_pods_address() {
        let ip = "10.1.2.3".parse().ok();
        let show = |host| Endpoint::new(host, 80, ip, false).map(|e| (e.to_string(), e.node_local)).ok();
        assert_eq!(show(None), Some(("10.1.2.3:80".into(), true)));
        assert_eq!(show(Some("")), Some(("10.1.2.3:80".into(), true)));
        assert_eq!(show(Some("[::1]")), Some(("[::1]:80".into(), false)));
        assert_eq!(show(Some("web.example")), Some(("web.example:80".into(), false)));
        assert!(matches!(Endpoint::new(None, 80, None, false), Err(Error::NoPodAddress)));
    }
}
