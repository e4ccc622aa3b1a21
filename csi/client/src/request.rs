//! What the calls of the node service, and those that make and delete volumes, are given.
//!
//! Paths are absolute. The caller makes a path's parent directory; the target itself is the driver's.

use crate::{Secrets, VolumeCapability, VolumeId};
use std::{collections::BTreeMap, fmt, path::PathBuf};

/// NodeStageVolume: the volume is prepared on the node once, for all pods.
#[derive(Clone, PartialEq, Eq)]
pub struct Stage {
    /// The volume.
    pub volume: VolumeId,
    /// What the controller's publication returned (`VolumeAttachment.status.attachmentMetadata`).
    pub publish_context: BTreeMap<String, String>,
    /// The directory that the driver mounts the volume at, and which the caller made; for a block volume a directory
    /// for what the driver keeps.
    pub staging_target_path: PathBuf,
    /// How the volume is used.
    pub capability: VolumeCapability,
    /// The Secret that `nodeStageSecretRef` names.
    pub secrets: Secrets,
    /// Attributes of the volume (`volumeAttributes`).
    pub volume_context: BTreeMap<String, String>,
}

/// NodeUnstageVolume: the end of what [`Stage`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unstage {
    /// The volume.
    pub volume: VolumeId,
    /// The path of the stage call.
    pub staging_target_path: PathBuf,
}

/// NodePublishVolume: the volume is made available to one pod.
#[derive(Clone, PartialEq, Eq)]
pub struct Publish {
    /// The volume.
    pub volume: VolumeId,
    /// What the controller's publication returned.
    pub publish_context: BTreeMap<String, String>,
    /// Where the volume is staged; `None` if the driver stages nothing.
    pub staging_target_path: Option<PathBuf>,
    /// Where the volume appears: a directory that the driver makes, or a file for a block volume. Its parent exists.
    pub target_path: PathBuf,
    /// How the volume is used.
    pub capability: VolumeCapability,
    /// Whether the pod may only read.
    pub readonly: bool,
    /// The Secret that `nodePublishSecretRef` names.
    pub secrets: Secrets,
    /// Attributes of the volume, with the pod's where the CSIDriver asks for them. Tokens may be among them, so they
    /// are not shown.
    pub volume_context: BTreeMap<String, String>,
}

/// NodeUnpublishVolume: the end of what [`Publish`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpublish {
    /// The volume.
    pub volume: VolumeId,
    /// The target of the publish call. The driver removes it.
    pub target_path: PathBuf,
}

/// NodeGetVolumeStats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetVolumeStats {
    /// The volume.
    pub volume: VolumeId,
    /// Where the volume is published or staged.
    pub volume_path: PathBuf,
    /// Where it is staged, if it is.
    pub staging_target_path: Option<PathBuf>,
}

/// NodeExpandVolume: what has to be done on the node after the volume itself has grown.
#[derive(Clone, PartialEq, Eq)]
pub struct Expand {
    /// The volume.
    pub volume: VolumeId,
    /// Where the volume is published or staged.
    pub volume_path: PathBuf,
    /// The size that is asked for, in bytes.
    pub required_bytes: u64,
    /// Where it is staged, if it is.
    pub staging_target_path: Option<PathBuf>,
    /// How the volume is used.
    pub capability: VolumeCapability,
    /// The Secret that `nodeExpandSecretRef` names.
    pub secrets: Secrets,
}

/// CreateVolume: the driver makes a volume of that name, or finds the one that it made before.
#[derive(Clone, PartialEq, Eq)]
pub struct Create {
    /// The name, which tells the driver whether it has made the volume already.
    pub name: String,
    /// The smallest size in bytes; `None` leaves it to the driver.
    pub required_bytes: Option<u64>,
    /// The ways in which the volume is used.
    pub capabilities: Vec<VolumeCapability>,
    /// Parameters of the StorageClass, and names of the claim.
    pub parameters: BTreeMap<String, String>,
    /// The Secret that the StorageClass names.
    pub secrets: Secrets,
    /// Where the volume has to be reachable, as the driver names it; empty leaves it to the driver.
    pub topology: BTreeMap<String, String>,
}

/// DeleteVolume.
#[derive(Clone, PartialEq, Eq)]
pub struct Delete {
    /// The volume.
    pub volume: VolumeId,
    /// The Secret that the StorageClass names.
    pub secrets: Secrets,
}

impl fmt::Debug for Create {
    /// Shows which call it is, and no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Create");
        shown.field("name", &self.name).field("required_bytes", &self.required_bytes);
        shown.field("parameters", &self.parameters).finish_non_exhaustive()
    }
}

impl fmt::Debug for Delete {
    /// Shows which call it is, and no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delete").field("volume", &self.volume).finish_non_exhaustive()
    }
}

impl fmt::Debug for Stage {
    /// Shows which call it is, and no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Stage");
        shown.field("volume", &self.volume).field("staging_target_path", &self.staging_target_path);
        shown.field("capability", &self.capability).finish_non_exhaustive()
    }
}

impl fmt::Debug for Publish {
    /// Shows which call it is, and no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Publish");
        shown.field("volume", &self.volume).field("target_path", &self.target_path);
        shown.field("staging_target_path", &self.staging_target_path).field("readonly", &self.readonly);
        shown.field("capability", &self.capability).finish_non_exhaustive()
    }
}

impl fmt::Debug for Expand {
    /// Shows which call it is, and no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Expand");
        shown.field("volume", &self.volume).field("volume_path", &self.volume_path);
        shown.field("required_bytes", &self.required_bytes).finish_non_exhaustive()
    }
}
