//! What a test makes, and takes away however it ends.

use crate::{Pins, ensure_bpffs};
use nix::mount::{MntFlags, umount2};
use std::path::PathBuf;

/// A BPF file system in a directory of its own.
pub(super) struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    pub(super) fn new() -> Scratch {
        let dir = tempfile::Builder::new().prefix("berth-loader-").tempdir().unwrap();
        let scratch = Scratch { dir };
        ensure_bpffs(&scratch.pins()).unwrap();
        scratch
    }

    fn bpffs(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    pub(super) fn pins(&self) -> Pins {
        Pins::new(self.bpffs().join("berth"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // With its file system every pin goes. A test that failed early may have mounted nothing.
        let _unmounted = umount2(&self.bpffs(), MntFlags::MNT_DETACH);
    }
}
