//! hostPath volumes whose path changes its kind while it is checked.

use super::*;
use crate::testing::{facts, mounting_all, pod, volume};
use berth_core::model::{HostPathType, Objects, Pod, VolumeSource};
use std::os::unix::net::UnixListener;

fn pod_with(path: &Path, kind: HostPathType) -> Pod {
    let source = VolumeSource::HostPath { path: path.to_owned(), kind };
    mounting_all(Pod { volumes: vec![volume("h", source)], ..pod("web") })
}

#[test]
fn attack_on_the_types_of_host_paths() {
    use HostPathType::*;
    let node = Node::on_tmpfs();
    let outside = Outside::new(&node);
    let host = node.path().join("host");
    fs::create_dir(&host).unwrap();
    let names = decoys(&host, &outside);
    let _socket = UnixListener::bind(host.join("x-socket")).unwrap();
    fs::write(host.join("x-file"), "the node's").unwrap();
    let names: Vec<&str> = names.into_iter().chain(["x-socket", "x-file"]).collect();
    let dir = crate::os::open_dir(&host).unwrap();
    let (path, kinds) =
        (host.join("at"), [File, FileOrCreate, Directory, DirectoryOrCreate, Socket, CharDevice]);
    let attack = |n: u32| {
        let decoy = names[n as usize % names.len()];
        // Now and then nothing is there, so that the node makes it.
        match n % 5 {
            0 => renameat_with(&dir, "at", &dir, "away", RenameFlags::NOREPLACE).is_ok(),
            1 => {
                // What the node made goes, so that it makes it again.
                rustix::fs::unlinkat(&dir, "away", rustix::fs::AtFlags::empty()).is_ok()
                    || rustix::fs::unlinkat(&dir, "away", rustix::fs::AtFlags::REMOVEDIR).is_ok()
            }
            2 => renameat_with(&dir, decoy, &dir, "at", RenameFlags::NOREPLACE).is_ok(),
            3 => renameat_with(&dir, "at", &dir, decoy, RenameFlags::NOREPLACE).is_ok(),
            _ => exchange(&dir, "at", decoy) | remake(&host, decoy, &outside),
        }
    };
    let mut accepted = [0u32; 6];
    race_until(rounds(2_000), attack, |n| {
        let kind = n as usize % kinds.len();
        let p = pod_with(&path, kinds[kind]);
        accepted[kind] += u32::from(node.volumes.mount(&p, &facts(), &Objects::listed()).is_ok());
        accepted.iter().sum::<u32>() > 10
    });
    outside.assert_untouched();
    println!("{accepted:?}");
    assert!(accepted.iter().sum::<u32>() > 10, "no race: {accepted:?}");
}

/// Makes a decoy that was removed again.
fn remake(host: &Path, name: &str, outside: &Outside) -> bool {
    let at = host.join(name);
    match name {
        "x-link" => symlink(outside.dir.join("secret"), at).is_ok(),
        "x-dangling" => symlink(outside.dir.join("new"), at).is_ok(),
        "x-fifo" => mknodat(CWD, at, FileType::Fifo, Mode::RUSR, 0).is_ok(),
        "x-null" => mknodat(CWD, at, FileType::CharacterDevice, Mode::RUSR, 0x103).is_ok(),
        "x-dir" => fs::create_dir(at).is_ok(),
        "x-socket" => UnixListener::bind(at).is_ok(),
        _ => fs::OpenOptions::new().create_new(true).write(true).open(at).is_ok(),
    }
}

#[test]
fn a_file_is_made_at_its_own_path_alone_and_no_fifo_is_waited_for() {
    let node = Node::new();
    let outside = Outside::new(&node);
    let at = |name: &str| node.path().join(name);
    symlink(outside.dir.join("new"), at("dangling")).unwrap();
    fifo(&at("fifo"));
    symlink(outside.dir.join("secret"), at("link")).unwrap();
    let check = |name: &str, kind| {
        let p = pod_with(&at(name), kind);
        at_once(name, || node.volumes.mount(&p, &facts(), &Objects::listed()))
    };
    for name in ["dangling", "fifo"] {
        check(name, HostPathType::FileOrCreate).unwrap_err();
        check(name, HostPathType::DirectoryOrCreate).unwrap_err();
    }
    check("link", HostPathType::FileOrCreate).unwrap();
    check("made", HostPathType::FileOrCreate).unwrap();
    assert!(at("made").is_file());
    outside.assert_untouched();
}
