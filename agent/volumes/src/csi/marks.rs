//! Marks of this boot: whether a call of a driver was begun or has succeeded.

use super::paths::CsiPaths;
use crate::layout::NODE_DIR;
use berth_core::{ids::PodUid, volume::steps::Progress};
use berth_sys::{
    failpoint::step,
    fs::{read_to_string_limited, remove_if_there, write_atomic},
};
use std::{io, path::PathBuf};

/// What a mark is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mark<'a> {
    Staged,
    Published(&'a PodUid),
}

impl CsiPaths {
    fn mark(&self, mark: Mark<'_>) -> PathBuf {
        match mark {
            Mark::Staged => self.marks.join("staged"),
            Mark::Published(pod) => self.marks.join(format!("published-{pod}")),
        }
    }

    /// The progress that this boot has marked; `None` if it has marked nothing.
    pub(super) fn marked(&self, mark: Mark<'_>) -> Option<Progress> {
        let text = read_to_string_limited(&self.mark(mark), 64).ok()?;
        // A torn mark counts as begun.
        Some(if text == "done" { Progress::Done } else { Progress::Uncertain })
    }

    /// Marks a progress, or removes the mark.
    pub(super) fn set_mark(&self, mark: Mark<'_>, progress: Progress) -> io::Result<()> {
        let path = self.mark(mark);
        let text = match progress {
            Progress::None => {
                step("remove-mark", || remove_if_there(&path))?;
                return match std::fs::remove_dir(&self.marks) {
                    // Other marks of the volume are there.
                    Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                    other => other,
                };
            }
            Progress::Uncertain => "begun",
            Progress::Done => "done",
        };
        crate::os::make_dirs(&self.marks, NODE_DIR)?;
        crate::os::sys(step("write-mark", || write_atomic(&path, text.as_bytes(), 0o600)))
    }
}
