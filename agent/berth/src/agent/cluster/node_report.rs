//! What the node reports of itself to the control plane: amounts, conditions, versions.

use super::super::node::architecture;
use berth_api::view::Health;
use berth_core::{ids::BootId, model::NodeInfo, quantity::Quantity, status::Truth};
use berth_source::node::{NodeCondition, NodeConditionType, NodeReport, NodeSystemInfo, RuntimeHandler};
use std::fs;

/// The most pods of a node, the kubelet's default (`maxPods`).
const MAX_PODS: &str = "110";

/// The version of the kubelet whose behaviour this agent has. An API server refuses a node that is newer than itself.
pub(crate) const KUBELET_VERSION: &str = concat!("v1.36.3+berth-", env!("CARGO_PKG_VERSION"));

/// The report on the node as it is now. `machine` is what does not change while the agent runs.
pub(super) fn node_report(
    machine: &NodeSystemInfo,
    info: &NodeInfo,
    containerd: &Health,
    network: &Health,
) -> NodeReport {
    let mut amounts = info.allocatable.clone();
    if let Ok(most) = MAX_PODS.parse::<Quantity>() {
        amounts.insert("pods".to_owned(), most);
    }
    let conditions = conditions(containerd, network);
    let version = if containerd.ok { containerd.message.as_str() } else { "" };
    NodeReport {
        addresses: info.ips.clone(),
        hostname: info.name.to_string(),
        capacity: amounts.clone(),
        allocatable: amounts,
        conditions,
        info: NodeSystemInfo {
            containerd_version: version.trim_start_matches('v').to_owned(),
            ..machine.clone()
        },
        port: None,
        images: Vec::new(),
        volumes_in_use: Default::default(),
        handlers: vec![RuntimeHandler {
            name: String::new(),
            recursive_read_only_mounts: info.recursive_read_only,
            user_namespaces: false,
        }],
        supplemental_groups_policy: true,
    }
}

/// Whether the node can run pods.
pub(super) fn is_ready(report: &NodeReport) -> bool {
    report.conditions.iter().any(|c| c.kind == NodeConditionType::Ready && c.status == Truth::True)
}

/// The node's conditions in the kubelet's words (`pkg/kubelet/nodestatus/setters.go`). This node evicts no pods, so it
/// knows no pressure.
fn conditions(containerd: &Health, network: &Health) -> Vec<NodeCondition> {
    let no_pressure = |kind, reason: &str, message: &str| NodeCondition {
        kind,
        status: Truth::False,
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    let runtime = (!containerd.ok).then(|| format!("container runtime is down: {}", containerd.message));
    let network = (!network.ok).then(|| {
        format!(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{}",
            network.message
        )
    });
    let problems: Vec<String> = [runtime, network].into_iter().flatten().collect();
    let ready = match problems.is_empty() {
        true => (Truth::True, "KubeletReady", "kubelet is posting ready status".to_owned()),
        false => (Truth::False, "KubeletNotReady", problems.join(", ")),
    };
    vec![
        no_pressure(
            NodeConditionType::MemoryPressure,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        no_pressure(
            NodeConditionType::DiskPressure,
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        no_pressure(
            NodeConditionType::PidPressure,
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        NodeCondition {
            kind: NodeConditionType::Ready,
            status: ready.0,
            reason: ready.1.to_owned(),
            message: ready.2,
        },
    ]
}

/// The ids of the machine and the versions of its programs but for containerd's.
pub(super) fn machine(boot: &BootId) -> NodeSystemInfo {
    // A machine without such a file has no such id.
    let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let release = line("/etc/os-release");
    let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    NodeSystemInfo {
        machine_id: line("/etc/machine-id"),
        system_uuid: line("/sys/class/dmi/id/product_uuid"),
        boot_id: boot.to_string(),
        kernel_version: line("/proc/sys/kernel/osrelease"),
        os_image: pretty.unwrap_or_default().trim_matches('"').to_owned(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        architecture: architecture(std::env::consts::ARCH).to_owned(),
        ..NodeSystemInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_while_containerd_and_the_network_are() {
        let ready = |containerd: &Health, network: &Health| {
            let last = conditions(containerd, network).pop().unwrap();
            (last.kind, last.status, last.message)
        };
        let (good, bad) = (Health::good("2.4.2"), Health::bad("no conflist"));
        assert_eq!(
            ready(&good, &good),
            (NodeConditionType::Ready, Truth::True, "kubelet is posting ready status".to_owned())
        );
        let message = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:no conflist";
        assert_eq!(ready(&good, &bad), (NodeConditionType::Ready, Truth::False, message.to_owned()));
        assert!(ready(&bad, &good).2.starts_with("container runtime is down: no conflist"));
    }
}
