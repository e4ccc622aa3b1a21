//! Volumes on a mounted share: creation, also as a copy, and deletion. Each function blocks, and each can be repeated
//! after any failure.
//!
//! Order of a creation: record (not ready), directory, record (ready). Of a deletion: data, record. So whatever a driver
//! that dies leaves behind is on record, and the next call with the same name or id finds it.

use crate::{
    copy::copy_tree,
    error::{Error, Result},
    handle::{Key, SnapshotHandle, VolumeHandle},
    operations::Operation,
    parameters::{OnDelete, VolumeParameters},
    share::{
        Share, is_entry,
        records::{VolumeRecord, sub_dir},
    },
};
use berth_csi_proto::csi::CapacityRange;
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{Dir, Mode, fchmod, fstat},
};
use tracing::{info, warn};

/// What a new volume is a copy of.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// Another volume.
    Volume(VolumeHandle),
    /// A snapshot.
    Snapshot(SnapshotHandle),
}

impl Source {
    /// The id.
    pub(super) fn id(&self) -> String {
        match self {
            Self::Volume(handle) => handle.to_id(),
            Self::Snapshot(handle) => handle.to_id(),
        }
    }

    /// Opens the data on its share.
    fn open(&self, share: &Share) -> Result<OwnedFd> {
        let missing = |kind: &str| Error::NotFound(format!("{kind} {}", self.id()));
        match self {
            Self::Volume(handle) => {
                let ready = share.volume(&handle.key)?.is_some_and(|(record, _)| record.ready);
                let data = if ready { share.open(sub_dir(handle)?)? } else { None };
                data.ok_or_else(|| missing("volume"))
            }
            Self::Snapshot(handle) => match share.snapshot(&handle.key)? {
                Some(record) if !record.ready => {
                    let what = format!("restore snapshot {}", handle.to_id());
                    Err(Error::State { what, reason: "it is not complete".into() })
                }
                Some(_) => share.open_data(&handle.key)?.ok_or_else(|| missing("snapshot")),
                None => Err(missing("snapshot")),
            },
        }
    }
}

/// A volume to be created.
#[derive(Debug)]
pub(super) struct NewVolume {
    pub(super) name: String,
    pub(super) parameters: VolumeParameters,
    pub(super) capacity: Capacity,
    pub(super) source: Option<Source>,
}

/// A wanted size. NFS limits nothing, so every size can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capacity {
    required: i64,
    limit: i64,
}

impl Capacity {
    /// Reads a range.
    ///
    /// # Errors
    /// No size is in it.
    pub(super) fn read(range: Option<&CapacityRange>) -> Result<Self> {
        let (required, limit) = range.map_or((0, 0), |r| (r.required_bytes, r.limit_bytes));
        if required < 0 || limit < 0 || (limit > 0 && limit < required) {
            return Err(Error::Size { wanted: required, reason: format!("the limit is {limit}") });
        }
        Ok(Self { required, limit })
    }

    /// The size that a new volume gets.
    pub(super) fn size(self) -> i64 {
        self.required
    }

    /// Whether a volume of this size is what is wanted.
    fn accepts(self, size: i64) -> bool {
        size >= self.required && (self.limit == 0 || size <= self.limit)
    }
}

impl NewVolume {
    /// The id of the volume.
    pub(super) fn handle(&self) -> VolumeHandle {
        VolumeHandle {
            location: self.parameters.location.clone(),
            on_delete: self.parameters.on_delete,
            key: Key::of(&self.name),
        }
    }

    /// Creates the volume, or finds it. `source_share` is the share of the source.
    ///
    /// # Errors
    /// Another volume has the name; the source is missing; the server refuses.
    pub(super) fn create(
        &self,
        share: &Share,
        source_share: &Share,
        operation: &Operation,
    ) -> Result<VolumeRecord> {
        let handle = self.handle();
        operation.step("reading the record");
        share.make_own_dirs()?;
        let record = match share.volume(&handle.key)? {
            Some((there, _)) => self.same(there)?,
            None => {
                let source =
                    self.source.as_ref().map(|source| source.open(source_share).map(|_| source.id()));
                let adopted = share.open(sub_dir(&handle)?)?.is_some();
                if adopted && source.is_some() {
                    let what = format!("volume {}", self.name);
                    return Err(Error::Exists { what, reason: "its directory is there already".into() });
                }
                let new = VolumeRecord {
                    name: self.name.clone(),
                    id: handle.to_id(),
                    capacity: self.capacity.size(),
                    source: source.transpose()?,
                    adopted,
                    copied: None,
                    ready: false,
                };
                share.store_volume(&handle, &new)?;
                new
            }
        };
        if record.ready {
            return Ok(record);
        }
        match &self.source {
            Some(source) => self.copy(share, source_share, source, &record, operation)?,
            None => {
                operation.step("making the directory");
                let (dir, _) = share.make(sub_dir(&handle)?.as_str())?;
                self.set_mode(&dir)?;
            }
        }
        let record = VolumeRecord { ready: true, ..record };
        share.store_volume(&handle, &record)?;
        info!(volume = record.id, "created");
        Ok(record)
    }

