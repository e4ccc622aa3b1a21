//! Unix sockets that are served: made anew, and removed at the end.

use crate::error::{Error, Result};
use std::{
    fs,
    io::ErrorKind,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

/// A socket's file. It is removed at the end of this value, if it is still the same.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Makes the socket and listens. The socket of a driver that died is replaced, that of one that lives is not.
    ///
    /// # Errors
    /// Something else has the path, or the directory cannot be made.
    pub(crate) fn bind(path: &Path) -> Result<(Self, UnixListenerStream)> {
        let failed = |e: std::io::Error| Error::file("listen on", path.display().to_string(), e);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => match UnixStream::connect(path) {
                Ok(_) => return Err(failed(std::io::Error::other("another process listens there"))),
                Err(_) => fs::remove_file(path).map_err(failed)?,
            },
            Ok(_) => return Err(failed(std::io::Error::other("a file that is no socket is there"))),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok((Self { path: path.to_owned(), inode }, UnixListenerStream::new(listener)))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            // A next driver replaces one that stays.
            _ = fs::remove_file(&self.path);
        }
    }
}
