//! Volumes and mounts.

use super::{
    check,
    field::{FieldError, FieldPath, shorten},
    resources,
    security::choice,
};
use berth_core::{
    ids::VolumeName,
    model::{
        DownwardItem, DownwardValue, HostPathType, KeyToPath, KeysVolume, Medium, MountPropagation,
        ProjectedSource, RecursiveReadOnly, SubPath, Volume, VolumeMount, VolumeSource,
    },
};
use k8s_openapi::{api::core::v1 as api, apimachinery::pkg::api::resource};
use serde_json::Value;
use std::collections::BTreeSet;

const DEFAULT_MODE: u32 = 0o644;

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

/// The volume's one source. The generated type has a field for each kind; those of them that are set are what its
/// JSON holds besides the name.
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

fn default_mode(at: &FieldPath<'_>, mode: Option<i32>) -> Result<u32, FieldError> {
    mode.map_or(Ok(DEFAULT_MODE), |m| check::mode(&at.key("defaultMode"), m))
}

fn keys(
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

fn downward(
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

/// Where a field is shown: volumes show whole maps, environment variables more of spec and status.
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

fn projected(
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
        } else {
            ProjectedSource::NotYet { kind: kind.to_owned() }
        };
        let taken: Vec<_> = match &source {
            ProjectedSource::ConfigMap(k) | ProjectedSource::Secret(k) => {
                k.items.iter().map(|i| &i.path).collect()
            }
            ProjectedSource::DownwardApi(items) => items.iter().map(|i| &i.path).collect(),
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

/// `volumeMounts` of a container.
pub(super) fn mounts(
    at: &FieldPath<'_>,
    list: &[api::VolumeMount],
    volumes: &BTreeSet<VolumeName>,
    privileged: bool,
) -> Result<Vec<VolumeMount>, FieldError> {
    let mut paths = BTreeSet::new();
    let mut found = Vec::new();
    for (index, m) in list.iter().enumerate() {
        let at = &at.index(index);
        let mount = mount(at, m, volumes, privileged)?;
        if !paths.insert(mount.mount_path.clone()) {
            return Err(at.key("mountPath").error(format!("{:?} is there twice", shorten(&m.mount_path))));
        }
        found.push(mount);
    }
    Ok(found)
}

fn mount(
    at: &FieldPath<'_>,
    m: &api::VolumeMount,
    volumes: &BTreeSet<VolumeName>,
    privileged: bool,
) -> Result<VolumeMount, FieldError> {
    let volume = check::id(&at.key("name"), VolumeName::new(m.name.as_str()))?;
    if !volumes.contains(&volume) {
        return Err(at.key("name").error(format!("volume {volume} is not in spec.volumes")));
    }
    let path_at = &at.key("mountPath");
    if m.mount_path.is_empty() {
        return Err(path_at.error("is required"));
    }
    if m.mount_path.contains('\0') {
        return Err(path_at.error("must not contain a NUL character"));
    }
    // A relative path counts from the container's root.
    let mount_path =
        if m.mount_path.starts_with('/') { m.mount_path.clone() } else { format!("/{}", m.mount_path) };
    let given = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
    let sub_path = match (given(&m.sub_path), given(&m.sub_path_expr)) {
        (None, None) => None,
        (Some(path), None) => {
            check::path_below(&at.key("subPath"), &path)?;
            Some(SubPath::Plain(path))
        }
        (None, Some(path)) => {
            check::path_below(&at.key("subPathExpr"), &path)?;
            Some(SubPath::Expr(path))
        }
        (Some(_), Some(_)) => return Err(at.key("subPathExpr").error("cannot be set together with subPath")),
    };
    let read_only = m.read_only.unwrap_or(false);
    let propagation = choice(
        &at.key("mountPropagation"),
        m.mount_propagation.as_deref(),
        &[
            ("None", MountPropagation::None),
            ("HostToContainer", MountPropagation::HostToContainer),
            ("Bidirectional", MountPropagation::Bidirectional),
        ],
    )?;
    if propagation == MountPropagation::Bidirectional && !privileged {
        return Err(at.key("mountPropagation").error("Bidirectional is only for privileged containers"));
    }
    let recursive_read_only = choice(
        &at.key("recursiveReadOnly"),
        m.recursive_read_only.as_deref(),
        &[
            ("Disabled", RecursiveReadOnly::Disabled),
            ("IfPossible", RecursiveReadOnly::IfPossible),
            ("Enabled", RecursiveReadOnly::Enabled),
        ],
    )?;
    if recursive_read_only != RecursiveReadOnly::Disabled
        && !(read_only && propagation == MountPropagation::None)
    {
        return Err(at.key("recursiveReadOnly").error("needs readOnly: true and no mount propagation"));
    }
    Ok(VolumeMount { volume, mount_path, read_only, recursive_read_only, sub_path, propagation })
}
