//! ConfigMaps, Secrets, EndpointSlices and objects of storage of manifests: decoded strictly, then converted.

use super::{StorageManifest, base64::without_bytes, identity, typed::strict};
use crate::convert::{
    self,
    field::{FieldError, FieldPath},
};
use berth_core::{
    ids::PodName,
    model::{EndpointSlice, KeyedData},
};
use k8s_openapi::{
    ByteString,
    api::{core::v1 as api, discovery::v1 as discovery, storage::v1 as storage},
};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

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

/// An object of storage of that kind; `None` for any other kind.
pub(super) fn storage(
    at: &FieldPath<'_>,
    kind: &str,
    value: &Value,
) -> Result<Option<StorageManifest>, FieldError> {
    Ok(Some(match kind {
        "PersistentVolumeClaim" => {
            let object: api::PersistentVolumeClaim = strict(at, value)?;
            let mut claim = convert::claim(at, &object)?;
            if claim.uid.is_empty()
                && let Ok(name) = PodName::new(claim.name.as_str())
            {
                claim.uid = identity::of_object(kind, &claim.namespace, &name);
            }
            StorageManifest::Claim(Arc::new(claim))
        }
        "PersistentVolume" => {
            let object: api::PersistentVolume = strict(at, value)?;
            StorageManifest::Volume(Arc::new(convert::persistent_volume(at, &object)?))
        }
        "StorageClass" => {
            let object: storage::StorageClass = strict(at, value)?;
            StorageManifest::Class(Arc::new(convert::storage_class(at, &object)?))
        }
        "CSIDriver" => {
            let object: storage::CSIDriver = strict(at, value)?;
            StorageManifest::Driver(Arc::new(convert::csi_driver(at, &object)?))
        }
        _ => return Ok(None),
    }))
}
