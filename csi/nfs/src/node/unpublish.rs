//! Unpublishing: unmount, then remove the empty directory.
//!
//! The kernel takes the mount out of sight first and writes what the pod left unwritten afterwards, so a server that is
//! gone blocks the thread and not the pod's end: once the mount is out of sight, the call is answered. Requests are
//! never aborted (`MNT_FORCE`): that would throw away what the kernel can still write when the server is back.

use super::Node;
use crate::{
    error::{Error, Result},
    mountinfo,
};
use rustix::{
    fs::{AtFlags, CWD, unlinkat},
    io::Errno,
    mount::{UnmountFlags, unmount},
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tracing::{info, warn};

/// How long a server may take to store what a pod has written.
const UNMOUNT: Duration = Duration::from_secs(20);

/// Most mounts on top of each other at one path.
const MOST_MOUNTS: usize = 16;

impl Node {
    /// Unmounts what is at a pod's path and removes the directory. A path that is not there is no error.
    ///
    /// # Errors
    /// The kernel refuses, or the directory holds files.
    pub(super) async fn unpublish(&self, volume: &str, target: PathBuf) -> Result<()> {
        self.attempts.abandon(&target);
        for _ in 0..MOST_MOUNTS {
            let Some(mount) = mountinfo::at(&target)?.pop() else { break };
            let source = mount.source.to_string_lossy().into_owned();
            let server = source.rsplit_once(":/").map_or(source.as_str(), |(server, _)| server).to_owned();
            let path = target.clone();
            let before = mountinfo::at(&target)?.len();
            let overdue = |seconds| Error::Deadline { what: format!("unmount {source}"), seconds };
            match self.threads.unmount(&server, UNMOUNT, move || unmount_one(&path), overdue).await {
                Ok(()) => info!(source, target = %target.display(), "unmounted"),
                Err(error) if mountinfo::at(&target)?.len() < before => {
                    warn!(source, target = %target.display(), %error, "the mount is out of sight; the kernel writes the rest when the server answers");
                }
                Err(error) => return Err(error),
            }
        }
        match unlinkat(CWD, &target, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => {
                let subject = format!("{} of volume {volume}", target.display());
                Err(Error::file("remove the directory", subject, e))
            }
        }
    }
}

/// Unmounts the topmost mount at a path. Where something still uses it, it only goes out of sight.
fn unmount_one(path: &Path) -> Result<()> {
    let done = match unmount(path, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH),
        other => other,
    };
    match done {
        // Somebody else was faster.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::file("unmount", path.display().to_string(), e)),
    }
}
