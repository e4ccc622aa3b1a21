//! The Lease by which a node shows that it lives, as JSON (`coordination.k8s.io/v1`). Pure.

use berth_core::{ids::NodeName, time::Wall};
use jiff::Timestamp;
use serde_json::{Value, json};

/// The namespace of all nodes' leases.
pub const NAMESPACE: &str = "kube-node-lease";

/// `leaseDurationSeconds`: the node counts as gone when the lease was not renewed for so long.
const SECONDS: u32 = 40;

/// The lease to create (`before` is `None`) or to put in the place of `before`, the lease as the API server last
/// showed it. The lease belongs to the Node as soon as the Node's `metadata.uid` is known.
pub fn lease_object(node: &NodeName, node_uid: Option<&str>, before: Option<&Value>, now: Wall) -> Value {
    let mut lease = before.cloned().filter(Value::is_object).unwrap_or_else(|| {
        json!({
            "metadata": { "name": node.as_str(), "namespace": NAMESPACE },
            "spec": { "holderIdentity": node.as_str(), "leaseDurationSeconds": SECONDS },
        })
    });
    lease["apiVersion"] = "coordination.k8s.io/v1".into();
    lease["kind"] = "Lease".into();
    for part in ["metadata", "spec"] {
        if !lease[part].is_object() {
            lease[part] = json!({});
        }
    }
    lease["spec"]["renewTime"] = micro_time(now).into();
    let owned = lease["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
    if let Some(uid) = node_uid.filter(|_| !owned) {
        lease["metadata"]["ownerReferences"] =
            json!([{ "apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": uid }]);
    }
    lease
}

/// RFC 3339 with microseconds, UTC, the form of `metav1.MicroTime`. A [`Wall`] is always within its years.
fn micro_time(at: Wall) -> String {
    Timestamp::from_nanosecond(i128::from(at.0))
        .map(|at| at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::coordination::v1::Lease;

    #[test]
    fn a_lease_is_created_renewed_and_given_its_owner() {
        let node = NodeName::new("n1").unwrap();
        let first = lease_object(&node, None, None, Wall(1_767_323_070_123_456_789));
        assert_eq!(
            first,
            json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": "n1", "namespace": "kube-node-lease" },
                "spec": {
                    "holderIdentity": "n1", "leaseDurationSeconds": 40, "renewTime": "2026-01-02T03:04:30.123456Z",
                },
            })
        );
        let mut stored = first;
        stored["metadata"]["resourceVersion"] = "7".into();
        let second = lease_object(&node, Some("u-1"), Some(&stored), Wall(1_767_323_080_000_000_000));
        assert_eq!(second["metadata"]["resourceVersion"], "7");
        assert_eq!(second["spec"]["renewTime"], "2026-01-02T03:04:40.000000Z");
        let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u-1" }]);
        assert_eq!(second["metadata"]["ownerReferences"], owner);
        // An owner that is there stays.
        let third = lease_object(&node, Some("u-2"), Some(&second), Wall(0));
        assert_eq!(third["metadata"]["ownerReferences"], owner);
        let typed: Lease = serde_json::from_value(second).unwrap();
        assert_eq!(typed.spec.and_then(|spec| spec.lease_duration_seconds), Some(40));
    }

    #[test]
    fn a_lease_of_any_shape_makes_no_panic() {
        let node = NodeName::new("n1").unwrap();
        for odd in [
            json!(7),
            json!([]),
            json!({ "metadata": 7, "spec": [] }),
            json!({ "metadata": { "ownerReferences": 1 } }),
        ] {
            let lease = lease_object(&node, Some("u"), Some(&odd), Wall(i64::MAX));
            assert!(lease["spec"]["renewTime"].is_string(), "{lease}");
        }
    }
}
