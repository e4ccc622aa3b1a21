//! Volumes that are made of API objects: their items, modes and fields, alone or projected into one volume.

use super::{
    check,
    field::{FieldError, FieldPath, shorten},
    resources,
};
use berth_core::model::{DownwardItem, DownwardValue, KeyToPath, KeysVolume, ProjectedSource};
use k8s_openapi::api::core::v1 as api;
use std::collections::BTreeSet;

/// Mode of a file where the volume names none.
const DEFAULT_MODE: u32 = 0o644;

/// Life in seconds of a token where the projection names none.
const DEFAULT_EXPIRATION: i64 = 3600;

/// `defaultMode` of a volume.
pub(super) fn default_mode(at: &FieldPath<'_>, mode: Option<i32>) -> Result<u32, FieldError> {
    mode.map_or(Ok(DEFAULT_MODE), |m| check::mode(&at.key("defaultMode"), m))
}

/// The items of a ConfigMap or Secret volume or projection; `name_at` is the path of the object's name.
pub(super) fn keys(
    at: &FieldPath<'_>,
    (name_at, name): (&FieldPath<'_>, &str),
    items: Option<&[api::KeyToPath]>,
    mode: Option<i32>,
    optional: Option<bool>,
) -> Result<KeysVolume, FieldError> {
    check::object_name(name_at, name)?;
    let mut found = Vec::new();
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let at = &at.key("items");
        let at = &at.index(index);
        if item.key.is_empty() {
            return Err(at.key("key").error("is required"));
        }
        check::item_path(&at.key("path"), &item.path)?;
        let mode = item.mode.map(|m| check::mode(&at.key("mode"), m)).transpose()?;
        found.push(KeyToPath { key: item.key.clone(), path: item.path.clone().into(), mode });
    }
    Ok(KeysVolume {
        name: name.to_owned(),
        items: found,
        default_mode: default_mode(at, mode)?,
        optional: optional.unwrap_or(false),
    })
}

/// The items of a downward API volume or projection.
pub(super) fn downward(
    at: &FieldPath<'_>,
    items: &[api::DownwardAPIVolumeFile],
) -> Result<Vec<DownwardItem>, FieldError> {
    let mut found = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let at = &at.index(index);
        check::item_path(&at.key("path"), &item.path)?;
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), None) => {
                DownwardValue::Field(field_path(&at.key("fieldRef"), field, FieldPlace::Volume)?)
            }
            (None, Some(r)) => {
                DownwardValue::Resource(resources::field_ref(&at.key("resourceFieldRef"), r, true)?)
            }
            (None, None) => return Err(at.error("must say one of fieldRef or resourceFieldRef")),
            (Some(_), Some(_)) => return Err(at.error("must say only one of fieldRef or resourceFieldRef")),
        };
        let mode = item.mode.map(|m| check::mode(&at.key("mode"), m)).transpose()?;
        found.push(DownwardItem { path: item.path.clone().into(), value, mode });
    }
    Ok(found)
}

/// Where a `fieldRef` stands: volumes may show whole maps, environment variables more of spec and status.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FieldPlace {
    Env,
    Volume,
}

/// `fieldRef.fieldPath`.
pub(super) fn field_path(
    at: &FieldPath<'_>,
    field: &api::ObjectFieldSelector,
    place: FieldPlace,
) -> Result<String, FieldError> {
    if let Some(version) = field.api_version.as_deref().filter(|v| !v.is_empty() && *v != "v1") {
        return Err(at.key("apiVersion").error(format!("{:?} must be v1", shorten(version))));
    }
    let at = &at.key("fieldPath");
    let path = field.field_path.as_str();
    if path.is_empty() {
        return Err(at.error("is required"));
    }
    let subscript = ["metadata.labels", "metadata.annotations"]
        .iter()
        .find_map(|map| path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']"));
    if let Some(key) = subscript {
        check::qualified_name(at, key)?;
        return Ok(path.to_owned());
    }
    let both = matches!(path, "metadata.name" | "metadata.namespace" | "metadata.uid");
    let known = both
        || match place {
            FieldPlace::Volume => matches!(path, "metadata.labels" | "metadata.annotations"),
            FieldPlace::Env => matches!(
                path,
                "spec.nodeName"
                    | "spec.serviceAccountName"
                    | "status.hostIP"
                    | "status.hostIPs"
                    | "status.podIP"
                    | "status.podIPs"
            ),
        };
    if known {
        Ok(path.to_owned())
    } else {
        Err(at.error(format!("{:?} cannot be referred to here", shorten(path))))
    }
}

/// A token of the pod's ServiceAccount. The limits are the API server's (`validateProjectionSources`,
/// `pkg/apis/core/validation`).
fn service_account_token(
    at: &FieldPath<'_>,
    token: &api::ServiceAccountTokenProjection,
) -> Result<ProjectedSource, FieldError> {
    let seconds = token.expiration_seconds.unwrap_or(DEFAULT_EXPIRATION);
    if !(600..=1 << 32).contains(&seconds) {
        return Err(at.key("expirationSeconds").error("must be from 600 to 4294967296"));
    }
    check::item_path(&at.key("path"), &token.path)?;
    Ok(ProjectedSource::ServiceAccountToken {
        audience: token.audience.clone().filter(|audience| !audience.is_empty()),
        expiration_seconds: seconds.unsigned_abs(),
        path: token.path.clone().into(),
    })
}

/// The sources of a projected volume.
pub(super) fn projected(
    at: &FieldPath<'_>,
    sources: &[api::VolumeProjection],
) -> Result<Vec<ProjectedSource>, FieldError> {
    let mut found = Vec::new();
    let mut paths = BTreeSet::new();
    for (index, s) in sources.iter().enumerate() {
        let at = &at.index(index);
        let json = serde_json::to_value(s).map_err(|e| at.error(e.to_string()))?;
        let kinds: Vec<&String> = json.as_object().into_iter().flatten().map(|(k, _)| k).collect();
        let kind = match kinds.as_slice() {
            [] => return Err(at.error("must say its source")),
            [kind] => kind.as_str(),
            [_, second, ..] => return Err(at.key(second).error("a projection may have only one source")),
        };
        let at = &at.key(kind);
        let name_at = &at.key("name");
        let source = if let Some(c) = &s.config_map {
            ProjectedSource::ConfigMap(keys(at, (name_at, &c.name), c.items.as_deref(), None, c.optional)?)
        } else if let Some(c) = &s.secret {
            ProjectedSource::Secret(keys(at, (name_at, &c.name), c.items.as_deref(), None, c.optional)?)
        } else if let Some(d) = &s.downward_api {
            ProjectedSource::DownwardApi(downward(&at.key("items"), d.items.as_deref().unwrap_or_default())?)
        } else if let Some(token) = &s.service_account_token {
            service_account_token(at, token)?
        } else {
            ProjectedSource::NotYet { kind: kind.to_owned() }
        };
        let taken: Vec<_> = match &source {
            ProjectedSource::ConfigMap(k) | ProjectedSource::Secret(k) => {
                k.items.iter().map(|i| &i.path).collect()
            }
            ProjectedSource::DownwardApi(items) => items.iter().map(|i| &i.path).collect(),
            ProjectedSource::ServiceAccountToken { path, .. } => vec![path],
            ProjectedSource::NotYet { .. } => Vec::new(),
        };
        for path in taken {
            if !paths.insert(path.clone()) {
                let path = path.display().to_string();
                return Err(at.error(format!("path {:?} is taken by another source", shorten(&path))));
            }
        }
        found.push(source);
    }
    Ok(found)
}
