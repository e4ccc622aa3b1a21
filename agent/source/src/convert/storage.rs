//! Claims, persistent volumes, CSI drivers and attachments. A source of data that this build does not know is kept by
//! its name: a pod that uses it says so by an event.

use super::{
    affinity,
    check::{self, choice},
    field::{FieldError, FieldPath, shorten},
    metadata,
    volume::{driver_name, host_path_of, nfs},
};
use berth_core::{
    ids::Namespace,
    model::{
        AccessMode, ClaimRef, CsiDriver, CsiVolume, FsGroupPolicy, LabelOperator, LabelRequirement,
        PersistentVolume, PersistentVolumeClaim, PersistentVolumeSource, ReclaimPolicy, SecretRef,
        StorageClass, TokenRequest, VolumeAttachment, VolumeMode,
    },
    quantity::Quantity,
};
use k8s_openapi::{
    api::{core::v1 as api, storage::v1 as storage},
    apimachinery::pkg::{
        api::resource,
        apis::meta::v1::{LabelSelector, ObjectMeta},
    },
};
use std::collections::BTreeMap;

/// The former field of `mountOptions`, and that of the group of a volume's files.
const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
const GID: &str = "pv.beta.kubernetes.io/gid";
/// The former field of `storageClassName`.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// gRPC's code of a driver that has no room.
const RESOURCE_EXHAUSTED: i32 = 8;

/// A PersistentVolumeClaim.
pub(crate) fn claim(
    at: &FieldPath<'_>,
    object: &api::PersistentVolumeClaim,
) -> Result<PersistentVolumeClaim, FieldError> {
    let (namespace, name) = metadata::names(at, &object.metadata)?;
    let spec = object.spec.clone().unwrap_or_default();
    let at = &at.key("spec");
    let owners = object.metadata.owner_references.iter().flatten();
    let status = object.status.clone().unwrap_or_default();
    let annotation = annotation(&object.metadata, CLASS);
    Ok(PersistentVolumeClaim {
        namespace,
        name,
        uid: object.metadata.uid.clone().unwrap_or_default(),
        controller: owners.into_iter().find(|o| o.controller == Some(true)).map(|o| o.uid.clone()),
        deleting: object.metadata.deletion_timestamp.is_some(),
        access_modes: access_modes(at, spec.access_modes.as_deref())?,
        mode: volume_mode(at, spec.volume_mode.as_deref())?,
        class: spec.storage_class_name.clone().or_else(|| annotation.map(str::to_owned)),
        request: storage_of(at, spec.resources.and_then(|r| r.requests).as_ref())?,
        selector: spec.selector.as_ref().map(|s| selector(at, s)).transpose()?.unwrap_or_default(),
        volume: spec.volume_name.clone().filter(|name| !name.is_empty()),
        bound: status.phase.as_deref() == Some("Bound"),
        capacity: storage_of(at, status.capacity.as_ref())?,
        pending: None,
    })
}

