//! Fixture that is removed however the test ends.

use berth_ebpf_loader::{Pins, ensure_bpffs};
use nix::mount::{MntFlags, umount2};

/// A BPF file system in a directory of its own.
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    /// Mounts the file system.
    pub(crate) fn new() -> Scratch {
        let dir = tempfile::Builder::new().prefix("berth-hooks-").tempdir().unwrap();
        let scratch = Scratch { dir };
        ensure_bpffs(&scratch.pins()).unwrap();
        scratch
    }

    /// Pins in the file system.
    pub(crate) fn pins(&self) -> Pins {
        Pins::new(self.dir.path().join("bpf/berth"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The unmount removes every pin. A test that failed early may have mounted nothing.
        let _unmounted = umount2(&self.dir.path().join("bpf"), MntFlags::MNT_DETACH);
    }
}
