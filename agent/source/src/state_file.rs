//! Writing and setting aside of the source's own state files.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Replaces a state file by rename. The folder is created where it is missing, mode 0700; the file has mode
/// 0600.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    make_folder(path)?;
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    drop(file);
    // Not synced: by the digest the reader recognizes a file torn by a power cut, and only that file's
    // content is lost. A sync for each file would slow a burst of changes.
    fs::rename(&temporary, path)
}

/// The same for a file whose content cannot be made again: the old or the new one is there after a power cut.
pub(crate) fn replace_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    make_folder(path)?;
    berth_sys::fs::write_atomic_synced(path, bytes, 0o600).map_err(io::Error::other)
}

fn make_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => DirBuilder::new().recursive(true).mode(0o700).create(folder),
        None => Ok(()),
    }
}

/// Moves a torn state file to `<name>.torn`, so that the next write starts from nothing.
pub(crate) fn set_aside(path: &Path) {
    let mut torn = path.as_os_str().to_owned();
    torn.push(".torn");
    let moved = fs::rename(path, &torn);
    tracing::warn!(path = %path.display(), moved = moved.is_ok(), "a state file of the manifest directory is torn: it is set aside, and started anew");
}
