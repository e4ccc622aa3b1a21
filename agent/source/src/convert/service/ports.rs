//! `ports` of a Service.

use crate::convert::{
    check,
    field::{FieldError, FieldPath},
    ports::protocol,
    probe,
};
use berth_core::{
    ids::Namespace,
    model::{PortRef, ServicePort},
};
use k8s_openapi::api::core::v1 as api;
use std::collections::BTreeSet;

/// The ports, in their order. Names, port numbers and node ports may not repeat.
pub(super) fn ports(
    at: &FieldPath<'_>,
    spec: &api::ServiceSpec,
    may_be_none: bool,
) -> Result<Vec<ServicePort>, FieldError> {
    let given = spec.ports.as_deref().unwrap_or_default();
    if given.is_empty() && !may_be_none {
        return Err(at.error("must hold at least one port"));
    }
    let (mut names, mut taken, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::with_capacity(given.len());
    for (index, p) in given.iter().enumerate() {
        let at = &at.index(index);
        let name = p.name.clone().unwrap_or_default();
        if name.is_empty() && given.len() > 1 {
            return Err(at.key("name").error("is required where there is more than one port"));
        }
        if !name.is_empty() {
            check::id(&at.key("name"), Namespace::new(name.as_str()))
                .map_err(|f| FieldError { reason: f.reason.replace("namespace", "port name"), ..f })?;
        }
        if !names.insert(name.clone()) {
            return Err(at.key("name").error(format!("{name:?} is there twice")));
        }
        let port = check::port(&at.key("port"), p.port)?;
        let protocol = protocol(&at.key("protocol"), p.protocol.as_deref())?;
        if !taken.insert((protocol, port)) {
            return Err(at.key("port").error(format!("{port} is there twice")));
        }
        let node_port = match p.node_port {
            None | Some(0) => None,
            Some(number) => Some(check::port(&at.key("nodePort"), number)?),
        };
        if let Some(node_port) = node_port
            && !node_ports.insert((protocol, node_port))
        {
            return Err(at.key("nodePort").error(format!("{node_port} is there twice")));
        }
        let target = match &p.target_port {
            Some(target) => probe::port_ref(&at.key("targetPort"), target)?,
            None => PortRef::Number(port),
        };
        ports.push(ServicePort { name: name.into(), protocol, port, target, node_port });
    }
    Ok(ports)
}
