//! The controller service: volumes, snapshots and their copies on shares.
//!
//! A share is mounted out of sight for one call and dropped after it, so nothing has to be cleaned when the driver dies.
//! The state is on the shares alone ([`crate::share`]).
//!
//! Each call works on a thread of its own. A call that takes longer than its caller waits is answered with `ABORTED` and
//! what it is at, and goes on; the caller asks again and finds the work further on or done. A snapshot whose copy still
//! runs is answered as not ready.

mod patience;
mod snapshot_calls;
mod snapshots;
mod volume_calls;
mod volumes;

use crate::{
    error::{Error, Result},
    handle::{SnapshotHandle, VolumeHandle},
    location::Location,
    mounter::Mounter,
    operations::{Operation, Operations},
    options::Options,
    parameters::{self, Map},
    share::Share,
    threads::Threads,
};
use berth_csi_proto::csi::{
    self, ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
    ControllerModifyVolumeRequest, ControllerModifyVolumeResponse, ControllerPublishVolumeRequest,
    ControllerPublishVolumeResponse, ControllerServiceCapability, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse, CreateVolumeRequest,
    CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse, DeleteVolumeRequest,
    DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse,
    ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, Snapshot,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
    controller_service_capability as capability,
};
use std::{sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

/// Most entries of a list in one answer, so that an answer fits into a message.
const MOST_ENTRIES: usize = 1000;

/// The controller service.
pub(crate) struct Controller {
    mounter: Arc<dyn Mounter>,
    threads: Arc<Threads>,
    operations: Operations,
    /// Parameters for what a StorageClass does not name.
    defaults: Map,
}

/// What an operation works on.
struct Subject {
    /// Kind and key, by which operations on the same thing are found.
    key: String,
    /// For people.
    name: String,
    /// The key of what it copies.
    reads: Option<String>,
}

fn key_of_volume(handle: &VolumeHandle) -> String {
    format!("volume {}", handle.key.as_str())
}

fn key_of_snapshot(handle: &SnapshotHandle) -> String {
    format!("snapshot {}", handle.key.as_str())
}

impl Subject {
    fn volume(handle: &VolumeHandle, reads: Option<String>) -> Self {
        Self { key: key_of_volume(handle), name: format!("volume {}", handle.to_id()), reads }
    }

    fn snapshot(handle: &SnapshotHandle, reads: Option<String>) -> Self {
        Self { key: key_of_snapshot(handle), name: format!("snapshot {}", handle.to_id()), reads }
    }
}

impl Controller {
    /// The service with these default parameters. `operations` are those that run.
    pub(crate) fn new(
        mounter: Arc<dyn Mounter>,
        threads: Arc<Threads>,
        operations: Operations,
        defaults: Map,
    ) -> Self {
        Self { mounter, threads, operations, defaults }
    }

    /// Runs blocking work that changes something on a share. An error comes with the snapshot that is being made.
    async fn change<T: Send + 'static>(
        &self,
        what: &'static str,
        subject: Subject,
        location: &Location,
        patience: Duration,
        work: impl FnOnce(&Operation) -> Result<T> + Send + 'static,
    ) -> Result<T, (Error, Option<Snapshot>)> {
        let busy = |operation: &Operation| {
            let what = format!("{what} {}", subject.name);
            let error = Error::Busy { what, reason: operation.describe() };
            (error, operation.snapshot.get().cloned())
        };
        let running = match self.operations.begin(what, &subject.key, subject.reads.as_deref()) {
            Ok(running) => running,
            Err(there) => {
                // What is to be deleted need not be made first.
                if what == "delete" && there.creates(&subject.key) {
                    there.cancel();
                }
                return Err(busy(&there));
            }
        };
        let operation = running.operation();
        let mut unfinished = None;
        let overdue = |_| {
            let (error, snapshot) = busy(&operation);
            unfinished = snapshot;
            error
        };
        let work = move || {
            let result = work(&running.operation());
            if let Err(error) = &result {
                tracing::warn!(%error, "{what} failed");
            }
            result
        };
        let result = self.threads.run(location.server.as_str(), patience, work, overdue).await;
        result.map_err(|error| (error, unfinished))
    }

    /// Runs blocking work that only reads a share.
    async fn read<T: Send + 'static>(
        &self,
        location: &Location,
        options: Options,
        patience: Duration,
        work: impl FnOnce(&Share) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mounter = Arc::clone(&self.mounter);
        let place = location.whole_share();
        let source = place.source();
        let work = move || work(&mounted(mounter.as_ref(), &place, options)?);
        let overdue = |seconds| Error::Deadline { what: format!("read {source}"), seconds };
        self.threads.run(location.server.as_str(), patience, work, overdue).await
    }

    /// The share that requests without one mean.
    fn default_share(&self, given: &Map) -> Result<Location> {
        let (server, share) = parameters::server_and_share(given, &self.defaults)?;
        Location::new(server, share, None)
    }

    /// Options of the controller's own mounts: of the request's secrets or parameters, or else the default ones.
    fn options(&self, given: &Map) -> Result<Options> {
        let texts = given.get("mountOptions").or_else(|| self.defaults.get("mountOptions"));
        Ok(Options::parse(texts.map(String::as_str))?)
    }
}