/// A PersistentVolume.
pub(crate) fn persistent_volume(
    at: &FieldPath<'_>,
    object: &api::PersistentVolume,
) -> Result<PersistentVolume, FieldError> {
    let (_, name) = metadata::names(at, &object.metadata)?;
    let spec = object.spec.clone().unwrap_or_default();
    let at = &at.key("spec");
    let former = annotation(&object.metadata, MOUNT_OPTIONS).unwrap_or_default();
    let options = spec.mount_options.clone().unwrap_or_else(|| {
        former.split(',').map(str::trim).filter(|o| !o.is_empty()).map(str::to_owned).collect()
    });
    let required = spec.node_affinity.as_ref().and_then(|a| a.required.as_ref());
    let terms = |selector: &api::NodeSelector| {
        affinity::terms(&at.key("nodeAffinity").key("required").key("nodeSelectorTerms"), selector)
    };
    let class = spec.storage_class_name.clone();
    Ok(PersistentVolume {
        name,
        uid: object.metadata.uid.clone().unwrap_or_default(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        source: source(at, &spec)?,
        capacity: storage_of(at, spec.capacity.as_ref())?,
        access_modes: access_modes(at, spec.access_modes.as_deref())?,
        mode: volume_mode(at, spec.volume_mode.as_deref())?,
        class: class.or_else(|| annotation(&object.metadata, CLASS).map(str::to_owned)).unwrap_or_default(),
        reclaim: match spec.persistent_volume_reclaim_policy.as_deref() {
            Some("Delete") => ReclaimPolicy::Delete,
            // Recycle was given up, and keeps the data where nobody recycles.
            None | Some(_) => ReclaimPolicy::Retain,
        },
        mount_options: options,
        node_affinity: required.map(terms).transpose()?,
        claim: spec.claim_ref.as_ref().map(|of| ClaimRef {
            namespace: of.namespace.clone().unwrap_or_default(),
            name: of.name.clone().unwrap_or_default(),
            uid: of.uid.clone().unwrap_or_default(),
        }),
        gid: annotation(&object.metadata, GID).and_then(|gid| gid.parse().ok()),
    })
}

/// The one source of a volume.
fn source(
    at: &FieldPath<'_>,
    spec: &api::PersistentVolumeSpec,
) -> Result<PersistentVolumeSource, FieldError> {
    if let Some(given) = &spec.nfs {
        return nfs(&at.key("nfs"), given).map(PersistentVolumeSource::Nfs);
    }
    if let Some(local) = &spec.local {
        let at = &at.key("local");
        let at = &at.key("path");
        if !local.path.starts_with('/') {
            return Err(at.error(format!("{:?} must be absolute", shorten(&local.path))));
        }
        check::no_parent(at, &local.path)?;
        let fs_type = local.fs_type.clone().filter(|t| !t.is_empty());
        return Ok(PersistentVolumeSource::Local { path: local.path.clone().into(), fs_type });
    }
    if let Some(given) = &spec.host_path {
        let (path, kind) = host_path_of(&at.key("hostPath"), given)?;
        return Ok(PersistentVolumeSource::HostPath { path, kind });
    }
    if let Some(given) = &spec.csi {
        return csi(&at.key("csi"), given).map(PersistentVolumeSource::Csi);
    }
    let json = serde_json::to_value(spec).map_err(|e| at.error(e.to_string()))?;
    let others = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let kind = json.as_object().into_iter().flatten().map(|(k, _)| k).find(|k| !others.contains(&k.as_str()));
    kind.map(|kind| PersistentVolumeSource::NotYet { kind: kind.clone() })
        .ok_or_else(|| at.error("must say its source"))
}

fn csi(at: &FieldPath<'_>, csi: &api::CSIPersistentVolumeSource) -> Result<CsiVolume, FieldError> {
    driver_name(&at.key("driver"), &csi.driver)?;
    if csi.volume_handle.is_empty() {
        return Err(at.key("volumeHandle").error("is required"));
    }
    let secret = |field: &str, of: &Option<api::SecretReference>| {
        let Some(of) = of else { return Ok(None) };
        let (Some(namespace), Some(name)) = (&of.namespace, &of.name) else { return Ok(None) };
        check::object_name(&at.key(field).key("name"), name)?;
        let namespace = check::id(&at.key(field).key("namespace"), Namespace::new(namespace.as_str()))?;
        Ok(Some(SecretRef { namespace, name: name.clone() }))
    };
    Ok(CsiVolume {
        driver: csi.driver.clone(),
        handle: csi.volume_handle.clone(),
        fs_type: csi.fs_type.clone().filter(|t| !t.is_empty()),
        read_only: csi.read_only.unwrap_or(false),
        attributes: csi.volume_attributes.clone().unwrap_or_default(),
        stage_secret: secret("nodeStageSecretRef", &csi.node_stage_secret_ref)?,
        publish_secret: secret("nodePublishSecretRef", &csi.node_publish_secret_ref)?,
        expand_secret: secret("nodeExpandSecretRef", &csi.node_expand_secret_ref)?,
    })
}

/// A CSIDriver.
pub(crate) fn csi_driver(at: &FieldPath<'_>, object: &storage::CSIDriver) -> Result<CsiDriver, FieldError> {
    let name = object.metadata.name.clone().unwrap_or_default();
    driver_name(&at.key("metadata").key("name"), &name)?;
    let (at, spec) = (&at.key("spec"), &object.spec);
    let modes = spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
    let has = |mode: &str| modes.iter().any(|m| m == mode);
    let policy = &[
        ("ReadWriteOnceWithFSType", FsGroupPolicy::ReadWriteOnceWithFsType),
        ("File", FsGroupPolicy::File),
        ("None", FsGroupPolicy::None),
    ];
    let token = |t: &storage::TokenRequest| TokenRequest {
        audience: t.audience.clone(),
        expiration_seconds: t.expiration_seconds.map_or(3600, |s| u64::try_from(s.max(600)).unwrap_or(3600)),
    };
    Ok(CsiDriver {
        attach_required: spec.attach_required.unwrap_or(true),
        pod_info_on_mount: spec.pod_info_on_mount.unwrap_or(false),
        requires_republish: spec.requires_republish.unwrap_or(false),
        fs_group: choice(&at.key("fsGroupPolicy"), spec.fs_group_policy.as_deref(), policy)?,
        ephemeral: has("Ephemeral"),
        persistent: modes.is_empty() || has("Persistent"),
        token_requests: spec.token_requests.iter().flatten().map(token).collect(),
        tokens_are_secrets: spec.service_account_token_in_secrets.unwrap_or(false),
        limit_period: spec
            .node_allocatable_update_period_seconds
            .and_then(|period| u64::try_from(period).ok())
            .filter(|period| *period > 0),
        ..CsiDriver::new(name)
    })
}

/// A StorageClass.
pub(crate) fn storage_class(
    at: &FieldPath<'_>,
    object: &storage::StorageClass,
) -> Result<StorageClass, FieldError> {
    let (_, name) = metadata::names(at, &object.metadata)?;
    let modes = &[("Immediate", false), ("WaitForFirstConsumer", true)];
    let is_default =
        annotation(&object.metadata, "storageclass.kubernetes.io/is-default-class") == Some("true");
    let mode = object.volume_binding_mode.as_deref();
    let policies = &[("Delete", ReclaimPolicy::Delete), ("Retain", ReclaimPolicy::Retain)];
    Ok(StorageClass {
        waits_for_pod: choice(&at.key("volumeBindingMode"), mode, modes)?,
        is_default,
        parameters: object.parameters.clone().unwrap_or_default(),
        reclaim: choice(&at.key("reclaimPolicy"), object.reclaim_policy.as_deref(), policies)?,
        mount_options: object.mount_options.clone().unwrap_or_default(),
        ..StorageClass::new(name, &*object.provisioner)
    })
}

/// A VolumeAttachment.
pub(crate) fn volume_attachment(object: &storage::VolumeAttachment) -> VolumeAttachment {
    let status = object.status.clone().unwrap_or_default();
    VolumeAttachment {
        name: object.metadata.name.clone().unwrap_or_default(),
        deleting: object.metadata.deletion_timestamp.is_some(),
        attached: status.attached,
        metadata: status.attachment_metadata.unwrap_or_default(),
        driver: object.spec.attacher.clone(),
        exhausted: status.attach_error.as_ref().and_then(|e| e.error_code) == Some(RESOURCE_EXHAUSTED),
        error: status.attach_error.and_then(|e| e.message),
    }
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

fn access_modes(at: &FieldPath<'_>, modes: Option<&[String]>) -> Result<Vec<AccessMode>, FieldError> {
    let at = &at.key("accessModes");
    let mode = |(index, text): (usize, &String)| {
        let all = [
            AccessMode::ReadWriteOnce,
            AccessMode::ReadOnlyMany,
            AccessMode::ReadWriteMany,
            AccessMode::ReadWriteOncePod,
        ];
        let found = all.into_iter().find(|mode| mode.as_str() == text);
        found.ok_or_else(|| at.index(index).error(format!("{:?} is no access mode", shorten(text))))
    };
    modes.unwrap_or_default().iter().enumerate().map(mode).collect()
}

fn volume_mode(at: &FieldPath<'_>, mode: Option<&str>) -> Result<VolumeMode, FieldError> {
    let modes = &[("Filesystem", VolumeMode::Filesystem), ("Block", VolumeMode::Block)];
    choice(&at.key("volumeMode"), mode, modes)
}

/// The amount of storage in a list of resources.
fn storage_of(
    at: &FieldPath<'_>,
    list: Option<&BTreeMap<String, resource::Quantity>>,
) -> Result<Option<Quantity>, FieldError> {
    let found = list.and_then(|list| list.get("storage"));
    found.map(|q| check::quantity(&at.key("storage"), &q.0)).transpose()
}

fn selector(at: &FieldPath<'_>, selector: &LabelSelector) -> Result<Vec<LabelRequirement>, FieldError> {
    let at = &at.key("selector");
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| LabelRequirement {
        key: key.clone(),
        operator: LabelOperator::In(vec![value.clone()]),
    });
    let mut all: Vec<LabelRequirement> = labels.collect();
    for (index, r) in selector.match_expressions.iter().flatten().enumerate() {
        let at = &at.key("matchExpressions");
        let at = &at.index(index);
        let values = r.values.clone().unwrap_or_default();
        let operator = match r.operator.as_str() {
            "In" => LabelOperator::In(values),
            "NotIn" => LabelOperator::NotIn(values),
            "Exists" => LabelOperator::Exists,
            "DoesNotExist" => LabelOperator::DoesNotExist,
            other => {
                return Err(at.key("operator").error(format!("{:?} is no operator", shorten(other))));
            }
        };
        all.push(LabelRequirement { key: r.key.clone(), operator });
    }
    Ok(all)
}
