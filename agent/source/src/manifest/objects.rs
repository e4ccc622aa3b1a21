//! ConfigMaps, Secrets and EndpointSlices of manifests: decoded strictly, then converted.

use super::{base64::without_bytes, typed::strict};
use crate::convert::{
    self,
    field::{FieldError, FieldPath},
};
use berth_core::model::{EndpointSlice, KeyedData};
use k8s_openapi::{
    ByteString,
    api::{core::v1 as api, discovery::v1 as discovery},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// A ConfigMap.
pub(super) fn config_map(at: &FieldPath<'_>, value: &Value) -> Result<KeyedData, FieldError> {
    let (value, binary_data) = without_bytes(at, value, "binaryData")?;
    let object: api::ConfigMap = strict(at, &value)?;
    convert::config_map(at, api::ConfigMap { binary_data: Some(byte_strings(binary_data)), ..object })
}

/// A Secret.
pub(super) fn secret(at: &FieldPath<'_>, value: &Value) -> Result<KeyedData, FieldError> {
    let (value, data) = without_bytes(at, value, "data")?;
    let object: api::Secret = strict(at, &value)?;
    convert::secret(at, api::Secret { data: Some(byte_strings(data)), ..object })
}

fn byte_strings(data: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, ByteString> {
    data.into_iter().map(|(key, bytes)| (key, ByteString(bytes))).collect()
}

/// An EndpointSlice.
pub(super) fn endpoint_slice(at: &FieldPath<'_>, value: &Value) -> Result<EndpointSlice, FieldError> {
    convert::endpoint_slice(at, &strict::<discovery::EndpointSlice>(at, value)?)
}
