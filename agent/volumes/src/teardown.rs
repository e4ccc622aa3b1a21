//! Removing a pod's directory, and listing the pods that have one.

use crate::{Error, Volumes, os, unmounting::OfPod};
use berth_core::ids::PodUid;
use berth_sys::failpoint::step;
use std::{io, path::Path};

/// How often the mounts are listed anew before the caller has to try again.
const ROUNDS: u32 = 8;

impl Volumes {
    /// Unmounts everything below the pod's directory, the last mount first, and removes the directory. Needs
    /// only the UID of the pod and may be repeated. If an unmount fails, nothing is removed. The path of a
    /// hostPath is never touched.
    pub fn unmount(&self, uid: &PodUid) -> Result<(), Error> {
        let dir = self.pod_dir(uid);
        self.pending.forget(&dir);
        match std::fs::symlink_metadata(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io("examine", dir)(e)),
            Ok(found) if !found.is_dir() => {
                return Err(Error::io("remove", dir)(io::ErrorKind::NotADirectory.into()));
            }
            Ok(_) => {}
        }
        // Sub-paths hold the volumes that their drivers unmount.
        unmount_below(&dir, "volume-subpaths", &self.unmounting.of(&dir))?;
        self.unmount_csi(uid)?;
        let unmounting = self.unmounting.of(&dir);
        unmount_below(&dir, "", &unmounting)?;
        unmounting.finish()?;
        let removed = step("remove-pod-directory", || berth_sys::mount::remove_unmounted_tree(&dir));
        os::sys(removed).map_err(Error::io("remove", dir))?;
        tracing::info!(pod = %uid, "pod directory removed");
        Ok(())
    }

    /// The pods that have a directory, made by this agent or by another. Other entries are skipped.
    ///
    /// Fails if the directory cannot be read: an unreadable directory is not an empty one.
    pub fn pods_on_disk(&self) -> Result<Vec<PodUid>, Error> {
        let dir = self.pods_dir();
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", dir)(e)),
        };
        let mut out = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &dir))?;
            let is_dir = entry.file_type().map_err(Error::io("examine", entry.path()))?.is_dir();
            let uid = entry.file_name().to_str().and_then(|n| PodUid::new(n).ok());
            out.extend(uid.filter(|_| is_dir));
        }
        out.sort();
        Ok(out)
    }
}

/// Unmounts everything in a part of a pod's directory. The pod may exchange its directories and links meanwhile, so that
/// each path of the mount table is entered by descriptor, and what has another path by then is found by the next round.
fn unmount_below(pod_dir: &Path, part: &str, unmounting: &OfPod<'_>) -> Result<(), Error> {
    let (real, root) = match (pod_dir.canonicalize(), os::open_dir(pod_dir)) {
        (Ok(real), Ok(root)) => (real, root),
        (Err(e), _) | (_, Err(e)) => return Err(Error::io("open", pod_dir)(e)),
    };
    let dir = real.join(part);
    let list =
        || os::sys(berth_sys::mount::mounts_below(&dir)).map_err(Error::io("list the mounts below", &dir));
    let mut mounts = list()?;
    // A mount may cover another one, and mounts of a container may still arrive by propagation.
    for _ in 0..ROUNDS {
        if mounts.is_empty() {
            return Ok(());
        }
        for mount in mounts.into_iter().rev() {
            let unmounted = step("unmount", || match mount.mount_point.strip_prefix(&real) {
                Ok(rel) if !rel.as_os_str().is_empty() => unmounting.unmount(&root, rel, &mount),
                _ => berth_sys::mount::unmount(&mount.mount_point),
            });
            os::sys(unmounted).map_err(Error::io("unmount", mount.mount_point))?;
        }
        mounts = list()?;
    }
    mounts.into_iter().next().map_or(Ok(()), |m| Err(Error::StillMounted { path: m.mount_point }))
}

#[cfg(test)]
mod tests;
