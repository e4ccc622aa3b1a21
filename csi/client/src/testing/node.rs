//! The node and identity services of a driver for tests. A call refuses what the specification forbids.

use super::{Entry, Outcome, Request as Carried, Shared, lock, mounts};
use crate::Call;
use berth_csi_proto::csi::{self, identity_server::Identity, node_server::Node, volume_capability as cap};
use std::{
    io,
    path::{Path, PathBuf},
};
use tonic::{Request, Response, Status};

/// The services.
#[derive(Debug, Clone)]
pub(super) struct TestNode {
    pub(super) dir: PathBuf,
    pub(super) state: Shared,
}

pub(super) type Answer<T> = Result<Response<T>, Status>;

/// A call of a volume, while it runs.
pub(super) struct Running<'a> {
    node: &'a TestNode,
    call: Call,
    volume: String,
    path: PathBuf,
    carried: Carried,
}

impl TestNode {
    /// Begins a call of a volume. One that runs at the same time is refused.
    pub(super) fn begin(
        &self,
        call: Call,
        volume: String,
        path: &str,
        carried: Carried,
    ) -> Result<Running<'_>, Status> {
        if volume.is_empty() || path.is_empty() {
            return Err(Status::invalid_argument("a volume and a path are needed"));
        }
        let mut state = lock(&self.state);
        if state.running.contains(&volume) {
            let (path, outcome) = (path.into(), Outcome::AtOnce);
            state.journal.push(Entry { call, volume, path, outcome, request: carried });
            return Err(Status::aborted("an operation of the volume is running"));
        }
        state.running.push(volume.clone());
        Ok(Running { node: self, call, volume, path: path.into(), carried })
    }

    fn mounts(&self) -> bool {
        lock(&self.state).options.mounts
    }

    fn note(&self, call: Call) {
        let (volume, path, outcome) = (String::new(), PathBuf::new(), Outcome::Done);
        lock(&self.state).journal.push(Entry { call, volume, path, outcome, request: Carried::default() });
    }
}

