//! The files of an image: small text files, read from its unpacked layers without mounting them, and its
//! whole tree, mounted without a mount point. No file of an image is executed.
//!
//! An image is hostile input. Paths of text files are resolved below each layer (`openat2`, no link out of
//! it), and only regular files of bounded size are read. A link that leads from one layer into another reads
//! as missing.

use crate::{
    Runtime,
    client::{RECORD, call},
    error::{Error, absent},
    image::Image,
    spec::MAX_USER_FILE_BYTES,
};
use berth_sys::{clock, fs};
use containerd_client::{
    services::v1::snapshots::{RemoveSnapshotRequest, ViewSnapshotRequest},
    types::Mount,
};
use rustix::{
    fd::OwnedFd,
    fs::{FileType, Mode, OFlags, openat},
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

static VIEWS: AtomicU64 = AtomicU64::new(0);

/// A snapshot through which an image's files are read. The holder returns it with [`Runtime::release_view`];
/// after the agent's death containerd's garbage collection removes it.
#[derive(Debug)]
pub struct ImageView {
    image: String,
    key: String,
    mounts: Vec<Mount>,
}

impl ImageView {
    /// The root directory of the image, read-only, on a mount without a mount point. Blocks.
    ///
    /// # Errors
    /// This build does not support the snapshotter's kind of mount.
    pub fn root(&self) -> Result<OwnedFd, Error> {
        let [mount] = self.mounts.as_slice() else {
            let reason = format!("its files are {} mounts on top of each other, not one", self.mounts.len());
            return Err(Error::Image { image: self.image.clone(), reason });
        };
        berth_sys::mount::read_only(&mount.r#type, &mount.source, &mount.options)
            .map_err(|source| Error::ImageRoot { image: self.image.clone(), source })
    }
}

impl Runtime {
    /// Creates a view of an image's files.
    pub async fn view_image(&self, image: &Image) -> Result<ImageView, Error> {
        let key = format!(
            "berth-view-{}-{}",
            clock::boottime().0.as_nanos(),
            VIEWS.fetch_add(1, Ordering::Relaxed)
        );
        let client = self.client();
        let view = ViewSnapshotRequest {
            snapshotter: self.roots().snapshotter.clone(),
            key: key.clone(),
            parent: image.chain_id.clone(),
            ..ViewSnapshotRequest::default()
        };
        let mut service = client.snapshots();
        let reply =
            call("view image", &image.name, RECORD, service.view(client.request(view, RECORD))).await?;
        Ok(ImageView { image: image.name.clone(), key, mounts: reply.mounts })
    }

    /// Releases a view. A mount of the view lives on while it is open.
    pub async fn release_view(&self, view: &ImageView) -> Result<(), Error> {
        let client = self.client();
        let removal =
            RemoveSnapshotRequest { snapshotter: self.roots().snapshotter.clone(), key: view.key.clone() };
        let mut service = client.snapshots();
        absent(
            call("remove view", &view.image, RECORD, service.remove(client.request(removal, RECORD))).await,
        )
        .map(drop)
    }

    /// The texts of these files of an image (paths relative to its root); `None` where a file is missing or
    /// not a regular file. Invalid UTF-8 is replaced.
    pub async fn image_files<const N: usize>(
        &self,
        image: &Image,
        paths: [&'static str; N],
    ) -> Result<[Option<String>; N], Error> {
        let view = self.view_image(image).await?;
        let layers = layers(&view.mounts);
        let name = image.name.clone();
        let read = tokio::task::spawn_blocking(move || paths.map(|p| read(&layers, Path::new(p)))).await;
        self.release_view(&view).await?;
        let read = read
            .map_err(|e| Error::Image { image: name.clone(), reason: format!("reading its files: {e}") })?;
        let mut texts = [const { None }; N];
        for (text, file) in texts.iter_mut().zip(read) {
            *text = file.map_err(|reason| Error::Image { image: name.clone(), reason })?;
        }
        Ok(texts)
    }
}

/// The directories of the layers, topmost first.
pub(crate) fn layers(mounts: &[Mount]) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for m in mounts {
        match m.r#type.as_str() {
            "overlay" => {
                for option in &m.options {
                    if let Some(list) = option.strip_prefix("lowerdir=") {
                        dirs.extend(list.split(':').map(PathBuf::from));
                    }
                }
            }
            _ => dirs.push(PathBuf::from(&m.source)),
        }
    }
    dirs
}

/// The content of the file in the topmost layer that has it. A whiteout (a 0/0 character device) ends the
/// search.
fn read(layers: &[PathBuf], path: &Path) -> Result<Option<String>, String> {
    for layer in layers {
        let dir =
            openat(rustix::fs::CWD, layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| format!("open layer {}: {e}", layer.display()))?;
        // O_PATH first: opening a FIFO or device planted in an image must have no effect.
        let Ok(found) = fs::open_beneath(&dir, path, OFlags::PATH | OFlags::CLOEXEC) else { continue };
        let stat = rustix::fs::fstat(&found).map_err(|e| format!("stat {}: {e}", path.display()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let file = fs::open_beneath(&dir, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK)
            .map_err(|e| format!("open {}: {e}", path.display()))?;
        let bytes = fs::read_file_limited(File::from(file), path, MAX_USER_FILE_BYTES)
            .map_err(|e| format!("read {}: {e}", path.display()))?;
        return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_layer_wins_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let [top, bottom] = ["top", "bottom"].map(|n| {
            let layer = dir.path().join(n);
            std::fs::create_dir_all(layer.join("etc")).unwrap();
            layer
        });
        std::fs::write(bottom.join("etc/passwd"), "root:x:0:0\n").unwrap();
        let layers = [top.clone(), bottom.clone()];
        assert_eq!(read(&layers, Path::new("etc/passwd")).unwrap().unwrap(), "root:x:0:0\n");
        std::fs::write(top.join("etc/passwd"), "other\n").unwrap();
        assert_eq!(read(&layers, Path::new("etc/passwd")).unwrap().unwrap(), "other\n");
        std::os::unix::fs::symlink("/etc/hostname", top.join("etc/group")).unwrap();
        assert_eq!(read(&layers, Path::new("etc/group")).unwrap(), None);
        assert_eq!(read(&layers, Path::new("etc/none")).unwrap(), None);
    }

    #[test]
    fn overlay_options_give_the_layers() {
        let overlay = Mount {
            r#type: "overlay".into(),
            options: vec!["ro".into(), "lowerdir=/a:/b".into()],
            ..Mount::default()
        };
        assert_eq!(layers(&[overlay]), [PathBuf::from("/a"), PathBuf::from("/b")]);
        let bind = Mount { r#type: "bind".into(), source: "/c".into(), ..Mount::default() };
        assert_eq!(layers(&[bind]), [PathBuf::from("/c")]);
    }
}
