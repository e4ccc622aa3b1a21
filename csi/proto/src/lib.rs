//! The messages, clients and servers of the Container Storage Interface 1.12, and of the registration of plugins with
//! the node agent. Generated from the files in `proto`.
//!
//! Owns nothing and does nothing. The meaning of each message is in the specification:
//! <https://github.com/container-storage-interface/spec/blob/v1.12.0/spec.md>, and for the registration in
//! `k8s.io/kubelet/pkg/apis/pluginregistration/v1`.
//!
//! Invariant: no `Debug` of a message shows a secret. A message that carries secrets shows only the fields that tell
//! which call it is.

/// The Container Storage Interface, `csi.v1`.
#[expect(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated: the specification has the meaning"
)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// The registration of a plugin, `pluginregistration`.
#[expect(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated: the kubelet's API has the meaning"
)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

use std::fmt;

/// Writes `Debug` of a message with secrets: only the fields named here.
macro_rules! hide_secrets {
    ($message:ident: $($field:ident),*) => {
        impl fmt::Debug for csi::$message {
            /// Shows the fields that tell which call it is, and no secret.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))$(.field(stringify!($field), &self.$field))*.finish_non_exhaustive()
            }
        }
    };
}

hide_secrets!(ControllerExpandVolumeRequest: volume_id);
hide_secrets!(ControllerModifyVolumeRequest: volume_id);
hide_secrets!(ControllerPublishVolumeRequest: volume_id, node_id);
hide_secrets!(ControllerUnpublishVolumeRequest: volume_id, node_id);
hide_secrets!(CreateSnapshotRequest: source_volume_id, name);
hide_secrets!(CreateVolumeGroupSnapshotRequest: name, source_volume_ids);
hide_secrets!(CreateVolumeRequest: name);
hide_secrets!(DeleteSnapshotRequest: snapshot_id);
hide_secrets!(ListSnapshotsRequest: source_volume_id, snapshot_id);
hide_secrets!(DeleteVolumeGroupSnapshotRequest: group_snapshot_id, snapshot_ids);
hide_secrets!(DeleteVolumeRequest: volume_id);
hide_secrets!(GetMetadataAllocatedRequest: snapshot_id);
hide_secrets!(GetMetadataDeltaRequest: base_snapshot_id, target_snapshot_id);
hide_secrets!(GetSnapshotRequest: snapshot_id);
hide_secrets!(GetVolumeGroupSnapshotRequest: group_snapshot_id, snapshot_ids);
hide_secrets!(NodeExpandVolumeRequest: volume_id, volume_path, staging_target_path);
hide_secrets!(NodePublishVolumeRequest: volume_id, staging_target_path, target_path);
hide_secrets!(NodeStageVolumeRequest: volume_id, staging_target_path);
hide_secrets!(ValidateVolumeCapabilitiesRequest: volume_id);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_debug_shows_a_secret() {
        let secrets = [("password".to_owned(), "hunter2".to_owned())].into();
        let request = csi::NodeStageVolumeRequest { volume_id: "v".into(), secrets, ..Default::default() };
        let text = format!("{request:?}");
        assert_eq!(text, r#"NodeStageVolumeRequest { volume_id: "v", staging_target_path: "", .. }"#);
    }
}
