use super::*;
use crate::testing::{
    Node, config_map, container, container_mounts, empty_dir, facts, keys, mount, mounting_all, pod, volume,
};
use berth_core::model::{HostPathType, Medium, Pod, SubPath, VolumeMount, VolumeSource};
use berth_sys::mount::{BindOpts, bind};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// A pod with every kind of mount: volumes on disk and tmpfs, sub-paths of each, shm, and a hostPath.
fn set_up(node: &Node) -> (Pod, PathBuf) {
    let host = node.path().join("host");
    fs::create_dir_all(host.join("sub")).unwrap();
    fs::write(host.join("sub/sentinel"), "precious").unwrap();
    let mut p = pod("web");
    p.volumes = vec![
        volume("scratch", empty_dir(Medium::Disk)),
        volume("mem", empty_dir(Medium::Memory)),
        volume("conf", VolumeSource::ConfigMap(keys("cm"))),
        volume("host", VolumeSource::HostPath { path: host.clone(), kind: HostPathType::Directory }),
    ];
    let p = mounting_all(p);
    let sub = |v: &str, s: &str| VolumeMount { sub_path: Some(SubPath::Plain(s.into())), ..mount(v, "/x") };
    let mut c = container("main");
    c.mounts = vec![sub("scratch", "a"), sub("mem", "b"), sub("conf", "k"), sub("host", "sub")];
    node.volumes.mount(&p, &facts(), &config_map("cm", &[("k", b"1")])).unwrap();
    node.volumes.prepare_files(&p, &facts()).unwrap();
    container_mounts(node, &p, &c, &[]).unwrap();
    assert_eq!(node.mounts().iter().filter(|m| m.to_string_lossy().contains("/pods/uid-1/")).count(), 6);
    (p, host)
}

fn assert_gone(node: &Node, p: &Pod) {
    assert!(!node.pod_dir(p).exists());
    assert!(!node.mounts().iter().any(|m| m.to_string_lossy().contains("/pods/")), "{:?}", node.mounts());
    assert_eq!(node.volumes.pods_on_disk().unwrap(), []);
}

#[test]
fn unmount_removes_all_of_a_pod_and_nothing_of_the_host() {
    for node in [Node::new(), Node::on_tmpfs()] {
        let (p, host) = set_up(&node);
        assert_eq!(node.volumes.pods_on_disk().unwrap(), std::slice::from_ref(&p.uid));
        node.volumes.unmount(&p.uid).unwrap();
        assert_gone(&node, &p);
        assert_eq!(fs::read_to_string(host.join("sub/sentinel")).unwrap(), "precious");
        node.volumes.unmount(&p.uid).unwrap();
    }
}

#[test]
fn foreign_mounts_and_links_in_a_pods_volumes_lose_nothing() {
    let node = Node::new();
    let (p, host) = set_up(&node);
    let dir = node.volume_dir(&p, "scratch");
    let precious = node.path().join("precious");
    fs::create_dir_all(precious.join("deep")).unwrap();
    fs::write(precious.join("deep/file"), "1").unwrap();
    fs::write(precious.join("single"), "2").unwrap();
    for at in ["bound", "bound-twice", "name with\ttab \\ and #"] {
        fs::create_dir(dir.join(at)).unwrap();
        bind(&precious, &dir.join(at), BindOpts { recursive: true, ..BindOpts::default() }).unwrap();
    }
    bind(&host, &dir.join("bound-twice"), BindOpts::default()).unwrap();
    fs::write(dir.join("file"), "").unwrap();
    bind(&precious.join("single"), &dir.join("file"), BindOpts::default()).unwrap();
    // A tmpfs inside the bind mount, which holds another bind mount.
    crate::os::mount_tmpfs("tmpfs", &precious.join("deep"), rustix::mount::MountFlags::empty(), "mode=755")
        .unwrap();
    fs::write(precious.join("deep/in-memory"), "3").unwrap();
    symlink(&precious, dir.join("link")).unwrap();
    symlink("/", dir.join("root")).unwrap();
    symlink(&host, node.volume_dir(&p, "mem").join("link")).unwrap();

    node.volumes.unmount(&p.uid).unwrap();
    assert_gone(&node, &p);
    assert_eq!(fs::read_to_string(precious.join("single")).unwrap(), "2");
    assert_eq!(fs::read_to_string(precious.join("deep/in-memory")).unwrap(), "3");
    assert_eq!(fs::read_to_string(host.join("sub/sentinel")).unwrap(), "precious");
    berth_sys::mount::unmount(&precious.join("deep")).unwrap();
    assert_eq!(fs::read_to_string(precious.join("deep/file")).unwrap(), "1");
}

