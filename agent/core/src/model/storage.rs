//! Persistent storage: claims, persistent volumes, CSI drivers and attachments, as far as a node needs them.

use super::{CsiVolume, HostPathType, NfsVolume, NodeLabels, NodeSelectorTerm, selects};
use crate::{ids::Namespace, quantity::Quantity};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// One of `accessModes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AccessMode {
    /// Written by pods of one node.
    ReadWriteOnce,
    /// Read by pods of many nodes.
    ReadOnlyMany,
    /// Written by pods of many nodes.
    ReadWriteMany,
    /// Written by one pod.
    ReadWriteOncePod,
}

impl AccessMode {
    /// The mode as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            AccessMode::ReadWriteOnce => "ReadWriteOnce",
            AccessMode::ReadOnlyMany => "ReadOnlyMany",
            AccessMode::ReadWriteMany => "ReadWriteMany",
            AccessMode::ReadWriteOncePod => "ReadWriteOncePod",
        }
    }
}

/// `volumeMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum VolumeMode {
    /// A directory.
    #[default]
    Filesystem,
    /// A block device.
    Block,
}

impl VolumeMode {
    /// The mode as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            VolumeMode::Filesystem => "Filesystem",
            VolumeMode::Block => "Block",
        }
    }
}

/// `persistentVolumeReclaimPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum ReclaimPolicy {
    /// The volume outlives its claim, with its data.
    #[default]
    Retain,
    /// The volume is deleted after its claim.
    Delete,
}

/// A PersistentVolumeClaim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistentVolumeClaim {
    /// `metadata.namespace`.
    pub namespace: Namespace,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// The UID of the controlling owner; a generic ephemeral volume's claim is controlled by its pod.
    pub controller: Option<String>,
    /// Whether the claim has a `deletionTimestamp`.
    pub deleting: bool,
    /// `spec.accessModes`.
    pub access_modes: Vec<AccessMode>,
    /// `spec.volumeMode`.
    pub mode: VolumeMode,
    /// `spec.storageClassName`; `None` where the claim names none, empty where it wants a volume without a class.
    pub class: Option<String>,
    /// `spec.resources.requests.storage`.
    pub request: Option<Quantity>,
    /// `spec.selector`.
    pub selector: Vec<LabelRequirement>,
    /// `spec.volumeName`: the volume, once the claim is bound; or the one that it asks for.
    pub volume: Option<String>,
    /// Whether `status.phase` is Bound.
    pub bound: bool,
    /// `status.capacity.storage`.
    pub capacity: Option<Quantity>,
    /// What a claim that is not bound waits for, where this node binds it.
    #[serde(default)]
    pub pending: Option<String>,
}

impl PersistentVolumeClaim {
    /// A claim for the pods of one node, which is not bound, with the API's defaults. Its UID is its name.
    pub fn new(namespace: Namespace, name: impl Into<String>) -> PersistentVolumeClaim {
        let name = name.into();
        PersistentVolumeClaim {
            namespace,
            uid: name.clone(),
            name,
            controller: None,
            deleting: false,
            access_modes: vec![AccessMode::ReadWriteOnce],
            mode: VolumeMode::Filesystem,
            class: None,
            request: None,
            selector: Vec::new(),
            volume: None,
            bound: false,
            capacity: None,
            pending: None,
        }
    }
}

/// A requirement of one label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelRequirement {
    /// The label.
    pub key: String,
    /// The condition that its value must meet.
    pub operator: LabelOperator,
}

/// An operator of a label selector with its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabelOperator {
    /// The value is one of these.
    In(Vec<String>),
    /// The value is none of these; a missing label also meets this.
    NotIn(Vec<String>),
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl LabelRequirement {
    /// Whether labels meet the requirement.
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            LabelOperator::In(values) => value.is_some_and(|v| values.contains(v)),
            LabelOperator::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

/// `claimRef` of a PersistentVolume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRef {
    /// The claim's namespace.
    pub namespace: String,
    /// The claim's name.
    pub name: String,
    /// The claim's UID; empty for a volume that is set aside for a claim of that name.
    pub uid: String,
}

/// A PersistentVolume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistentVolume {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Where the data is.
    pub source: PersistentVolumeSource,
    /// `spec.capacity.storage`.
    pub capacity: Option<Quantity>,
    /// `spec.accessModes`.
    pub access_modes: Vec<AccessMode>,
    /// `spec.volumeMode`.
    pub mode: VolumeMode,
    /// `spec.storageClassName`, empty where there is none.
    pub class: String,
    /// `spec.persistentVolumeReclaimPolicy`.
    pub reclaim: ReclaimPolicy,
    /// `spec.mountOptions`, or those of the former annotation.
    pub mount_options: Vec<String>,
    /// `spec.nodeAffinity.required`; `None` where every node has the volume.
    pub node_affinity: Option<Vec<NodeSelectorTerm>>,
    /// `spec.claimRef`.
    pub claim: Option<ClaimRef>,
    /// Group of the files (annotation `pv.beta.kubernetes.io/gid`).
    pub gid: Option<u32>,
}

impl PersistentVolume {
    /// A volume for the pods of one node, which is bound to no claim, with the API's defaults. Its UID is its name.
    pub fn new(name: impl Into<String>, source: PersistentVolumeSource) -> PersistentVolume {
        let name = name.into();
        PersistentVolume {
            uid: name.clone(),
            name,
            labels: BTreeMap::new(),
            source,
            capacity: None,
            access_modes: vec![AccessMode::ReadWriteOnce],
            mode: VolumeMode::Filesystem,
            class: String::new(),
            reclaim: ReclaimPolicy::Retain,
            mount_options: Vec::new(),
            node_affinity: None,
            claim: None,
            gid: None,
        }
    }

