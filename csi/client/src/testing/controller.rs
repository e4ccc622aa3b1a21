//! The controller service of a driver for tests: it makes volumes and deletes them, with their data.

use super::{
    Outcome, Request as Carried, lock, mounts,
    node::{Answer, TestNode},
};
use crate::Call;
use berth_csi_proto::csi::{self, controller_server::Controller};
use tonic::{Request, Response, Status};

/// The service.
#[derive(Debug, Clone)]
pub(super) struct TestController(pub(super) TestNode);

impl TestController {
    fn create(&self, r: csi::CreateVolumeRequest) -> Answer<csi::CreateVolumeResponse> {
        let required_bytes = r.capacity_range.map(|c| c.required_bytes).unwrap_or_default();
        let carried = Carried {
            parameters: r.parameters.into_iter().collect(),
            secrets: r.secrets.into_iter().collect(),
            required_bytes,
            ..Carried::default()
        };
        let running = self.0.begin(Call::CreateVolume, r.name.clone(), "-", carried)?;
        let volume_id = format!("made-{}", r.name);
        let before = lock(&self.0.state).made.insert(r.name, volume_id.clone());
        if let Err(error) = mounts::make_data(&self.0.dir, &volume_id) {
            return Err(running.refuse(Status::internal(error.to_string())));
        }
        running.end(if before.is_some() { Outcome::Repeated } else { Outcome::Done });
        let volume_context = [("made".to_owned(), "yes".to_owned())].into();
        let volume = csi::Volume {
            capacity_bytes: required_bytes,
            volume_id,
            volume_context,
            ..csi::Volume::default()
        };
        Ok(Response::new(csi::CreateVolumeResponse { volume: Some(volume) }))
    }

    fn delete(&self, r: csi::DeleteVolumeRequest) -> Answer<csi::DeleteVolumeResponse> {
        let carried = Carried { secrets: r.secrets.into_iter().collect(), ..Carried::default() };
        let running = self.0.begin(Call::DeleteVolume, r.volume_id.clone(), "-", carried)?;
        let mut state = lock(&self.0.state);
        let used = state.published.values().any(|volume| *volume == r.volume_id)
            || state.staged.keys().any(|(volume, _)| *volume == r.volume_id);
        let there = state.made.values().any(|id| *id == r.volume_id);
        if !used {
            state.made.retain(|_, id| *id != r.volume_id);
        }
        drop(state);
        if used {
            return Err(running.refuse(Status::failed_precondition("the volume is in use")));
        }
        if there && let Err(error) = std::fs::remove_dir_all(mounts::data(&self.0.dir, &r.volume_id)) {
            return Err(running.refuse(Status::internal(error.to_string())));
        }
        running.end(if there { Outcome::Done } else { Outcome::Repeated });
        Ok(Response::new(csi::DeleteVolumeResponse {}))
    }
}

/// The service, of which only these calls are there.
macro_rules! service {
    ({ $($there:tt)* } $($method:ident: $request:ident -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl Controller for TestController {
            $($there)*
            $(async fn $method(&self, _request: Request<csi::$request>) -> Answer<csi::$response> {
                Err(Status::unimplemented("the driver for tests has no such call"))
            })*
        }
    };
}

service! {
    {
        async fn create_volume(
            &self,
            request: Request<csi::CreateVolumeRequest>,
        ) -> Answer<csi::CreateVolumeResponse> {
            self.create(request.into_inner())
        }

        async fn delete_volume(
            &self,
            request: Request<csi::DeleteVolumeRequest>,
        ) -> Answer<csi::DeleteVolumeResponse> {
            self.delete(request.into_inner())
        }
    }
    controller_publish_volume: ControllerPublishVolumeRequest -> ControllerPublishVolumeResponse;
    controller_unpublish_volume: ControllerUnpublishVolumeRequest -> ControllerUnpublishVolumeResponse;
    validate_volume_capabilities: ValidateVolumeCapabilitiesRequest -> ValidateVolumeCapabilitiesResponse;
    list_volumes: ListVolumesRequest -> ListVolumesResponse;
    get_capacity: GetCapacityRequest -> GetCapacityResponse;
    controller_get_capabilities: ControllerGetCapabilitiesRequest -> ControllerGetCapabilitiesResponse;
    create_snapshot: CreateSnapshotRequest -> CreateSnapshotResponse;
    delete_snapshot: DeleteSnapshotRequest -> DeleteSnapshotResponse;
    list_snapshots: ListSnapshotsRequest -> ListSnapshotsResponse;
    get_snapshot: GetSnapshotRequest -> GetSnapshotResponse;
    controller_expand_volume: ControllerExpandVolumeRequest -> ControllerExpandVolumeResponse;
    controller_get_volume: ControllerGetVolumeRequest -> ControllerGetVolumeResponse;
    controller_modify_volume: ControllerModifyVolumeRequest -> ControllerModifyVolumeResponse;
}
