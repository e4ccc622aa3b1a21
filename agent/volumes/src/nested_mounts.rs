//! Mount points inside a volume, for containers that mount another volume below this one.

use crate::{Error, os};
use berth_core::model::{Pod, Volume};
use rustix::fs::Mode;
use std::{
    io,
    path::{Component, Path, PathBuf},
};

/// Makes the directories on which containers mount other volumes inside this one. The runtime cannot make
/// them in a volume that containers see read-only.
pub(crate) fn make_mount_points(dir: &Path, pod: &Pod, volume: &Volume) -> Result<(), Error> {
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
                    // The volume has a file of that name; the runtime mounts on top of it.
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Ok(()),
                    Err(e) => return Err(e),
                };
            }
            Ok(())
        };
        make().map_err(Error::io("create the mount point", dir.join(&nested)))?;
    }
    Ok(())
}

/// Paths of other mounts inside mounts of `volume`, relative to its root. A path inside another one is left
/// out.
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
