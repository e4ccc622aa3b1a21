//! The object that a pod was converted from, as JSON text.

use crate::cluster::mirrored;
use serde_json::Value;

/// A v1.Pod as its source has it. The object is kept as text, because a tree of values takes eight times the memory; who
/// needs a field parses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawPod {
    json: Box<str>,
    version: Option<Box<str>>,
    mirror: bool,
}

impl RawPod {
    /// Takes an object.
    pub fn new(object: &Value) -> RawPod {
        RawPod {
            json: object.to_string().into(),
            version: object["metadata"]["resourceVersion"].as_str().map(Into::into),
            mirror: mirrored(object).is_some(),
        }
    }

    /// The object.
    pub fn value(&self) -> Value {
        // The text was written from a value, so it can be read back.
        serde_json::from_str(&self.json).unwrap_or_default()
    }

    /// `metadata.resourceVersion`; a pod of a file has none.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Whether the pod is the mirror of a static pod.
    pub fn is_mirror(&self) -> bool {
        self.mirror
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_comes_back_as_it_was() {
        let object = json!({
            "metadata": { "resourceVersion": "7", "annotations": { "kubernetes.io/config.mirror": "u1" } },
            "spec": { "text": "\u{1f600}\n\"", "number": 1.5, "large": u64::MAX, "none": null },
        });
        let raw = RawPod::new(&object);
        assert_eq!((raw.value(), raw.version(), raw.is_mirror()), (object, Some("7"), true));
        let plain = RawPod::new(&json!({ "metadata": {} }));
        assert_eq!((plain.version(), plain.is_mirror()), (None, false));
    }
}
