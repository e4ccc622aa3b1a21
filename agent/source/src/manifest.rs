//! Bytes of a manifest file to checked objects. Pure: no file is read and no clock is asked here.
//!
//! A file is all or nothing: one bad document makes the whole file bad, so that a half-edited file changes
//! nothing. A document goes from text to a generic value ([`text`]), to the API's type with its unknown
//! fields found ([`typed`]), is completed with what a manifest may leave out (namespace, UID, creation time;
//! a static pod's name), and is then checked and converted to the model ([`crate::convert`]).

mod base64;
mod decode;
mod identity;
mod objects;
mod pod;
mod reader;
mod scalar;
mod service;
mod static_pod;
mod text;
mod typed;
mod yaml;

use crate::{ManifestError, ServiceRanges, convert::field::FieldError};
use berth_core::{
    ids::NodeName,
    model::{
        CsiDriver, EndpointSlice, KeyedData, PersistentVolume, PersistentVolumeClaim, Pod, Service,
        StorageClass,
    },
    time::Wall,
};
use reader::ObjectReader;
use serde_json::Value;
use std::{path::Path, sync::Arc};

pub use text::MAX_FILE_BYTES;

/// The rules by which a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Pods, ConfigMaps, Secrets, Services, EndpointSlices and objects of storage. References resolve within the directory.
    /// Unknown fields are errors.
    Manifests,
    /// The kubelet's rules for `staticPodPath`: pods only, one object a file, no reference to API objects.
    /// The name gets the suffix `-<node>`, and a toleration of every NoExecute taint is added. Unknown fields
    /// are warnings.
    StaticPods,
}

/// Inputs of parsing a file besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestContext {
    /// This node.
    pub node: NodeName,
    /// The rules.
    pub mode: Mode,
    /// The creation time of pods and Services that give none.
    pub now: Wall,
    /// Ranges within which Services' addresses and node ports must lie; `None`: they are not checked.
    pub services: Option<Arc<ServiceRanges>>,
}

/// The contents of a file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ParsedFile {
    /// Its pods.
    pub pods: Vec<PodEntry>,
    /// Its ConfigMaps.
    pub config_maps: Vec<KeyedData>,
    /// Its Secrets.
    pub secrets: Vec<KeyedData>,
    /// Its Services.
    pub services: Vec<ServiceEntry>,
    /// Its EndpointSlices.
    pub slices: Vec<EndpointSlice>,
    /// Its claims, persistent volumes, storage classes and CSI drivers.
    pub storage: Vec<StorageManifest>,
    /// Errors that do not make the file bad; only in [`Mode::StaticPods`].
    pub warnings: Vec<ManifestError>,
}

/// A pod and the object it was made from.
#[derive(Debug, Clone, PartialEq)]
pub struct PodEntry {
    /// The checked pod.
    pub pod: Pod,
    /// The v1.Pod of the manifest, with `metadata` (UID, namespace, creation time) and `spec.nodeName`
    /// completed.
    pub raw: Value,
    /// The number of its document in the file, from 1.
    pub document: usize,
    /// Whether the manifest itself gives `metadata.creationTimestamp`.
    pub created_given: bool,
}

/// An object of storage of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub enum StorageManifest {
    /// A PersistentVolumeClaim.
    Claim(Arc<PersistentVolumeClaim>),
    /// A PersistentVolume.
    Volume(Arc<PersistentVolume>),
    /// A StorageClass.
    Class(Arc<StorageClass>),
    /// A CSIDriver.
    Driver(Arc<CsiDriver>),
}

/// Kind, namespace and name of an object of storage; those of the whole cluster have no namespace.
pub(crate) type StorageKey = (&'static str, String, String);

impl StorageManifest {
    pub(crate) fn key(&self) -> StorageKey {
        match self {
            StorageManifest::Claim(claim) => {
                ("PersistentVolumeClaim", claim.namespace.to_string(), claim.name.clone())
            }
            StorageManifest::Volume(volume) => ("PersistentVolume", String::new(), volume.name.clone()),
            StorageManifest::Class(class) => ("StorageClass", String::new(), class.name.clone()),
            StorageManifest::Driver(driver) => ("CSIDriver", String::new(), driver.name.clone()),
        }
    }
}

/// A Service and the object it was made from.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceEntry {
    /// The checked Service, with the addresses and node ports that the manifest gives.
    pub service: Service,
    /// The v1.Service of the manifest, with `metadata` (UID, namespace, creation time) completed.
    pub raw: Value,
    /// Whether the manifest itself gives `metadata.creationTimestamp`.
    pub created_given: bool,
}

/// Reads a file: YAML of many documents, or JSON. The file is bad as a whole if any document is.
pub fn parse_file(path: &Path, bytes: &[u8], ctx: &ManifestContext) -> Result<ParsedFile, ManifestError> {
    let manifest_error = |document, error: FieldError| ManifestError {
        file: path.to_owned(),
        document,
        field: error.field,
        reason: error.reason,
    };
    let documents = text::documents(path, bytes).map_err(|(document, e)| manifest_error(document, e))?;
    // The number is left out of errors about a file with a single document.
    let several = documents.values.last().is_some_and(|(number, _)| *number > 1);
    let in_document = |number: usize, error| manifest_error(Some(number).filter(|_| several), error);
    // The kubelet silently uses the last of two equal keys; the author of the manifest should know.
    let mut warnings: Vec<ManifestError> =
        documents.repeated_keys.into_iter().map(|(number, e)| in_document(number, e)).collect();
    if ctx.mode == Mode::Manifests && !warnings.is_empty() {
        return Err(warnings.swap_remove(0));
    }
    if documents.values.is_empty() {
        // A file that is being written is empty for a moment: that must not pass for "no pods".
        return Err(manifest_error(None, FieldError::plain("holds no object")));
    }
    let mut parsed = ParsedFile { warnings, ..ParsedFile::default() };
    let mut reader = ObjectReader::new(path, ctx, &mut parsed);
    for (number, value) in &documents.values {
        let read = reader.document(value, *number).map_err(|e| in_document(*number, e));
        reader.take_warnings(|e| in_document(*number, e));
        read?;
    }
    Ok(parsed)
}

/// Reads a text that holds one v1.Pod, YAML or JSON.
#[cfg(test)]
pub(crate) fn parse_pod(text: &str, ctx: &ManifestContext) -> Result<PodEntry, ManifestError> {
    let mut parsed = parse_file(Path::new(""), text.as_bytes(), ctx)?;
    assert_eq!(parsed.pods.len(), 1, "the text holds one pod");
    Ok(parsed.pods.remove(0))
}

#[cfg(test)]
mod tests;
