//! Records of volumes and snapshots: JSON files on the share, written whole. They remember what a directory cannot
//! tell: the name, the size that was asked for, the source, whether the data is whole.
//!
//! A volume's file is named `FIRST-KEY.json`; `FIRST` is a digest of the first part of the volume's path, so the volumes
//! whose directories may overlap are found by names alone. A snapshot's file is named `KEY.json`.

use super::{Share, names, open_dir, sync};
use crate::{
    error::{Error, Result},
    handle::{Key, SnapshotHandle, VolumeHandle, digest},
    location::{Location, OWN_DIR, SubDir},
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, renameat, unlinkat},
    io::Errno,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io::{Read, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Longest record in bytes.
const LONGEST: u64 = 64 << 10;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    /// The name that it was created by.
    pub(crate) name: String,
    /// Its id.
    pub(crate) id: String,
    /// Its size in bytes, as asked for: NFS limits nothing.
    pub(crate) capacity: i64,
    /// Id of the volume or snapshot that it is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    /// Whether the directory was there before the volume. It is never removed then.
    #[serde(default)]
    pub(crate) adopted: bool,
    /// Inode of the whole copy, stored before it gets its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) copied: Option<u64>,
    /// Whether the directory is complete.
    pub(crate) ready: bool,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// The name that it was created by.
    pub(crate) name: String,
    /// Its id.
    pub(crate) id: String,
    /// Id of the volume.
    pub(crate) source: String,
    /// When its copy began, in nanoseconds since 1970.
    pub(crate) created: u64,
    /// Bytes of its files, once it is complete.
    pub(crate) bytes: u64,
    /// Whether the copy is complete.
    pub(crate) ready: bool,
}

impl SnapshotRecord {
    /// Now, in nanoseconds since 1970.
    pub(crate) fn now() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Name of a volume's record.
fn volume_file(dir: &SubDir, key: &Key) -> String {
    format!("{}-{}.json", digest(dir.first(), 8), key.as_str())
}

/// The key in the name of a volume's record.
fn key_of(file: &str) -> Option<Key> {
    let (first, key) = file.strip_suffix(".json")?.split_once('-')?;
    (first.len() == 8).then(|| Key::parse(key)).flatten()
}

impl Share {
    /// The record of a volume. Its directory follows from the name in any reasonable StorageClass, but two classes may
    /// disagree, so the key alone counts.
    pub(crate) fn volume(&self, key: &Key) -> Result<Option<(VolumeRecord, VolumeHandle)>> {
        let Some(dir) = self.dir("volumes")? else { return Ok(None) };
        for file in names(dir.as_fd(), "volumes")?.iter().filter(|f| key_of(f).as_ref() == Some(key)) {
            if let Some(record) = read::<VolumeRecord>(&dir, file)? {
                let handle = checked(file, key, VolumeHandle::parse(&record.id), |h| &h.key)?;
                return Ok(Some((record, handle)));
            }
        }
        Ok(None)
    }

    /// Stores the record of a volume.
    pub(crate) fn store_volume(&self, handle: &VolumeHandle, record: &VolumeRecord) -> Result<()> {
        self.write("volumes", &volume_file(sub_dir(handle)?, &handle.key), record)
    }

    /// Forgets a volume.
    pub(crate) fn forget_volume(&self, handle: &VolumeHandle) -> Result<()> {
        self.forget("volumes", &volume_file(sub_dir(handle)?, &handle.key))
    }

    /// Ids of other volumes whose directory is this one, lies in it, or holds it.
    pub(crate) fn overlapping(&self, handle: &VolumeHandle) -> Result<Vec<String>> {
        let own = sub_dir(handle)?;
        let Some(dir) = self.dir("volumes")? else { return Ok(Vec::new()) };
        let first = digest(own.first(), 8);
        let mut found = Vec::new();
        for file in names(dir.as_fd(), "volumes")? {
            let Some(key) = key_of(&file).filter(|k| file.starts_with(&first) && *k != handle.key) else {
                continue;
            };
            if let Some(record) = read::<VolumeRecord>(&dir, &file)? {
                let other = checked(&file, &key, VolumeHandle::parse(&record.id), |h| &h.key)?;
                if sub_dir(&other)?.overlaps(own) {
                    found.push(record.id);
                }
            }
        }
        Ok(found)
    }

    /// The record of a snapshot.
    pub(crate) fn snapshot(&self, key: &Key) -> Result<Option<SnapshotRecord>> {
        let Some(dir) = self.dir("snapshots")? else { return Ok(None) };
        let file = format!("{}.json", key.as_str());
        let Some(record) = read::<SnapshotRecord>(&dir, &file)? else { return Ok(None) };
        checked(&file, key, SnapshotHandle::parse(&record.id), |h| &h.key)?;
        Ok(Some(record))
    }

    /// Stores the record of a snapshot.
    pub(crate) fn store_snapshot(&self, key: &Key, record: &SnapshotRecord) -> Result<()> {
        self.write("snapshots", &format!("{}.json", key.as_str()), record)
    }

