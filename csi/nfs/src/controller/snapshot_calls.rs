//! The controller's calls about snapshots: from a request to blocking work, and from its result to an answer.

use super::{Controller, Subject, key_of_volume, most, mounted, required, snapshots};
use crate::{
    error::{Error, Result},
    handle::{SnapshotHandle, VolumeHandle},
    operations::Operation,
    parameters::{self, Map},
    share::{Share, records::SnapshotRecord},
};
use berth_csi_proto::csi::{
    CreateSnapshotRequest, DeleteSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse, Snapshot,
    list_snapshots_response::Entry,
};
use std::{sync::Arc, time::Duration};

fn entry(record: &SnapshotRecord) -> Entry {
    Entry { snapshot: Some(snapshots::told(record)) }
}

impl Controller {
    /// Makes a snapshot. It is not ready as long as its copy runs.
    pub(super) async fn make_snapshot(
        &self,
        request: CreateSnapshotRequest,
        patience: Duration,
    ) -> Result<Snapshot> {
        required("name", &request.name)?;
        required("source_volume_id", &request.source_volume_id)?;
        parameters::refuse_unknown(&request.parameters, &["mountOptions"])?;
        let source = VolumeHandle::parse(&request.source_volume_id)
            .ok_or_else(|| Error::NotFound(format!("volume {:?}", request.source_volume_id)))?;
        let by_secret = request.secrets.contains_key("mountOptions");
        let options = self.options(if by_secret { &request.secrets } else { &request.parameters })?;
        let (mounter, name, location) = (Arc::clone(&self.mounter), request.name, source.location.clone());
        let subject = Subject::snapshot(&snapshots::handle(&name, &source), Some(key_of_volume(&source)));
        let work = move |operation: &Operation| {
            operation.step(format!("mounting {}", source.location.whole_share().source()));
            let share = mounted(mounter.as_ref(), &source.location, options)?;
            snapshots::create(&share, &name, &source, operation)
        };
        match self.change("create", subject, &location, patience, work).await {
            Ok(snapshot) => Ok(snapshot),
            Err((_, Some(snapshot))) if snapshot.source_volume_id == request.source_volume_id => Ok(snapshot),
            Err((error, _)) => Err(error),
        }
    }

    /// Deletes a snapshot. One that the driver cannot have made does not exist.
    pub(super) async fn remove_snapshot(
        &self,
        request: DeleteSnapshotRequest,
        patience: Duration,
    ) -> Result<()> {
        required("snapshot_id", &request.snapshot_id)?;
        let Some(handle) = SnapshotHandle::parse(&request.snapshot_id) else { return Ok(()) };
        let options = self.options(&request.secrets)?;
        let mounter = Arc::clone(&self.mounter);
        let (location, subject) = (handle.location.clone(), Subject::snapshot(&handle, None));
        let work = move |operation: &Operation| {
            operation.step(format!("mounting {}", handle.location.source()));
            let share = mounted(mounter.as_ref(), &handle.location, options)?;
            snapshots::delete(&share, &handle, operation)
        };
        self.change("delete", subject, &location, patience, work).await.map_err(|(e, _)| e)
    }

    /// Lists snapshots: the one of an id, those of a volume, or those on the default share.
    pub(super) async fn snapshots(
        &self,
        request: ListSnapshotsRequest,
        patience: Duration,
    ) -> Result<ListSnapshotsResponse> {
        let none = ListSnapshotsResponse::default();
        let options = self.options(&request.secrets)?;
        let source = request.source_volume_id;
        let of_volume = VolumeHandle::parse(&source).map(|handle| handle.location);
        let any_volume = source.is_empty();
        let is_wanted = move |record: &SnapshotRecord| source.is_empty() || record.source == source;
        if !request.snapshot_id.is_empty() {
            let Some(handle) = SnapshotHandle::parse(&request.snapshot_id) else { return Ok(none) };
            let key = handle.key.clone();
            let work = move |share: &Share| share.snapshot(&key);
            let found = self.read(&handle.location, options, patience, work).await?;
            let found = found.filter(|record| record.id == request.snapshot_id && is_wanted(record));
            return Ok(ListSnapshotsResponse { entries: found.iter().map(entry).collect(), ..none });
        }
        let location = match of_volume {
            Some(location) => location,
            None if any_volume => self.default_share(&Map::new())?,
            None => return Ok(none),
        };
        let (most, token) = (most(request.max_entries)?, request.starting_token);
        let work = move |share: &Share| share.list_snapshots(&token, most, is_wanted);
        let (found, next_token) = self.read(&location, options, patience, work).await?;
        Ok(ListSnapshotsResponse { entries: found.iter().map(entry).collect(), next_token })
    }
}
