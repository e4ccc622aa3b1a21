//! Whether a node takes a pod on: asked once, before anything of it is made. Pure. A pod that is refused has failed for
//! good; what made room later is for another pod (`pkg/kubelet/lifecycle/predicate.go`).

use crate::{
    model::{ContainerPort, Origin, Pod, ResourceList},
    plan::Failure,
    quantity::Quantity,
};
use std::net::IpAddr;

/// From here on a priority is one of the system's (`scheduling.SystemCriticalPriority`).
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Judges one pod by what the node has and by the pods that it runs already. Those that have ended, or were refused
/// themselves, must not be among them; those that are ending must. A resource that `node` does not name is not counted.
///
/// # Errors
/// The pod does not fit: reason and message of its phase Failed.
pub fn admit<'p>(
    node: &ResourceList,
    others: impl IntoIterator<Item = &'p Pod> + Clone,
    pod: &Pod,
) -> Result<(), Failure> {
    let mut short = Vec::new();
    for (name, capacity) in node {
        let amount = if name == "cpu" { Quantity::millis } else { Quantity::units };
        let (capacity, asked) = (amount(capacity), pod.request(name, amount));
        let used =
            others.clone().into_iter().fold(0_i64, |sum, p| sum.saturating_add(p.request(name, amount)));
        // A pod that asks for nothing of it is no worse for a node that has too little already.
        if asked > 0 && asked > capacity.saturating_sub(used) {
            short.push((
                name.as_str(),
                format!("{name}: requested {asked}, used {used}, capacity {capacity}"),
            ));
        }
    }
    if let Some((first, _)) = short.first() {
        let all: Vec<&str> = short.iter().map(|(_, text)| text.as_str()).collect();
        let message = format!("Pod was rejected: the node has not enough of {}", all.join("; "));
        // The kubelet looks for less important pods to end before it refuses such a pod; a failure of that is the reason.
        let reason =
            if critical(pod) { "UnexpectedAdmissionError".to_owned() } else { format!("OutOf{first}") };
        return Err(Failure::new(&reason, message));
    }
    let taken = |port: &ContainerPort| {
        others
            .clone()
            .into_iter()
            .flat_map(host_ports)
            .any(|other| collide(port, other))
            .then_some(port.host_port)
    };
    if let Some(Some(port)) = host_ports(pod).find_map(taken) {
        return Err(Failure::new("NodePorts", format!("Pod was rejected: port {port} of the node is taken")));
    }
    Ok(())
}

fn critical(pod: &Pod) -> bool {
    matches!(pod.origin, Origin::StaticFile(_)) || pod.priority >= SYSTEM_CRITICAL_PRIORITY
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let all = pod.containers.iter().chain(pod.init_containers.iter().filter(|c| c.sidecar));
    all.flat_map(|c| &c.ports).filter(|p| p.host_port.is_some())
}

/// Two claims on one port of the node: the same number and protocol, and the same address or one that means all.
fn collide(a: &ContainerPort, b: &ContainerPort) -> bool {
    let all = |ip: Option<IpAddr>| ip.is_none_or(|ip| ip.is_unspecified());
    a.host_port == b.host_port
        && a.protocol == b.protocol
        && (all(a.host_ip) || all(b.host_ip) || a.host_ip == b.host_ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::PodKey,
        model::{Container, Protocol, Resources},
    };

    fn pod(wanted: serde_json::Value) -> Pod {
        let requests = wanted["requests"].as_object().into_iter().flatten();
        let requests = requests.map(|(k, v)| (k.clone(), v.as_str().unwrap().parse().unwrap())).collect();
        let ports = wanted["ports"].as_array().into_iter().flatten().map(|p| ContainerPort {
            name: None,
            port: 1,
            protocol: if p["udp"] == true { Protocol::Udp } else { Protocol::Tcp },
            host_port: p["port"].as_u64().map(|p| u16::try_from(p).unwrap()),
            host_ip: p["ip"].as_str().map(|ip| ip.parse().unwrap()),
        });
        let resources = Resources { requests, ..Resources::default() };
        let container = Container::new("c".parse().unwrap(), "i");
        let key = PodKey { namespace: "ns".parse().unwrap(), name: "p".parse().unwrap() };
        Pod {
            containers: vec![Container { ports: ports.collect(), resources, ..container }],
            ..Pod::new("u".parse().unwrap(), key, "n".parse().unwrap())
        }
    }

    fn node() -> ResourceList {
        [("cpu", "2"), ("memory", "1Gi")].map(|(k, v)| (k.to_owned(), v.parse().unwrap())).into()
    }

    fn verdict(others: &[Pod], pod: &Pod) -> String {
        admit(&node(), others, pod).map_or_else(|f| f.reason, |()| "admitted".to_owned())
    }

    #[test]
    fn what_fits_is_taken_and_no_more() {
        let half = pod(serde_json::json!({"requests": {"cpu": "1", "memory": "512Mi"}}));
        assert_eq!(verdict(&[], &half), "admitted");
        assert_eq!(verdict(std::slice::from_ref(&half), &half), "admitted");
        assert_eq!(verdict(&[half.clone(), half.clone()], &half), "OutOfcpu");
        let memory = pod(serde_json::json!({"requests": {"memory": "513Mi"}}));
        assert_eq!(verdict(std::slice::from_ref(&half), &memory), "OutOfmemory");
        let other =
            pod(serde_json::json!({"requests": {"example.org/thing": "1", "ephemeral-storage": "1Ti"}}));
        assert_eq!(verdict(&[], &other), "admitted");
        let nothing = pod(serde_json::json!({}));
        assert_eq!(verdict(&[half.clone(), half.clone(), half], &nothing), "admitted");
    }

    #[test]
    fn a_static_or_critical_pod_is_refused_for_another_reason() {
        let mut huge = pod(serde_json::json!({"requests": {"cpu": "100000"}}));
        assert_eq!(verdict(&[], &huge), "OutOfcpu");
        huge.origin = Origin::StaticFile("/x".into());
        assert_eq!(verdict(&[], &huge), "UnexpectedAdmissionError");
        huge.origin = Origin::Cluster;
        huge.priority = SYSTEM_CRITICAL_PRIORITY;
        assert_eq!(verdict(&[], &huge), "UnexpectedAdmissionError");
    }

    #[test]
    fn a_port_of_the_node_has_one_owner() {
        let on = |ports| pod(serde_json::json!({"ports": ports}));
        let http = on(serde_json::json!([{"port": 80}]));
        for (ports, said) in [
            (serde_json::json!([{"port": 80}]), "NodePorts"),
            (serde_json::json!([{"port": 81}, {"port": 80, "ip": "10.0.0.1"}]), "NodePorts"),
            (serde_json::json!([{"port": 80, "udp": true}]), "admitted"),
            (serde_json::json!([{"port": 81}, {}]), "admitted"),
        ] {
            assert_eq!(verdict(std::slice::from_ref(&http), &on(ports.clone())), said, "{ports}");
        }
        let one = on(serde_json::json!([{"port": 80, "ip": "10.0.0.1"}]));
        let two = on(serde_json::json!([{"port": 80, "ip": "10.0.0.2"}]));
        assert_eq!(verdict(std::slice::from_ref(&one), &two), "admitted");
        assert_eq!(verdict(std::slice::from_ref(&one), &one), "NodePorts");
    }
}
