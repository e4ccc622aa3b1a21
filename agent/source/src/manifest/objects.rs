//! ConfigMaps and Secrets, and what all objects have in common.

use super::{
    check,
    field::{self, At, Fault},
};
use berth_core::{ids::Namespace, model::KeyedData};
use k8s_openapi::{
    ByteString,
    api::core::v1 as api,
    apimachinery::pkg::apis::meta::v1 as meta,
    serde::{Serialize, de::DeserializeOwned},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// All keys and values of a ConfigMap or Secret together.
const MAX_DATA_BYTES: usize = 1 << 20;

/// The value as a type of the API; an unknown field is an error.
pub(super) fn strict<T: DeserializeOwned + Serialize>(at: &At<'_>, value: &Value) -> Result<T, Fault> {
    let (object, unknown) = field::typed(at, value)?;
    unknown.into_iter().next().map_or(Ok(object), Err)
}

/// Namespace and name, with labels and annotations checked.
pub(super) fn names(at: &At<'_>, meta: &meta::ObjectMeta) -> Result<(Namespace, String), Fault> {
    let at = &at.key("metadata");
    let namespace = meta.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    let namespace = check::id(&at.key("namespace"), Namespace::new(namespace))?;
    let name = meta.name.clone().unwrap_or_default();
    check::object_name(&at.key("name"), &name)?;
    check::labels(&at.key("labels"), meta.labels.as_ref().unwrap_or(&BTreeMap::new()))?;
    check::annotations(&at.key("annotations"), meta.annotations.as_ref().unwrap_or(&BTreeMap::new()))?;
    Ok((namespace, name))
}

/// A ConfigMap: `data` and `binaryData` may not share a key.
pub(super) fn config_map(at: &At<'_>, value: &Value) -> Result<KeyedData, Fault> {
    let object: api::ConfigMap = strict(at, value)?;
    let (namespace, name) = names(at, &object.metadata)?;
    let mut data = BTreeMap::new();
    for (key, text) in object.data.into_iter().flatten() {
        data.insert(key, text.into_bytes());
    }
    let binary_at = &at.key("binaryData");
    for (key, ByteString(bytes)) in object.binary_data.into_iter().flatten() {
        if data.contains_key(&key) {
            return Err(binary_at.key(&key).fault("is also in data"));
        }
        data.insert(key, bytes);
    }
    checked(at, KeyedData { namespace, name, data })
}

/// A Secret: `stringData` wins over `data`.
pub(super) fn secret(at: &At<'_>, value: &Value) -> Result<KeyedData, Fault> {
    let object: api::Secret = strict(at, value)?;
    let (namespace, name) = names(at, &object.metadata)?;
    let mut data = BTreeMap::new();
    for (key, ByteString(bytes)) in object.data.into_iter().flatten() {
        data.insert(key, bytes);
    }
    for (key, text) in object.string_data.into_iter().flatten() {
        data.insert(key, text.into_bytes());
    }
    checked(at, KeyedData { namespace, name, data })
}

fn checked(at: &At<'_>, object: KeyedData) -> Result<KeyedData, Fault> {
    let mut total = 0_usize;
    for (key, value) in &object.data {
        check::data_key(&at.key("data"), key)?;
        total = total.saturating_add(key.len()).saturating_add(value.len());
    }
    if total > MAX_DATA_BYTES {
        return Err(at.key("data").fault(format!("holds {total} bytes, more than {MAX_DATA_BYTES}")));
    }
    Ok(object)
}
