//! Bytes of a manifest file to checked objects. Pure: no file is read and no clock is asked here.
//!
//! A file is all or nothing: one bad document makes it bad, so that a half-edited file changes nothing. The way of a
//! document: text to a generic value ([`text`]), to the API's type with unknown fields found ([`field`]), to the
//! model, checked as the API server would check it and with its defaults.

mod affinity;
mod check;
mod container;
mod decode;
mod field;
mod identity;
mod objects;
mod pod;
mod probe;
mod resources;
mod scalar;
mod security;
mod service;
mod static_pod;
mod text;
mod volume;
mod yaml;

use crate::{ManifestError, ServiceRanges};
use berth_core::{
    ids::NodeName,
    model::{EndpointSlice, KeyedData, Pod, Service},
    time::Wall,
};
use field::{FieldError, FieldPath};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub use text::MAX_FILE_BYTES;

/// Under which rules a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Pods, ConfigMaps, Secrets, Services and EndpointSlices; references resolve within the directory; unknown fields are errors.
    Manifests,
    /// The kubelet's rules for `staticPodPath`: pods only, one object a file, no reference to API objects, the name
    /// gets `-<node>`, a toleration of every NoExecute taint is added; unknown fields are only warned of.
    StaticPods,
}

/// What reading a file depends on besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestContext {
    /// This node.
    pub node: NodeName,
    /// The rules.
    pub mode: Mode,
    /// Becomes the creation time of pods that give none.
    pub now: Wall,
    /// Where Services' addresses and node ports come from; `None` where nobody checks them.
    pub services: Option<Arc<ServiceRanges>>,
}

/// What a file holds.
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
    /// What was left aside without making the file bad; only in [`Mode::StaticPods`].
    pub warnings: Vec<ManifestError>,
}

/// A pod and the object it was made from.
#[derive(Debug, Clone, PartialEq)]
pub struct PodEntry {
    /// The checked pod.
    pub pod: Pod,
    /// The v1.Pod as it was given, with `metadata` filled (uid, namespace, creationTimestamp) and `spec.nodeName`.
    pub raw: Value,
    /// Which document of its file it is, from 1.
    pub document: usize,
    /// Whether the manifest itself gave `metadata.creationTimestamp`.
    pub created_given: bool,
}

/// A Service and the object it was made from.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceEntry {
    /// The checked Service, with the addresses and node ports that the manifest gives.
    pub service: Service,
    /// The v1.Service as it was given, with `metadata` filled (uid, namespace, creationTimestamp).
    pub raw: Value,
    /// Whether the manifest itself gave `metadata.creationTimestamp`.
    pub created_given: bool,
}

/// Reads a file: YAML of many documents, or JSON. The file is bad as a whole if any document is.
pub fn parse_file(path: &Path, bytes: &[u8], ctx: &ManifestContext) -> Result<ParsedFile, ManifestError> {
    let error = |document, fault: FieldError| ManifestError {
        file: path.to_owned(),
        document,
        field: fault.field,
        reason: fault.reason,
    };
    let documents = text::documents(path, bytes).map_err(|(document, fault)| error(document, fault))?;
    // Where there is but one, nobody has to count.
    let several = documents.values.last().is_some_and(|(number, _)| *number > 1);
    let error = |document: Option<usize>, fault| error(document.filter(|_| several), fault);
    let twice = documents.twice.into_iter().map(|(document, fault)| error(Some(document), fault));
    // The kubelet lets the last one count; who writes a manifest wants to hear of it.
    let mut warnings: Vec<ManifestError> = twice.collect();
    if ctx.mode == Mode::Manifests && !warnings.is_empty() {
        return Err(warnings.swap_remove(0));
    }
    if documents.values.is_empty() {
        // A file that is being written looks like this for a moment: it must not pass for "no pods".
        return Err(error(None, FieldError::plain("holds no object")));
    }
    let mut parsed = ParsedFile { warnings, ..ParsedFile::default() };
    let mut reader = ObjectReader { path: path.to_owned(), ctx, parsed: &mut parsed, warnings: Vec::new() };
    for (number, value) in &documents.values {
        if ctx.mode == Mode::StaticPods && !reader.parsed.pods.is_empty() {
            reader.warnings.push(FieldError::plain("only the first document of a static pod file is used"));
        } else {
            reader
                .object(&FieldPath::ROOT, value, *number, Nesting::Document)
                .map_err(|f| error(Some(*number), f))?;
        }
        let warnings = std::mem::take(&mut reader.warnings);
        reader.parsed.warnings.extend(warnings.into_iter().map(|f| error(Some(*number), f)));
    }
    Ok(parsed)
}

/// Reads a text that holds one v1.Pod, YAML or JSON.
pub fn parse_pod(text: &str, ctx: &ManifestContext) -> Result<PodEntry, ManifestError> {
    let parsed = parse_file(Path::new(""), text.as_bytes(), ctx)?;
    let error = |reason: &str| ManifestError {
        file: PathBuf::new(),
        document: None,
        field: None,
        reason: reason.to_owned(),
    };
    let others = [parsed.config_maps.len(), parsed.secrets.len(), parsed.services.len(), parsed.slices.len()];
    if others != [0; 4] {
        return Err(error("holds objects other than a pod"));
    }
    let mut pods = parsed.pods.into_iter();
    match (pods.next(), pods.next()) {
        (Some(pod), None) => Ok(pod),
        (None, _) => Err(error("holds no pod")),
        (Some(_), Some(_)) => Err(error("holds more than one pod")),
    }
}

