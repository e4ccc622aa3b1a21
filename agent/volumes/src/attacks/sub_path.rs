//! Sub-paths whose directories become links to the node's files, and whose files become FIFOs, devices and links.

use super::*;
use crate::testing::{container_mounts, empty_dir, facts, mount, mounting_all, pod, volume};
use berth_core::model::{Medium, Pod, SubPath, VolumeMount};

/// A pod with one volume, which is mounted, and its directory.
fn with_volume(node: &Node) -> (Pod, PathBuf) {
    let p = mounting_all(Pod { volumes: vec![volume("v", empty_dir(Medium::Disk))], ..pod("web") });
    node.volumes.mount(&p, &facts(), &Default::default()).unwrap();
    let dir = node.volume_dir(&p, "v");
    (p, dir)
}

fn sub(path: SubPath) -> VolumeMount {
    VolumeMount { sub_path: Some(path), ..mount("v", "/x") }
}

#[test]
fn attack_on_sub_paths_by_exchanges_of_directories_and_links() {
    let node = Node::on_tmpfs();
    let outside = Outside::new(&node);
    let forbidden = outside.identities();
    let (p, dir) = with_volume(&node);
    for name in ["a/b/c", "a/b2/c"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    symlink(&outside.dir, dir.join("out")).unwrap();
    symlink("../../../../../../outside", dir.join("up")).unwrap();
    symlink(outside.dir.join("b"), dir.join("a/out-b")).unwrap();
    let (root, a) = (crate::os::open_dir(&dir).unwrap(), crate::os::open_dir(&dir.join("a")).unwrap());
    let (mut bound, mut refused) = (0, 0);
    // Each exchange is followed by its reverse, so that half of the time all is in its place.
    let attack = |n: u32| match n / 2 % 3 {
        0 => exchange(&root, "a", "out"),
        1 => exchange(&root, "a", "up"),
        _ => exchange(&a, "b", "out-b"),
    };
    race_until(rounds(2_000), attack, |n| {
        // Each round another file, so that each round mounts.
        let (plain, expr) = match n % 4 {
            0 => ("a/b/c".to_owned(), "a/b2"),
            1 => ("a/b2/c".to_owned(), "a/b"),
            2 => (format!("a/new-{}", n % 64), "a/b2/c"),
            _ => (format!("a/b/new-{}", n % 64), "a/b/c"),
        };
        let mut c = p.containers[0].clone();
        c.mounts = vec![sub(SubPath::Plain(plain)), sub(SubPath::Expr("$(AT)".into()))];
        let env = [("AT".to_owned(), expr.to_owned())];
        match container_mounts(&node, &p, &c, &env) {
            Ok(mounts) => {
                bound += 1;
                for mounted in &mounts[..2] {
                    assert!(!forbidden.contains(&identity(&mounted.source)), "round {n}");
                    assert!(!mounted.source.join("secret").exists(), "round {n}");
                }
            }
            Err(_) => refused += 1,
        }
        bound > 20 && refused > 20
    });
    outside.assert_untouched();
    println!("{bound} bound, {refused} refused");
    assert!(bound > 20 && refused > 20, "no race: {bound} bound, {refused} refused");
}

#[test]
fn attack_on_sub_paths_by_files_of_other_kinds() {
    let node = Node::on_tmpfs();
    let outside = Outside::new(&node);
    let forbidden = outside.identities();
    let (p, dir) = with_volume(&node);
    for name in ["one", "two"] {
        fs::write(dir.join(name), "inside").unwrap();
    }
    let names = decoys(&dir, &outside);
    let root = crate::os::open_dir(&dir).unwrap();
    let mut bound = 0;
    let attack = |n: u32| {
        let decoy = names[n as usize % names.len()];
        exchange(&root, ["one", "two"][n as usize / names.len() % 2], decoy)
    };
    race_until(rounds(2_000), attack, |n| {
        let mut c = p.containers[0].clone();
        c.mounts = vec![sub(SubPath::Plain(["one", "two"][n as usize % 2].into()))];
        if let Ok(mounts) = container_mounts(&node, &p, &c, &[]) {
            bound += 1;
            assert!(!forbidden.contains(&identity(&mounts[0].source)), "round {n}");
        }
        bound > 20
    });
    outside.assert_untouched();
    println!("{bound} bound");
    assert!(bound > 20, "no race: {bound} bound");
}
