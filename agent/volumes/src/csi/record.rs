//! `vol_data.json`: what has to be known to undo a call. The fields are the kubelet's (`pkg/volume/csi/csi_plugin.go`).

use super::paths::{DEVICE_RECORDS, devices_dir, volumes_dir};
use crate::layout::NODE_DIR;
use berth_core::model::VolumeMode;
use berth_sys::{
    failpoint::step,
    fs::{read_limited, remove_if_there, write_atomic_synced},
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};

/// The longest record that is read.
const MAX: usize = 64 << 10;

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// The driver's name.
    pub(super) driver_name: String,
    /// The volume's id.
    pub(super) volume_handle: String,
    /// The persistent volume's name, or that of the pod's volume.
    #[serde(default, rename = "specVolID", skip_serializing_if = "String::is_empty")]
    pub(super) spec_vol_id: String,
    /// The node's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) node_name: String,
    /// The VolumeAttachment's name, empty for a volume that nobody attaches. A kubelet's record of a staging has none.
    #[serde(default, rename = "attachmentID")]
    pub(super) attachment_id: Option<String>,
    /// `Persistent` or `Ephemeral`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) volume_lifecycle_mode: String,
}

/// A volume that a pod may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodVolume {
    pub(super) record: Record,
    pub(super) mode: VolumeMode,
    /// The name of its directory.
    pub(super) name: String,
}

impl Record {
    /// Whether a control plane has attached the volume, or may have.
    pub(super) fn is_attached(&self) -> bool {
        self.attachment_id.as_ref().is_none_or(|id| !id.is_empty())
    }

    /// Writes the record and its directory.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        let write = || {
            if let Some(dir) = path.parent() {
                crate::os::make_dirs(dir, NODE_DIR)?;
            }
            // What may be mounted must be known after a power cut too.
            crate::os::sys(step("write-record", || write_atomic_synced(path, &text, 0o600)))
        };
        // The new directory may have gone as an empty one ([`remove_empty`]).
        write().or_else(|_gone| write())
    }

    /// The record at that path; `None` if there is none. A record that cannot be read is an error: what it was about
    /// must not count as undone.
    pub(super) fn read(path: &Path) -> io::Result<Option<Record>> {
        match std::fs::symlink_metadata(path) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
            Ok(_) => {}
        }
        let text = crate::os::sys(read_limited(path, MAX))?;
        serde_json::from_slice(&text).map(Some).map_err(io::Error::other)
    }
}

/// Removes a record.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    step("remove-record", || remove_if_there(path))
}

/// The records of a pod, and of the node.
#[derive(Debug)]
pub(super) struct Found<T> {
    /// What was read.
    pub(super) read: Vec<T>,
    /// The names of volumes whose records cannot be read, with the reason. Such a volume may be in use.
    pub(super) unreadable: Vec<(String, io::Error)>,
}

impl<T> Found<T> {
    fn none() -> Found<T> {
        Found { read: Vec::new(), unreadable: Vec::new() }
    }

    fn add(
        &mut self,
        name: String,
        record: io::Result<Option<Record>>,
        of: impl FnOnce(Record, String) -> T,
    ) {
        match record {
            Ok(Some(record)) => self.read.push(of(record, name)),
            Ok(None) => {}
            Err(error) => self.unreadable.push((name, error)),
        }
    }

    /// All of them.
    ///
    /// # Errors
    ///
    /// One cannot be read.
    pub(super) fn all(self) -> io::Result<Vec<T>> {
        match self.unreadable.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(self.read),
        }
    }
}

/// The volumes of CSI drivers that a pod may have. A record that cannot be read says nothing of the others.
pub(super) fn of_pod(pod_dir: &Path) -> io::Result<Found<PodVolume>> {
    let mut all = Found::none();
    let of = |mode| move |record, name| PodVolume { record, mode, name };
    for name in names(&volumes_dir(pod_dir))? {
        let record = Record::read(&volumes_dir(pod_dir).join(&name).join("vol_data.json"));
        all.add(name, record, of(VolumeMode::Filesystem));
    }
    let devices = pod_dir.join("volumeDevices").join(DEVICE_RECORDS);
    for name in names(&devices)? {
        let record = Record::read(&devices.join(&name));
        all.add(name, record, of(VolumeMode::Block));
    }
    // Devices of a kubelet have no record of each pod.
    for name in names(&devices_dir(pod_dir))? {
        let known = all.read.iter().any(|v| v.mode == VolumeMode::Block && v.name == name)
            || all.unreadable.iter().any(|(unreadable, _)| *unreadable == name);
        if !known {
            let record = kubelets_record(pod_dir, &name);
            all.add(name, record, of(VolumeMode::Block));
        }
    }
    Ok(all)
}

/// The record that a kubelet keeps of a device for all pods.
fn kubelets_record(pod_dir: &Path, name: &str) -> io::Result<Option<Record>> {
    let Some(state) = pod_dir.parent().and_then(Path::parent) else { return Ok(None) };
    let data = state.join("plugins/kubernetes.io/csi/volumeDevices").join(name).join("data/vol_data.json");
    Record::read(&data)
}

/// The names in a directory; none in one that is missing. Temporary files of writes are not among them.
pub(super) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok().filter(|name| !name.starts_with('.')));
    }
    names.sort();
    Ok(names)
}

/// Removes the empty directories of stagings. One is left where the node died after it had removed the record.
pub(super) fn remove_empty(plugin_dir: &Path) -> io::Result<()> {
    for driver in names(plugin_dir)? {
        let dir = plugin_dir.join(&driver);
        for name in names(&dir)? {
            let own = dir.join(&name);
            let removed = match (driver.as_str(), name.as_str()) {
                ("volumeDevices", "staging" | "publish") => continue,
                ("volumeDevices", _) => std::fs::remove_dir(own.join("data")).and(std::fs::remove_dir(&own)),
                _ => std::fs::remove_dir(&own),
            };
            match removed.map_err(|e| e.kind()) {
                // What holds anything stays.
                Ok(()) | Err(io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {}
                Err(kind) => return Err(kind.into()),
            }
        }
    }
    Ok(())
}

/// The records of staged volumes below the directory of all drivers, with their paths.
pub(super) fn staged(plugin_dir: &Path) -> io::Result<Found<(Record, VolumeMode, String)>> {
    let mut all = Found::none();
    for driver in names(plugin_dir)? {
        let dir: PathBuf = plugin_dir.join(&driver);
        let devices = driver == "volumeDevices";
        for name in names(&dir)? {
            let below = if devices { "data/vol_data.json" } else { "vol_data.json" };
            if devices && matches!(name.as_str(), "staging" | "publish") {
                continue;
            }
            let mode = if devices { VolumeMode::Block } else { VolumeMode::Filesystem };
            let record = Record::read(&dir.join(&name).join(below));
            all.add(name, record, |record, name| (record, mode, name));
        }
    }
    Ok(all)
}
