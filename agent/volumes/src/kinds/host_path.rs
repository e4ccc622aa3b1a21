//! `hostPath`: a path of the node, used as it is and never removed.

use super::VolumePlugin;
use crate::{Error, inputs::VolumeInputs, os};
use berth_core::{
    ids::VolumeName,
    model::{HostPathType, Volume},
};
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags},
};
use std::{
    borrow::Cow,
    fs::Metadata,
    io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

/// A `hostPath` volume.
pub(super) struct HostPath<'a> {
    pub(super) path: Cow<'a, Path>,
    pub(super) kind: HostPathType,
    pub(super) read_only: bool,
}

impl VolumePlugin for HostPath<'_> {
    fn root(&self, _pod_dir: &Path, _name: &VolumeName) -> PathBuf {
        self.path.to_path_buf()
    }

    fn set_up(&self, root: &Path, inputs: &VolumeInputs<'_>) -> Result<(), Error> {
        check_or_make(inputs.volume, root, self.kind)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn open_root(&self, root: &Path) -> io::Result<OwnedFd> {
        // A hostPath may be a link, and then means the directory to which the link leads.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(root, flags, Mode::empty())?)
    }

    fn make_missing_root(&self, root: &Path) -> Result<bool, Error> {
        // A hostPath without a type is not checked at set-up; a missing one is made at the container's start.
        if self.kind != HostPathType::Unset {
            return Ok(false);
        }
        os::make_dirs(root, 0o755).map_err(Error::io("create", root))?;
        Ok(true)
    }
}

/// Checks the file at a hostPath against its type, or makes it. Links are followed: the path is the administrator's.
fn check_or_make(volume: &Volume, path: &Path, kind: HostPathType) -> Result<(), Error> {
    if kind == HostPathType::Unset {
        return Ok(());
    }
    let mut found = look(path)?;
    if found.is_none() {
        let made = match kind {
            HostPathType::DirectoryOrCreate => Some(os::make_dirs(path, 0o755)),
            HostPathType::FileOrCreate => Some(make_file(path)),
            _ => None,
        };
        match made {
            None => {}
            Some(Ok(())) => return Ok(()),
            // Somebody else made it meanwhile, or a link is there that leads to nothing.
            Some(Err(e)) if e.kind() == io::ErrorKind::AlreadyExists => found = look(path)?,
            Some(Err(e)) => return Err(Error::io("create", path)(e)),
        }
    }
    let (is, wanted): (fn(&Metadata) -> bool, _) = match kind {
        HostPathType::Unset => return Ok(()),
        HostPathType::DirectoryOrCreate | HostPathType::Directory => (Metadata::is_dir, "a directory"),
        HostPathType::FileOrCreate | HostPathType::File => (Metadata::is_file, "a file"),
        HostPathType::Socket => (|m| m.file_type().is_socket(), "a socket file"),
        HostPathType::CharDevice => (|m| m.file_type().is_char_device(), "a character device"),
        HostPathType::BlockDevice => (|m| m.file_type().is_block_device(), "a block device"),
    };
    if found.as_ref().is_some_and(is) {
        return Ok(());
    }
    Err(Error::HostPathType { volume: volume.name.clone(), path: path.to_owned(), wanted })
}

/// What is at the path; `None` where nothing is.
fn look(path: &Path) -> Result<Option<Metadata>, Error> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("examine", path)(e)),
    }
}

/// Makes a new file. What somebody puts there meanwhile is not opened, as a FIFO would wait for a reader, and no link leads
/// the new file elsewhere.
fn make_file(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop)
}
