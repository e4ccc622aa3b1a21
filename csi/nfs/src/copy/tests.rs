#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use super::*;
use proptest::prelude::*;
use rustix::fs::{CWD, XattrFlags, lgetxattr, setxattr};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
};

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn copied(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir_in(from.parent().unwrap()).unwrap();
    copy_tree(open(from).as_fd(), open(to.path()).as_fd(), &Operation::alone()).unwrap();
    to
}

/// All that a pod can see of a tree, by path.
fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut names: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).unwrap();
        let mut text = format!(
            "{:o} {}:{} {} {}.{} {:x}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            if meta.is_dir() { 0 } else { meta.size() },
            meta.mtime(),
            meta.mtime_nsec(),
            meta.rdev()
        );
        if meta.is_file() {
            text.push_str(&format!(" {:x}", crc(&fs::read(&full).unwrap())));
        }
        if meta.is_symlink() {
            text.push_str(&format!(" -> {:?}", fs::read_link(&full).unwrap()));
        }
        if !meta.is_dir() && meta.nlink() > 1 {
            let first = names.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone());
            text.push_str(&format!(" = {first:?}"));
        }
        let mut value = [0; 64];
        if let Ok(length) = lgetxattr(&full, "user.test", value.as_mut_slice()) {
            text.push_str(&format!(" {:?}", &value[..length]));
        }
        if meta.is_dir() {
            let mut entries: Vec<_> =
                fs::read_dir(&full).unwrap().map(|e| path.join(e.unwrap().file_name())).collect();
            entries.sort();
            entries.reverse();
            left.extend(entries);
        }
        found.insert(path, text);
    }
    found
}

fn crc(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(14_695_981_039_346_656_037, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(1_099_511_628_211))
}

#[test]
fn a_copy_has_all_that_can_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("a/b")).unwrap();
    fs::write(from.join("a/file"), "content").unwrap();
    fs::hard_link(from.join("a/file"), from.join("a/b/same")).unwrap();
    symlink("/etc/passwd", from.join("out")).unwrap();
    symlink("nowhere", from.join("a/dangling")).unwrap();
    for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
        mknodat(CWD, from.join(name), kind, Mode::from_raw_mode(0o640), 0).unwrap();
    }
    mknodat(CWD, from.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), 0x103).unwrap();
    fs::write(from.join("setuid"), "x").unwrap();
    chown(from.join("setuid"), Some(1000), Some(2000)).unwrap();
    fs::set_permissions(from.join("setuid"), fs::Permissions::from_mode(0o4751)).unwrap();
    chown(from.join("a/b"), Some(7), Some(8)).unwrap();
    fs::set_permissions(from.join("a/b"), fs::Permissions::from_mode(0o1577)).unwrap();
    fs::write(from.join(std::ffi::OsStr::from_bytes(b"no\xffutf8\n")), "n").unwrap();
    _ = setxattr(from.join("a/file"), "user.test", b"value", XattrFlags::empty());
    File::open(from.join("a")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let copy = copied(&from);
    assert!(seen(&from).len() > 10);
    assert_eq!(seen(&from), seen(copy.path()));
}

#[test]
fn holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    let file = File::create(from.join("sparse")).unwrap();
    file.write_at(b"begin", 0).unwrap();
    file.write_at(b"middle", 40 << 20).unwrap();
    file.set_len(100 << 20).unwrap();
    File::create(from.join("empty")).unwrap().set_len(10 << 20).unwrap();
    let copy = copied(&from);
    for name in ["sparse", "empty"] {
        let (old, new) = (from.join(name).metadata().unwrap(), copy.path().join(name).metadata().unwrap());
        assert_eq!(old.size(), new.size());
        assert!(new.blocks() <= old.blocks() + 16, "{name}: {} blocks became {}", old.blocks(), new.blocks());
    }
    assert_eq!(seen(&from), seen(copy.path()));
}

#[test]
fn a_copy_by_hand_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    fs::write(path("a"), &bytes).unwrap();
    // Another file system, which copy_file_range refuses.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let to = File::create(memory.path().join("b")).unwrap();
    let mut told = 0;
    let from = File::open(path("a")).unwrap();
    let done = content::copy(from.as_fd(), to.as_fd(), bytes.len() as u64, true, |n| {
        told += n;
        Ok(())
    });
    assert!(done.is_ok());
    assert_eq!(told, bytes.len() as u64);
    assert_eq!(fs::read(memory.path().join("b")).unwrap(), bytes);
    // A file that shrinks while it is copied keeps its size, with a hole.
    let done = content::copy(from.as_fd(), to.as_fd(), bytes.len() as u64 + 5000, false, |_| Ok(()));
    assert!(done.is_ok());
    assert_eq!(fs::metadata(memory.path().join("b")).unwrap().len(), bytes.len() as u64 + 5000);
}

#[test]
fn a_copy_that_is_to_end_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("a")).unwrap();
    fs::create_dir(&to).unwrap();
    let operation = Operation::alone();
    operation.cancel();
    let ended = copy_tree(open(&from).as_fd(), open(&to).as_fd(), &operation);
    assert!(matches!(ended, Err(Error::Cancelled(_))), "{ended:?}");
}

/// In memory: a copy ends with a sync of its file system.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

#[derive(Debug, Clone)]
enum Entry {
    File(Vec<u8>, u32),
    Sparse(u64),
    Link(String),
    Fifo,
    Dir(BTreeMap<String, Entry>, u32),
}

fn entries() -> impl Strategy<Value = BTreeMap<String, Entry>> {
    let leaf = prop_oneof![
        (proptest::collection::vec(any::<u8>(), 0..200), 0u32..0o10000).prop_map(|(b, m)| Entry::File(b, m)),
        (0u64..1 << 22).prop_map(Entry::Sparse),
        "[a-z./]{1,20}".prop_map(Entry::Link),
        Just(Entry::Fifo),
    ];
    let tree = leaf.prop_recursive(4, 40, 6, |inner| {
        (proptest::collection::btree_map("[ -.0-~]{1,8}", inner, 0..6), 0u32..0o10000)
            .prop_map(|(m, mode)| Entry::Dir(m, mode))
    });
    proptest::collection::btree_map("[a-z]{1,4}", tree, 0..8)
}

fn make(dir: &Path, entries: &BTreeMap<String, Entry>) {
    for (name, entry) in entries.iter().filter(|(n, _)| !matches!(n.as_str(), "." | "..")) {
        let path = dir.join(name);
        match entry {
            Entry::File(bytes, mode) => {
                fs::write(&path, bytes).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
            }
            Entry::Sparse(size) => File::create(&path).unwrap().set_len(*size).unwrap(),
            Entry::Link(to) => symlink(to, &path).unwrap(),
            Entry::Fifo => mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            Entry::Dir(below, mode) => {
                fs::create_dir(&path).unwrap();
                make(&path, below);
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    #[test]
    fn every_tree_is_equal_after_its_copy(entries in entries()) {
        let dir = in_memory();
        let from = dir.path().join("from");
        fs::create_dir(&from).unwrap();
        make(&from, &entries);
        let copy = copied(&from);
        prop_assert_eq!(seen(&from), seen(copy.path()));
    }
}
