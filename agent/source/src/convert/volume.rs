//! Volumes of a pod.

use super::{
    check::{self, choice},
    field::{FieldError, FieldPath, shorten},
    projected::{default_mode, downward, keys, projected},
};
use berth_core::{
    ids::VolumeName,
    model::{HostPathType, Medium, Volume, VolumeSource},
};
use k8s_openapi::{api::core::v1 as api, apimachinery::pkg::api::resource};
use serde_json::Value;
use std::collections::BTreeSet;

/// `spec.volumes`.
pub(super) fn volumes(at: &FieldPath<'_>, list: &[api::Volume]) -> Result<Vec<Volume>, FieldError> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for (index, v) in list.iter().enumerate() {
        let at = &at.index(index);
        let name = check::id(&at.key("name"), VolumeName::new(v.name.as_str()))?;
        if !names.insert(name.clone()) {
            return Err(at.key("name").error(format!("{name} is there twice")));
        }
        found.push(Volume { name, source: source(at, v)? });
    }
    Ok(found)
}

/// The volume's one source. The generated type has a field for each kind, so the kinds that are set are the
/// keys of its JSON besides the name.
fn source(at: &FieldPath<'_>, v: &api::Volume) -> Result<VolumeSource, FieldError> {
    let json = serde_json::to_value(v).map_err(|e| at.error(e.to_string()))?;
    let kinds: Vec<&String> = match &json {
        Value::Object(map) => map.keys().filter(|k| *k != "name").collect(),
        _ => Vec::new(),
    };
    let kind = match kinds.as_slice() {
        // The API server's default for a volume that says nothing.
        [] => return Ok(VolumeSource::EmptyDir { medium: Medium::Disk, size_limit: None }),
        [kind] => kind.as_str(),
        [_, second, ..] => {
            return Err(at.key(second).error("a volume may have only one source"));
        }
    };
    let at = &at.key(kind);
    if let Some(e) = &v.empty_dir {
        return empty_dir(at, e);
    }
    if let Some(h) = &v.host_path {
        return host_path(at, h);
    }
    if let Some(c) = &v.config_map {
        let name_at = &at.key("name");
        return keys(at, (name_at, &c.name), c.items.as_deref(), c.default_mode, c.optional)
            .map(VolumeSource::ConfigMap);
    }
    if let Some(s) = &v.secret {
        let name_at = &at.key("secretName");
        let name = s.secret_name.as_deref().unwrap_or_default();
        return keys(at, (name_at, name), s.items.as_deref(), s.default_mode, s.optional)
            .map(VolumeSource::Secret);
    }
    if let Some(d) = &v.downward_api {
        return Ok(VolumeSource::DownwardApi {
            items: downward(&at.key("items"), d.items.as_deref().unwrap_or_default())?,
            default_mode: default_mode(at, d.default_mode)?,
        });
    }
    if let Some(p) = &v.projected {
        return Ok(VolumeSource::Projected {
            sources: projected(&at.key("sources"), p.sources.as_deref().unwrap_or_default())?,
            default_mode: default_mode(at, p.default_mode)?,
        });
    }
    Ok(VolumeSource::NotYet { kind: kind.to_owned() })
}

fn empty_dir(at: &FieldPath<'_>, e: &api::EmptyDirVolumeSource) -> Result<VolumeSource, FieldError> {
    let medium = match e.medium.as_deref() {
        None | Some("") => Medium::Disk,
        Some("Memory") => Medium::Memory,
        Some("HugePages") => Medium::HugePages(None),
        Some(other) => match other.strip_prefix("HugePages-") {
            Some(size) => {
                check::quantity(&at.key("medium"), size)?;
                Medium::HugePages(Some(size.to_owned()))
            }
            None => {
                return Err(at.key("medium").error(format!(
                    "{:?} must be empty, Memory, HugePages or HugePages-<size>",
                    shorten(other)
                )));
            }
        },
    };
    let limit = |q: &resource::Quantity| check::quantity(&at.key("sizeLimit"), &q.0);
    Ok(VolumeSource::EmptyDir { medium, size_limit: e.size_limit.as_ref().map(limit).transpose()? })
}

fn host_path(at: &FieldPath<'_>, h: &api::HostPathVolumeSource) -> Result<VolumeSource, FieldError> {
    let path_at = &at.key("path");
    if h.path.is_empty() {
        return Err(path_at.error("is required"));
    }
    if !h.path.starts_with('/') {
        return Err(path_at.error(format!("{:?} must be absolute", shorten(&h.path))));
    }
    check::no_parent(path_at, &h.path)?;
    let kind = choice(
        &at.key("type"),
        h.type_.as_deref(),
        &[
            ("", HostPathType::Unset),
            ("DirectoryOrCreate", HostPathType::DirectoryOrCreate),
            ("Directory", HostPathType::Directory),
            ("FileOrCreate", HostPathType::FileOrCreate),
            ("File", HostPathType::File),
            ("Socket", HostPathType::Socket),
            ("CharDevice", HostPathType::CharDevice),
            ("BlockDevice", HostPathType::BlockDevice),
        ],
    )?;
    Ok(VolumeSource::HostPath { path: h.path.clone().into(), kind })
}
