//! Test fixtures that are removed however the test ends.

use crate::{OBJECT, Pins, ensure_bpffs};
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, unshare},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

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

    /// A file outside of the BPF file system.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The unmount removes every pin. A test that failed early may have mounted nothing.
        let _unmounted = umount2(&self.bpffs(), MntFlags::MNT_DETACH);
    }
}

/// A new cgroup of version 2, removed when dropped.
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    pub(super) fn new() -> Cgroup {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = PathBuf::from(fields.find(|fields| fields[2] == "cgroup2").unwrap()[1]);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("berth-loader-{}-{next}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Cgroup(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).unwrap();
    }
}

/// An object that differs only in its digest.
pub(super) fn other_build(number: u8) -> Vec<u8> {
    // Bytes behind the last section belong to none.
    OBJECT.iter().copied().chain([number; 8]).collect()
}

/// Runs `work` on a thread in a new network namespace, in which `lo` is up.
pub(super) fn in_new_netns<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        work()
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap())
}

/// Runs ip(8) in the calling thread's network namespace.
pub(super) fn ip(args: &str) {
    let done = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
}