/// Where an object stands: lists hold objects, but no further lists.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nesting {
    Document,
    Item,
}

struct ObjectReader<'a> {
    path: PathBuf,
    ctx: &'a ManifestContext,
    parsed: &'a mut ParsedFile,
    warnings: Vec<FieldError>,
}

impl ObjectReader<'_> {
    fn object(
        &mut self,
        at: &FieldPath<'_>,
        value: &Value,
        document: usize,
        depth: Nesting,
    ) -> Result<(), FieldError> {
        if !value.is_object() {
            return Err(at.error(format!("must be an object, not {}", field::kind_of(value))));
        }
        let kind = text_field(at, value, "kind")?;
        let api_version = text_field(at, value, "apiVersion")?;
        let slices = matches!(kind, "EndpointSlice" | "EndpointSliceList");
        let wanted = if slices { "discovery.k8s.io/v1" } else { "v1" };
        if api_version != wanted {
            return Err(at
                .key("apiVersion")
                .error(format!("{kind} of {api_version:?} is not supported: only {wanted:?} is")));
        }
        let statics = self.ctx.mode == Mode::StaticPods;
        match kind {
            "Pod" => {
                let mut entry = pod::entry(at, value, self.ctx, &self.path, document, &mut self.warnings)?;
                if !entry.created_given {
                    self.in_order(&mut entry.pod.created);
                }
                self.parsed.pods.push(entry);
            }
            "PodList" if depth == Nesting::Document => self.list(at, value, document, Some("Pod"))?,
            _ if statics => {
                return Err(at
                    .key("kind")
                    .error(format!("{kind:?} is no static pod: only Pod and PodList are")));
            }
            "ConfigMap" => self.parsed.config_maps.push(objects::config_map(at, value)?),
            "Secret" => self.parsed.secrets.push(objects::secret(at, value)?),
            "Service" => {
                let mut entry = service::service(at, value, self.ctx)?;
                if !entry.created_given {
                    self.in_order(&mut entry.service.created);
                }
                self.parsed.services.push(entry);
            }
            "EndpointSlice" => self.parsed.slices.push(service::slice(at, value)?),
            "List" if depth == Nesting::Document => self.list(at, value, document, None)?,
            "ConfigMapList" | "SecretList" | "ServiceList" | "EndpointSliceList"
                if depth == Nesting::Document =>
            {
                self.list(at, value, document, kind.strip_suffix("List"))?;
            }
            _ => {
                return Err(at.key("kind").error(format!(
                    "{kind:?} is not supported: Pod, ConfigMap, Secret, Service, EndpointSlice and lists of them are"
                )));
            }
        }
        Ok(())
    }

    /// What has no time of its own is a nanosecond younger than what stands before it in the file: of two that want the
    /// same, the first has it.
    fn in_order(&self, created: &mut Wall) {
        let before = self.parsed.pods.len().saturating_add(self.parsed.services.len());
        created.0 = created.0.saturating_add(i64::try_from(before).unwrap_or(0));
    }

    /// A list's items; those of a typed list need not repeat `apiVersion` and `kind`.
    fn list(
        &mut self,
        at: &FieldPath<'_>,
        value: &Value,
        document: usize,
        of: Option<&str>,
    ) -> Result<(), FieldError> {
        if let Some(key) = value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, _)| k)
            .find(|k| !matches!(k.as_str(), "apiVersion" | "kind" | "metadata" | "items"))
        {
            self.unknown(at.key(key).error("unknown field"))?;
        }
        let at = &at.key("items");
        let items = match value.get("items") {
            Some(Value::Array(items)) => items,
            None | Some(Value::Null) => return Ok(()),
            Some(other) => return Err(at.error(format!("must be a list, not {}", field::kind_of(other)))),
        };
        for (index, item) in items.iter().enumerate() {
            let at = &at.index(index);
            match (of, item) {
                (Some(of), Value::Object(map)) => {
                    let mut map = map.clone();
                    let version = if of == "EndpointSlice" { "discovery.k8s.io/v1" } else { "v1" };
                    map.entry("apiVersion").or_insert_with(|| version.into());
                    let kind = map.entry("kind").or_insert_with(|| of.into());
                    if kind != of {
                        return Err(at.key("kind").error(format!("must be {of:?} in a {of}List")));
                    }
                    self.object(at, &Value::Object(map), document, Nesting::Item)?;
                }
                _ => self.object(at, item, document, Nesting::Item)?,
            }
        }
        Ok(())
    }

    fn unknown(&mut self, fault: FieldError) -> Result<(), FieldError> {
        match self.ctx.mode {
            Mode::Manifests => Err(fault),
            Mode::StaticPods => {
                self.warnings.push(fault);
                Ok(())
            }
        }
    }
}

fn text_field<'v>(at: &FieldPath<'_>, value: &'v Value, key: &str) -> Result<&'v str, FieldError> {
    match value.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        None | Some(Value::Null | Value::String(_)) => Err(at.key(key).error("is required")),
        Some(other) => Err(at.key(key).error(format!("must be a string, not {}", field::kind_of(other)))),
    }
}

#[cfg(test)]
mod tests;
