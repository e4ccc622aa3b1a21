//! The end of a pod whose containers still change its volumes.

use super::*;
use crate::testing::{empty_dir, facts, mounting_all, pod, volume};
use berth_core::model::{Medium, Objects, Pod};
use berth_sys::mount::{BindOpts, bind, is_mount_point};

fn with_volume(node: &Node) -> (Pod, PathBuf) {
    let p = mounting_all(Pod { volumes: vec![volume("v", empty_dir(Medium::Disk))], ..pod("web") });
    let dir = node.volume_dir(&p, "v");
    (p, dir)
}

/// Takes the pod's directory down, as its worker does: again until it succeeds.
fn unmount(node: &Node, p: &Pod) -> u32 {
    for tries in 1..10_000 {
        if node.volumes.unmount(&p.uid).is_ok() {
            return tries;
        }
    }
    panic!("the pod's directory stays: {:?}", node.volumes.unmount(&p.uid));
}

#[test]
fn attack_on_the_removal_of_a_pods_directory() {
    let node = Node::on_tmpfs();
    let outside = Outside::new(&node);
    let (p, dir) = with_volume(&node);
    let attack = |n: u32| {
        let (a, b) = match n % 3 {
            0 => ("d", "out"),
            1 => ("d/e", "d/out-e"),
            _ => ("d", "up"),
        };
        renameat_with(CWD, dir.join(a), CWD, dir.join(b), RenameFlags::EXCHANGE).is_ok()
    };
    let mut again = 0;
    race(rounds(500), attack, |_| {
        node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap();
        // Under another name until it is whole, so that the attack does not disturb its making.
        let new = dir.join("new");
        fs::create_dir_all(new.join("e/b")).unwrap();
        for n in 0..8 {
            fs::write(new.join(format!("file-{n}")), "").unwrap();
            fs::write(new.join(format!("e/b/file-{n}")), "").unwrap();
        }
        symlink(outside.dir.join("b"), new.join("out-e")).unwrap();
        symlink(&outside.dir, dir.join("out")).unwrap();
        symlink("../../../../../../outside", dir.join("up")).unwrap();
        fs::rename(&new, dir.join("d")).unwrap();
        again += u32::from(unmount(&node, &p) > 1);
    });
    outside.assert_untouched();
    assert!(!node.pod_dir(&p).exists());
    println!("{again} removals had to be tried again");
}

/// A privileged container has mounted something in its volume, and lets the path of that mount lead to one of the node's.
#[test]
fn attack_on_the_unmounting_of_a_pods_directory() {
    let node = Node::on_tmpfs();
    let outside = Outside::new(&node);
    let theirs = outside.dir.join("b");
    let (nodes_own, at) = (node.path().join("mounts"), node.path().join("mounts/at"));
    fs::create_dir_all(&at).unwrap();
    bind(&theirs, &at, BindOpts::default()).unwrap();
    let (p, dir) = with_volume(&node);
    let attack =
        |_: u32| renameat_with(CWD, dir.join("d"), CWD, dir.join("out"), RenameFlags::EXCHANGE).is_ok();
    race(rounds(300), attack, |n| {
        node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap();
        fs::create_dir_all(dir.join("new/at")).unwrap();
        for _ in 0..2 {
            bind(&theirs, &dir.join("new/at"), BindOpts::default()).unwrap();
        }
        symlink(&nodes_own, dir.join("out")).unwrap();
        fs::rename(dir.join("new"), dir.join("d")).unwrap();
        unmount(&node, &p);
        assert!(is_mount_point(&at).unwrap(), "round {n}: the node's own mount is gone");
    });
    outside.assert_untouched();
    assert_eq!(node.mounts().len(), 2, "the tmpfs and the node's own: {:?}", node.mounts());
}
