//! How a volume is used: the access mode, and whether it is mounted or a block device.

use berth_csi_proto::csi;
use csi::volume_capability as proto;

/// How a volume is used on this node. The driver prepares it for that, or refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeCapability {
    /// Who else may use the volume, and how.
    pub access_mode: AccessMode,
    /// Mounted, or a block device.
    pub access_type: AccessType,
}

/// Which nodes, and which pods on one node, may use a volume, and how (specification: `AccessMode.Mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessMode {
    /// One node reads and writes. What a driver without `SINGLE_NODE_MULTI_WRITER` gets for ReadWriteOnce and
    /// ReadWriteOncePod.
    SingleNodeWriter,
    /// One node reads.
    SingleNodeReaderOnly,
    /// Many nodes read: ReadOnlyMany.
    MultiNodeReaderOnly,
    /// Many nodes read, one of them writes.
    MultiNodeSingleWriter,
    /// Many nodes read and write: ReadWriteMany.
    MultiNodeMultiWriter,
    /// One pod on one node reads and writes: ReadWriteOncePod.
    SingleNodeSingleWriter,
    /// Many pods on one node read and write: ReadWriteOnce.
    SingleNodeMultiWriter,
}

/// Whether a volume is mounted or a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessType {
    /// A file system.
    Mount(MountVolume),
    /// A raw block device.
    Block,
}

/// How a volume's file system is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountVolume {
    /// The type of the file system; empty is the driver's default.
    pub fs_type: String,
    /// Options of the mount.
    pub mount_flags: Vec<String>,
    /// The group that shall be able to write, for drivers with `VOLUME_MOUNT_GROUP`. All others get `None`, and the
    /// caller sets the group itself.
    pub volume_mount_group: Option<u32>,
}

impl VolumeCapability {
    /// The message of the driver.
    pub(crate) fn message(&self) -> csi::VolumeCapability {
        let access_type = match &self.access_type {
            AccessType::Block => proto::AccessType::Block(proto::BlockVolume {}),
            AccessType::Mount(mount) => proto::AccessType::Mount(proto::MountVolume {
                fs_type: mount.fs_type.clone(),
                mount_flags: mount.mount_flags.clone(),
                volume_mount_group: mount.volume_mount_group.map(|g| g.to_string()).unwrap_or_default(),
            }),
        };
        let mode = self.access_mode.message().into();
        csi::VolumeCapability {
            access_mode: Some(proto::AccessMode { mode }),
            access_type: Some(access_type),
        }
    }
}

impl AccessMode {
    fn message(self) -> proto::access_mode::Mode {
        use proto::access_mode::Mode;
        match self {
            AccessMode::SingleNodeWriter => Mode::SingleNodeWriter,
            AccessMode::SingleNodeReaderOnly => Mode::SingleNodeReaderOnly,
            AccessMode::MultiNodeReaderOnly => Mode::MultiNodeReaderOnly,
            AccessMode::MultiNodeSingleWriter => Mode::MultiNodeSingleWriter,
            AccessMode::MultiNodeMultiWriter => Mode::MultiNodeMultiWriter,
            AccessMode::SingleNodeSingleWriter => Mode::SingleNodeSingleWriter,
            AccessMode::SingleNodeMultiWriter => Mode::SingleNodeMultiWriter,
        }
    }
}
