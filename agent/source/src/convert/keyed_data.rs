//! ConfigMaps and Secrets.

use super::{
    check,
    field::{FieldError, FieldPath},
    metadata::names,
};
use berth_core::model::KeyedData;
use k8s_openapi::api::core::v1 as api;
use std::collections::BTreeMap;

/// Limit of all values of one ConfigMap or Secret together, in bytes (`MaxSecretSize`).
const MAX_DATA_BYTES: usize = 1 << 20;

/// A ConfigMap: `data` and `binaryData` may not share a key.
pub(crate) fn config_map(at: &FieldPath<'_>, object: api::ConfigMap) -> Result<KeyedData, FieldError> {
    let (namespace, name) = names(at, &object.metadata)?;
    let uid = object.metadata.uid.unwrap_or_default();
    let data: BTreeMap<String, Vec<u8>> =
        object.data.into_iter().flatten().map(|(key, text)| (key, text.into_bytes())).collect();
    let binary_data: BTreeMap<String, Vec<u8>> =
        object.binary_data.into_iter().flatten().map(|(key, bytes)| (key, bytes.0)).collect();
    if let Some(key) = binary_data.keys().find(|key| data.contains_key(*key)) {
        return Err(at.key("binaryData").key(key).error("is also in data"));
    }
    checked(at, KeyedData { namespace, name, kind: None, uid, data, binary_data })
}

/// A Secret: `stringData` wins over `data`.
pub(crate) fn secret(at: &FieldPath<'_>, object: api::Secret) -> Result<KeyedData, FieldError> {
    let (namespace, name) = names(at, &object.metadata)?;
    let uid = object.metadata.uid.unwrap_or_default();
    let mut data: BTreeMap<String, Vec<u8>> =
        object.data.into_iter().flatten().map(|(key, bytes)| (key, bytes.0)).collect();
    data.extend(object.string_data.into_iter().flatten().map(|(key, text)| (key, text.into_bytes())));
    checked(at, KeyedData { namespace, name, kind: object.type_, uid, data, binary_data: BTreeMap::new() })
}

fn checked(at: &FieldPath<'_>, object: KeyedData) -> Result<KeyedData, FieldError> {
    let mut total = 0_usize;
    for (key, value) in object.files() {
        let field = if object.data.contains_key(key) { "data" } else { "binaryData" };
        check::data_key(&at.key(field), key)?;
        total = total.saturating_add(value.len());
    }
    if total > MAX_DATA_BYTES {
        return Err(at.key("data").error(format!("holds {total} bytes, more than {MAX_DATA_BYTES}")));
    }
    Ok(object)
}
