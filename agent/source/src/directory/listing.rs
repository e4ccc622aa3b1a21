//! Listing the directory and reading its files. Both go through one open descriptor, so that all names of a
//! scan belong to one directory even while it is being replaced.

use crate::manifest::{MAX_FILE_BYTES, Mode};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// Identity of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// Stamp of a file, which changes whenever its content does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    identity: FileId,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Stamp {
        Stamp {
            identity: FileId { device: meta.dev(), inode: meta.ino() },
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// The time of the last change of content, in nanoseconds since 1970.
    pub(super) fn modified_nanos(&self) -> i64 {
        self.modified.0.saturating_mul(1_000_000_000).saturating_add(self.modified.1)
    }
}

/// The manifest files of one listing, with their stamps; `None` for a file that cannot be examined.
pub(super) type Files = BTreeMap<String, Option<Stamp>>;

/// Result of listing the directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: Files,
    /// Names that are not UTF-8.
    pub(super) not_utf8: Vec<PathBuf>,
    /// A manifest is a link, or one name of several: a change of another name may change it.
    pub(super) linked: bool,
}

/// The kind of file at one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameState {
    /// No file, or none that is read: a FIFO, a device.
    Absent,
    /// A plain file with one name; `None` if it cannot be examined.
    Plain(Option<Stamp>),
    /// A file that depends on other names, or on which others depend: a link, one name of several, a
    /// directory.
    Linked,
}

/// The open directory.
pub(super) struct OpenDir {
    handle: File,
    pub(super) identity: FileId,
}

impl OpenDir {
    /// Opens the directory; anything but a directory is an error.
    pub(super) fn open(dir: &Path) -> io::Result<OpenDir> {
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_CLOEXEC)
            .open(dir)?;
        let meta = handle.metadata()?;
        Ok(OpenDir { identity: FileId { device: meta.dev(), inode: meta.ino() }, handle })
    }

    /// A path to the directory that stays valid wherever the directory is moved, as long as this value lives.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.handle.as_raw_fd()))
    }

    /// Whether `dir` still leads to this directory.
    pub(super) fn is_at(&self, dir: &Path) -> bool {
        fs::metadata(dir).is_ok_and(|meta| FileId { device: meta.dev(), inode: meta.ino() } == self.identity)
    }

    /// Lists the manifest files. Links are followed; a dangling one is listed without a stamp. Files other
    /// than regular ones are skipped.
    pub(super) fn files(&self, mode: Mode) -> io::Result<Listing> {
        let mut found = Listing::default();
        for entry in fs::read_dir(self.path())? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(text) = name.to_str() else {
                found.not_utf8.push(PathBuf::from(name));
                continue;
            };
            if !is_manifest(text, mode) {
                continue;
            }
            found.linked |= entry.file_type().is_ok_and(|kind| kind.is_symlink());
            match fs::metadata(self.path().join(text)) {
                Ok(meta) if meta.is_file() => {
                    found.linked |= meta.nlink() > 1;
                    found.files.insert(text.to_owned(), Some(Stamp::of(&meta)));
                }
                Ok(_) => {}
                // Removed since it was listed, unlike a dangling link.
                Err(e) if e.kind() == io::ErrorKind::NotFound && !self.is_link(text) => {}
                Err(_) => {
                    found.files.insert(text.to_owned(), None);
                }
            }
        }
        Ok(found)
    }

    /// The kind of file at one name now.
    pub(super) fn entry(&self, name: &str) -> NameState {
        match fs::symlink_metadata(self.path().join(name)) {
            Ok(meta) if meta.is_symlink() || meta.is_dir() || meta.nlink() > 1 => NameState::Linked,
            Ok(meta) if meta.is_file() => NameState::Plain(Some(Stamp::of(&meta))),
            Ok(_) => NameState::Absent,
            Err(e) if e.kind() == io::ErrorKind::NotFound => NameState::Absent,
            Err(_) => NameState::Plain(None),
        }
    }

    fn is_link(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path().join(name)).is_ok_and(|m| m.file_type().is_symlink())
    }

    /// Whether the name is a plain file with one name. Just created, such a file is still being written,
    /// whereas a link appears complete.
    pub(super) fn is_fresh_file(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path().join(name)).is_ok_and(|m| m.is_file() && m.nlink() == 1)
    }

    /// Whether all writers have closed the file; false if unknown.
    pub(super) fn is_complete(&self, name: &str) -> bool {
        self.open_file(name).is_ok_and(berth_sys::fs::nobody_writes)
    }

    fn open_file(&self, name: &str) -> io::Result<File> {
        // Without O_NONBLOCK, opening a file that was replaced by a FIFO would block.
        OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
            .open(self.path().join(name))
    }

    /// The bytes of a file and their stamp, which is `None` if the file changed while it was read.
    pub(super) fn read(&self, name: &str) -> io::Result<(Vec<u8>, Option<Stamp>)> {
        let mut file = self.open_file(name)?;
        let before = file.metadata()?;
        if !before.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file"));
        }
        if before.size() > MAX_FILE_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("is larger than {MAX_FILE_BYTES} bytes"),
            ));
        }
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(MAX_FILE_BYTES.saturating_add(1)).read_to_end(&mut bytes)?;
        let (before, after) = (Stamp::of(&before), Stamp::of(&file.metadata()?));
        Ok((bytes, (before == after).then_some(after)))
    }
}

/// Whether a name is that of a manifest: by its extension, and for static pods any name. Dot files never are.
pub(super) fn is_manifest(name: &str, mode: Mode) -> bool {
    if name.starts_with('.') {
        return false;
    }
    match mode {
        Mode::StaticPods => true,
        Mode::Manifests => {
            Path::new(name).extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        }
    }
}
