//! Objects of the API server, from its JSON to the model. Pure.
//!
//! The API server has defaulted and validated its objects. The conversion is the same as for manifests: its defaults
//! have nothing to fill, and its checks are the API server's own, so they refuse nothing that the API server accepted.
//! Differences to [`crate::manifest`]: unknown fields are ignored, an address or a node port is never assigned, and a
//! part of a pod that the node does not support is kept with the pod ([`berth_core::model::Pod::unsupported`]) and is
//! no error.

mod mirror;
mod pod;
mod status;

use crate::convert::{
    self,
    field::{FieldError, FieldPath},
};
use berth_core::{
    model::{
        CsiDriver, EndpointSlice, KeyedData, PersistentVolume, PersistentVolumeClaim, Service,
        VolumeAttachment,
    },
    time::Wall,
};
use k8s_openapi::{
    api::{core::v1 as api, discovery::v1 as discovery, storage::v1 as storage},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    serde::de::DeserializeOwned,
};
use serde_json::Value;
use std::fmt;

pub use mirror::{mirror_object, mirrored};
pub use pod::{ApiPod, pod};
pub use status::api_status;

/// Label with the name of the Service of an EndpointSlice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// An object that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectError {
    /// The field, for example `spec.ports[0].port`.
    pub field: Option<String>,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{field}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl std::error::Error for ObjectError {}

impl From<FieldError> for ObjectError {
    fn from(FieldError { field, reason }: FieldError) -> ObjectError {
        ObjectError { field, reason }
    }
}

/// Identity and version of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectId {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

impl ObjectId {
    fn of(meta: &ObjectMeta) -> ObjectId {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        ObjectId {
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            uid: text(&meta.uid),
            resource_version: text(&meta.resource_version),
        }
    }
}

/// A v1.Service, without its selector: its EndpointSlices come from the API server, and the node makes none.
///
/// # Errors
/// The JSON is no Service, or one that the node cannot serve.
pub fn service(json: &[u8]) -> Result<(ObjectId, Service), ObjectError> {
    let object: api::Service = typed(json)?;
    let service = convert::service(&FieldPath::ROOT, &object, created(&object.metadata))?;
    Ok((ObjectId::of(&object.metadata), Service { selector: Vec::new(), ..service }))
}

/// A discovery.k8s.io/v1 EndpointSlice; `None` for one that serves no Service of this node: without the label of its
/// Service, or with host names for addresses (kube-proxy's `EndpointSliceCache`).
///
/// # Errors
/// The JSON is no EndpointSlice.
pub fn endpoint_slice(json: &[u8]) -> Result<(ObjectId, Option<EndpointSlice>), ObjectError> {
    let object: discovery::EndpointSlice = typed(json)?;
    let labels = object.metadata.labels.as_ref();
    let named = labels.and_then(|l| l.get(SERVICE_NAME)).is_some_and(|name| !name.is_empty());
    let addresses = matches!(object.address_type.as_str(), "IPv4" | "IPv6");
    let slice =
        (named && addresses).then(|| convert::endpoint_slice(&FieldPath::ROOT, &object)).transpose()?;
    Ok((ObjectId::of(&object.metadata), slice))
}

/// A ConfigMap or Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataObject {
    /// Its keys and their bytes.
    pub data: KeyedData,
    /// Whether the data never changes (`immutable`).
    pub immutable: bool,
}

/// A v1.ConfigMap.
///
/// # Errors
/// The JSON is no ConfigMap.
pub fn config_map(json: &[u8]) -> Result<(ObjectId, DataObject), ObjectError> {
    let object: api::ConfigMap = secret_typed(json)?;
    let (id, immutable) = (ObjectId::of(&object.metadata), object.immutable.unwrap_or(false));
    Ok((id, DataObject { data: convert::config_map(&FieldPath::ROOT, object)?, immutable }))
}

/// A v1.Secret.
///
/// # Errors
/// The JSON is no Secret.
pub fn secret(json: &[u8]) -> Result<(ObjectId, DataObject), ObjectError> {
    let object: api::Secret = secret_typed(json)?;
    let (id, immutable) = (ObjectId::of(&object.metadata), object.immutable.unwrap_or(false));
    Ok((id, DataObject { data: convert::secret(&FieldPath::ROOT, object)?, immutable }))
}

/// A v1.PersistentVolumeClaim.
///
/// # Errors
/// The JSON is no claim.
pub fn claim(json: &[u8]) -> Result<PersistentVolumeClaim, ObjectError> {
    Ok(convert::claim(&FieldPath::ROOT, &typed(json)?)?)
}

/// A v1.PersistentVolume.
///
/// # Errors
/// The JSON is no PersistentVolume.
pub fn persistent_volume(json: &[u8]) -> Result<PersistentVolume, ObjectError> {
    Ok(convert::persistent_volume(&FieldPath::ROOT, &typed(json)?)?)
}

/// A storage.k8s.io/v1 VolumeAttachment.
///
/// # Errors
/// The JSON is no VolumeAttachment.
pub fn volume_attachment(json: &[u8]) -> Result<VolumeAttachment, ObjectError> {
    Ok(convert::volume_attachment(&typed(json)?))
}

/// A storage.k8s.io/v1 CSIDriver.
///
/// # Errors
/// The JSON is no CSIDriver.
pub fn csi_driver(json: &[u8]) -> Result<(ObjectId, CsiDriver), ObjectError> {
    let object: storage::CSIDriver = typed(json)?;
    Ok((ObjectId::of(&object.metadata), convert::csi_driver(&FieldPath::ROOT, &object)?))
}

fn typed<T: DeserializeOwned>(json: &[u8]) -> Result<T, ObjectError> {
    let mut json = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut json)
        .map_err(|error| decode_error(&error, error.inner().to_string()))
}

/// A ConfigMap or Secret, whose errors must not quote a value.
fn secret_typed<T: DeserializeOwned>(json: &[u8]) -> Result<T, ObjectError> {
    let mut json = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut json)
        .map_err(|error| decode_error(&error, "has a wrong type".to_owned()))
}

fn decode_error<E>(error: &serde_path_to_error::Error<E>, reason: String) -> ObjectError {
    let path = error.path().to_string();
    let field = (!matches!(path.as_str(), "." | "?")).then_some(path);
    ObjectError { field, reason: reason.chars().take(300).collect() }
}

/// Removes `metadata.managedFields`: half of a small object, and of no use to the node.
pub fn drop_managed_fields(object: &mut Value) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("managedFields");
    }
}

/// `metadata.creationTimestamp`.
fn created(meta: &ObjectMeta) -> Wall {
    let nanos = meta.creation_timestamp.as_ref().map(|time| time.0.as_nanosecond());
    Wall(nanos.and_then(|nanos| i64::try_from(nanos).ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests;
