//! UIDs of pods and Services whose manifest gives none.

use berth_core::ids::{Namespace, PodName};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

/// UID of a pod of the manifest directory: a function of namespace, name and spec. A changed spec is another
/// pod, so that the old one is ended and the new one started; labels and annotations may change during its
/// life. The spec is hashed without defaults, so that a default of a later version does not restart pods.
pub(super) fn of_manifest(namespace: &Namespace, name: &PodName, spec: &Value) -> String {
    let mut canonical = String::new();
    write_canonical(spec, &mut canonical);
    uuid(&[namespace.as_str(), name.as_str(), &canonical])
}

/// UID of any other object: a function of its kind, namespace and name.
pub(super) fn of_object(kind: &str, namespace: &Namespace, name: &PodName) -> String {
    uuid(&[kind, namespace.as_str(), name.as_str()])
}

fn uuid(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    let hex: String = hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect();
    // The form of a UUID, with version 8, which is for custom use (RFC 9562).
    let part = |from, to| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-8{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

/// UID of a static pod, by the kubelet's rule: FNV-1a of 128 bits over the pod, `host:<node>` and
/// `file:<path>`. The kubelet hashes a print of its in-memory type, so that only the rule can be the same,
/// not the number.
pub(super) fn of_static(pod: &Value, node: &str, file: &Path) -> String {
    let mut canonical = String::new();
    write_canonical(pod, &mut canonical);
    let mut hash = FNV_OFFSET;
    for part in
        [canonical.as_bytes(), b"host:", node.as_bytes(), b"file:", file.as_os_str().as_encoded_bytes()]
    {
        hash = fnv1a(hash, part);
    }
    format!("{hash:032x}")
}

const FNV_OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const FNV_PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

fn fnv1a(mut hash: u128, bytes: &[u8]) -> u128 {
    for byte in bytes {
        hash ^= u128::from(*byte);
        hash = hash.wrapping_mul(FNV_PRIME);
    }
    hash
}

/// Writes JSON with sorted keys and without blanks, whatever the order of the map.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for key in keys {
                write_leaf(&Value::String(key.clone()), out);
                out.push(':');
                write_canonical(map.get(key).unwrap_or(&Value::Null), out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            for item in list {
                write_canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        leaf => write_leaf(leaf, out),
    }
}

fn write_leaf(leaf: &Value, out: &mut String) {
    out.push_str(&leaf.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_has_the_published_values() {
        assert_eq!(fnv1a(FNV_OFFSET, b""), FNV_OFFSET);
        assert_eq!(format!("{:032x}", fnv1a(FNV_OFFSET, b"a")), "d228cb696f1a8caf78912b704e4a8964");
        assert_eq!(format!("{:032x}", fnv1a(FNV_OFFSET, b"foobar")), "343e1662793c64bf6f0d3597ba446f18");
    }

    #[test]
    fn the_canonical_form_does_not_depend_on_the_order_of_keys() {
        let text = |s: &str| {
            let mut out = String::new();
            write_canonical(&serde_json::from_str(s).unwrap(), &mut out);
            out
        };
        assert_eq!(text(r#"{"b":1,"a":[{"d":2,"c":"x"}]}"#), text(r#"{"a":[{"c":"x","d":2}],"b":1}"#));
        assert_ne!(text(r#"["a","b"]"#), text(r#"["ab"]"#));
    }
}
