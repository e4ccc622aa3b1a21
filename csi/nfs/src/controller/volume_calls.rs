//! The controller's calls about volumes: from a request to blocking work, and from its result to an answer.

use super::{
    Controller, Subject, key_of_snapshot, key_of_volume, most, mounted, required,
    volumes::{self, Capacity, NewVolume, Source},
};
use crate::{
    capability::Usage,
    error::{Error, Result},
    handle::{SnapshotHandle, VolumeHandle},
    location::Location,
    operations::Operation,
    options::Options,
    parameters::{Map, VolumeParameters},
    share::{Share, records::VolumeRecord},
};
use berth_csi_proto::csi::{
    ControllerExpandVolumeRequest, CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest,
    GetCapacityRequest, GetCapacityResponse, ListVolumesRequest, ListVolumesResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume, VolumeContentSource,
    list_volumes_response,
    validate_volume_capabilities_response::Confirmed,
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use std::{sync::Arc, time::Duration};

/// A volume as the CSI tells it.
fn told(record: &VolumeRecord, permissions: Option<u32>) -> Result<Volume> {
    let broken = || Error::field("the record of a volume", format!("its id {:?} is none", record.id));
    let Location { server, share, sub_dir } = VolumeHandle::parse(&record.id).ok_or_else(broken)?.location;
    let mut context = Map::from([
        ("server".to_owned(), server.as_str().to_owned()),
        ("share".to_owned(), share.as_str().to_owned()),
    ]);
    context.extend(sub_dir.map(|sub| ("subDir".to_owned(), sub.as_str().to_owned())));
    context.extend(permissions.map(|mode| ("mountPermissions".to_owned(), format!("{mode:04o}"))));
    let source = record.source.as_deref().map(|id| VolumeContentSource {
        r#type: Some(if SnapshotHandle::parse(id).is_some() {
            Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() })
        } else {
            Type::Volume(VolumeSource { volume_id: id.to_owned() })
        }),
    });
    Ok(Volume {
        capacity_bytes: record.capacity,
        volume_id: record.id.clone(),
        volume_context: context,
        content_source: source,
        accessible_topology: Vec::new(),
    })
}

/// What a new volume is to be a copy of.
fn source_of(source: Option<VolumeContentSource>) -> Result<Option<Source>> {
    let Some(source) = source else { return Ok(None) };
    let missing = |kind: &str, id: &str| Error::NotFound(format!("{kind} {id:?}"));
    let source = match source.r#type {
        Some(Type::Volume(VolumeSource { volume_id: id })) => {
            Source::Volume(VolumeHandle::parse(&id).ok_or_else(|| missing("volume", &id))?)
        }
        Some(Type::Snapshot(SnapshotSource { snapshot_id: id })) => {
            Source::Snapshot(SnapshotHandle::parse(&id).ok_or_else(|| missing("snapshot", &id))?)
        }
        None => {
            return Err(Error::field("volume_content_source", "it names neither a volume nor a snapshot"));
        }
    };
    Ok(Some(source))
}

impl Controller {
    /// Creates a volume.
    pub(super) async fn create(
        &self,
        request: CreateVolumeRequest,
        patience: Duration,
    ) -> Result<CreateVolumeResponse> {
        required("name", &request.name)?;
        let usages = Usage::read_all(&request.volume_capabilities)?;
        if !request.mutable_parameters.is_empty() {
            return Err(Error::field("mutable_parameters", "a volume has none"));
        }
        let new = NewVolume {
            parameters: VolumeParameters::read(&request.name, &request.parameters, &self.defaults)?,
            capacity: Capacity::read(request.capacity_range.as_ref())?,
            source: source_of(request.volume_content_source)?,
            name: request.name,
        };
        let own = new.parameters.mount_options.as_deref();
        let of_usages = usages.iter().flat_map(|usage| usage.options.iter().map(String::as_str));
        let options = Options::parse(own.into_iter().chain(of_usages))?;
        let place = new.parameters.location.whole_share();
        let permissions = new.parameters.permissions;
        let (reads, of_source) = match &new.source {
            Some(Source::Volume(handle)) => (Some(key_of_volume(handle)), handle.location.whole_share()),
            Some(Source::Snapshot(handle)) => (Some(key_of_snapshot(handle)), handle.location.clone()),
            None => (None, place.clone()),
        };
        let subject = Subject::volume(&new.handle(), reads);
        let (mounter, location) = (Arc::clone(&self.mounter), place.clone());
        let work = move |operation: &Operation| {
            operation.step(format!("mounting {}", place.source()));
            let share = mounted(mounter.as_ref(), &place, options.clone())?;
            if of_source == place {
                return new.create(&share, &share, operation);
            }
            operation.step(format!("mounting {}", of_source.source()));
            let source_share = mounted(mounter.as_ref(), &of_source, options)?;
            new.create(&share, &source_share, operation)
        };
        let record = self.change("create", subject, &location, patience, work).await.map_err(|(e, _)| e)?;
        Ok(CreateVolumeResponse { volume: Some(told(&record, permissions)?) })
    }

