//! One manifest file: what it holds, what it held when it was last good, and how it is shown.

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

/// See the module's page.
#[derive(Default)]
pub(super) struct ManifestFile {
    /// What was last read, good or bad.
    pub(super) stamp: Option<Stamp>,
    /// The content that was last read.
    hash: Option<ContentHash>,
    pub(super) good: Option<Arc<FileObjects>>,
    /// From before the restart, as long as nothing good was read since.
    pub(super) remembered: Option<LastGood>,
    pub(super) problem: Option<ManifestError>,
    /// Good contents that still have to be written to disk.
    pub(super) to_keep: Option<LastGood>,
    held: Option<HeldObjects>,
}

/// The contents as they are shown while the file is held.
struct HeldObjects {
    why: String,
    of: Arc<FileObjects>,
    shown: Arc<FileObjects>,
}

impl ManifestFile {
    /// A file that is known from before the restart.
    pub(super) fn known(remembered: LastGood) -> ManifestFile {
        ManifestFile { remembered: Some(remembered), ..ManifestFile::default() }
    }

    /// Whether nothing of it was read by this process.
    pub(super) fn unread(&self) -> bool {
        self.stamp.is_none() && self.hash.is_none()
    }

    /// Takes in what the file holds now.
    pub(super) fn read(&mut self, path: &Path, bytes: &[u8], ctx: &ManifestContext, seen: &mut FirstSeen) {
        let hash = last_good::hash(bytes);
        if self.hash.as_ref() == Some(&hash) {
            return;
        }
        match parse(path, bytes, ctx) {
            Ok(parsed) => {
                let (pods, first) = (parsed.pods.len(), self.good.is_none());
                let good = FileObjects::new(parsed, self.good.as_deref(), seen);
                let keep = LastGood { bytes: bytes.to_vec(), hash: hash.clone(), seen: seen.of(&good) };
                if self.remembered.as_ref() != Some(&keep) {
                    self.to_keep = Some(keep);
                }
                self.become_good(good, seen);
                self.remembered = None;
                self.problem = None;
                tracing::info!(file = %path.display(), pods, first, "manifest read");
            }
            Err(problem) => {
                self.bad(path, problem);
                self.recall(path, ctx, seen);
            }
        }
        self.hash = Some(hash);
    }

    /// The file cannot be read.
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
        self.recall(path, ctx, seen);
    }

    fn bad(&mut self, path: &Path, problem: ManifestError) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!(file = %path.display(), error = %problem, "manifest is bad; what it held before stays");
            self.problem = Some(problem);
        }
    }

    /// Without anything good from this run, what is remembered from before the restart counts.
    pub(super) fn recall(&mut self, path: &Path, ctx: &ManifestContext, seen: &mut FirstSeen) {
        if self.good.is_some() {
            return;
        }
        let Some(remembered) = self.remembered.take() else { return };
        seen.extend(&remembered.seen);
        match parse(path, &remembered.bytes, ctx) {
            Ok(parsed) => {
                let good = FileObjects::new(parsed, None, seen);
                self.become_good(good, seen);
            }
            Err(e) => {
                tracing::error!(file = %path.display(), error = %e, "its remembered contents are not valid any more")
            }
        }
    }

    fn become_good(&mut self, good: FileObjects, seen: &mut FirstSeen) {
        seen.enter(&good);
        if let Some(before) = self.good.replace(Arc::new(good)) {
            seen.leave(&before);
        }
    }

    /// The contents as they are to be shown: held where the directory or the file is bad.
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

/// A panic on one file is that file's failure alone.
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
