//! The node service: a volume at a pod's path, and its statistics.
//!
//! A volume is mounted at each pod's path; there is no staging. The kernel shares one super block, cache and connection
//! between mounts of one share with the same options, so a staged mount would save nothing; and each pod's mount is
//! independent of the others, so a server that hangs holds up what asks that server and nothing else.
//!
//! Invariants:
//! - No call touches a mounted volume on the task that answers: whatever may wait for a server is on a thread that is
//!   given up at the call's deadline.
//! - A mount that comes to be after its call was given up, or whose unpublish came first, is not attached.
//! - Nothing here deletes data: an unpublish unmounts, then removes an empty directory.

mod publish;
mod unpublish;

use crate::{
    capability::Usage, error::Error, mounter::Mounter, mountinfo, operations::Operations, threads::Threads,
};
use berth_csi_proto::csi::{
    self, NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, VolumeCondition, VolumeUsage,
    node_service_capability as capability, volume_usage::Unit,
};
use publish::Attempts;
use std::{
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tonic::{Request, Response, Status};

/// How long a server may take to answer statfs(2).
const STATFS: Duration = Duration::from_secs(10);

/// The node service.
pub(crate) struct Node {
    id: String,
    mounter: Arc<dyn Mounter>,
    threads: Arc<Threads>,
    attempts: Attempts,
    /// Questions for statistics that run.
    asked: Operations,
}

impl Node {
    /// The service of the node of this name.
    pub(crate) fn new(id: String, mounter: Arc<dyn Mounter>, threads: Arc<Threads>) -> Self {
        Self { id, mounter, threads, attempts: Attempts::default(), asked: Operations::default() }
    }
}

/// A path of a pod's volume, as the list of mounts has it: absolute, and with the links on the way to it resolved
/// (`/var/lib/kubelet` may be one). The volume itself is not looked at, as it may be on a server that is gone.
///
/// # Errors
/// The path is missing, relative, or has a part that is no name.
fn path(field: &str, text: &str) -> Result<PathBuf, Error> {
    let refused = || Error::field(field, format!("{text:?} is no absolute path without dots"));
    let path = Path::new(text);
    let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(refused()) };
    if !path.is_absolute() || !plain || text.contains('\0') {
        return Err(refused());
    }
    // Nothing can be below a directory that is not there.
    let parent = parent.canonicalize().unwrap_or_else(|_| parent.components().collect());
    Ok(parent.join(name))
}

fn required(field: &str, value: &str) -> Result<(), Error> {
    if value.is_empty() { Err(Error::field(field, "it is missing")) } else { Ok(()) }
}

#[tonic::async_trait]
impl csi::node_server::Node for Node {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        required("volume_id", &request.volume_id)?;
        required("target_path", &request.target_path)?;
        let target = path("target_path", &request.target_path)?;
        let usage = Usage::read(request.volume_capability.as_ref())?;
        self.publish(request, target, usage).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        required("volume_id", &request.volume_id)?;
        required("target_path", &request.target_path)?;
        let target = path("target_path", &request.target_path)?;
        self.unpublish(&request.volume_id, target).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        required("volume_id", &request.volume_id)?;
        required("volume_path", &request.volume_path)?;
        let missing = || Error::NotFound(format!("volume {} at {}", request.volume_id, request.volume_path));
        // No volume is mounted at a path that is none.
        let Ok(volume_path) = path("volume_path", &request.volume_path) else { return Err(missing().into()) };
        let mounts = mountinfo::at(&volume_path)?;
        let mount = mounts.last().ok_or_else(missing)?;
        let abnormal = |message: String| NodeGetVolumeStatsResponse {
            usage: Vec::new(),
            volume_condition: Some(VolumeCondition { abnormal: true, message }),
        };
        let server =
            mount.source.to_string_lossy().rsplit_once(":/").map(|(s, _)| s.to_owned()).unwrap_or_default();
        let running = match self.asked.begin("statfs", &request.volume_path, None) {
            Ok(running) => running,
            Err(_) => {
                return Ok(Response::new(abnormal(format!("the server {server} still does not answer"))));
            }
        };
        let asked = move || {
            let _running = running;
            rustix::fs::statvfs(&volume_path)
                .map_err(|e| Error::file("ask for the size of", volume_path.display().to_string(), e))
        };
        let what = format!("ask the server {server} for its size");
        let overdue = |seconds| Error::Deadline { what, seconds };
        let answer = match self.threads.run(&server, STATFS, asked, overdue).await {
            Ok(stat) => {
                let usage = |unit: Unit, total: u64, available: u64, free: u64| VolumeUsage {
                    available: signed(available),
                    total: signed(total),
                    used: signed(total.saturating_sub(free)),
                    unit: unit.into(),
                };
                let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
                NodeGetVolumeStatsResponse {
                    usage: vec![
                        usage(Unit::Bytes, bytes(stat.f_blocks), bytes(stat.f_bavail), bytes(stat.f_bfree)),
                        usage(Unit::Inodes, stat.f_files, stat.f_favail, stat.f_ffree),
                    ],
                    volume_condition: Some(VolumeCondition {
                        abnormal: false,
                        message: "the server answers".into(),
                    }),
                }
            }
            Err(error) => abnormal(error.to_string()),
        };
        Ok(Response::new(answer))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        use capability::rpc::Type;
        let all = [Type::GetVolumeStats, Type::VolumeCondition, Type::SingleNodeMultiWriter];
        let capabilities = all.map(|kind| NodeServiceCapability {
            r#type: Some(capability::Type::Rpc(capability::Rpc { r#type: kind.into() })),
        });
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let info = NodeGetInfoResponse {
            node_id: self.id.clone(),
            max_volumes_per_node: 0,
            accessible_topology: None,
        };
        Ok(Response::new(info))
    }

    async fn node_stage_volume(
        &self,
        _: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes are not staged"))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes are not staged"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("a volume needs no expansion on the node"))
    }
}

/// A server may tell any number.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        assert_eq!(path("p", "/nowhere/lib//x/").unwrap(), Path::new("/nowhere/lib/x"));
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let found = path("p", &link.join("volume").display().to_string()).unwrap();
        assert_eq!(found, real.canonicalize().unwrap().join("volume"));
        assert_eq!(path("p", &link.display().to_string()).unwrap().file_name(), link.file_name());
        for bad in ["", "x", "/", "/a/../b", "/..", "../a", "/a\0"] {
            assert!(path("p", bad).is_err(), "{bad:?}");
        }
    }
}
