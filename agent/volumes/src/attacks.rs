//! Attacks of containers on what the node does with their volumes, each repeated while another thread exchanges files,
//! directories, links, FIFOs and devices. `BERTH_ATTACKS` is the number of rounds of each; a short run without it.
//!
//! What may not be touched lies in [`Outside`]. A round that blocks ends the process, so that it does not go unseen; a race
//! without exchanges fails.

mod fs_group;
mod host_path;
mod keys;
mod special_files;
mod sub_path;
mod teardown;
mod versions;

use crate::testing::Node;
use berth_harness::race::{self, BLOCKED, Stop, abort_after, rounds};
use rustix::{
    fd::AsFd,
    fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with},
};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The same as [`berth_harness::race::race`], and prints how many rounds and exchanges there were.
fn race(rounds: u32, attack: impl Fn(u32) -> bool + Sync, round: impl FnMut(u32)) {
    tell(race::race(rounds, attack, round));
}

/// The same as [`berth_harness::race::race_until`], and prints how many rounds and exchanges there were.
fn race_until(rounds: u32, attack: impl Fn(u32) -> bool + Sync, round: impl FnMut(u32) -> bool) {
    tell(race::race_until(rounds, attack, round));
}

fn tell((rounds, exchanges): (u32, u32)) {
    println!("{rounds} rounds, {exchanges} exchanges");
}

/// Runs something that must not block.
pub(crate) fn at_once<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let begun = Instant::now();
            while !done.load(Relaxed) {
                abort_after(BLOCKED, begun, what);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let _stop = Stop(&done);
        work()
    })
}

/// Exchanges two entries of a directory.
fn exchange(dir: impl AsFd, a: &str, b: &str) -> bool {
    renameat_with(&dir, a, &dir, b, RenameFlags::EXCHANGE).is_ok()
}

fn fifo(at: &Path) {
    mknodat(CWD, at, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// A character device that reads as empty.
fn null(at: &Path) {
    mknodat(CWD, at, FileType::CharacterDevice, Mode::from_raw_mode(0o600), 0x103).unwrap();
}

/// Makes what a container may put in the place of a file, below a directory. Returns the names.
fn decoys(dir: &Path, outside: &Outside) -> [&'static str; 5] {
    symlink(outside.dir.join("secret"), dir.join("x-link")).unwrap();
    symlink(outside.dir.join("new"), dir.join("x-dangling")).unwrap();
    fifo(&dir.join("x-fifo"));
    null(&dir.join("x-null"));
    fs::create_dir(dir.join("x-dir")).unwrap();
    ["x-link", "x-dangling", "x-fifo", "x-null", "x-dir"]
}

/// A directory outside of all volumes. Nothing in it may be read, mounted, changed or removed.
struct Outside {
    dir: PathBuf,
    before: Vec<String>,
}

impl Outside {
    fn new(node: &Node) -> Outside {
        let dir = node.path().join("outside");
        fs::create_dir_all(dir.join("b/c")).unwrap();
        for file in ["secret", "b/secret", "b/c/secret"] {
            fs::write(dir.join(file), "precious").unwrap();
        }
        let before = state(&dir);
        Outside { dir, before }
    }

    /// Its files, by device and inode.
    fn identities(&self) -> BTreeSet<(u64, u64)> {
        ["", "secret", "b", "b/secret", "b/c", "b/c/secret"].map(|at| identity(&self.dir.join(at))).into()
    }

    fn assert_untouched(&self) {
        assert_eq!(state(&self.dir), self.before);
    }
}

fn identity(path: &Path) -> (u64, u64) {
    let found = fs::metadata(path).unwrap();
    (found.dev(), found.ino())
}

/// Everything that a change would show, but for times of access.
fn state(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let text = if found.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
        let (mode, uid, gid, changed) =
            (found.mode(), found.uid(), found.gid(), (found.ctime(), found.ctime_nsec()));
        all.push(format!("{} {mode:o} {uid} {gid} {changed:?} {text}", path.display()));
        if found.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    all.sort();
    all
}