    /// The volume of the same name, if it is the same in all else.
    fn same(&self, there: VolumeRecord) -> Result<VolumeRecord> {
        let exists = |reason: String| Err(Error::Exists { what: format!("volume {}", self.name), reason });
        if there.id != self.handle().to_id() {
            return exists(format!("it is there as {}", there.id));
        }
        if !self.capacity.accepts(there.capacity) {
            return exists(format!("it is there with {} bytes", there.capacity));
        }
        if there.source != self.source.as_ref().map(Source::id) {
            return exists(format!(
                "it is there as a copy of {}",
                there.source.as_deref().unwrap_or("nothing")
            ));
        }
        Ok(there)
    }

    /// Fills the directory of a volume that is on record. Its place is taken by the whole copy alone: a directory that
    /// somebody else made there meanwhile is another one.
    fn copy(
        &self,
        share: &Share,
        source_share: &Share,
        source: &Source,
        record: &VolumeRecord,
        operation: &Operation,
    ) -> Result<()> {
        let handle = self.handle();
        let dir = sub_dir(&handle)?;
        let inode = |fd: &OwnedFd| {
            fstat(fd).map(|stat| stat.st_ino).map_err(|e| Error::file("look at", dir.as_str(), e))
        };
        if let Some(there) = share.open(dir)? {
            return if record.copied == Some(inode(&there)?) {
                Ok(())
            } else {
                let what = format!("volume {}", self.name);
                Err(Error::Exists { what, reason: "its directory was made by somebody else".into() })
            };
        }
        let from = source.open(source_share)?;
        let (to, path) = share.begin_copy(&handle.key, operation)?;
        operation.step(format!("copying {}", source.id()));
        copy_tree(from.as_fd(), to.as_fd(), operation)?;
        // A source that was deleted meanwhile, by another driver, looked like one whose files were removed.
        source.open(source_share)?;
        self.set_mode(&to)?;
        share.store_volume(&handle, &VolumeRecord { copied: Some(inode(&to)?), ..record.clone() })?;
        share.place(&path, dir.as_str())
    }

    fn set_mode(&self, dir: &OwnedFd) -> Result<()> {
        let Some(mode) = self.parameters.permissions else { return Ok(()) };
        fchmod(dir, Mode::from_raw_mode(mode))
            .map_err(|e| Error::file("set the mode of", self.name.as_str(), e))
    }
}

/// Deletes a volume by its policy. A volume without a record is deleted already; its data, if any, is left.
///
/// # Errors
/// The server refuses.
pub(super) fn delete(share: &Share, handle: &VolumeHandle, operation: &Operation) -> Result<()> {
    operation.step("reading the record");
    let Some((record, _)) = share.volume(&handle.key)? else { return Ok(()) };
    if record.id != handle.to_id() {
        warn!(volume = handle.to_id(), there = record.id, "not deleted: the record is of another volume");
        return Ok(());
    }
    share.remove_leftovers("copies", &handle.key, operation)?;
    let dir = sub_dir(handle)?;
    let others = share.overlapping(handle)?;
    let kept = if handle.on_delete == OnDelete::Retain {
        Some("the class retains it".to_owned())
    } else if !others.is_empty() {
        Some(format!("other volumes are in the same directory: {}", others.join(", ")))
    } else if record.adopted && !is_empty(share, handle)? {
        Some("it was there before the volume".to_owned())
    } else {
        None
    };
    match kept {
        Some(reason) => info!(volume = record.id, reason, "the data is kept"),
        None if handle.on_delete == OnDelete::Archive => {
            operation.step("archiving the directory");
            let to = share.archive(dir, &handle.key)?;
            info!(volume = record.id, to, "archived");
        }
        None => share.remove(dir.as_str(), &handle.key, operation)?,
    }
    share.forget_volume(handle)?;
    info!(volume = record.id, "deleted");
    Ok(())
}

/// Whether the directory of a volume has no entry, or is missing.
fn is_empty(share: &Share, handle: &VolumeHandle) -> Result<bool> {
    let dir = sub_dir(handle)?;
    let failed = |e| Error::file("list", dir.as_str(), e);
    let Some(fd) = share.open(dir)? else { return Ok(true) };
    for entry in Dir::read_from(&fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if is_entry(entry.file_name()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Raises the size on record; NFS has nothing to grow. Returns the size.
///
/// # Errors
/// There is no such volume.
pub(super) fn expand(share: &Share, handle: &VolumeHandle, wanted: Capacity) -> Result<i64> {
    let Some((record, _)) = share.volume(&handle.key)?.filter(|(record, _)| record.id == handle.to_id())
    else {
        return Err(Error::NotFound(format!("volume {}", handle.to_id())));
    };
    if record.capacity >= wanted.size() {
        return Ok(record.capacity);
    }
    let record = VolumeRecord { capacity: wanted.size(), ..record };
    share.store_volume(handle, &record)?;
    Ok(record.capacity)
}

#[cfg(test)]
mod tests;