#[test]
fn the_pod_state_may_be_reached_through_a_link() {
    let node = Node::new();
    fs::create_dir(node.path().join("elsewhere")).unwrap();
    symlink(node.path().join("elsewhere"), &node.roots.pod_state).unwrap();
    let (p, _) = set_up(&node);
    node.volumes.unmount(&p.uid).unwrap();
    assert_gone(&node, &p);
    assert!(node.path().join("elsewhere/pods").is_dir());
}

#[test]
fn unmount_removes_a_mount_that_is_in_use() {
    let node = Node::new();
    let (p, _) = set_up(&node);
    let open = fs::File::create(node.volume_dir(&p, "mem").join("open")).unwrap();
    node.volumes.unmount(&p.uid).unwrap();
    assert_gone(&node, &p);
    drop(open);
}

/// As that of an NFS server that is away.
#[test]
fn a_mount_whose_server_is_silent_holds_up_nobody() {
    use berth_harness::fuse::{Fuse, PlainFiles};
    let node = Node::new();
    let (p, host) = set_up(&node);
    let dir = node.volume_dir(&p, "scratch");
    let silent: Vec<Fuse> = ["a", "deep/b"]
        .iter()
        .map(|at| {
            fs::create_dir_all(dir.join(at)).unwrap();
            let files = PlainFiles([("precious".to_owned(), "precious".to_owned())].into());
            let server = Fuse::mount(&dir.join(at), files).unwrap();
            assert_eq!(fs::read_to_string(dir.join(at).join("precious")).unwrap(), "precious");
            server.set_silent(true);
            server
        })
        .collect();
    crate::attacks::at_once("a silent server", || node.volumes.unmount(&p.uid)).unwrap();
    assert_gone(&node, &p);
    assert_eq!(fs::read_to_string(host.join("sub/sentinel")).unwrap(), "precious");
    drop(silent);
}

#[test]
fn unmount_removes_a_deep_tree() {
    let node = Node::new();
    let p = mounting_all(Pod { volumes: vec![volume("scratch", empty_dir(Medium::Disk))], ..pod("web") });
    node.volumes.mount(&p, &facts(), &Default::default()).unwrap();
    let mut fd = os::open_dir(&node.volume_dir(&p, "scratch")).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&fd, "d", rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        fd = os::open_dir_at(&fd, "d").unwrap();
    }
    drop(fd);
    node.volumes.unmount(&p.uid).unwrap();
    assert_gone(&node, &p);
}

#[test]
fn only_pods_are_listed_and_only_directories_removed() {
    let node = Node::new();
    assert_eq!(node.volumes.pods_on_disk().unwrap(), []);
    let pods = node.roots.pod_state.join("pods");
    fs::create_dir_all(pods.join("b-uid")).unwrap();
    fs::create_dir_all(pods.join("a-uid")).unwrap();
    fs::create_dir_all(pods.join("not a uid")).unwrap();
    fs::write(pods.join("file"), "").unwrap();
    symlink("/etc", pods.join("link")).unwrap();
    let uids: Vec<String> = node.volumes.pods_on_disk().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(uids, ["a-uid", "b-uid"]);
    assert!(node.volumes.unmount(&PodUid::new("link").unwrap()).is_err());
    assert!(Path::new("/etc/passwd").exists());
    fs::remove_dir_all(&pods).unwrap();
    fs::write(&pods, "").unwrap();
    assert!(node.volumes.pods_on_disk().is_err(), "not listed is not empty");
}
