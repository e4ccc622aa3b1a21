//! Marks of this boot: whether a call of a driver was begun or has succeeded, and the size of the volume on this node.

use super::paths::CsiPaths;
use crate::layout::NODE_DIR;
use berth_core::{ids::PodUid, volume::steps::Progress};
use berth_sys::{
    failpoint::step,
    fs::{read_to_string_limited, remove_if_there, write_atomic},
};
use std::{io, path::PathBuf};

/// The mark with the volume's size.
const SIZE: &str = "size";

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

    /// The size that the volume has on this node, in bytes; `None` where this boot has not told it.
    pub(super) fn size(&self) -> Option<i64> {
        read_to_string_limited(&self.marks.join(SIZE), 64).ok()?.parse().ok()
    }

    /// Takes the size of a volume that is mounted.
    pub(super) fn set_size(&self, bytes: i64) -> io::Result<()> {
        crate::os::make_dirs(&self.marks, NODE_DIR)?;
        crate::os::sys(write_atomic(&self.marks.join(SIZE), bytes.to_string().as_bytes(), 0o600))
    }

    /// Forgets the size.
    pub(super) fn forget_size(&self) -> io::Result<()> {
        remove_if_there(&self.marks.join(SIZE))
    }

    /// Marks a progress, or removes the mark.
    pub(super) fn set_mark(&self, mark: Mark<'_>, progress: Progress) -> io::Result<()> {
        let path = self.mark(mark);
        let text = match progress {
            Progress::None => {
                step("remove-mark", || remove_if_there(&path))?;
                if super::record::names(&self.marks)? == [SIZE] {
                    self.forget_size()?;
                }
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
