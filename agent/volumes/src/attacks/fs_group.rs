//! `fsGroup` over a tree that changes.

use super::*;

#[test]
fn attack_on_the_walk_of_fs_group() {
    let node = Node::on_tmpfs();
    let outside = Outside::new(&node);
    let dir = node.path().join("volume");
    for name in ["a/b/c", "a/b/d"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    for name in ["secret", "a/secret", "a/b/secret", "a/b/c/secret"] {
        fs::write(dir.join(name), "inside").unwrap();
    }
    let open = |name: &str| crate::os::open_dir(&dir.join(name)).unwrap();
    let (root, a, b) = (open(""), open("a"), open("a/b"));
    symlink(&outside.dir, dir.join("out")).unwrap();
    symlink("/proc/self/root", dir.join("magic")).unwrap();
    symlink(outside.dir.join("b"), dir.join("a/out-b")).unwrap();
    symlink(outside.dir.join("b/secret"), dir.join("a/b/out-secret")).unwrap();
    let names = decoys(&dir.join("a/b"), &outside);
    let attack = |n: u32| match n % 6 {
        0 => exchange(&root, "a", "out"),
        1 => exchange(&root, "a", "magic"),
        2 => exchange(&a, "b", "out-b"),
        3 => exchange(&b, "secret", "out-secret"),
        4 => exchange(&b, "c", "out-secret"),
        _ => exchange(&b, "secret", names[n as usize / 6 % names.len()]),
    };
    race(rounds(2_000), attack, |n| {
        let gid = 4700 + n % 2;
        crate::fs_group::apply(&root, &dir, gid, n % 8 == 0).unwrap();
    });
    outside.assert_untouched();
    assert_eq!(fs::metadata("/dev/null").unwrap().gid(), 0);
    // Once the attack is over all has the group.
    crate::fs_group::apply(&root, &dir, 4712, false).unwrap();
    assert_eq!(rustix::fs::fstat(&b).unwrap().st_gid, 4712);
    outside.assert_untouched();
}
