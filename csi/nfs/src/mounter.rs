//! Mounting a share. A mount is made out of sight, as a descriptor (fsmount(2)); it is attached where a pod expects it,
//! or used by its descriptor alone. A process that dies leaves no mount of the second kind behind.

#[cfg(debug_assertions)]
mod local;
mod nfs;

#[cfg(debug_assertions)]
pub(crate) use local::Local;
pub(crate) use nfs::Nfs;

use crate::{
    error::{Error, Result},
    location::Location,
    mountinfo::Mount,
    options::Options,
};
use rustix::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// How shares are mounted.
pub(crate) trait Mounter: Send + Sync {
    /// Mounts the place out of sight and returns its root. Blocks as long as the server is not answering.
    ///
    /// # Errors
    /// The server or the kernel refuses.
    fn mount(&self, location: &Location, options: &Options) -> Result<OwnedFd>;

    /// Attaches a mount of [`Mounter::mount`] to a directory on the node. Asks no server.
    ///
    /// # Errors
    /// The kernel refuses.
    fn attach(
        &self,
        mount: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        path: &Path,
        options: &Options,
    ) -> Result<()>;

    /// Whether this is a mount of that place.
    fn is_of(&self, mount: &Mount, location: &Location) -> bool;
}

/// Attaches a mount to an open directory.
fn move_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>, path: &Path) -> Result<()> {
    use rustix::mount::{MoveMountFlags, move_mount};
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
        .map_err(|e| Error::file("attach a mount to", path.display().to_string(), e))
}