impl Running<'_> {
    /// Writes the call into the journal.
    pub(super) fn end(&self, outcome: Outcome) {
        let entry = Entry {
            call: self.call,
            volume: self.volume.clone(),
            path: self.path.clone(),
            outcome,
            request: self.carried.clone(),
        };
        lock(&self.node.state).journal.push(entry);
    }

    pub(super) fn refuse(&self, status: Status) -> Status {
        self.end(Outcome::Refused);
        status
    }

    fn failed(&self, error: &io::Error) -> Status {
        self.refuse(Status::internal(error.to_string()))
    }

    fn stage(&self) -> Result<(), Status> {
        let key = (self.volume.clone(), self.path.clone());
        if lock(&self.node.state).staged.contains_key(&key) {
            self.end(Outcome::Repeated);
            return Ok(());
        }
        if !self.path.is_dir() {
            return Err(self.refuse(Status::failed_precondition("the staging path is no directory")));
        }
        let data = mounts::make_data(&self.node.dir, &self.volume).map_err(|e| self.failed(&e))?;
        if self.node.mounts() && self.carried.fs_type != "block" {
            mounts::bind(&data, &self.path, false).map_err(|e| self.failed(&e))?;
        }
        lock(&self.node.state).staged.insert(key, ());
        self.end(Outcome::Done);
        Ok(())
    }

    fn unstage(&self) -> Result<(), Status> {
        let key = (self.volume.clone(), self.path.clone());
        let mut state = lock(&self.node.state);
        if state.published.values().any(|v| *v == self.volume) {
            drop(state);
            return Err(self.refuse(Status::failed_precondition("the volume is published")));
        }
        let staged = state.staged.remove(&key).is_some();
        drop(state);
        if staged && self.node.mounts() && is_mounted(&self.path) {
            mounts::unmount(&self.path).map_err(|e| self.failed(&e))?;
        }
        self.end(if staged { Outcome::Done } else { Outcome::Repeated });
        Ok(())
    }

    fn publish(&self) -> Result<(), Status> {
        let state = lock(&self.node.state);
        let (of, stages) =
            (state.published.get(&self.path).cloned(), state.options.capabilities.stage_unstage);
        let staged =
            state.staged.keys().any(|(v, p)| *v == self.volume && *p == self.carried.staging_target_path);
        drop(state);
        match of {
            Some(of) if of == self.volume => {
                self.end(Outcome::Repeated);
                return Ok(());
            }
            Some(_) => return Err(self.refuse(Status::already_exists("another volume is at the target"))),
            None => {}
        }
        if stages && !staged && !self.carried.staging_target_path.as_os_str().is_empty() {
            return Err(self.refuse(Status::failed_precondition("the volume is not staged")));
        }
        let block = self.carried.fs_type == "block";
        let data = mounts::make_data(&self.node.dir, &self.volume).map_err(|e| self.failed(&e))?;
        mounts::make_target(&self.path, block).map_err(|e| self.failed(&e))?;
        if self.node.mounts() {
            let from = if block { data.join("block") } else { data };
            mounts::bind(&from, &self.path, self.carried.readonly).map_err(|e| self.failed(&e))?;
        }
        lock(&self.node.state).published.insert(self.path.clone(), self.volume.clone());
        self.end(Outcome::Done);
        Ok(())
    }

    fn unpublish(&self) -> Result<(), Status> {
        let published = lock(&self.node.state).published.remove(&self.path).is_some();
        if published && self.node.mounts() {
            mounts::unmount(&self.path).map_err(|e| self.failed(&e))?;
        }
        mounts::remove_target(&self.path).map_err(|e| self.failed(&e))?;
        self.end(if published { Outcome::Done } else { Outcome::Repeated });
        Ok(())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        lock(&self.node.state).running.retain(|v| *v != self.volume);
    }
}

/// Whether something is mounted at the directory: it is on another device, or another file, than its parent sees.
fn is_mounted(path: &Path) -> bool {
    std::fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|table| table.lines().any(|l| l.split(' ').nth(4) == path.to_str()))
}

/// What the capability of a request says.
fn carried(capability: Option<csi::VolumeCapability>) -> Carried {
    let Some(capability) = capability else { return Carried::default() };
    let mode = capability.access_mode.map(|m| m.mode().as_str_name().to_owned());
    let mut carried = Carried { access_mode: mode.unwrap_or_default(), ..Carried::default() };
    match capability.access_type {
        Some(cap::AccessType::Block(_)) => carried.fs_type = "block".into(),
        Some(cap::AccessType::Mount(mount)) => {
            carried.fs_type = mount.fs_type;
            carried.mount_flags = mount.mount_flags;
            carried.volume_mount_group = mount.volume_mount_group;
        }
        None => {}
    }
    carried
}

