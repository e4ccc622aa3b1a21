//! One manifest file: what it holds, what it held when it was last good, and how it is shown.

use super::{
    good::Good,
    listing::Stamp,
    remember::{self, ContentHash, Remembered},
    seen::Seen,
};
use crate::{
    ManifestError,
    manifest::{self, Context, Parsed},
};
use std::{panic::AssertUnwindSafe, path::Path, sync::Arc};

/// See the module's page.
#[derive(Default)]
pub(super) struct Record {
    /// What was last read, good or bad.
    pub(super) stamp: Option<Stamp>,
    /// The content that was last read.
    hash: Option<ContentHash>,
    pub(super) good: Option<Arc<Good>>,
    /// From before the restart, as long as nothing good was read since.
    pub(super) remembered: Option<Remembered>,
    pub(super) problem: Option<ManifestError>,
    /// Good contents that still have to be written to disk.
    pub(super) to_keep: Option<Remembered>,
    held: Option<Held>,
}

/// The contents as they are shown while the file is held.
struct Held {
    why: String,
    of: Arc<Good>,
    shown: Arc<Good>,
}

impl Record {
    /// A file that is known from before the restart.
    pub(super) fn known(remembered: Remembered) -> Record {
        Record { remembered: Some(remembered), ..Record::default() }
    }

    /// Whether nothing of it was read by this process.
    pub(super) fn unread(&self) -> bool {
        self.stamp.is_none() && self.hash.is_none()
    }

    /// Takes in what the file holds now.
    pub(super) fn read(&mut self, path: &Path, bytes: &[u8], ctx: &Context, seen: &mut Seen) {
        let hash = remember::hash(bytes);
        if self.hash.as_ref() == Some(&hash) {
            return;
        }
        match parse(path, bytes, ctx) {
            Ok(parsed) => {
                let (pods, first) = (parsed.pods.len(), self.good.is_none());
                let good = Good::new(parsed, self.good.as_deref(), seen);
                let keep = Remembered { bytes: bytes.to_vec(), hash: hash.clone(), seen: seen.of(&good) };
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
    pub(super) fn unreadable(&mut self, path: &Path, error: &std::io::Error, ctx: &Context, seen: &mut Seen) {
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
    pub(super) fn recall(&mut self, path: &Path, ctx: &Context, seen: &mut Seen) {
        if self.good.is_some() {
            return;
        }
        let Some(remembered) = self.remembered.take() else { return };
        seen.extend(&remembered.seen);
        match parse(path, &remembered.bytes, ctx) {
            Ok(parsed) => {
                let good = Good::new(parsed, None, seen);
                self.become_good(good, seen);
            }
            Err(e) => {
                tracing::error!(file = %path.display(), error = %e, "its remembered contents are not valid any more")
            }
        }
    }

    fn become_good(&mut self, good: Good, seen: &mut Seen) {
        seen.enter(&good);
        if let Some(before) = self.good.replace(Arc::new(good)) {
            seen.leave(&before);
        }
    }

    /// The contents as they are to be shown: held where the directory or the file is bad.
    pub(super) fn shown(&mut self, directory: Option<&str>) -> Option<Arc<Good>> {
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
        self.held = Some(Held { why, of: Arc::clone(good), shown: Arc::clone(&shown) });
        Some(shown)
    }
}

/// A panic on one file is that file's failure alone.
fn parse(path: &Path, bytes: &[u8], ctx: &Context) -> Result<Parsed, ManifestError> {
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
