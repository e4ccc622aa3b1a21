//! Ports of containers.

use super::{
    check::{self, choice},
    field::{FieldError, FieldPath},
};
use berth_core::model::{Container, ContainerPort, Protocol};
use k8s_openapi::api::core::v1 as api;
use std::{collections::BTreeSet, net::IpAddr};

/// `ports` of a container.
pub(super) fn ports(
    at: &FieldPath<'_>,
    list: &[api::ContainerPort],
    host_network: bool,
) -> Result<Vec<ContainerPort>, FieldError> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for (index, p) in list.iter().enumerate() {
        let at = &at.index(index);
        let name = p.name.clone().filter(|n| !n.is_empty());
        if let Some(name) = &name {
            check::port_name(&at.key("name"), name)?;
            if !names.insert(name.clone()) {
                return Err(at.key("name").error(format!("{name:?} is there twice")));
            }
        }
        let port = check::port(&at.key("containerPort"), p.container_port)?;
        let host_at = &at.key("hostPort");
        let host_port = match p.host_port {
            None | Some(0) => host_network.then_some(port),
            Some(h) => Some(check::port(host_at, h)?),
        };
        if host_network && host_port != Some(port) {
            return Err(host_at.error("must equal containerPort with hostNetwork"));
        }
        found.push(ContainerPort {
            name,
            port,
            protocol: protocol(&at.key("protocol"), p.protocol.as_deref())?,
            host_port,
            host_ip: match p.host_ip.as_deref() {
                None | Some("") => None,
                Some(ip) => Some(check::address(&at.key("hostIP"), ip)?),
            },
        });
    }
    Ok(found)
}

/// A transport protocol, TCP by default.
pub(super) fn protocol(at: &FieldPath<'_>, word: Option<&str>) -> Result<Protocol, FieldError> {
    choice(at, word, &[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)])
}

/// Refuses a host port that two of the pod's main containers want; the API server compares no others.
pub(super) fn host_ports(at: &FieldPath<'_>, list: &[Container]) -> Result<(), FieldError> {
    let mut taken: BTreeSet<(Protocol, Option<IpAddr>, u16)> = BTreeSet::new();
    for (index, c) in list.iter().enumerate() {
        for (number, port) in c.ports.iter().enumerate() {
            let Some(host_port) = port.host_port else { continue };
            if !taken.insert((port.protocol, port.host_ip, host_port)) {
                let at = &at.index(index);
                let at = &at.key("ports");
                return Err(at
                    .index(number)
                    .key("hostPort")
                    .error(format!("{host_port} is taken by another port of this pod")));
            }
        }
    }
    Ok(())
}
