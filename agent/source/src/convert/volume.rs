//! Volumes of a pod.

use super::{
    check::{self, choice},
    field::{FieldError, FieldPath, shorten},
    projected::{default_mode, downward, keys, projected},
};
use berth_core::{
    ids::VolumeName,
    model::{CsiEphemeral, HostPathType, Medium, NfsVolume, Volume, VolumeSource},
};
use k8s_openapi::{api::core::v1 as api, apimachinery::pkg::api::resource};
use serde_json::Value;
use std::{collections::BTreeSet, path::PathBuf};

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
        return host_path_of(at, h).map(|(path, kind)| VolumeSource::HostPath { path, kind });
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
    if let Some(given) = &v.nfs {
        return nfs(at, given).map(VolumeSource::Nfs);
    }
    if let Some(claim) = &v.persistent_volume_claim {
        check::object_name(&at.key("claimName"), &claim.claim_name)?;
        let read_only = claim.read_only.unwrap_or(false);
        return Ok(VolumeSource::PersistentVolumeClaim { claim: claim.claim_name.clone(), read_only });
    }
    if let Some(ephemeral) = &v.ephemeral {
        if ephemeral.volume_claim_template.is_none() {
            return Err(at.key("volumeClaimTemplate").error("is required"));
        }
        return Ok(VolumeSource::Ephemeral);
    }
    if let Some(csi) = &v.csi {
        return csi_ephemeral(at, csi).map(VolumeSource::Csi);
    }
    Ok(VolumeSource::NotYet { kind: kind.to_owned() })
}

/// `nfs` of a pod's volume or of a persistent one.
pub(super) fn nfs(at: &FieldPath<'_>, nfs: &api::NFSVolumeSource) -> Result<NfsVolume, FieldError> {
    let (server, path) = (&at.key("server"), &at.key("path"));
    if nfs.server.is_empty() {
        return Err(server.error("is required"));
    }
    // Both are parts of the mount's source and options, where a comma or a control character would begin another one.
    if nfs.server.contains([',', '/']) || nfs.server.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(server.error(format!("{:?} is no name or address", shorten(&nfs.server))));
    }
    if !nfs.path.starts_with('/') {
        return Err(path.error(format!("{:?} must be absolute", shorten(&nfs.path))));
    }
    if nfs.path.contains('\0') {
        return Err(path.error("must not contain a NUL character"));
    }
    let read_only = nfs.read_only.unwrap_or(false);
    Ok(NfsVolume { server: nfs.server.clone(), path: nfs.path.clone(), read_only })
}

fn csi_ephemeral(at: &FieldPath<'_>, csi: &api::CSIVolumeSource) -> Result<CsiEphemeral, FieldError> {
    driver_name(&at.key("driver"), &csi.driver)?;
    let secret = csi.node_publish_secret_ref.as_ref().map(|r| r.name.clone());
    if let Some(name) = &secret {
        check::object_name(&at.key("nodePublishSecretRef").key("name"), name)?;
    }
    Ok(CsiEphemeral {
        driver: csi.driver.clone(),
        fs_type: csi.fs_type.clone().filter(|t| !t.is_empty()),
        read_only: csi.read_only.unwrap_or(false),
        attributes: csi.volume_attributes.clone().unwrap_or_default(),
        publish_secret: secret,
    })
}

/// A CSI driver's name becomes the name of a directory: a DNS name of at most 63 characters
/// (`ValidateCSIDriverName`).
pub(super) fn driver_name(at: &FieldPath<'_>, name: &str) -> Result<(), FieldError> {
    if name.len() > 63 {
        return Err(at.error("must have at most 63 characters"));
    }
    check::object_name(at, &name.to_ascii_lowercase())
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

/// Path and type of `hostPath` of a pod's volume or of a persistent one.
pub(super) fn host_path_of(
    at: &FieldPath<'_>,
    h: &api::HostPathVolumeSource,
) -> Result<(PathBuf, HostPathType), FieldError> {
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
    Ok((h.path.clone().into(), kind))
}
