//! `local`: a directory or block device of this node as a persistent volume. The node binds it into the pod's directory
//! and never removes what is in it.

use super::{VolumePlugin, own_root};
use crate::{Error, fs_group, inputs::VolumeInputs, layout::NODE_DIR, os};
use berth_core::{ids::VolumeName, model::PersistentVolumeSource, volume::PersistentSource};
use berth_sys::failpoint::step;
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags},
};
use std::{
    io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

/// A directory.
pub(super) struct Local {
    pub(super) source: PersistentSource,
}

/// A block device.
pub(super) struct LocalDevice {
    pub(super) source: PersistentSource,
}

impl Local {
    /// Whether another pod has the volume: `root` is the volume's directory of the pod that asks.
    fn is_used_by_others(&self, root: &Path) -> io::Result<bool> {
        // <pods>/<uid>/volumes/<plugin>/<volume>
        let Some(own) = root.ancestors().nth(3) else { return Ok(false) };
        let Some(pods) = own.parent() else { return Ok(false) };
        let Ok(below) = root.strip_prefix(own) else { return Ok(false) };
        for pod in std::fs::read_dir(pods)? {
            let pod = pod?.path();
            if pod != own && os::sys(berth_sys::mount::is_mount_point(&pod.join(below)))? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn path_of(source: &PersistentSource) -> &Path {
    match &source.volume.source {
        PersistentVolumeSource::Local { path, .. } => path,
        _ => Path::new(""),
    }
}

/// Opens the directory. The path is the administrator's, so links are followed.
fn open(inputs: &VolumeInputs<'_>, path: &Path) -> Result<OwnedFd, Error> {
    let refuse =
        |reason| Error::LocalPath { volume: inputs.volume.name.clone(), path: path.to_owned(), reason };
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(refuse("does not exist")),
        Err(e) => return Err(Error::io("examine", path)(e)),
    };
    if found.file_type().is_block_device() {
        return Err(refuse("is a block device: mount its file system on the node, or use volumeMode Block"));
    }
    if !found.is_dir() {
        return Err(refuse("is not a directory"));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("open", path)(e.into()))
}

impl VolumePlugin for Local {
    fn root(&self, pod_dir: &Path, _name: &VolumeName) -> PathBuf {
        own_root(pod_dir, "kubernetes.io~local-volume", &self.source.volume.name)
    }

    fn set_up(&self, root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        if os::sys(berth_sys::mount::is_mount_point(root)).map_err(Error::io("examine", root))? {
            return Ok(());
        }
        let dir = open(inputs, path_of(&self.source))?;
        let shared = self.is_used_by_others(root).map_err(Error::io("find the users of", root))?;
        if shared && self.source.is_for_one_pod() {
            return Err(Error::InUse);
        }
        // The first pod of a volume gives it its group, as in the kubelet: another group would lock that pod out.
        if !self.source.read_only
            && !shared
            && let Some(gid) = inputs.pod.security.fs_group
        {
            let on_mismatch = inputs.pod.security.fs_group_on_root_mismatch;
            fs_group::apply(&dir, path_of(&self.source), gid, on_mismatch)?;
        }
        os::make_dirs(root, NODE_DIR).map_err(Error::io("create", root))?;
        let bind = berth_sys::mount::BindOpts { read_only: self.source.read_only, ..Default::default() };
        let bound = step("bind-local", || berth_sys::mount::bind_fd(&dir, root, bind));
        os::sys(bound).map_err(Error::io("mount", root))
    }

    fn persistent(&self) -> Option<&str> {
        Some(&self.source.volume.name)
    }

    fn read_only(&self) -> bool {
        self.source.read_only
    }
}

impl VolumePlugin for LocalDevice {
    fn root(&self, _pod_dir: &Path, _name: &VolumeName) -> PathBuf {
        path_of(&self.source).to_owned()
    }

    fn set_up(&self, root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        let refuse =
            |reason| Error::LocalPath { volume: inputs.volume.name.clone(), path: root.to_owned(), reason };
        match std::fs::metadata(root) {
            Ok(found) if found.file_type().is_block_device() => Ok(()),
            Ok(_) => Err(refuse("is no block device")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(refuse("does not exist")),
            Err(e) => Err(Error::io("examine", root)(e)),
        }
    }

    fn device(&self, _pod_dir: &Path) -> Result<Option<PathBuf>, Error> {
        Ok(Some(path_of(&self.source).to_owned()))
    }

    fn persistent(&self) -> Option<&str> {
        Some(&self.source.volume.name)
    }

    fn read_only(&self) -> bool {
        self.source.read_only
    }
}
