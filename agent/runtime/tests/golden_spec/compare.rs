//! Comparison of two specs: their canonical form, the reviewed differences, and the places that differ.

use berth_core::model::Pod;
use berth_runtime::spec;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Canonical form of a spec. Values that the other side omits when false or empty are removed. Capabilities
/// are sorted, and so are limits of huge pages, whose order is that of a directory. Numbers stay, because 0
/// can be a limit.
pub(crate) fn canonical(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                let mut value = canonical(value);
                if matches!(key.as_str(), "bounding" | "effective" | "permitted" | "hugepageLimits")
                    && let Value::Array(set) = &mut value
                {
                    set.sort_by_key(Value::to_string);
                }
                let empty = match &value {
                    Value::Null | Value::Bool(false) => true,
                    Value::Array(a) => a.is_empty(),
                    Value::Object(o) => o.is_empty(),
                    Value::String(s) => s.is_empty(),
                    Value::Bool(true) | Value::Number(_) => false,
                };
                if !empty {
                    out.insert(key, value);
                }
            }
            Value::Object(out)
        }
        Value::Array(list) => Value::Array(list.into_iter().map(canonical).collect()),
        other => other,
    }
}

/// Removes the reviewed differences from both sides and returns the names of those that occurred.
pub(crate) fn reconcile(pod: &Pod, ours: &mut Value, theirs: &mut Value) -> BTreeSet<&'static str> {
    let mut used = BTreeSet::new();
    let annotations = |v: &mut Value| {
        v.as_object_mut().and_then(|o| o.remove("annotations")).and_then(|a| match a {
            Value::Object(map) => Some(map),
            _ => None,
        })
    };
    let their_marks = annotations(theirs).unwrap_or_default();
    assert!(their_marks.keys().all(|k| k.starts_with("io.kubernetes.cri.")), "{their_marks:?}");
    let our_marks = annotations(ours).unwrap_or_default();
    assert_eq!(our_marks.keys().collect::<Vec<_>>(), [spec::SHIM_GROUP_ANNOTATION]);
    used.insert("cri-annotations");

    let of_host = |kind: &str| match kind {
        "network" | "uts" => pod.namespaces.host_network,
        "ipc" => pod.namespaces.host_ipc,
        "pid" => pod.namespaces.host_pid,
        _ => false,
    };
    if let Some(list) = theirs.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut) {
        let before = list.len();
        list.retain(|n| !(of_host(n["type"].as_str().unwrap_or_default()) && n["path"].is_string()));
        if list.len() != before {
            used.insert("host-namespaces");
        }
    }
    for mount in theirs.pointer_mut("/mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        let source = mount["source"].as_str().unwrap_or_default().to_owned();
        if let Some((_, file)) = source.split_once("/io.containerd.grpc.v1.cri/sandboxes/$SANDBOX/") {
            mount["source"] = Value::String(format!("/SANDBOX/{file}"));
            used.insert("sandbox-files");
        }
        if source.ends_with("/io.containerd.grpc.v1.cri/containers/$ID/volumes/$VOLUME") {
            mount["source"] = Value::String("/VOLUME".to_owned());
            used.insert("image-volumes");
        }
    }
    used
}

/// Places where two values differ, as JSON pointers.
pub(crate) fn compare(at: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let null = Value::Null;
                compare(
                    &format!("{at}/{key}"),
                    a.get(key).unwrap_or(&null),
                    b.get(key).unwrap_or(&null),
                    out,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                compare(&format!("{at}/{i}"), x, y, out);
            }
        }
        _ if ours == theirs => {}
        _ => out.push(format!("{at}: ours {ours}, recorded {theirs}")),
    }
}
