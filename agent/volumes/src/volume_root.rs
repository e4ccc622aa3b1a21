//! The root directory of a volume: on disk, a tmpfs, or huge pages.

use crate::{Error, PodFacts, layout::NODE_DIR, os, tmpfs_size::tmpfs_size};
use berth_core::{model::Pod, quantity::Quantity};
use berth_sys::failpoint::step;
use rustix::fs::Mode;
use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

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
    let mut options = mode_and_group(pod);
    if let Some(size) = tmpfs_size(pod, facts, size_limit) {
        options.push_str(&format!(",size={size}"));
    }
    step("mount-tmpfs", || os::mount_swapless_tmpfs(dir, &options))
        .map_err(Error::io("mount a tmpfs at", dir))
}

/// Mounts a file system of huge pages as the root, unless one is mounted.
pub(crate) fn huge_pages(
    dir: &Path,
    pod: &Pod,
    page: u64,
    size_limit: Option<&Quantity>,
) -> Result<(), Error> {
    os::make_dirs(dir, NODE_DIR).map_err(Error::io("create", dir))?;
    if os::sys(berth_sys::mount::is_mount_point(dir)).map_err(Error::io("examine", dir))? {
        return inherit_group(dir, pod);
    }
    let mut options = format!("pagesize={page},{}", mode_and_group(pod));
    let limit = size_limit.and_then(|limit| u64::try_from(limit.units()).ok()).filter(|limit| *limit > 0);
    if let Some(limit) = limit {
        // The kernel takes whole pages.
        options.push_str(&format!(",size={}", limit.div_ceil(page).saturating_mul(page)));
    }
    os::mount_huge_pages(dir, &options).map_err(Error::io("mount huge pages at", dir))?;
    inherit_group(dir, pod)
}

/// Sets the set-group-ID bit of a root of huge pages, which no option of the mount does. Only of one that is as it was
/// mounted: containers may have changed theirs since.
fn inherit_group(dir: &Path, pod: &Pod) -> Result<(), Error> {
    let found = fs::symlink_metadata(dir).map_err(Error::io("examine", dir))?;
    let as_mounted = (TMPFS_ROOT | GROUP_ROOT) & 0o1777;
    if pod.security.fs_group.is_none() || found.mode() & 0o7777 != as_mounted {
        return Ok(());
    }
    let permissions = fs::Permissions::from_mode(TMPFS_ROOT | GROUP_ROOT);
    fs::set_permissions(dir, permissions).map_err(Error::io("change the permissions of", dir))
}

/// The options of a root that is mounted.
fn mode_and_group(pod: &Pod) -> String {
    match pod.security.fs_group {
        Some(gid) => format!("mode={:o},gid={gid}", TMPFS_ROOT | GROUP_ROOT),
        None => format!("mode={TMPFS_ROOT:o}"),
    }
}
