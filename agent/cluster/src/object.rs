//! Objects of the API server as JSON, whose newest version the node keeps. Pure.

use berth_kube::reflector::ResourceVersion;
use serde_json::Value;
use std::cmp::Ordering;

/// `metadata.resourceVersion`.
pub(crate) fn version(object: &Value) -> Option<&str> {
    object["metadata"]["resourceVersion"].as_str()
}

/// Whether the first version of an object is later than the second. Versions without order count as later, because
/// they came later.
pub(crate) fn is_newer(object: Option<&str>, known: Option<&str>) -> bool {
    let version = |of: Option<&str>| of.and_then(ResourceVersion::new);
    match (version(object), version(known)) {
        (Some(new), Some(old)) => new.compare(&old).is_none_or(|order| order == Ordering::Greater),
        _ => true,
    }
}
