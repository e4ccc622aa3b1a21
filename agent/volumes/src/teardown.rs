//! Removing a pod's directory, and listing the pods that have one.

use crate::{Error, Volumes, os};
use berth_core::ids::PodUid;
use std::{io, path::PathBuf};

impl Volumes {
    /// Unmounts everything below the pod's directory, the last mount first, and removes the directory. Needs
    /// only the UID of the pod and may be repeated. If an unmount fails, nothing is removed. The path of a
    /// hostPath is never touched.
    pub fn unmount(&self, uid: &PodUid) -> Result<(), Error> {
        let dir = self.pod_dir(uid);
        match std::fs::symlink_metadata(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io("examine", dir)(e)),
            Ok(found) if !found.is_dir() => {
                return Err(Error::io("remove", dir)(io::ErrorKind::NotADirectory.into()));
            }
            Ok(_) => {}
        }
        // Sub-paths hold the volumes that their drivers unmount.
        for mount in self.mounts_of(&dir.join("volume-subpaths"))?.into_iter().rev() {
            os::sys(berth_sys::mount::unmount(&mount)).map_err(Error::io("unmount", mount))?;
        }
        self.unmount_csi(uid)?;
        // A mount may cover another one, and mounts of a container may still arrive by propagation.
        let mut mounts = self.mounts_of(&dir)?;
        for _ in 0..8 {
            if mounts.is_empty() {
                break;
            }
            for mount in mounts.into_iter().rev() {
                os::sys(berth_sys::mount::unmount(&mount)).map_err(Error::io("unmount", mount))?;
            }
            mounts = self.mounts_of(&dir)?;
        }
        if let Some(path) = mounts.into_iter().next() {
            return Err(Error::StillMounted { path });
        }
        os::sys(berth_sys::mount::remove_unmounted_tree(&dir)).map_err(Error::io("remove", dir))?;
        tracing::info!(pod = %uid, "pod directory removed");
        Ok(())
    }

    fn mounts_of(&self, dir: &std::path::Path) -> Result<Vec<PathBuf>, Error> {
        let mounts =
            os::sys(berth_sys::mount::mounts_below(dir)).map_err(Error::io("list the mounts below", dir))?;
        Ok(mounts.into_iter().map(|m| m.mount_point).collect())
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

#[cfg(test)]
mod tests;
