use super::*;
use crate::testing::Node;
use berth_harness::race::Stop;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{
    fs,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, symlink},
    },
    sync::atomic::{AtomicBool, Ordering},
};

#[test]
fn a_sub_path_may_not_be_absolute_or_have_dot_dot() {
    for (text, path) in [("a", "a"), ("a/b/", "a/b"), ("./a//b", "a/b"), (".", ""), ("a..b/..c", "a..b/..c")]
    {
        assert_eq!(normal(text).unwrap(), Path::new(path), "{text}");
    }
    for bad in ["/a", "..", "a/../b", "a/..", "a\0b"] {
        assert!(normal(bad).is_err(), "{bad:?}");
    }
    let env = [("A", "x"), ("E", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(expand("$(A)/$$(A)/$(A)", &env).unwrap(), "x/$(A)/x");
    assert_eq!(expand("$(Z)/$(E)/$(A)/$(Z)", &env).unwrap_err(), ["E", "Z"]);
}

struct Tree {
    node: Node,
    volume: PathBuf,
    outside: PathBuf,
}

fn tree() -> Tree {
    let node = Node::new();
    let (volume, outside) = (node.path().join("volume"), node.path().join("outside"));
    fs::create_dir_all(volume.join("a/b")).unwrap();
    fs::create_dir_all(outside.join("b")).unwrap();
    fs::write(outside.join("b/secret"), "").unwrap();
    fs::write(volume.join("file"), "").unwrap();
    symlink("a/b", volume.join("inner")).unwrap();
    symlink(&outside, volume.join("outer")).unwrap();
    symlink("../outside", volume.join("upper")).unwrap();
    symlink("nowhere", volume.join("dangling")).unwrap();
    Tree { node, volume, outside }
}

fn ino(path: &Path) -> (u64, u64) {
    let m = fs::metadata(path).unwrap();
    (m.dev(), m.ino())
}

#[test]
fn a_sub_path_never_leads_out_of_its_volume() {
    let t = tree();
    let root = os::open_dir(&t.volume).unwrap();
    for (path, target) in [("a/b", "a/b"), ("inner", "a/b"), ("file", "file"), ("", "")] {
        let fd = resolve_or_make(root.as_fd(), Path::new(path), 0o777).unwrap();
        let stat = rustix::fs::fstat(fd).unwrap();
        assert_eq!((stat.st_dev, stat.st_ino), ino(&t.volume.join(target)), "{path}");
    }
    for bad in ["outer", "outer/b", "outer/new", "upper/b", "dangling", "dangling/x", "file/x"] {
        let e = resolve_or_make(root.as_fd(), Path::new(bad), 0o777);
        assert!(e.is_err(), "{bad}");
    }
    assert_eq!(fs::read_dir(&t.outside).unwrap().count(), 1);
}

#[test]
fn missing_directories_are_made_like_the_volume() {
    let t = tree();
    let root = os::open_dir(&t.volume).unwrap();
    resolve_or_make(root.as_fd(), Path::new("inner/x/y"), 0o2770).unwrap();
    for made in ["a/b/x", "a/b/x/y"] {
        assert_eq!(fs::metadata(t.volume.join(made)).unwrap().mode() & 0o7777, 0o2770, "{made}");
    }
}

#[test]
fn a_bind_is_kept_while_it_is_the_same_file() {
    let t = tree();
    let target = t.node.path().join("targets/0");
    let open =
        |p: &str| rustix::fs::open(t.volume.join(p), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    bind(open("a"), &target).unwrap();
    assert_eq!(ino(&target), ino(&t.volume.join("a")));
    bind(open("a"), &target).unwrap();
    assert_eq!(t.node.mounts().len(), 1);
    // The source becomes a file instead of a directory, and the target must change its type too.
    bind(open("file"), &target).unwrap();
    assert_eq!(ino(&target), ino(&t.volume.join("file")));
    assert_eq!(t.node.mounts().len(), 1);
    bind(open("a/b"), &target).unwrap();
    assert_eq!((ino(&target), t.node.mounts().len()), (ino(&t.volume.join("a/b")), 1));
}

#[test]
fn an_exchange_race_never_leads_outside() {
    const ROUNDS: u32 = 20_000;
    let t = tree();
    let root = os::open_dir(&t.volume).unwrap();
    let target = t.node.path().join("targets/0");
    let outside = [ino(&t.outside), ino(&t.outside.join("b"))];
    let real = fs::canonicalize(&t.volume).unwrap();
    let done = AtomicBool::new(false);
    let (mut inside, mut refused) = (0u32, 0u32);
    std::thread::scope(|s| {
        s.spawn(|| {
            let (a, outer) = (t.volume.join("a"), t.volume.join("outer"));
            while !done.load(Ordering::Acquire) {
                renameat_with(CWD, &a, CWD, &outer, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let _stop = Stop(&done);
        let mut round = 0;
        // The other thread may not run for many rounds; both outcomes must have occurred often enough.
        while round < ROUNDS || (inside.min(refused) < 500 && round < 100 * ROUNDS) {
            round += 1;
            let path = if round % 8 == 0 { format!("a/n{}", round % 512) } else { "a/b".to_owned() };
            let fd = match resolve_or_make(root.as_fd(), Path::new(&path), 0o755) {
                Ok(fd) => fd,
                Err(_) => {
                    refused += 1;
                    std::thread::yield_now();
                    continue;
                }
            };
            let stat = rustix::fs::fstat(&fd).unwrap();
            assert!(!outside.contains(&(stat.st_dev, stat.st_ino)), "round {round}");
            // The kernel shows the path of the opened file: in the volume, under either of the two names.
            let at = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
            assert!(at.starts_with(&real), "round {round}: {at:?}");
            bind(&fd, &target).unwrap();
            assert_eq!(ino(&target), (stat.st_dev, stat.st_ino), "round {round}");
            assert!(!target.join("secret").exists(), "round {round}");
            inside += 1;
        }
    });
    assert!(inside >= 500 && refused >= 500, "no race: {inside} inside, {refused} refused");
    assert_eq!(fs::read_dir(&t.outside).unwrap().count(), 1, "nothing was made outside");
    assert_eq!(fs::read_dir(t.outside.join("b")).unwrap().count(), 1);
}