    /// Whether a node of that name and those labels has the volume.
    pub fn is_on_node(&self, name: &str, labels: &NodeLabels) -> bool {
        self.node_affinity.as_ref().is_none_or(|terms| selects(terms, name, labels))
    }
}

/// Where the data of a PersistentVolume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PersistentVolumeSource {
    /// `nfs`.
    Nfs(NfsVolume),
    /// `local`: a directory or a device of one node.
    Local {
        /// The path of the directory or device.
        path: PathBuf,
        /// `fsType`, for a device that is to be mounted.
        fs_type: Option<String>,
    },
    /// `hostPath`.
    HostPath {
        /// The path on the node.
        path: PathBuf,
        /// The check of the path before the mount.
        kind: HostPathType,
    },
    /// `csi`.
    Csi(CsiVolume),
    /// A source that this build cannot mount.
    NotYet {
        /// The field's name in the API, for example `iscsi`.
        kind: String,
    },
}

/// A CSIDriver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsiDriver {
    /// `metadata.name`, which is the driver's.
    pub name: String,
    /// `spec.attachRequired`, default true.
    pub attach_required: bool,
    /// `spec.podInfoOnMount`.
    pub pod_info_on_mount: bool,
    /// `spec.requiresRepublish`.
    pub requires_republish: bool,
    /// `spec.fsGroupPolicy`.
    pub fs_group: FsGroupPolicy,
    /// Whether `spec.volumeLifecycleModes` has Ephemeral.
    pub ephemeral: bool,
    /// Whether `spec.volumeLifecycleModes` has Persistent, which is the default.
    pub persistent: bool,
    /// `spec.tokenRequests`.
    pub token_requests: Vec<TokenRequest>,
    /// `spec.serviceAccountTokenInSecrets`: tokens go to the driver among the secrets and not among the attributes.
    #[serde(default)]
    pub tokens_are_secrets: bool,
    /// `spec.nodeAllocatableUpdatePeriodSeconds`: how often the driver is asked how many volumes it takes on the node.
    #[serde(default)]
    pub limit_period: Option<u64>,
}

impl CsiDriver {
    /// A driver with the API's defaults.
    pub fn new(name: impl Into<String>) -> CsiDriver {
        CsiDriver {
            name: name.into(),
            attach_required: true,
            pod_info_on_mount: false,
            requires_republish: false,
            fs_group: FsGroupPolicy::default(),
            ephemeral: false,
            persistent: true,
            token_requests: Vec::new(),
            tokens_are_secrets: false,
            limit_period: None,
        }
    }
}

/// One of `tokenRequests`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRequest {
    /// `audience`; empty is the API server's own.
    pub audience: String,
    /// `expirationSeconds`, default 3600.
    pub expiration_seconds: u64,
}

/// `fsGroupPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum FsGroupPolicy {
    /// The group is changed where the volume has an `fsType` and is written by one node.
    #[default]
    ReadWriteOnceWithFsType,
    /// The group is always changed.
    File,
    /// The group is never changed.
    None,
}

/// A VolumeAttachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAttachment {
    /// `metadata.name`.
    pub name: String,
    /// Whether the object is being deleted.
    pub deleting: bool,
    /// `status.attached`.
    pub attached: bool,
    /// `status.attachmentMetadata`, the driver's publish context.
    pub metadata: BTreeMap<String, String>,
    /// `status.attachError.message`.
    pub error: Option<String>,
    /// `spec.attacher`: the driver.
    #[serde(default)]
    pub driver: String,
    /// Whether `status.attachError.errorCode` says that the driver has no room for it on the node (RESOURCE_EXHAUSTED).
    #[serde(default)]
    pub exhausted: bool,
}

/// A StorageClass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageClass {
    /// `metadata.name`.
    pub name: String,
    /// Whether `volumeBindingMode` is WaitForFirstConsumer: a claim waits for the first pod that uses it.
    pub waits_for_pod: bool,
    /// Whether claims that name no class are of this one (annotation `storageclass.kubernetes.io/is-default-class`).
    pub is_default: bool,
    /// `provisioner`: the CSI driver that makes volumes of the class.
    pub provisioner: String,
    /// `parameters`.
    pub parameters: BTreeMap<String, String>,
    /// `reclaimPolicy`, default Delete.
    pub reclaim: ReclaimPolicy,
    /// `mountOptions`.
    pub mount_options: Vec<String>,
}

impl StorageClass {
    /// A class whose volumes that provisioner makes, with the API's defaults.
    pub fn new(name: impl Into<String>, provisioner: impl Into<String>) -> StorageClass {
        StorageClass {
            name: name.into(),
            waits_for_pod: false,
            is_default: false,
            provisioner: provisioner.into(),
            parameters: BTreeMap::new(),
            reclaim: ReclaimPolicy::Delete,
            mount_options: Vec::new(),
        }
    }

    /// Whether a driver makes its volumes; without one an administrator does.
    pub fn is_provisioned(&self) -> bool {
        !matches!(self.provisioner.as_str(), "" | "kubernetes.io/no-provisioner")
    }
}

/// An object of storage that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageObject {
    /// A PersistentVolumeClaim.
    Claim(Arc<PersistentVolumeClaim>),
    /// A PersistentVolume.
    Volume(Arc<PersistentVolume>),
    /// A VolumeAttachment.
    Attachment(Arc<VolumeAttachment>),
}
