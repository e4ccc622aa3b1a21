//! The events by which the kubelet tells changes of its Node (`pkg/kubelet/nodestatus/setters.go`). Pure.

use berth_core::{event::Event, ids::NodeName, status::Truth};
use berth_source::node::{NodeCondition, NodeConditionType, NodeReport};
use serde_json::Value;

/// The events of a report on the Node that was `before` so, or null.
pub(super) fn transitions(name: &NodeName, before: &Value, report: &NodeReport) -> Vec<Event> {
    let changed = report.conditions.iter().filter(|c| shown(before, c.kind) != Some(text(c.status)));
    let told = changed.map(|condition| {
        let reason = reason(condition);
        Event::normal(reason, format!("Node {name} status is now: {reason}"))
    });
    let boot = before["status"]["nodeInfo"]["bootID"].as_str().unwrap_or_default();
    let rebooted = (!boot.is_empty() && boot != report.info.boot_id).then(|| {
        Event::warning("Rebooted", format!("Node {name} has been rebooted, boot id: {}", report.info.boot_id))
    });
    rebooted.into_iter().chain(told).collect()
}

/// The status of a condition in the Node.
fn shown(node: &Value, kind: NodeConditionType) -> Option<&str> {
    let conditions = node["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind.as_str())?["status"].as_str()
}

fn text(status: Truth) -> &'static str {
    match status {
        Truth::True => "True",
        Truth::False => "False",
        Truth::Unknown => "Unknown",
    }
}

fn reason(condition: &NodeCondition) -> &'static str {
    let is = condition.status == Truth::True;
    match condition.kind {
        NodeConditionType::MemoryPressure if is => "NodeHasInsufficientMemory",
        NodeConditionType::MemoryPressure => "NodeHasSufficientMemory",
        NodeConditionType::DiskPressure if is => "NodeHasDiskPressure",
        NodeConditionType::DiskPressure => "NodeHasNoDiskPressure",
        NodeConditionType::PidPressure if is => "NodeHasInsufficientPID",
        NodeConditionType::PidPressure => "NodeHasSufficientPID",
        NodeConditionType::Ready if is => "NodeReady",
        NodeConditionType::Ready => "NodeNotReady",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use berth_source::node::NodeSystemInfo;
    use serde_json::json;

    pub(in super::super) fn report(ready: Truth) -> NodeReport {
        let condition =
            |kind, status| NodeCondition { kind, status, reason: String::new(), message: String::new() };
        NodeReport {
            addresses: Vec::new(),
            hostname: "n1".into(),
            capacity: [].into(),
            allocatable: [].into(),
            conditions: vec![
                condition(NodeConditionType::MemoryPressure, Truth::False),
                condition(NodeConditionType::Ready, ready),
            ],
            info: NodeSystemInfo { boot_id: "b2".into(), ..NodeSystemInfo::default() },
            port: None,
            images: Vec::new(),
            volumes_in_use: Default::default(),
            handlers: Vec::new(),
            supplemental_groups_policy: true,
        }
    }

    fn reasons(before: &Value, ready: Truth) -> Vec<String> {
        let name = NodeName::new("n1").unwrap();
        transitions(&name, before, &report(ready)).into_iter().map(|e| e.reason).collect()
    }

    #[test]
    fn a_node_tells_what_changes_and_a_restarted_agent_nothing() {
        let node = |ready: &str, boot: &str| {
            json!({ "status": { "nodeInfo": { "bootID": boot }, "conditions": [
                { "type": "MemoryPressure", "status": "False" },
                { "type": "NetworkUnavailable", "status": "True" },
                { "type": "Ready", "status": ready },
            ] } })
        };
        assert_eq!(reasons(&Value::Null, Truth::True), ["NodeHasSufficientMemory", "NodeReady"]);
        assert!(reasons(&node("True", "b2"), Truth::True).is_empty());
        assert_eq!(reasons(&node("Unknown", "b2"), Truth::True), ["NodeReady"]);
        assert_eq!(reasons(&node("True", "b2"), Truth::False), ["NodeNotReady"]);
        assert_eq!(reasons(&node("True", "b1"), Truth::True), ["Rebooted"]);
        for odd in [json!(7), json!({ "status": { "conditions": 7 } })] {
            assert_eq!(reasons(&odd, Truth::True).len(), 2, "{odd}");
        }
    }
}
