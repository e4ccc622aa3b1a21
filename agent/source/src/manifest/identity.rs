//! UIDs of pods whose manifest gives none.

use berth_core::ids::{Namespace, PodName};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

/// A pod of the manifest directory: a function of namespace, name and spec. A changed spec is another pod, so that
/// the old one is ended and the new one made; labels and annotations may change in its life. The spec is hashed as it
/// was given, so that a later default does not restart pods.
pub(super) fn of_manifest(namespace: &Namespace, name: &PodName, spec: &Value) -> String {
    let mut canonical = String::new();
    write_canonical(spec, &mut canonical);
    uuid(&[namespace.as_str(), name.as_str(), &canonical])
}

/// Any other object: a function of its kind and names.
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
    // The shape of a UUID, with the version that is free for one's own use (RFC 9562, 8).
    let part = |from, to| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-8{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

/// A static pod, by the kubelet's rule: FNV-1a of 128 bits over the pod, `host:<node>` and `file:<path>`. The kubelet
/// prints its own in-memory type into the hash, so that only the rule, not the number, can be the same.
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

/// JSON with keys in order and without blanks, whatever order the map itself keeps.
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
    fn canonical_form_knows_no_order() {
        let text = |s: &str| {
            let mut out = String::new();
            write_canonical(&serde_json::from_str(s).unwrap(), &mut out);
            out
        };
        assert_eq!(text(r#"{"b":1,"a":[{"d":2,"c":"x"}]}"#), text(r#"{"a":[{"c":"x","d":2}],"b":1}"#));
        assert_ne!(text(r#"["a","b"]"#), text(r#"["ab"]"#));
    }
}
