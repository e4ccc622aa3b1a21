//! Hostile shares: files, directories and links that are exchanged while a copy or a removal runs, and a server whose every
//! answer is wrong. `BERTH_ATTACKS` is the number of rounds of each; a short run without it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::{
    copy::copy_tree,
    operations::Operation,
    share::{is_entry, remove_tree},
};
use berth_harness::{
    fuse::{Answers, Attributes, Entry, Fuse, ROOT},
    race::{self, rounds},
    rng::{self, Rng},
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with},
};
use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// In memory: a copy ends with a sync of its file system.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

/// Makes `outside` with a sentinel, and returns it.
fn outside(dir: &Path) -> PathBuf {
    let outside = dir.join("outside");
    fs::create_dir_all(outside.join("e/f")).unwrap();
    for file in ["secret", "e/secret", "e/f/secret"] {
        fs::write(outside.join(file), "SENTINEL").unwrap();
    }
    outside
}

fn assert_untouched(outside: &Path) {
    for (dir, count) in [("", 2), ("e", 2), ("e/f", 1)] {
        assert_eq!(fs::read_dir(outside.join(dir)).unwrap().count(), count);
        assert_eq!(fs::read_to_string(outside.join(dir).join("secret")).unwrap(), "SENTINEL");
    }
}

/// No file of a copy has the sentinel.
fn assert_without_sentinel(copy: &Path) {
    let mut left = vec![copy.to_owned()];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        if found.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if found.is_file() && found.len() < 1 << 20 {
            assert!(!fs::read(&path).unwrap().starts_with(b"SENTINEL"), "{}", path.display());
        }
    }
}

fn race(rounds: u32, attack: impl Fn(u32) -> bool + Sync, round: impl FnMut(u32)) {
    let (rounds, exchanges) = race::race(rounds, attack, round);
    println!("{rounds} rounds, {exchanges} exchanges");
}

fn exchange(dir: &OwnedFd, a: &str, b: &str) -> bool {
    renameat_with(dir, a, dir, b, RenameFlags::EXCHANGE).is_ok()
}

