//! Checks of the metadata that all objects have.

use super::{
    check,
    field::{FieldError, FieldPath},
};
use berth_core::ids::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;

/// The namespace, `default` where the object names none.
pub(crate) fn namespace(at: &FieldPath<'_>, meta: &ObjectMeta) -> Result<Namespace, FieldError> {
    let namespace = meta.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    check::id(&at.key("namespace"), Namespace::new(namespace))
}

/// Namespace and name of an object whose name is a DNS subdomain; labels and annotations are checked too.
pub(crate) fn names(at: &FieldPath<'_>, meta: &ObjectMeta) -> Result<(Namespace, String), FieldError> {
    let at = &at.key("metadata");
    let namespace = namespace(at, meta)?;
    let name = meta.name.clone().unwrap_or_default();
    check::object_name(&at.key("name"), &name)?;
    check::labels(&at.key("labels"), meta.labels.as_ref().unwrap_or(&BTreeMap::new()))?;
    check::annotations(&at.key("annotations"), meta.annotations.as_ref().unwrap_or(&BTreeMap::new()))?;
    Ok((namespace, name))
}
