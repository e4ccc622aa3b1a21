//! What a volume of this driver can be used as: a mounted directory, in every access mode.

use crate::error::{Error, Result};
use berth_csi_proto::csi::{
    VolumeCapability,
    volume_capability::{AccessType, access_mode::Mode},
};

/// A use of a volume that the driver supports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Usage {
    /// The access mode.
    pub(crate) mode: Mode,
    /// Mount options.
    pub(crate) options: Vec<String>,
}

impl Usage {
    /// Reads a capability.
    ///
    /// # Errors
    /// It is missing, or the driver does not support it.
    pub(crate) fn read(capability: Option<&VolumeCapability>) -> Result<Self> {
        let refuse = |reason: &str| Err(Error::field("the volume capability", reason));
        let Some(capability) = capability else { return refuse("it is missing") };
        let mount = match &capability.access_type {
            Some(AccessType::Mount(mount)) => mount,
            Some(AccessType::Block(_)) => return refuse("NFS has no block volumes"),
            None => return refuse("it has no access type"),
        };
        if !matches!(mount.fs_type.as_str(), "" | "nfs" | "nfs4") {
            return Err(Error::field(
                "the volume capability",
                format!("its file system {:?} is not nfs", mount.fs_type),
            ));
        }
        let mode = capability.access_mode.as_ref().and_then(|m| Mode::try_from(m.mode).ok());
        match mode {
            None | Some(Mode::Unknown) => refuse("it has no access mode"),
            Some(mode) => Ok(Self { mode, options: mount.mount_flags.clone() }),
        }
    }

    /// Reads all capabilities, of which there must be one.
    pub(crate) fn read_all(capabilities: &[VolumeCapability]) -> Result<Vec<Self>> {
        if capabilities.is_empty() {
            return Err(Error::field("the volume capabilities", "there are none"));
        }
        capabilities.iter().map(|capability| Self::read(Some(capability))).collect()
    }

    /// Whether the mode permits no writing.
    pub(crate) fn reads_only(&self) -> bool {
        matches!(self.mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly)
    }

    /// Whether one pod of one node may have the volume (`ReadWriteOncePod`).
    pub(crate) fn of_one_pod(&self) -> bool {
        self.mode == Mode::SingleNodeSingleWriter
    }
}
