//! `VOLUME`s of images: a directory for each, which belongs to one container, starts with the image's files
//! at that path, and is removed with the container.
//!
//! The image is hostile input: its paths are resolved inside of its root, and links are copied, never
//! followed. A directory is filled under another name and then renamed, so that an existing one is complete.

use crate::{Error, Volumes, layout::NODE_DIR, os};
use berth_core::ids::{ContainerId, PodUid};
use berth_sys::fs::{OFlags, copy_dir, open_in_root};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::Mode,
};
use sha2::{Digest, Sha256};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Mode of a `VOLUME` whose path is missing in the image, as in containerd.
const MISSING: u32 = 0o755;
/// The name under which a directory is filled.
const UNFINISHED: &str = "unfinished";

impl Volumes {
    /// The node's directories for the `VOLUME`s of a container, in their order; `volumes` are absolute normal
    /// paths. A missing directory is created with the image's files at that path, owner and mode included, or
    /// empty and owned by root. `image` opens the image's root directory.
    ///
    /// # Errors
    /// The path in the image is not a directory, or cannot be copied.
    pub fn image_volumes(
        &self,
        uid: &PodUid,
        container: &ContainerId,
        volumes: &[String],
        image: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<Vec<PathBuf>, Error> {
        let dir = self.image_volumes_dir(uid, container);
        os::make_dirs(&dir, NODE_DIR).map_err(Error::io("create", &dir))?;
        let wanted: Vec<PathBuf> = volumes.iter().map(|v| dir.join(name(v))).collect();
        let missing: Vec<(&String, &PathBuf)> =
            volumes.iter().zip(&wanted).filter(|(_, path)| !path.exists()).collect();
        if !missing.is_empty() {
            let image = image().map_err(Error::io("open the image's files for", &dir))?;
            for (volume, path) in missing {
                make(&image, volume, path)
                    .map_err(|source| Error::ImageVolume { volume: volume.clone(), source })?;
            }
        }
        Ok(wanted)
    }

    /// Removes the directories of a container, if there are any. Nothing outside of them is touched.
    ///
    /// # Errors
    /// A directory has a mount in it, or the kernel refuses the removal.
    pub fn remove_image_volumes(&self, uid: &PodUid, container: &ContainerId) -> Result<(), Error> {
        let dir = self.image_volumes_dir(uid, container);
        os::sys(berth_sys::mount::remove_tree_no_xdev(&dir)).map_err(Error::io("remove", dir))
    }
}

/// The name of the directory of a `VOLUME`: a function of its path, so that a repeated start finds its
/// directories.
fn name(volume: &str) -> String {
    Sha256::digest(volume).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

fn make(image: &OwnedFd, volume: &str, path: &Path) -> io::Result<()> {
    let unfinished = path.with_file_name(UNFINISHED);
    os::sys(berth_sys::mount::remove_tree_no_xdev(&unfinished))?;
    rustix::fs::mkdir(&unfinished, Mode::from_raw_mode(0o700))?;
    let target = os::open_dir(&unfinished)?;
    match open_in_root(image, Path::new(volume), OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(source) => os::sys(copy_dir(source.as_fd(), target.as_fd()))?,
        Err(berth_sys::Error::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            os::set_mode(&target, MISSING)?;
        }
        Err(e) => return os::sys(Err(e)),
    }
    std::fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests;
