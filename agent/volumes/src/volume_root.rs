//! The root directory of a volume: on disk, or a tmpfs.

use crate::{Error, PodFacts, layout::NODE_DIR, os, tmpfs_size::tmpfs_size};
use berth_core::{model::Pod, quantity::Quantity};
use berth_sys::failpoint::step;
use rustix::fs::Mode;
use std::{io, path::Path};

/// Mode of a root on disk: every user of the pod may use the volume.
const ROOT: u32 = 0o777;
/// Mode of a root on a tmpfs: as on disk, but only the owner of a file may remove it.
const TMPFS_ROOT: u32 = 0o1777;
/// Mode bit added with `fsGroup`: files made in the volume belong to that group.
const GROUP_ROOT: u32 = 0o2000;

/// Makes a root on disk, unless it exists. The directory appears with its mode and group, or not at all; from
/// then on it belongs to the pod and is not changed again.
pub(crate) fn on_disk(dir: &Path, gid: Option<u32>) -> Result<(), Error> {
    match std::fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => return Err(Error::io("use", dir)(io::ErrorKind::NotADirectory.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("examine", dir)(e)),
    }
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(Error::io("create", dir)(io::ErrorKind::InvalidInput.into()));
    };
    // Volume names are labels, so none starts with a dot.
    let new = parent.join(format!(".new-{}", name.to_string_lossy()));
    let make = || {
        os::make_dirs(parent, NODE_DIR)?;
        match step("make-root", || rustix::fs::mkdir(&new, Mode::from_raw_mode(0o700))) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let fd = os::open_dir(&new)?;
        os::set_group(&fd, gid)?;
        os::set_mode(&fd, ROOT | gid.map_or(0, |_| GROUP_ROOT))?;
        step("place-root", || std::fs::rename(&new, dir))
    };
    make().map_err(Error::io("create", dir))
}

/// Mounts a tmpfs as the root, unless one is mounted. After a reboot the directory exists and the tmpfs does
/// not.
pub(crate) fn tmpfs(
    dir: &Path,
    pod: &Pod,
    facts: &PodFacts,
    size_limit: Option<&Quantity>,
) -> Result<(), Error> {
    os::make_dirs(dir, NODE_DIR).map_err(Error::io("create", dir))?;
    if os::sys(berth_sys::mount::is_mount_point(dir)).map_err(Error::io("examine", dir))? {
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
    step("mount-tmpfs", || os::mount_swapless_tmpfs(dir, &options))
        .map_err(Error::io("mount a tmpfs at", dir))
}
