//! Snapshots on a mounted share. A snapshot is a copy of the volume's directory, made while pods may write: each file
//! is as it was at some moment of the copy. It is ready when the copy is whole and on the server's disk.

use crate::{
    copy::copy_tree,
    error::{Error, Result},
    handle::{Key, SnapshotHandle, VolumeHandle},
    operations::Operation,
    share::{
        Share,
        records::{SnapshotRecord, sub_dir},
    },
};
use berth_csi_proto::csi::Snapshot;
use prost_types::Timestamp;
use rustix::fd::AsFd;
use tracing::info;

/// A snapshot as the CSI tells it.
pub(super) fn told(record: &SnapshotRecord) -> Snapshot {
    const SECOND: u64 = 1_000_000_000;
    Snapshot {
        size_bytes: i64::try_from(record.bytes).unwrap_or(i64::MAX),
        snapshot_id: record.id.clone(),
        source_volume_id: record.source.clone(),
        creation_time: Some(Timestamp {
            seconds: i64::try_from(record.created / SECOND).unwrap_or(i64::MAX),
            nanos: i32::try_from(record.created % SECOND).unwrap_or_default(),
        }),
        ready_to_use: record.ready,
        group_snapshot_id: String::new(),
    }
}

/// The id of a snapshot of this name, on the share of its volume.
pub(super) fn handle(name: &str, source: &VolumeHandle) -> SnapshotHandle {
    SnapshotHandle { location: source.location.whole_share(), key: Key::of(name) }
}

/// Makes a snapshot, or finds it.
///
/// # Errors
/// A snapshot of another volume has the name; there is no such volume; the server refuses.
pub(super) fn create(
    share: &Share,
    name: &str,
    source: &VolumeHandle,
    operation: &Operation,
) -> Result<Snapshot> {
    let handle = handle(name, source);
    operation.step("reading the record");
    share.make_own_dirs()?;
    let record = match share.snapshot(&handle.key)? {
        Some(there) if there.source != source.to_id() || there.id != handle.to_id() => {
            let reason = format!("it is there as {} of volume {}", there.id, there.source);
            return Err(Error::Exists { what: format!("snapshot {name}"), reason });
        }
        Some(there) => there,
        None => {
            let volume = share.volume(&source.key)?.filter(|(v, _)| v.ready && v.id == source.to_id());
            if volume.is_none() {
                return Err(Error::NotFound(format!("volume {}", source.to_id())));
            }
            let new = SnapshotRecord {
                name: name.to_owned(),
                id: handle.to_id(),
                source: source.to_id(),
                created: SnapshotRecord::now(),
                bytes: 0,
                ready: false,
            };
            share.store_snapshot(&handle.key, &new)?;
            new
        }
    };
    if record.ready {
        return Ok(told(&record));
    }
    // A copy that begins anew is of a later moment.
    let record = SnapshotRecord { created: SnapshotRecord::now(), ..record };
    _ = operation.snapshot.set(told(&record));
    // A driver that died between the last two steps left a copy whose size is not known: it is made again.
    share.remove(&Share::data_path(&handle.key), &handle.key, operation)?;
    let from = share
        .open(sub_dir(source)?)?
        .ok_or_else(|| Error::NotFound(format!("directory of volume {}", source.to_id())))?;
    let (to, path) = share.begin_copy(&handle.key, operation)?;
    operation.step(format!("copying volume {}", source.to_id()));
    let before = operation.bytes();
    copy_tree(from.as_fd(), to.as_fd(), operation)?;
    // A volume that was deleted meanwhile, by another driver, looked like one whose files were removed.
    if share.open(sub_dir(source)?)?.is_none() {
        return Err(Error::NotFound(format!("directory of volume {}", source.to_id())));
    }
    share.place(&path, &Share::data_path(&handle.key))?;
    let record = SnapshotRecord { bytes: operation.bytes() - before, ready: true, ..record };
    share.store_snapshot(&handle.key, &record)?;
    info!(snapshot = record.id, bytes = record.bytes, "complete");
    Ok(told(&record))
}

/// Deletes a snapshot. A missing one is no error.
///
/// # Errors
/// The server refuses.
pub(super) fn delete(share: &Share, handle: &SnapshotHandle, operation: &Operation) -> Result<()> {
    operation.step("reading the record");
    if share.snapshot(&handle.key)?.is_none() {
        return Ok(());
    }
    share.remove_leftovers("copies", &handle.key, operation)?;
    share.remove(&Share::data_path(&handle.key), &handle.key, operation)?;
    share.forget_snapshot(&handle.key)?;
    info!(snapshot = handle.to_id(), "deleted");
    Ok(())
}
