//! One look at the directory and at its files. Everything goes through one open descriptor, so that all names of a
//! look belong to one directory even while it is being replaced.

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

/// Which directory it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// What changes when a file's content does.
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

    /// Nanoseconds since 1970 of the last change of content.
    pub(super) fn modified_nanos(&self) -> i64 {
        self.modified.0.saturating_mul(1_000_000_000).saturating_add(self.modified.1)
    }
}

/// The manifest files of one look; `None` where one cannot be looked at.
pub(super) type Files = BTreeMap<String, Option<Stamp>>;

/// What one look found.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: Files,
    /// Names that are not UTF-8.
    pub(super) odd: Vec<PathBuf>,
    /// Whether a manifest is a link, or one name of several: what happens to another name may change it.
    pub(super) linked: bool,
}

/// What stands at one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameState {
    /// Nothing that counts: no name, or no regular file.
    Absent,
    /// A plain file with one name; `None` where it cannot be looked at.
    Plain(Option<Stamp>),
    /// Something that other names lead to, or that leads to others: a link, one name of several, a directory.
    Linked,
}

/// The open directory.
pub(super) struct OpenDir {
    handle: File,
    pub(super) identity: FileId,
}

impl OpenDir {
    /// Opens it; something else than a directory is an error.
    pub(super) fn open(dir: &Path) -> io::Result<OpenDir> {
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_CLOEXEC)
            .open(dir)?;
        let meta = handle.metadata()?;
        Ok(OpenDir { identity: FileId { device: meta.dev(), inode: meta.ino() }, handle })
    }

    /// A path to the directory that stays right wherever it is moved, as long as this value lives.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.handle.as_raw_fd()))
    }

    /// Whether the directory's path still leads to it.
    pub(super) fn is_at(&self, dir: &Path) -> bool {
        fs::metadata(dir).is_ok_and(|meta| FileId { device: meta.dev(), inode: meta.ino() } == self.identity)
    }

    /// The manifest files by name, in order; `None` where one cannot be looked at (a dangling link, say). Names that
    /// are not UTF-8 come back apart. Anything but regular files, links followed, is passed over.
    pub(super) fn files(&self, mode: Mode) -> io::Result<Listing> {
        let mut found = Listing::default();
        for entry in fs::read_dir(self.path())? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(text) = name.to_str() else {
                found.odd.push(PathBuf::from(name));
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
                // Gone since it was listed; a dangling link is still there.
                Err(e) if e.kind() == io::ErrorKind::NotFound && !self.is_link(text) => {}
                Err(_) => {
                    found.files.insert(text.to_owned(), None);
                }
            }
        }
        Ok(found)
    }

    /// What stands at one name now.
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

    /// Whether the name is a plain file with one name: one that was just created and is being written. Links appear
    /// complete.
    pub(super) fn is_fresh_file(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path().join(name)).is_ok_and(|m| m.is_file() && m.nlink() == 1)
    }

    /// Whether all of its writers have closed the file. `false` where that cannot be known.
    pub(super) fn is_complete(&self, name: &str) -> bool {
        self.open_file(name).is_ok_and(berth_sys::fs::nobody_writes)
    }

    /// Without O_NONBLOCK a file that became a FIFO since it was listed would hold up everything.
    fn open_file(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
            .open(self.path().join(name))
    }

    /// The file's bytes and their stamp; `None` for the stamp where the file changed while it was read.
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

/// Which names are manifests: by extension, and for static pods all but dot files.
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
