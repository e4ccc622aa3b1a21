//! Widgets, events and refusals as the server writes them.

use serde_json::{Value, json};

pub(super) fn widget(name: &str, (version, number): (u64, u64)) -> Value {
    json!({"metadata": {"name": name, "uid": format!("u-{name}"), "resourceVersion": version.to_string()}, "number": number})
}

pub(super) fn line(kind: &str, object: &Value) -> String {
    json!({"type": kind, "object": object}).to_string() + "\n"
}

pub(super) fn bookmark(version: u64, end: bool) -> String {
    let annotations = if end { json!({"k8s.io/initial-events-end": "true"}) } else { json!({}) };
    line(
        "BOOKMARK",
        &json!({"metadata": {"resourceVersion": version.to_string(), "annotations": annotations}}),
    )
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "message": message, "code": code})
}
