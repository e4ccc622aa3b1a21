//! The objects of a document: a single one, or the items of a list.

use super::{ManifestContext, Mode, ParsedFile, objects, pod, service};
use crate::{
    ManifestError,
    convert::field::{FieldError, FieldPath, kind_of},
};
use berth_core::time::Wall;
use serde_json::Value;
use std::path::Path;

/// The nesting of an object: a list holds objects, but no further lists.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nesting {
    Document,
    Item,
}

/// Reader of one file's documents, which adds their objects to `parsed`.
pub(super) struct ObjectReader<'a> {
    path: &'a Path,
    ctx: &'a ManifestContext,
    parsed: &'a mut ParsedFile,
    /// Warnings about the current document.
    warnings: Vec<FieldError>,
}

impl<'a> ObjectReader<'a> {
    pub(super) fn new(path: &'a Path, ctx: &'a ManifestContext, parsed: &'a mut ParsedFile) -> Self {
        ObjectReader { path, ctx, parsed, warnings: Vec::new() }
    }

    /// Reads a document; `number` counts the documents of the file from 1.
    pub(super) fn document(&mut self, value: &Value, number: usize) -> Result<(), FieldError> {
        if self.ctx.mode == Mode::StaticPods && !self.parsed.pods.is_empty() {
            self.warnings.push(FieldError::plain("only the first document of a static pod file is used"));
            return Ok(());
        }
        self.object(&FieldPath::ROOT, value, number, Nesting::Document)
    }

    /// Moves the warnings about the current document to the file's.
    pub(super) fn take_warnings(&mut self, warning: impl Fn(FieldError) -> ManifestError) {
        self.parsed.warnings.extend(self.warnings.drain(..).map(warning));
    }

    fn object(
        &mut self,
        at: &FieldPath<'_>,
        value: &Value,
        document: usize,
        nesting: Nesting,
    ) -> Result<(), FieldError> {
        if !value.is_object() {
            return Err(at.error(format!("must be an object, not {}", kind_of(value))));
        }
        let kind = text_field(at, value, "kind")?;
        let api_version = text_field(at, value, "apiVersion")?;
        let wanted = version_of(kind.strip_suffix("List").unwrap_or(kind));
        if api_version != wanted {
            return Err(at
                .key("apiVersion")
                .error(format!("{kind} of {api_version:?} is not supported: only {wanted:?} is")));
        }
        let statics = self.ctx.mode == Mode::StaticPods;
        match kind {
            "Pod" => {
                let mut entry = pod::entry(at, value, self.ctx, self.path, document, &mut self.warnings)?;
                if !entry.created_given {
                    self.order(&mut entry.pod.created);
                }
                self.parsed.pods.push(entry);
            }
            "PodList" if nesting == Nesting::Document => self.list(at, value, document, Some("Pod"))?,
            _ if statics => {
                return Err(at
                    .key("kind")
                    .error(format!("{kind:?} is no static pod: only Pod and PodList are")));
            }
            "ConfigMap" => self.parsed.config_maps.push(objects::config_map(at, value)?),
            "Secret" => self.parsed.secrets.push(objects::secret(at, value)?),
            "Service" => {
                let mut entry = service::entry(at, value, self.ctx)?;
                if !entry.created_given {
                    self.order(&mut entry.service.created);
                }
                self.parsed.services.push(entry);
            }
            "EndpointSlice" => self.parsed.slices.push(objects::endpoint_slice(at, value)?),
            "List" if nesting == Nesting::Document => self.list(at, value, document, None)?,
            "ConfigMapList"
            | "SecretList"
            | "ServiceList"
            | "EndpointSliceList"
            | "PersistentVolumeList"
            | "PersistentVolumeClaimList"
            | "StorageClassList"
            | "CSIDriverList"
                if nesting == Nesting::Document =>
            {
                self.list(at, value, document, kind.strip_suffix("List"))?;
            }
            _ => match objects::storage(at, kind, value)? {
                Some(object) => self.parsed.storage.push(object),
                None => {
                    return Err(at.key("kind").error(format!(
                        "{kind:?} is not supported: Pod, ConfigMap, Secret, Service, EndpointSlice, PersistentVolume, PersistentVolumeClaim, StorageClass, CSIDriver and lists of them are"
                    )));
                }
            },
        }
        Ok(())
    }

    /// Makes an object without a creation time a nanosecond younger than the object before it in the file: of
    /// two objects that want the same address or port, the older one has it.
    fn order(&self, created: &mut Wall) {
        let before = self.parsed.pods.len().saturating_add(self.parsed.services.len());
        created.0 = created.0.saturating_add(i64::try_from(before).unwrap_or(0));
    }

    /// Reads the items of a list; those of a typed list need not repeat `apiVersion` and `kind`.
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
            Some(other) => return Err(at.error(format!("must be a list, not {}", kind_of(other)))),
        };
        for (index, item) in items.iter().enumerate() {
            let at = &at.index(index);
            match (of, item) {
                (Some(of), Value::Object(map)) => {
                    let mut map = map.clone();
                    map.entry("apiVersion").or_insert_with(|| version_of(of).into());
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

    fn unknown(&mut self, error: FieldError) -> Result<(), FieldError> {
        match self.ctx.mode {
            Mode::Manifests => Err(error),
            Mode::StaticPods => {
                self.warnings.push(error);
                Ok(())
            }
        }
    }
}

/// The only version of a kind that is read.
fn version_of(kind: &str) -> &'static str {
    match kind {
        "EndpointSlice" => "discovery.k8s.io/v1",
        "StorageClass" | "CSIDriver" => "storage.k8s.io/v1",
        _ => "v1",
    }
}

fn text_field<'v>(at: &FieldPath<'_>, value: &'v Value, key: &str) -> Result<&'v str, FieldError> {
    match value.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        None | Some(Value::Null | Value::String(_)) => Err(at.key(key).error("is required")),
        Some(other) => Err(at.key(key).error(format!("must be a string, not {}", kind_of(other)))),
    }
}
