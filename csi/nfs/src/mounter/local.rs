//! The mounter of tests on machines without NFS: a local directory stands for the server, and a bind mount for each
//! mount. Only a debug build has it, and it serves only the name `test.invalid`, which no server can have (RFC 2606).

use super::{Mounter, move_to};
use crate::{
    error::{Error, Result},
    location::Location,
    mountinfo::Mount,
    options::Options,
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    mount::{MountFlags, OpenTreeFlags, mount_remount, open_tree},
};
use std::path::{Path, PathBuf};

/// The one server.
const SERVER: &str = "test.invalid";

/// A directory in the place of a server.
#[derive(Debug)]
pub(crate) struct Local {
    /// Holds the shares.
    pub(crate) root: PathBuf,
}

impl Mounter for Local {
    fn mount(&self, location: &Location, options: &Options) -> Result<OwnedFd> {
        let failed =
            |e: rustix::io::Errno| Error::Mount { source_name: location.source(), reason: e.to_string() };
        if location.server.as_str() != SERVER {
            return Err(Error::Mount {
                source_name: location.source(),
                reason: format!("tests have {SERVER} alone"),
            });
        }
        if options.of_nfs.iter().any(|(name, _)| name == "test-hang") {
            loop {
                std::thread::park();
            }
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, &self.root, flags, Mode::empty()).map_err(failed)?;
        let path = location.path();
        let relative = Some(path.trim_start_matches('/')).filter(|p| !p.is_empty()).unwrap_or(".");
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let dir = openat2(&root, relative, flags, Mode::empty(), resolve).map_err(failed)?;
        let clone =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        open_tree(dir.as_fd(), "", clone).map_err(failed)
    }

    fn attach(
        &self,
        mount: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        path: &Path,
        options: &Options,
    ) -> Result<()> {
        move_to(mount, target, path)?;
        if options.attributes.contains(rustix::mount::MountAttrFlags::MOUNT_ATTR_RDONLY) {
            mount_remount(path, MountFlags::BIND | MountFlags::RDONLY, "")
                .map_err(|e| Error::file("make read-only", path.display().to_string(), e))?;
        }
        Ok(())
    }

    fn is_of(&self, mount: &Mount, location: &Location) -> bool {
        // The list of mounts has the path from the root of the file system, which may be mounted anywhere.
        let wanted = self.root.join(location.path().trim_start_matches('/'));
        let root = mount.root.strip_prefix("/").unwrap_or(&mount.root);
        mount.kind != "nfs" && root.components().next().is_some() && wanted.ends_with(root)
    }
}
