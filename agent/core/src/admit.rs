//! Admission: whether the node accepts a pod. A pure function, called once, before anything of the pod is
//! created. A rejected pod has failed for good, even if room becomes free later
//! (`pkg/kubelet/lifecycle/predicate.go`).

use crate::{
    model::{ContainerPort, NodeInfo, Origin, Os, Pod, Protocol, ResourceList},
    plan::Failure,
    quantity::Quantity,
};
use std::{collections::BTreeSet, net::IpAddr};

/// Checks whether the node can accept a pod beside the pods that it already runs. `others` must not contain
/// pods that have ended, were rejected or are no longer wanted. The texts are the kubelet's; details that the
/// kubelet does not give follow in brackets.
///
/// # Errors
/// The pod does not fit. The failure holds the reason of phase Failed, and the message without the common
/// prefix of such messages.
pub fn admit<'p>(
    node: &NodeInfo,
    others: impl IntoIterator<Item = &'p Pod> + Clone,
    pod: &Pod,
) -> Result<(), Failure> {
    if pod.labels.get("kubernetes.io/os").is_some_and(|os| os != "linux") {
        return Err(Failure::new(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    if pod.os != Os::Linux {
        let why = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Failure::new("PodOSNotSupported", why));
    }
    let short = short_resource(&node.allocatable, others.clone(), pod);
    // The kubelet ends less important pods to free resources for a critical pod, so the reasons below come
    // first.
    if let (Some((name, message)), false) = (&short, pod.is_critical()) {
        return Err(Failure::new(&format!("OutOf{name}"), message.clone()));
    }
    if !pod.selects_node(node.name.as_str(), &node.labels) {
        return Err(predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    if let Some((port, holder)) = taken_port(others, pod) {
        return Err(predicate(
            "NodePorts",
            &format!(
                "node(s) didn't have free ports for the requested pod ports (pod {} has {port})",
                holder.key
            ),
        ));
    }
    // The taint manager ends no static pod either.
    if !matches!(pod.origin, Origin::StaticFile(_)) && !pod.tolerates(&node.taints) {
        return Err(predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate"));
    }
    match short {
        None => Ok(()),
        Some((_, message)) => Err(Failure::new(
            "UnexpectedAdmissionError",
            format!("{message} (less important pods are not ended for it)"),
        )),
    }
}

fn predicate(name: &str, why: &str) -> Failure {
    Failure::new(name, format!("Predicate {name} failed: {why}"))
}

/// The first resource of which the node has too little, and the message about it.
fn short_resource<'p>(
    allocatable: &ResourceList,
    others: impl IntoIterator<Item = &'p Pod> + Clone,
    pod: &Pod,
) -> Option<(String, String)> {
    const FIRST: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
    let requested = pod.lasting_containers().map(|c| &c.resources).chain(&pod.resources);
    let pages: BTreeSet<&str> = requested
        .flat_map(|r| r.requests.keys())
        .map(String::as_str)
        .filter(|name| name.starts_with("hugepages-"))
        .collect();
    let named: BTreeSet<&str> = allocatable.keys().map(String::as_str).chain(pages).collect();
    let rest = named.iter().copied().filter(|name| !FIRST.contains(name));
    for name in FIRST.into_iter().filter(|name| named.contains(name)).chain(rest) {
        let (amount, unit): (fn(&Quantity) -> i64, &str) =
            if name == "cpu" { (Quantity::millis, "m") } else { (Quantity::units, "") };
        let (capacity, asked) = (allocatable.get(name).map_or(0, amount), pod.request(name, amount));
        let used =
            others.clone().into_iter().fold(0_i64, |sum, p| sum.saturating_add(p.request(name, amount)));
        // A pod that requests nothing of a resource does not worsen a shortage of it.
        if asked > 0 && asked > capacity.saturating_sub(used) {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {asked}{unit}, used: {used}{unit}, capacity: {capacity}{unit}"
            );
            return Some((name.to_owned(), message));
        }
    }
    None
}

/// The first host port of the pod that another pod has, as text, and that other pod.
fn taken_port<'p>(others: impl IntoIterator<Item = &'p Pod> + Clone, pod: &Pod) -> Option<(String, &'p Pod)> {
    host_ports(pod).find_map(|port| {
        let holder = others.clone().into_iter().find(|p| host_ports(p).any(|other| collide(port, other)))?;
        let protocol = match port.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        };
        Some((format!("port {}/{protocol}", port.host_port?), holder))
    })
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let all = pod.containers.iter().chain(pod.init_containers.iter().filter(|c| c.sidecar));
    all.flat_map(|c| &c.ports).filter(|p| p.host_port.is_some())
}

/// Whether two host ports collide: the same number and protocol, and the same address or an address that
/// means all.
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
        model::{Container, NoExecuteTaint, Resources, SYSTEM_CRITICAL_PRIORITY, Toleration},
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

    fn node() -> NodeInfo {
        let allocatable =
            [("cpu", "2"), ("memory", "1Gi"), ("ephemeral-storage", "1Ti"), ("hugepages-2Mi", "4Mi")]
                .map(|(k, v)| (k.to_owned(), v.parse().unwrap()))
                .into();
        let labels = [("disk".to_owned(), "ssd".to_owned())].into();
        NodeInfo { labels, allocatable, ..NodeInfo::new("n".parse().unwrap()) }
    }

    fn judge(others: &[Pod], pod: &Pod) -> Result<(), Failure> {
        admit(&node(), others, pod)
    }

    fn verdict(others: &[Pod], pod: &Pod) -> String {
        judge(others, pod).map_or_else(|f| f.reason, |()| "admitted".to_owned())
    }

    fn text(others: &[Pod], pod: &Pod) -> String {
        judge(others, pod).unwrap_err().message
    }

    #[test]
    fn what_fits_is_taken_and_no_more() {
        let half = pod(serde_json::json!({"requests": {"cpu": "1", "memory": "512Mi"}}));
        assert_eq!(verdict(&[], &half), "admitted");
        assert_eq!(verdict(std::slice::from_ref(&half), &half), "admitted");
        assert_eq!(verdict(&[half.clone(), half.clone()], &half), "OutOfcpu");
        let memory = pod(serde_json::json!({"requests": {"memory": "513Mi"}}));
        assert_eq!(verdict(std::slice::from_ref(&half), &memory), "OutOfmemory");
        // A resource that the node does not list is not limited, but a page size that the node does not list
        // does not exist.
        let other = pod(serde_json::json!({"requests": {"example.org/thing": "1"}}));
        assert_eq!(verdict(&[], &other), "admitted");
        for (name, reason) in [
            ("ephemeral-storage", "OutOfephemeral-storage"),
            ("hugepages-2Mi", "OutOfhugepages-2Mi"),
            ("hugepages-1Gi", "OutOfhugepages-1Gi"),
        ] {
            assert_eq!(verdict(&[], &pod(serde_json::json!({"requests": {name: "100Ti"}}))), reason);
        }
        assert_eq!(verdict(&[], &pod(serde_json::json!({"requests": {"hugepages-2Mi": "4Mi"}}))), "admitted");
        let nothing = pod(serde_json::json!({}));
        assert_eq!(verdict(&[half.clone(), half.clone(), half], &nothing), "admitted");
    }

    #[test]
    fn texts_are_the_kubelets_and_say_more() {
        let half = pod(serde_json::json!({"requests": {"cpu": "900m"}}));
        let more = pod(serde_json::json!({"requests": {"cpu": "1500m"}}));
        assert_eq!(
            text(std::slice::from_ref(&half), &more),
            "Node didn't have enough resource: cpu, requested: 1500m, used: 900m, capacity: 2000m"
        );
        let http = pod(serde_json::json!({"ports": [{"port": 80}]}));
        assert_eq!(
            text(std::slice::from_ref(&http), &http),
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports (pod ns/p has port 80/TCP)"
        );
        let mut elsewhere = pod(serde_json::json!({}));
        elsewhere.node_selector = [("disk".to_owned(), "hdd".to_owned())].into();
        assert_eq!(verdict(&[], &elsewhere), "NodeAffinity");
        assert_eq!(
            text(&[], &elsewhere),
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
        );
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
        // The kubelet would free resources for a critical pod, but no label.
        huge.node_selector = [("disk".to_owned(), "hdd".to_owned())].into();
        assert_eq!(verdict(&[], &huge), "NodeAffinity");
    }

    /// First of all: no room that is made for the pod would help it.
    #[test]
    fn a_pod_for_another_system_is_refused() {
        let mut foreign = pod(serde_json::json!({"requests": {"cpu": "100"}}));
        foreign.os = Os::Windows;
        assert_eq!(verdict(&[], &foreign), "PodOSNotSupported");
        assert_eq!(text(&[], &foreign), "Failed to admit pod as the OS field doesn't match node OS");
        foreign.labels = [("kubernetes.io/os".to_owned(), "windows".to_owned())].into();
        assert_eq!(verdict(&[], &foreign), "PodOSSelectorNodeLabelDoesNotMatch");
        foreign.labels = [("kubernetes.io/os".to_owned(), "linux".to_owned())].into();
        foreign.os = Os::Linux;
        assert_eq!(verdict(&[], &foreign), "OutOfcpu");
    }

    /// The scheduler keeps pods off such a node, but not those that name it (`generalFilter`,
    /// `pkg/kubelet/lifecycle/predicate.go`).
    #[test]
    fn a_pod_that_tolerates_no_no_execute_taint_is_refused() {
        let taint = NoExecuteTaint { key: "maintenance".to_owned(), value: String::new() };
        let tainted = NodeInfo { taints: vec![taint], ..node() };
        let mut plain = pod(serde_json::json!({}));
        let why = admit(&tainted, &[], &plain).unwrap_err();
        assert_eq!(why.reason, "TaintToleration");
        assert_eq!(
            why.message,
            "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
        );
        plain.tolerations = vec![Toleration { key: None, value: None }];
        assert_eq!(admit(&tainted, &[], &plain), Ok(()));
        plain.tolerations.clear();
        plain.origin = Origin::StaticFile("/x".into());
        assert_eq!(admit(&tainted, &[], &plain), Ok(()), "static pods are exempt");
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
