//! Block devices of volumes in a container.

use oci_spec::{
    OciSpecError,
    runtime::{
        LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    },
};

/// A block device of the node in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// The absolute path in the container.
    pub path: String,
    /// The device's numbers.
    pub numbers: (u32, u32),
    /// Whether the container may only read it.
    pub read_only: bool,
}

impl DeviceSpec {
    /// The device's node in the container: for root alone, as containerd makes it of a node of the host's.
    pub(super) fn node(&self) -> Result<LinuxDevice, OciSpecError> {
        LinuxDeviceBuilder::default()
            .path(self.path.as_str())
            .typ(LinuxDeviceType::B)
            .major(i64::from(self.numbers.0))
            .minor(i64::from(self.numbers.1))
            .file_mode(0o660_u32)
            .uid(0_u32)
            .gid(0_u32)
            .build()
    }

    /// The permission to use it. The kubelet gives `mrw`, or `r` alone (`makeBlockVolumes`, `pkg/kubelet/kubelet_pods.go`).
    pub(super) fn rule(&self) -> Result<LinuxDeviceCgroup, OciSpecError> {
        LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::B)
            .major(i64::from(self.numbers.0))
            .minor(i64::from(self.numbers.1))
            .access(if self.read_only { "r" } else { "rwm" })
            .build()
    }
}
