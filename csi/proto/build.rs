//! Generates the messages, clients and servers from the `.proto` files with `protoc`.

use std::io;

/// Messages with a field of secrets (`csi_secret`): their `Debug` is written by hand, without these fields.
const WITH_SECRETS: &[&str] = &[
    "ControllerExpandVolumeRequest",
    "ControllerModifyVolumeRequest",
    "ControllerPublishVolumeRequest",
    "ControllerUnpublishVolumeRequest",
    "CreateSnapshotRequest",
    "CreateVolumeGroupSnapshotRequest",
    "CreateVolumeRequest",
    "DeleteSnapshotRequest",
    "ListSnapshotsRequest",
    "DeleteVolumeGroupSnapshotRequest",
    "DeleteVolumeRequest",
    "GetMetadataAllocatedRequest",
    "GetMetadataDeltaRequest",
    "GetSnapshotRequest",
    "GetVolumeGroupSnapshotRequest",
    "NodeExpandVolumeRequest",
    "NodePublishVolumeRequest",
    "NodeStageVolumeRequest",
    "ValidateVolumeCapabilitiesRequest",
];

fn main() -> io::Result<()> {
    let mut config = tonic_prost_build::configure();
    for message in WITH_SECRETS {
        config = config.skip_debug([format!(".csi.v1.{message}")]);
    }
    config.compile_protos(&["proto/csi.proto", "proto/pluginregistration.proto"], &["proto"])
}
