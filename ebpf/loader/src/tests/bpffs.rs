//! Mounting and unmounting of the file system below the pins.

use crate::{
    Error, Pins, detach, ensure_bpffs,
    pins::{lock, make_dir},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{fs, path::PathBuf, thread, time::Duration};

/// A directory on which file systems are mounted; dropping it unmounts all of them, however the test ends.
struct Point(tempfile::TempDir);

impl Point {
    fn new() -> Point {
        Point(tempfile::Builder::new().prefix("berth-bpffs-").tempdir().unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("bpf")
    }

    fn pins(&self, name: &str) -> Pins {
        Pins::new(self.dir().join(name))
    }

    fn mounted(&self) -> usize {
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let dir = self.dir();
        mounts.lines().filter(|line| line.split(' ').nth(1) == dir.to_str()).count()
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        while umount2(&self.dir(), MntFlags::MNT_DETACH).is_ok() {}
    }
}

#[test]
fn the_last_who_leaves_unmounts_whoever_mounted() {
    let point = Point::new();
    let (first, second) = (point.pins("first"), point.pins("second"));
    ensure_bpffs(&first).unwrap();
    ensure_bpffs(&second).unwrap();
    detach(&first).unwrap();
    assert_eq!(point.mounted(), 1, "unmounted under another");
    assert!(second.root().is_dir());
    detach(&second).unwrap();
    assert_eq!(point.mounted(), 0, "left mounted");
    detach(&second).unwrap();
}

#[test]
fn what_was_mounted_before_stays() {
    let point = Point::new();
    fs::create_dir(point.dir()).unwrap();
    mount(Some("bpf"), &point.dir(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    ensure_bpffs(&point.pins("a")).unwrap();
    detach(&point.pins("a")).unwrap();
    assert_eq!(point.mounted(), 1);
}

#[test]
fn a_volume_of_a_container_gets_no_file_system_that_would_end_with_it() {
    let point = Point::new();
    fs::create_dir(point.dir()).unwrap();
    let none = None::<&str>;
    mount(Some(&point.dir()), &point.dir(), none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &point.dir(), none, MsFlags::MS_PRIVATE, none).unwrap();
    let refused = ensure_bpffs(&point.pins("a")).unwrap_err();
    assert!(matches!(refused, Error::BpffsOfContainer { .. }), "{refused}");
    assert!(
        refused.to_string().ends_with(&format!("mount -t bpf bpf {}", point.dir().display())),
        "{refused}"
    );
    assert_eq!(point.mounted(), 1, "nothing is mounted over the volume");
}

#[test]
fn others_files_keep_it_mounted() {
    let point = Point::new();
    ensure_bpffs(&point.pins("a")).unwrap();
    let others = point.dir().join("others");
    fs::create_dir(&others).unwrap();
    detach(&point.pins("a")).unwrap();
    assert_eq!(point.mounted(), 1, "another's directory was taken away");
    fs::remove_dir(&others).unwrap();
    let open = fs::File::open(point.dir()).unwrap();
    detach(&point.pins("a")).unwrap();
    assert_eq!(point.mounted(), 1, "unmounted under an open file");
    drop(open);
    detach(&point.pins("a")).unwrap();
    assert_eq!(point.mounted(), 0);
}

#[test]
fn who_comes_and_goes_at_once_never_loses_its_pins() {
    let point = Point::new();
    thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let pins = point.pins(name);
            scope.spawn(move || {
                for round in 0..100 {
                    ensure_bpffs(&pins).unwrap();
                    let at = statfs(pins.root()).unwrap().filesystem_type();
                    assert_eq!(at, BPF_FS_MAGIC, "round {round} of {name}");
                    fs::create_dir(pins.root().join("mine")).unwrap();
                    detach(&pins).unwrap();
                }
            });
        }
    });
    assert_eq!(point.mounted(), 0);
}

/// A killed agent leaves a loading child for a moment, and the child still creates pins.
#[test]
fn what_is_removed_was_made_to_its_end() {
    let point = Point::new();
    for round in 0..20 {
        let pins = point.pins("a");
        ensure_bpffs(&pins).unwrap();
        let loading = lock(pins.root(), Duration::from_secs(20)).unwrap().unwrap();
        thread::scope(|scope| {
            let removed = scope.spawn(|| detach(&pins));
            for n in 0..200 {
                make_dir(&pins.root().join(n.to_string())).unwrap();
            }
            drop(loading);
            removed.join().unwrap().unwrap();
        });
        assert!(!pins.root().exists(), "round {round}");
    }
    assert_eq!(point.mounted(), 0);
}
