//! `nfs`: a directory of an NFS server, of a pod or of a persistent volume. Mounted by the kernel's client, without
//! mount.nfs. A server that does not answer holds up its own pod alone, which says so and can end meanwhile.

use super::{VolumePlugin, own_root};
use crate::{
    Error,
    inputs::VolumeInputs,
    layout::NODE_DIR,
    os,
    pending::{PendingMounts, Wanted},
};
use berth_core::{ids::VolumeName, model::NfsVolume};
use berth_nfs_mount::Options;
use berth_sys::failpoint::step;
use rustix::mount::{MoveMountFlags, move_mount};
use std::{
    io,
    path::{Path, PathBuf},
};

/// An `nfs` volume.
pub(super) struct Nfs<'a> {
    pub(super) pending: &'a PendingMounts,
    pub(super) volume: NfsVolume,
    /// The name of its directory: the pod's, or that of the persistent volume.
    pub(super) name: String,
    /// `mountOptions` of a persistent volume.
    pub(super) options: Vec<String>,
    /// Whether the pod may only read.
    pub(super) read_only: bool,
}

impl Nfs<'_> {
    fn is_read_only(&self) -> bool {
        self.read_only || self.volume.read_only
    }

    /// `server:/path` as the kernel wants it: an IPv6 address in brackets.
    fn source(&self) -> String {
        let NfsVolume { server, path, .. } = &self.volume;
        let bare = server.trim_start_matches('[').trim_end_matches(']');
        if bare.contains(':') { format!("[{bare}]:{path}") } else { format!("{bare}:{path}") }
    }
}

impl VolumePlugin for Nfs<'_> {
    fn root(&self, pod_dir: &Path, _name: &VolumeName) -> PathBuf {
        own_root(pod_dir, "kubernetes.io~nfs", &self.name)
    }

    fn set_up(&self, root: &Path, _inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        if os::sys(berth_sys::mount::is_mount_point(root)).map_err(Error::io("examine", root))? {
            return Ok(());
        }
        let options = Options::parse(self.options.iter().map(String::as_str))
            .map_err(|e| Error::io("mount", root)(io::Error::other(e)))?
            .read_only(self.is_read_only());
        let source = self.source();
        let server = self.volume.server.trim_start_matches('[').trim_end_matches(']').to_owned();
        let what = format!("{source} {options:?}");
        let wanted = Wanted { root: root.to_owned(), server: server.clone(), what };
        let of = source.clone();
        let mount = self
            .pending
            .mount(&wanted, move || berth_nfs_mount::mount(&server, &of, &options))
            .map_err(|reason| Error::Nfs { source_name: source, reason })?;
        os::make_dirs(root, NODE_DIR).map_err(Error::io("create", root))?;
        let target = os::open_dir(root).map_err(Error::io("open", root))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        step("attach-nfs", || move_mount(&mount, "", &target, "", flags))
            .map_err(|e| Error::io("mount", root)(e.into()))
    }

    fn persistent(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn read_only(&self) -> bool {
        self.is_read_only()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_the_kernel_reads_it() {
        let source = |server: &str| {
            let volume = NfsVolume { server: server.into(), path: "/srv".into(), read_only: false };
            let pending = &PendingMounts::default();
            Nfs { pending, volume, name: "v".into(), options: Vec::new(), read_only: false }.source()
        };
        assert_eq!(source("files.example"), "files.example:/srv");
        assert_eq!([source("fd00::1"), source("[fd00::1]")], ["[fd00::1]:/srv", "[fd00::1]:/srv"]);
    }
}