    /// Deletes a volume. One that the driver cannot have made does not exist.
    pub(super) async fn delete(&self, request: DeleteVolumeRequest, patience: Duration) -> Result<()> {
        required("volume_id", &request.volume_id)?;
        let Some(handle) = VolumeHandle::parse(&request.volume_id) else { return Ok(()) };
        self.change_volume("delete", handle, &request.secrets, patience, volumes::delete).await
    }

    /// Says whether a volume can be used in these ways.
    pub(super) async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
        patience: Duration,
    ) -> Result<ValidateVolumeCapabilitiesResponse> {
        required("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Error::field("volume_capabilities", "there are none"));
        }
        let missing = || Error::NotFound(format!("volume {:?}", request.volume_id));
        let handle = VolumeHandle::parse(&request.volume_id).ok_or_else(missing)?;
        let options = self.options(&request.secrets)?;
        let key = handle.key.clone();
        let found = self.read(&handle.location, options, patience, move |share| share.volume(&key)).await?;
        if !found.is_some_and(|(record, _)| record.ready && record.id == request.volume_id) {
            return Err(missing());
        }
        let mut answer = ValidateVolumeCapabilitiesResponse::default();
        match Usage::read_all(&request.volume_capabilities) {
            Ok(_) => {
                answer.confirmed = Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                });
            }
            Err(error) => answer.message = error.to_string(),
        }
        Ok(answer)
    }

    /// Lists the volumes on the default share.
    pub(super) async fn list(
        &self,
        request: ListVolumesRequest,
        patience: Duration,
    ) -> Result<ListVolumesResponse> {
        let most = most(request.max_entries)?;
        let (location, options) = (self.default_share(&Map::new())?, self.options(&Map::new())?);
        let token = request.starting_token;
        let work = move |share: &Share| share.list_volumes(&token, most);
        let (found, next_token) = self.read(&location, options, patience, work).await?;
        let entry = |record: &VolumeRecord| {
            Ok(list_volumes_response::Entry { volume: Some(told(record, None)?), status: None })
        };
        let entries = found.iter().filter(|record| record.ready).map(entry).collect::<Result<_>>()?;
        Ok(ListVolumesResponse { entries, next_token })
    }

    /// Asks a server for the bytes that are free.
    pub(super) async fn capacity(
        &self,
        request: GetCapacityRequest,
        patience: Duration,
    ) -> Result<GetCapacityResponse> {
        if !request.volume_capabilities.iter().all(|c| Usage::read(Some(c)).is_ok()) {
            return Ok(GetCapacityResponse::default());
        }
        let location = self.default_share(&request.parameters)?;
        let options = self.options(&request.parameters)?;
        let work = |share: &Share| {
            rustix::fs::fstatvfs(share.root()).map_err(|e| Error::file("ask for the size of", "the share", e))
        };
        let stat = self.read(&location, options, patience, work).await?;
        let available = i64::try_from(stat.f_bavail.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX);
        Ok(GetCapacityResponse { available_capacity: available, ..Default::default() })
    }

    /// Raises the size of a volume. Returns it.
    pub(super) async fn expand(
        &self,
        request: ControllerExpandVolumeRequest,
        patience: Duration,
    ) -> Result<i64> {
        required("volume_id", &request.volume_id)?;
        if request.capacity_range.is_none() {
            return Err(Error::field("capacity_range", "it is missing"));
        }
        let wanted = Capacity::read(request.capacity_range.as_ref())?;
        let handle = VolumeHandle::parse(&request.volume_id)
            .ok_or_else(|| Error::NotFound(format!("volume {:?}", request.volume_id)))?;
        let expand =
            move |share: &Share, handle: &VolumeHandle, _: &Operation| volumes::expand(share, handle, wanted);
        self.change_volume("expand", handle, &request.secrets, patience, expand).await
    }

    /// Changes a volume on its mounted share.
    async fn change_volume<T: Send + 'static>(
        &self,
        what: &'static str,
        handle: VolumeHandle,
        secrets: &Map,
        patience: Duration,
        change: impl FnOnce(&Share, &VolumeHandle, &Operation) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let options = self.options(secrets)?;
        let mounter = Arc::clone(&self.mounter);
        let (location, subject) = (handle.location.clone(), Subject::volume(&handle, None));
        let work = move |operation: &Operation| {
            operation.step(format!("mounting {}", handle.location.whole_share().source()));
            let share = mounted(mounter.as_ref(), &handle.location, options)?;
            change(&share, &handle, operation)
        };
        self.change(what, subject, &location, patience, work).await.map_err(|(e, _)| e)
    }
}