#[tonic::async_trait]
impl Node for TestNode {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Answer<csi::NodeStageVolumeResponse> {
        let r = request.into_inner();
        let carried = Carried {
            volume_context: r.volume_context.into_iter().collect(),
            publish_context: r.publish_context.into_iter().collect(),
            secrets: r.secrets.into_iter().collect(),
            ..carried(r.volume_capability)
        };
        self.begin(Call::NodeStageVolume, r.volume_id, &r.staging_target_path, carried)?.stage()?;
        Ok(Response::new(csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Answer<csi::NodeUnstageVolumeResponse> {
        let (r, carried) = (request.into_inner(), Carried::default());
        self.begin(Call::NodeUnstageVolume, r.volume_id, &r.staging_target_path, carried)?.unstage()?;
        Ok(Response::new(csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Answer<csi::NodePublishVolumeResponse> {
        let r = request.into_inner();
        let carried = Carried {
            volume_context: r.volume_context.into_iter().collect(),
            publish_context: r.publish_context.into_iter().collect(),
            secrets: r.secrets.into_iter().collect(),
            readonly: r.readonly,
            staging_target_path: r.staging_target_path.into(),
            ..carried(r.volume_capability)
        };
        self.begin(Call::NodePublishVolume, r.volume_id, &r.target_path, carried)?.publish()?;
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Answer<csi::NodeUnpublishVolumeResponse> {
        let (r, carried) = (request.into_inner(), Carried::default());
        self.begin(Call::NodeUnpublishVolume, r.volume_id, &r.target_path, carried)?.unpublish()?;
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Answer<csi::NodeGetVolumeStatsResponse> {
        use csi::volume_usage::Unit;
        let r = request.into_inner();
        self.begin(Call::NodeGetVolumeStats, r.volume_id, &r.volume_path, Carried::default())?
            .end(Outcome::Done);
        let usage = |unit: Unit, available, total, used| csi::VolumeUsage {
            available,
            total,
            used,
            unit: unit.into(),
        };
        Ok(Response::new(csi::NodeGetVolumeStatsResponse {
            usage: vec![usage(Unit::Bytes, 600, 1000, 400), usage(Unit::Inodes, 60, 100, 40)],
            volume_condition: Some(csi::VolumeCondition { abnormal: false, message: "fine".into() }),
        }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Answer<csi::NodeExpandVolumeResponse> {
        let r = request.into_inner();
        let required_bytes = r.capacity_range.map(|c| c.required_bytes).unwrap_or_default();
        let secrets = r.secrets.into_iter().collect();
        let carried = Carried { required_bytes, secrets, ..carried(r.volume_capability) };
        self.begin(Call::NodeExpandVolume, r.volume_id, &r.volume_path, carried)?.end(Outcome::Done);
        Ok(Response::new(csi::NodeExpandVolumeResponse { capacity_bytes: required_bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Answer<csi::NodeGetCapabilitiesResponse> {
        use csi::node_service_capability::{Rpc, Type, rpc::Type as Kind};
        self.note(Call::NodeGetCapabilities);
        let has = lock(&self.state).options.capabilities;
        let all = [
            (has.stage_unstage, Kind::StageUnstageVolume),
            (has.get_volume_stats, Kind::GetVolumeStats),
            (has.expand, Kind::ExpandVolume),
            (has.volume_condition, Kind::VolumeCondition),
            (has.single_node_multi_writer, Kind::SingleNodeMultiWriter),
            (has.volume_mount_group, Kind::VolumeMountGroup),
        ];
        let capability =
            |kind: Kind| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        let capabilities =
            all.into_iter().filter(|(has, _)| *has).map(|(_, kind)| capability(kind)).collect();
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _request: Request<csi::NodeGetInfoRequest>,
    ) -> Answer<csi::NodeGetInfoResponse> {
        self.note(Call::NodeGetInfo);
        let info = lock(&self.state).options.info.clone();
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: info.node_id,
            max_volumes_per_node: info.max_volumes.and_then(|m| i64::try_from(m).ok()).unwrap_or_default(),
            accessible_topology: Some(csi::Topology { segments: info.topology.into_iter().collect() }),
        }))
    }
}

#[tonic::async_trait]
impl Identity for TestNode {
    async fn get_plugin_info(
        &self,
        _request: Request<csi::GetPluginInfoRequest>,
    ) -> Answer<csi::GetPluginInfoResponse> {
        self.note(Call::GetPluginInfo);
        let name = lock(&self.state).options.name.clone();
        let vendor_version = "1.0.0".into();
        Ok(Response::new(csi::GetPluginInfoResponse { name, vendor_version, manifest: Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Answer<csi::GetPluginCapabilitiesResponse> {
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities: Vec::new() }))
    }

    async fn probe(&self, _request: Request<csi::ProbeRequest>) -> Answer<csi::ProbeResponse> {
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}
