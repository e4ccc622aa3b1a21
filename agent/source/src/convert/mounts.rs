//! Mounts of volumes into a container.

use super::{
    check::{self, choice},
    field::{FieldError, FieldPath, shorten},
};
use berth_core::{
    ids::VolumeName,
    model::{MountPropagation, RecursiveReadOnly, SubPath, VolumeDevice, VolumeMount},
};
use k8s_openapi::api::core::v1 as api;
use std::collections::BTreeSet;

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

/// `volumeDevices` of a container (`ValidateVolumeDevices`, `pkg/apis/core/validation`).
pub(super) fn devices(
    at: &FieldPath<'_>,
    list: &[api::VolumeDevice],
    volumes: &BTreeSet<VolumeName>,
    mounts: &[VolumeMount],
) -> Result<Vec<VolumeDevice>, FieldError> {
    let mut found: Vec<VolumeDevice> = Vec::new();
    for (index, d) in list.iter().enumerate() {
        let at = &at.index(index);
        let (name_at, path_at) = (&at.key("name"), &at.key("devicePath"));
        let volume = check::id(name_at, VolumeName::new(d.name.as_str()))?;
        if !volumes.contains(&volume) {
            return Err(name_at.error(format!("volume {volume} is not in spec.volumes")));
        }
        if !d.device_path.starts_with('/') || d.device_path.contains('\0') {
            return Err(path_at.error(format!("{:?} must be absolute", shorten(&d.device_path))));
        }
        check::no_parent(path_at, &d.device_path)?;
        if found.iter().any(|other| other.path == d.device_path)
            || mounts.iter().any(|mount| mount.mount_path == d.device_path)
        {
            return Err(path_at.error(format!("{:?} is there twice", shorten(&d.device_path))));
        }
        if found.iter().any(|other| other.volume == volume) || mounts.iter().any(|m| m.volume == volume) {
            return Err(name_at.error(format!("volume {volume} is there twice")));
        }
        found.push(VolumeDevice { volume, path: d.device_path.clone() });
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
