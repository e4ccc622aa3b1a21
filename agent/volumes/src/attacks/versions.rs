//! Volumes of ConfigMaps and Secrets under a container that can write to them.

use super::*;
use crate::testing::{config_map, facts, keys, mounting_all, pod, volume};
use berth_core::model::{Pod, VolumeSource};

#[test]
fn attack_on_volumes_whose_files_the_node_writes() {
    let node = Node::on_tmpfs();
    let outside = Outside::new(&node);
    let mut p =
        mounting_all(Pod { volumes: vec![volume("c", VolumeSource::ConfigMap(keys("cm")))], ..pod("web") });
    p.security.fs_group = Some(4711);
    let objects =
        ["0", "1", "22"].map(|text| config_map("cm", &[("secret", text.as_bytes()), ("other", b"o")]));
    node.volumes.mount(&p, &facts(), &objects[0]).unwrap();
    let dir = node.volume_dir(&p, "c");
    let root = crate::os::open_dir(&dir).unwrap();
    // The version of the node, not a decoy in its place.
    let version = || {
        let target = fs::read_link(dir.join("..data")).ok()?;
        target.to_str().filter(|t| !t.contains('/')).map(str::to_owned)
    };
    let attack = |n: u32| {
        // Each attack brings its own decoy: the node may have removed the last one.
        _ = match n % 3 {
            0 => symlink(&outside.dir, dir.join("evil")).is_ok(),
            1 => symlink(outside.dir.join("secret"), dir.join("evil")).is_ok(),
            _ => mknodat(CWD, dir.join("evil"), FileType::Fifo, Mode::RUSR, 0).is_ok(),
        };
        match n % 7 {
            0 => exchange(&root, "..data", "evil"),
            1 => version().is_some_and(|v| exchange(&root, &v, "evil")),
            2 => {
                let inside = version().and_then(|v| crate::os::open_dir_at(&root, v).ok());
                inside.is_some_and(|v| {
                    renameat_with(&v, "secret", &root, "evil", RenameFlags::EXCHANGE).is_ok()
                })
            }
            3 => exchange(&root, "secret", "evil"),
            4 => symlink(&outside.dir, dir.join("..data_tmp")).is_ok(),
            5 => symlink(&outside.dir, dir.join("..2020_evil")).is_ok(),
            _ => fs::remove_file(dir.join("evil")).is_ok(),
        }
    };
    let mut written = 0;
    race_until(rounds(1_000), attack, |n| {
        let done = node.volumes.mount(&p, &facts(), &objects[n as usize % 3]);
        written += u32::from(done.is_ok());
        written > 10
    });
    outside.assert_untouched();
    println!("{written} writes");
    assert!(written > 10, "no race: {written} writes");
    // Once the attack is over the node has its way.
    node.volumes.mount(&p, &facts(), &objects[2]).ok();
    node.volumes.unmount(&p.uid).unwrap();
    outside.assert_untouched();
}