/// Fills a directory with what an attack exchanges. No name of it is one of `outside`, so that the attack itself, which may
/// take a link on its way, changes nothing there.
fn fill(dir: &Path, outside: &Path) {
    fs::create_dir_all(dir.join("d/inner/f")).unwrap();
    for file in ["d/file", "d/inner/file", "d/inner/f/file"] {
        fs::write(dir.join(file), "inside").unwrap();
    }
    symlink(outside, dir.join("out")).unwrap();
    symlink("/proc/self/root", dir.join("magic")).unwrap();
    symlink(outside.join("e"), dir.join("d/out-e")).unwrap();
    symlink(outside.join("secret"), dir.join("d/inner/out-file")).unwrap();
    mknodat(CWD, dir.join("d/inner/fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
}

#[test]
fn attack_on_a_copy_by_exchanges() {
    let dir = in_memory();
    let outside = outside(dir.path());
    let from = dir.path().join("from");
    fill(&from, &outside);
    let (root, d, e) = (open(&from), open(&from.join("d")), open(&from.join("d/inner")));
    let attack = |n: u32| match n % 5 {
        0 => exchange(&root, "d", "out"),
        1 => exchange(&root, "d", "magic"),
        2 => exchange(&d, "inner", "out-e"),
        3 => exchange(&e, "file", "out-file"),
        _ => exchange(&e, "file", "fifo"),
    };
    let mut whole = 0;
    race(rounds(1_000), attack, |n| {
        let to = dir.path().join(format!("to-{n}"));
        fs::create_dir(&to).unwrap();
        whole += u32::from(copy_tree(root.as_fd(), open(&to).as_fd(), &Operation::alone()).is_ok());
        assert_without_sentinel(&to);
        fs::remove_dir_all(&to).unwrap();
    });
    assert!(whole > 50, "{whole} copies came to their end");
    assert_untouched(&outside);
}

#[test]
fn attack_on_a_removal_by_exchanges() {
    let dir = in_memory();
    let outside = outside(dir.path());
    let share = dir.path().join("share");
    fs::create_dir(&share).unwrap();
    let (holder, at) = (open(&share), share.join("v"));
    let attack = |n: u32| {
        let (a, b) = match n % 3 {
            0 => ("d", "out"),
            1 => ("d/inner", "d/out-e"),
            _ => ("d", "magic"),
        };
        renameat_with(CWD, at.join(a), CWD, at.join(b), RenameFlags::EXCHANGE).is_ok()
    };
    race(rounds(1_000), attack, |_| {
        fill(&share.join("new"), &outside);
        fs::rename(share.join("new"), &at).unwrap();
        let mut tries = 0;
        while remove_tree(holder.as_fd(), "v", &Operation::alone()).is_err() {
            tries += 1;
            assert!(tries < 10_000, "the volume stays");
        }
    });
    assert!(!at.exists());
    assert_untouched(&outside);
}

#[test]
fn attack_by_names_that_lead_elsewhere() {
    for (name, is) in [
        (c"a", true),
        (c"...", true),
        (c"..a", true),
        (c"\xff", true),
        (c"", false),
        (c".", false),
        (c"..", false),
        (c"/", false),
        (c"../a", false),
        (c"a/b", false),
        (c"/etc/passwd", false),
    ] {
        assert_eq!(is_entry(name), is, "{name:?}");
    }
}

/// Rounds with one server: the kernel gives one up whose answers contradict each other too much.
const SERIES: u32 = 20;

/// A server that answers by chance.
struct Hostile {
    rng: Rng,
    outside: PathBuf,
}

impl Answers for Hostile {
    /// Another kind, size and inode with each question.
    fn attributes(&mut self, node: u64) -> Attributes {
        let kind = match self.rng.below(12) {
            _ if node == ROOT => 0o040_000,
            0..2 => 0o040_000,
            2..7 => 0o100_000,
            7..9 => 0o120_000,
            9 => 0o010_000,
            10 => 0o140_000,
            _ => 0o020_000,
        };
        // A root of an impossible size is given up by the kernel at once.
        let sizes = [0, 1, 4095, 1 << 20, 1 << 40, u64::MAX >> 1, u64::MAX];
        let size = if node == ROOT { 0 } else { *self.rng.pick(&sizes) };
        let links = u32::try_from(self.rng.below(3)).unwrap();
        Attributes { mode: kind | 0o755, size, links, inode: self.rng.below(4) }
    }

    fn lookup(&mut self, _dir: u64, _name: &[u8]) -> Option<u64> {
        (self.rng.below(8) > 0).then(|| 2 + self.rng.below(20))
    }

    fn entries(&mut self, _dir: u64, from: u64) -> Vec<Entry> {
        let (long, longer, longest) = (vec![b'l'; 255], vec![b'm'; 256], vec![b'n'; 1025]);
        let good: [&[u8]; 7] = [b"a", b"b", b"a", b".", b"..", b"\xff\n", &long];
        let bad: [&[u8]; 8] = [
            b"../outside",
            b"/etc/passwd",
            b"",
            b"e/..",
            b"a\0/../..",
            &longer,
            &longest,
            b"../outside/secret",
        ];
        let left = 6u64.saturating_sub(from);
        let hostile = self.rng.below(3) == 0;
        let mut all = Vec::new();
        for _ in 0..self.rng.below(left + 1) {
            let name =
                if hostile && self.rng.below(3) == 0 { *self.rng.pick(&bad) } else { *self.rng.pick(&good) };
            all.push(Entry { name: name.to_vec(), kind: u8::try_from(self.rng.below(16)).unwrap() });
        }
        all
    }

    fn link(&mut self, _node: u64) -> Vec<u8> {
        let own = self.outside.as_os_str().as_encoded_bytes().to_vec();
        let all = [own, b"/".to_vec(), b"../../../outside/secret".to_vec(), vec![b'x'; 4095], Vec::new()];
        self.rng.pick(&all).clone()
    }

    fn read(&mut self, _node: u64, from: u64, size: u32) -> Vec<u8> {
        let more = if from > 1 << 14 { 0 } else { self.rng.below(u64::from(size.min(5_000)) + 1) };
        vec![b'h'; usize::try_from(more).unwrap()]
    }

    fn remove(&mut self, _dir: u64, _name: &[u8]) -> bool {
        self.rng.below(2) == 0
    }
}

#[test]
fn attack_by_a_server_whose_answers_are_wrong() {
    let dir = in_memory();
    let outside = outside(dir.path());
    let at = dir.path().join("share");
    fs::create_dir(&at).unwrap();
    let seed = rng::seed();
    let (mut whole, mut refused, mut answers) = (0u32, 0u32, 0);
    for series in 0..rounds(300).div_ceil(SERIES) {
        let rng = Rng::new(seed.wrapping_add(u64::from(series)));
        let server = Fuse::mount(&at, Hostile { rng, outside: outside.clone() }).unwrap();
        let root = open(&at);
        for round in 0..SERIES {
            let to = dir.path().join(format!("to-{round}"));
            fs::create_dir(&to).unwrap();
            let operation = Operation::alone();
            match copy_tree(root.as_fd(), open(&to).as_fd(), &operation) {
                Ok(()) => whole += 1,
                Err(_) => refused += 1,
            }
            assert_without_sentinel(&to);
            fs::remove_dir_all(&to).unwrap();
            // Whatever the server says of it, nothing else is removed.
            _ = remove_tree(root.as_fd(), "a", &operation);
        }
        let asked = server.answered();
        assert!(
            asked > u64::from(SERIES),
            "seed {seed}, series {series}: the server was asked {asked} times"
        );
        answers += asked;
    }
    assert!(
        whole > 5 && refused > 5,
        "seed {seed}: {whole} copies came to their end, {refused} were refused"
    );
    assert_untouched(&outside);
    println!("{whole} whole, {refused} refused, {answers} answers");
}
