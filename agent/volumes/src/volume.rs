//! Setting up a pod's volumes and keeping their files current.

use crate::{
    Error, PodFacts, Volumes, atomic,
    layout::NODE_DIR,
    os,
    payload::{self, Payload},
    tmpfs_size::tmpfs_size,
};
use berth_core::{
    model::{HostPathType, Medium, Objects, Pod, Volume, VolumeSource},
    quantity::Quantity,
};
use rustix::fs::Mode;
use std::{
    fs::Metadata,
    io,
    os::unix::fs::FileTypeExt as _,
    path::{Component, Path, PathBuf},
};

/// Mode of a volume's root on disk: every user of the pod may use it.
const ROOT: u32 = 0o777;
/// Mode of a volume's root on a tmpfs: likewise, but files of others may not be removed.
const TMPFS_ROOT: u32 = 0o1777;
/// Added where `fsGroup` is set: what is made in it belongs to the group too.
const GROUP_ROOT: u32 = 0o2000;

impl Volumes {
    /// Sets up all volumes that a container of the pod mounts. What is set up already stays as it is, so that the call may be repeated at any
    /// time; files from objects are brought up to date.
    ///
    /// All volumes are tried; the error is the first one's. [`Error::is_retryable`] says whether trying again makes
    /// sense, [`Error::event`] is what to tell.
    pub fn mount(&self, pod: &Pod, facts: &PodFacts, objects: &Objects) -> Result<(), Error> {
        let dir = self.pod_dir(&pod.uid);
        os::make_dirs(&dir, NODE_DIR).map_err(Error::io("make", dir))?;
        let mut failed = None;
        for volume in pod.mounted_volumes() {
            if let Err(e) = self.mount_one(pod, volume, facts, objects) {
                let e = e.in_volume(&volume.name);
                // The caller tells of a failure and its end; here it may come with every retry.
                tracing::debug!(pod = %pod.key, volume = %volume.name, error = e.message(), "volume not set up");
                failed.get_or_insert(e);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Brings files that come from ConfigMaps, Secrets and facts about the pod up to date, in volumes that are set
    /// up. Says whether anything changed. Mounts of sub-paths keep what they showed at their container's start.
    ///
    /// All volumes are tried; the error is the first one's. A volume whose object is gone keeps its last content.
    pub fn refresh(&self, pod: &Pod, facts: &PodFacts, objects: &Objects) -> Result<bool, Error> {
        let mut changed = false;
        let mut failed = None;
        for volume in pod.mounted_volumes() {
            let Some(dir) = self.volume_dir(&pod.uid, volume).filter(|d| atomic::is_set_up(d)) else {
                continue;
            };
            let written = match payload::payload(pod, volume, facts, objects) {
                Ok(None) => continue,
                Ok(Some(files)) => write_files(&dir, &files, pod.security.fs_group),
                Err(e) => Err(e),
            };
            match written {
                Ok(false) => {}
                Ok(true) => {
                    changed = true;
                    tracing::info!(pod = %pod.key, volume = %volume.name, "volume updated");
                }
                Err(e) => {
                    failed.get_or_insert(e.in_volume(&volume.name));
                }
            }
        }
        failed.map_or(Ok(changed), Err)
    }

    fn mount_one(
        &self,
        pod: &Pod,
        volume: &Volume,
        facts: &PodFacts,
        objects: &Objects,
    ) -> Result<(), Error> {
        let not_yet = |kind: String| Error::NotYet { volume: volume.name.clone(), kind };
        match &volume.source {
            VolumeSource::NotYet { kind } => return Err(not_yet(kind.clone())),
            VolumeSource::HostPath { path, kind } => return host_path(volume, path, *kind),
            _ => {}
        }
        let Some(dir) = self.volume_dir(&pod.uid, volume) else { return Ok(()) };
        let gid = pod.security.fs_group;
        // Asked for before anything is made: a pod that waits for its ConfigMap leaves no empty volume behind.
        let files = payload::payload(pod, volume, facts, objects)?;
        match &volume.source {
            VolumeSource::EmptyDir { medium: Medium::Disk, .. } | VolumeSource::ConfigMap(_) => {
                disk_dir(&dir, gid)?;
            }
            VolumeSource::EmptyDir { medium: Medium::HugePages(size), .. } => {
                let size = size.as_deref().map(|s| format!("-{s}")).unwrap_or_default();
                return Err(not_yet(format!("emptyDir with medium HugePages{size}")));
            }
            VolumeSource::EmptyDir { medium: Medium::Memory, size_limit } => {
                tmpfs(&dir, pod, facts, size_limit.as_ref())?;
            }
            _ => tmpfs(&dir, pod, facts, None)?,
        }
        if let Some(files) = files {
            make_nested_mount_points(&dir, pod, volume)?;
            write_files(&dir, &files, gid)?;
        }
        Ok(())
    }
}

fn write_files(dir: &Path, files: &Payload, gid: Option<u32>) -> Result<bool, Error> {
    atomic::write(dir, files, gid).map_err(Error::io("write the files of", dir))
}

/// A directory of the node's disk that appears with its mode and group, or not at all: once it is there it belongs to
/// the pod and is not touched again.
fn disk_dir(dir: &Path, gid: Option<u32>) -> Result<(), Error> {
    match std::fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => return Err(Error::io("use", dir)(io::ErrorKind::NotADirectory.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("look at", dir)(e)),
    }
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(Error::io("make", dir)(io::ErrorKind::InvalidInput.into()));
    };
    // Volume names are labels, so none starts with a dot.
    let new = parent.join(format!(".new-{}", name.to_string_lossy()));
    let make = || {
        os::make_dirs(parent, NODE_DIR)?;
        match rustix::fs::mkdir(&new, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let fd = os::open_dir(&new)?;
        os::set_group(&fd, gid)?;
        os::set_mode(&fd, ROOT | gid.map_or(0, |_| GROUP_ROOT))?;
        std::fs::rename(&new, dir)
    };
    make().map_err(Error::io("make", dir))
}

/// A tmpfs at `dir`, unless one is mounted there. After a reboot the directory is there and the tmpfs is not.
fn tmpfs(dir: &Path, pod: &Pod, facts: &PodFacts, size_limit: Option<&Quantity>) -> Result<(), Error> {
    os::make_dirs(dir, NODE_DIR).map_err(Error::io("make", dir))?;
    if os::sys(berth_sys::mount::is_mount_point(dir)).map_err(Error::io("look at", dir))? {
        return Ok(());
    }
    let gid = pod.security.fs_group;
    let mut options = format!("mode={:o}", TMPFS_ROOT | gid.map_or(0, |_| GROUP_ROOT));
    if let Some(gid) = gid {
        options.push_str(&format!(",gid={gid}"));
    }
    if let Some(size) = tmpfs_size(pod, facts, size_limit) {
        options.push_str(&format!(",size={size}"));
    }
    os::mount_swapless_tmpfs(dir, &options).map_err(Error::io("mount a tmpfs at", dir))
}

/// Checks or makes what a hostPath asks for. Links are followed: the path is the administrator's.
fn host_path(volume: &Volume, path: &Path, kind: HostPathType) -> Result<(), Error> {
    let found = match std::fs::metadata(path) {
        Ok(found) => Some(found),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(Error::io("look at", path)(e)),
    };
    match (kind, &found) {
        (HostPathType::Unset, _) => return Ok(()),
        (HostPathType::DirectoryOrCreate, None) => {
            return os::make_dirs(path, 0o755).map_err(Error::io("make", path));
        }
        (HostPathType::FileOrCreate, None) => return make_file(path).map_err(Error::io("make", path)),
        _ => {}
    }
    let (is, wanted): (fn(&Metadata) -> bool, _) = match kind {
        HostPathType::Unset => return Ok(()),
        HostPathType::DirectoryOrCreate | HostPathType::Directory => (Metadata::is_dir, "a directory"),
        HostPathType::FileOrCreate | HostPathType::File => (Metadata::is_file, "a file"),
        HostPathType::Socket => (|m| m.file_type().is_socket(), "a socket file"),
        HostPathType::CharDevice => (|m| m.file_type().is_char_device(), "a character device"),
        HostPathType::BlockDevice => (|m| m.file_type().is_block_device(), "a block device"),
    };
    if found.as_ref().is_some_and(is) {
        return Ok(());
    }
    Err(Error::HostPathType { volume: volume.name.clone(), path: path.to_owned(), wanted })
}

fn make_file(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path).map(drop)
}

/// Makes the directories on which containers mount other volumes inside this one, since the runtime cannot make them
/// in a volume that containers see read-only.
fn make_nested_mount_points(dir: &Path, pod: &Pod, volume: &Volume) -> Result<(), Error> {
    for nested in nested_mount_points(pod, volume) {
        let mut fd = os::open_dir(dir).map_err(Error::io("open", dir))?;
        let mut make = || {
            for name in nested.components() {
                let name = name.as_os_str();
                match rustix::fs::mkdirat(&fd, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(e) => return Err(io::Error::from(e)),
                }
                fd = match os::open_dir_at(&fd, name) {
                    Ok(fd) => fd,
                    // A file of the volume itself lies there; the mount goes on top of it.
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Ok(()),
                    Err(e) => return Err(e),
                };
            }
            Ok(())
        };
        make().map_err(Error::io("make the mount point", dir.join(&nested)))?;
    }
    Ok(())
}

/// Where other mounts lie inside mounts of `volume`, relative to its root; without those inside another such place.
fn nested_mount_points(pod: &Pod, volume: &Volume) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = Vec::new();
    for container in pod.all_containers() {
        for own in container.mounts.iter().filter(|m| m.volume == volume.name && m.sub_path.is_none()) {
            let mut inside: Vec<&Path> = container
                .mounts
                .iter()
                .filter_map(|m| Path::new(&m.mount_path).strip_prefix(&own.mount_path).ok())
                .filter(|p| !p.as_os_str().is_empty())
                .filter(|p| p.components().all(|c| matches!(c, Component::Normal(_))))
                .filter(|p| !p.to_string_lossy().starts_with(".."))
                .collect();
            inside.sort();
            for path in inside {
                if !out.iter().any(|o| path.starts_with(o)) {
                    out.push(path.to_owned());
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