    /// Forgets a snapshot.
    pub(crate) fn forget_snapshot(&self, key: &Key) -> Result<()> {
        self.forget("snapshots", &format!("{}.json", key.as_str()))
    }

    /// At most `most` volumes after the one that a token names, and the token of the rest. A volume that is deleted
    /// meanwhile changes nothing for the others.
    pub(crate) fn list_volumes(&self, after: &str, most: usize) -> Result<(Vec<VolumeRecord>, String)> {
        self.list("volumes", after, most, |file| key_of(file).is_some(), |_| true)
    }

    /// As [`Share::list_volumes`], of snapshots that `wanted` accepts.
    pub(crate) fn list_snapshots(
        &self,
        after: &str,
        most: usize,
        wanted: impl Fn(&SnapshotRecord) -> bool,
    ) -> Result<(Vec<SnapshotRecord>, String)> {
        let is_record = |file: &str| file.strip_suffix(".json").is_some_and(|key| Key::parse(key).is_some());
        self.list("snapshots", after, most, is_record, wanted)
    }

    fn list<T: DeserializeOwned>(
        &self,
        kind: &str,
        after: &str,
        most: usize,
        is_record: impl Fn(&str) -> bool,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<(Vec<T>, String)> {
        let refused =
            || Error::Busy { what: "list".into(), reason: format!("{after:?} is no token of a list") };
        if !after.is_empty() && !is_record(after) {
            return Err(refused());
        }
        let Some(dir) = self.dir(kind)? else { return Ok((Vec::new(), String::new())) };
        let mut found = Vec::new();
        let mut last = String::new();
        for file in names(dir.as_fd(), kind)?.into_iter().filter(|f| is_record(f) && f.as_str() > after) {
            if let Some(record) = read(&dir, &file)?.filter(&wanted) {
                if found.len() == most {
                    return Ok((found, last));
                }
                found.push(record);
            }
            last = file;
        }
        Ok((found, String::new()))
    }

    fn dir(&self, kind: &str) -> Result<Option<OwnedFd>> {
        let path = format!("{OWN_DIR}/{kind}");
        match open_dir(self.root(), path.as_bytes()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::file("open", path, e)),
        }
    }

    fn must_dir(&self, kind: &str) -> Result<OwnedFd> {
        self.dir(kind)?.ok_or_else(|| Error::file("open", format!("{OWN_DIR}/{kind}"), Errno::NOENT))
    }

    /// Writes a record whole: under another name first, stored, then renamed.
    fn write(&self, kind: &str, file: &str, record: &impl Serialize) -> Result<()> {
        let failed = |e: std::io::Error| Error::file("write the record", file, e);
        let dir = self.must_dir(kind)?;
        let text = serde_json::to_vec(record).map_err(|e| failed(e.into()))?;
        let new = format!(".{file}.new");
        // Of a driver that died here.
        match unlinkat(&dir, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(e.into())),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&dir, &new, flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
        let mut to = File::from(fd);
        to.write_all(&text).and_then(|()| to.sync_all()).map_err(failed)?;
        renameat(&dir, &new, &dir, file).map_err(|e| failed(e.into()))?;
        sync(dir.as_fd(), kind)
    }

    fn forget(&self, kind: &str, file: &str) -> Result<()> {
        let Some(dir) = self.dir(kind)? else { return Ok(()) };
        match unlinkat(&dir, file, AtFlags::empty()) {
            Ok(()) => sync(dir.as_fd(), kind),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::file("remove the record", file, e)),
        }
    }
}

/// The directory of a volume with an id.
pub(crate) fn sub_dir(handle: &VolumeHandle) -> Result<&SubDir> {
    let Location { sub_dir, .. } = &handle.location;
    sub_dir.as_ref().ok_or_else(|| Error::field("the id", "it has no sub-directory"))
}

/// The id in a record. Others may write to the share: a record that names another thing is an error, not an absent one.
fn checked<H>(file: &str, key: &Key, handle: Option<H>, of: impl Fn(&H) -> &Key) -> Result<H> {
    let handle = handle.filter(|h| of(h) == key);
    handle.ok_or_else(|| {
        Error::file("read the record", file, std::io::Error::other("its id is not that of its name"))
    })
}

/// Reads a record; `None` where there is none.
fn read<T: DeserializeOwned>(dir: &OwnedFd, file: &str) -> Result<Option<T>> {
    let failed = |e: std::io::Error| Error::file("read the record", file, e);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = match openat(dir, file, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(failed(e.into())),
    };
    let stat = fstat(&fd).map_err(|e| failed(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failed(std::io::Error::other("it is no regular file")));
    }
    let mut text = Vec::new();
    File::from(fd).take(LONGEST).read_to_end(&mut text).map_err(failed)?;
    serde_json::from_slice(&text).map(Some).map_err(|e| failed(e.into()))
}
