//! One manifest file: its current problem, its last good objects, and how they are shown.

use super::{
    file_objects::FileObjects,
    first_seen::FirstSeen,
    last_good::{self, ContentHash, LastGood},
    listing::Stamp,
};
use crate::{
    ManifestError,
    manifest::{self, ManifestContext, ParsedFile},
};
use std::{panic::AssertUnwindSafe, path::Path, sync::Arc};

/// State of one manifest file.
#[derive(Default)]
pub(super) struct ManifestFile {
    /// Stamp of the version that was last read, good or bad.
    pub(super) stamp: Option<Stamp>,
    /// Hash of the bytes that were last read.
    hash: Option<ContentHash>,
    /// The objects of the last good version.
    pub(super) good: Option<Arc<FileObjects>>,
    /// The last good version from before the restart, until a good version is read.
    pub(super) saved: Option<LastGood>,
    /// Why the current version is bad.
    pub(super) problem: Option<ManifestError>,
    /// A good version that has yet to be written to disk.
    pub(super) unsaved: Option<LastGood>,
    /// The last result of [`ManifestFile::shown`] for a held file.
    held: Option<HeldObjects>,
}

/// The objects as they are shown while the file is held.
struct HeldObjects {
    why: String,
    of: Arc<FileObjects>,
    shown: Arc<FileObjects>,
}

impl ManifestFile {
    /// A file of which a good version is known from before the restart.
    pub(super) fn saved(saved: LastGood) -> ManifestFile {
        ManifestFile { saved: Some(saved), ..ManifestFile::default() }
    }

    /// Whether this process has not read the file yet.
    pub(super) fn unread(&self) -> bool {
        self.stamp.is_none() && self.hash.is_none()
    }

    /// Parses the current bytes of the file.
    pub(super) fn read(&mut self, path: &Path, bytes: &[u8], ctx: &ManifestContext, seen: &mut FirstSeen) {
        let hash = last_good::hash(bytes);
        if self.hash.as_ref() == Some(&hash) {
            return;
        }
        match parse(path, bytes, ctx) {
            Ok(parsed) => {
                let (pods, first) = (parsed.pods.len(), self.good.is_none());
                let good = FileObjects::new(parsed, self.good.as_deref(), seen);
                let keep = LastGood { bytes: bytes.to_vec(), hash: hash.clone(), seen: seen.of(good.uids()) };
                if self.saved.as_ref() != Some(&keep) {
                    self.unsaved = Some(keep);
                }
                self.set_good(good, seen);
                self.saved = None;
                self.problem = None;
                tracing::info!(file = %path.display(), pods, first, "manifest read");
            }
            Err(problem) => {
                self.bad(path, problem);
                self.restore(path, ctx, seen);
            }
        }
        self.hash = Some(hash);
    }

    /// Takes note that the file cannot be read.
    pub(super) fn unreadable(
        &mut self,
        path: &Path,
        error: &std::io::Error,
        ctx: &ManifestContext,
        seen: &mut FirstSeen,
    ) {
        (self.stamp, self.hash) = (None, None);
        let reason = format!("cannot be read: {error}");
        let problem = ManifestError { file: path.to_owned(), document: None, field: None, reason };
        self.bad(path, problem);
        self.restore(path, ctx, seen);
    }

    fn bad(&mut self, path: &Path, problem: ManifestError) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!(file = %path.display(), error = %problem, "manifest rejected: the objects of its last good version stay; correct the file");
            self.problem = Some(problem);
        }
    }

    /// Falls back to the good version from before the restart, if this process has read no good version.
    pub(super) fn restore(&mut self, path: &Path, ctx: &ManifestContext, seen: &mut FirstSeen) {
        if self.good.is_some() {
            return;
        }
        let Some(saved) = self.saved.take() else { return };
        seen.extend(&saved.seen);
        match parse(path, &saved.bytes, ctx) {
            Ok(parsed) => {
                let good = FileObjects::new(parsed, None, seen);
                self.set_good(good, seen);
            }
            Err(e) => {
                tracing::error!(file = %path.display(), error = %e, "cannot use the saved last good version of the manifest: this version of Berth does not accept it")
            }
        }
    }

    fn set_good(&mut self, good: FileObjects, seen: &mut FirstSeen) {
        seen.enter(good.uids());
        if let Some(before) = self.good.replace(Arc::new(good)) {
            seen.leave(before.uids());
        }
    }

    /// The objects as they are shown: held while the directory or the file is bad.
    pub(super) fn shown(&mut self, directory: Option<&str>) -> Option<Arc<FileObjects>> {
        let good = self.good.as_ref()?;
        let why = directory.map(str::to_owned).or_else(|| self.problem.as_ref().map(ToString::to_string));
        let Some(why) = why else {
            self.held = None;
            return Some(Arc::clone(good));
        };
        if let Some(held) = self.held.as_ref().filter(|h| h.why == why && Arc::ptr_eq(&h.of, good)) {
            return Some(Arc::clone(&held.shown));
        }
        let shown = Arc::new(good.held(&why));
        self.held = Some(HeldObjects { why, of: Arc::clone(good), shown: Arc::clone(&shown) });
        Some(shown)
    }
}

/// Parses a file. A panic of the parser makes that one file bad and leaves the others alone.
fn parse(path: &Path, bytes: &[u8], ctx: &ManifestContext) -> Result<ParsedFile, ManifestError> {
    std::panic::catch_unwind(AssertUnwindSafe(|| manifest::parse_file(path, bytes, ctx))).unwrap_or_else(
        |_| {
            Err(ManifestError {
                file: path.to_owned(),
                document: None,
                field: None,
                reason: "cannot be read because of a defect in its reader".to_owned(),
            })
        },
    )
}