/// Mounts a share for the driver's own work.
fn mounted(mounter: &dyn Mounter, location: &Location, options: Options) -> Result<Share> {
    Ok(Share::new(mounter.mount(&location.whole_share(), &options.for_own_work())?))
}

/// The number of entries of an answer.
fn most(entries: i32) -> Result<usize> {
    match usize::try_from(entries) {
        Ok(0) => Ok(MOST_ENTRIES),
        Ok(most) => Ok(most.min(MOST_ENTRIES)),
        Err(_) => Err(Error::field("max_entries", "it is negative")),
    }
}

fn required(field: &str, value: &str) -> Result<()> {
    if value.is_empty() { Err(Error::field(field, "it is missing")) } else { Ok(()) }
}

#[tonic::async_trait]
impl csi::controller_server::Controller for Controller {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let patience = patience::of(&request);
        Ok(Response::new(self.create(request.into_inner(), patience).await?))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let patience = patience::of(&request);
        self.delete(request.into_inner(), patience).await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let patience = patience::of(&request);
        Ok(Response::new(self.validate(request.into_inner(), patience).await?))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let patience = patience::of(&request);
        Ok(Response::new(self.list(request.into_inner(), patience).await?))
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let patience = patience::of(&request);
        Ok(Response::new(self.capacity(request.into_inner(), patience).await?))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        use capability::rpc::Type;
        let mut all = vec![
            Type::CreateDeleteVolume,
            Type::GetCapacity,
            Type::CreateDeleteSnapshot,
            Type::ListSnapshots,
            Type::GetSnapshot,
            Type::CloneVolume,
            Type::ExpandVolume,
            Type::SingleNodeMultiWriter,
        ];
        // A list needs to know where.
        if self.default_share(&Map::new()).is_ok() {
            all.push(Type::ListVolumes);
        }
        let capabilities = all.into_iter().map(|kind| ControllerServiceCapability {
            r#type: Some(capability::Type::Rpc(capability::Rpc { r#type: kind.into() })),
        });
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: capabilities.collect() }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let patience = patience::of(&request);
        let snapshot = Some(self.make_snapshot(request.into_inner(), patience).await?);
        Ok(Response::new(CreateSnapshotResponse { snapshot }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let patience = patience::of(&request);
        self.remove_snapshot(request.into_inner(), patience).await?;
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let patience = patience::of(&request);
        Ok(Response::new(self.snapshots(request.into_inner(), patience).await?))
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        let patience = patience::of(&request);
        let GetSnapshotRequest { snapshot_id, secrets } = request.into_inner();
        required("snapshot_id", &snapshot_id)?;
        let missing = Error::NotFound(format!("snapshot {snapshot_id:?}"));
        let asked = ListSnapshotsRequest { snapshot_id, secrets, ..Default::default() };
        let found = self.snapshots(asked, patience).await?.entries.into_iter().next();
        let snapshot = found.and_then(|entry| entry.snapshot).ok_or(missing)?;
        Ok(Response::new(GetSnapshotResponse { snapshot: Some(snapshot) }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let patience = patience::of(&request);
        let capacity_bytes = self.expand(request.into_inner(), patience).await?;
        Ok(Response::new(ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: false }))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes are not attached"))
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes are not attached"))
    }

    async fn controller_get_volume(
        &self,
        _: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        Err(Status::unimplemented("single volumes are not told"))
    }

    async fn controller_modify_volume(
        &self,
        _: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        Err(Status::unimplemented("a volume has no mutable parameters"))
    }
}
