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
    // Not synced: by the digest the reader recognizes a file torn by a power cut, and only that file's
    // content is lost. A sync for each file would slow a burst of changes.
    replaced(path, bytes, false)
}

/// The same for a file whose content cannot be made again: the old or the new one is there after a power cut.
pub(crate) fn replace_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replaced(path, bytes, true)
}

fn replaced(path: &Path, bytes: &[u8], synced: bool) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    if synced {
        file.sync_all()?;
    }
    drop(file);
    fs::rename(&temporary, path)?;
    match path.parent().filter(|_| synced) {
        Some(folder) => fs::File::open(folder)?.sync_all(),
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
