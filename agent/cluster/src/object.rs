//! Objects of the API server as JSON, whose newest version the node keeps. Pure.

use berth_kube::reflector::{Bad, Meta, ResourceVersion};
use berth_source::cluster::{ObjectError, ObjectId};
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

/// The identity of an object as the reflector has it.
pub(crate) fn meta(id: ObjectId) -> Result<Meta, Bad> {
    let resource_version = ResourceVersion::new(&id.resource_version)
        .ok_or_else(|| Bad("metadata.resourceVersion: is required".to_owned()))?;
    if id.name.is_empty() {
        return Err(Bad("metadata.name: is required".to_owned()));
    }
    let (namespace, name, uid) = (id.namespace.into(), id.name.into(), id.uid.into());
    Ok(Meta { namespace, name, uid, resource_version })
}

/// An object that cannot be read.
pub(crate) fn bad(error: ObjectError) -> Bad {
    Bad(error.to_string())
}
