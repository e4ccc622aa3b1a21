use super::*;
use crate::testing::{
    Node, config_map, container, container_mounts, empty_dir, facts, keys, mount, mounting_all, pod, volume,
};
use berth_core::model::{HostPathType, Medium, Objects, VolumeSource};
use std::fs;

fn set_up(node: &Node) -> Pod {
    let mut p = pod("web");
    fs::create_dir(node.path().join("host")).unwrap();
    let host = VolumeSource::HostPath { path: node.path().join("host"), kind: HostPathType::Unset };
    p.volumes = vec![
        volume("scratch", empty_dir(Medium::Disk)),
        volume("conf", VolumeSource::ConfigMap(keys("cm"))),
        volume("host", host),
    ];
    let p = mounting_all(p);
    node.volumes.mount(&p, &facts(), &config_map("cm", &[("k", b"1")])).unwrap();
    node.volumes.prepare_files(&p, &facts()).unwrap();
    p
}

fn with_sub_path(m: VolumeMount, sub_path: SubPath) -> VolumeMount {
    VolumeMount { sub_path: Some(sub_path), ..m }
}

#[test]
fn volume_mounts_come_first_and_in_order() {
    let node = Node::new();
    let p = set_up(&node);
    let mut c = container("main");
    let read_only = VolumeMount { read_only: true, ..mount("scratch", "/ro") };
    let shared = VolumeMount { propagation: MountPropagation::HostToContainer, ..mount("host", "relative") };
    c.mounts = vec![mount("scratch", "/z"), mount("conf", "/conf"), read_only, shared];
    c.security.read_only_root = true;
    let got = container_mounts(&node, &p, &c, &[]).unwrap();
    let short: Vec<_> = got.iter().map(|m| (m.destination.as_str(), m.read_only)).collect();
    assert_eq!(
        short,
        [
            ("/z", false),
            ("/conf", true),
            ("/ro", true),
            ("/relative", false),
            ("/etc/hosts", false),
            ("/etc/hostname", true),
            ("/etc/resolv.conf", true),
            ("/dev/shm", false),
        ]
    );
    assert_eq!(got[3].propagation, MountPropagation::HostToContainer);
    assert_eq!(got[3].source, node.path().join("host"));
    assert!(got.iter().all(|m| m.source.exists()), "{got:?}");
}

#[test]
fn own_mounts_replace_the_shared_files() {
    let node = Node::new();
    let mut p = set_up(&node);
    let mut c = container("main");
    c.mounts = vec![mount("scratch", "/etc/hosts/"), mount("scratch", "/dev/./shm")];
    let got = container_mounts(&node, &p, &c, &[]).unwrap();
    let places: Vec<_> = got.iter().map(|m| m.destination.as_str()).collect();
    assert_eq!(places, ["/etc/hosts/", "/dev/./shm", "/etc/hostname", "/etc/resolv.conf"]);
    p.namespaces.host_ipc = true;
    let got = container_mounts(&node, &p, &container("main"), &[]).unwrap();
    assert_eq!(got[3].source, Path::new("/dev/shm"));
}

#[test]
fn sub_paths_are_bound_once_and_follow_the_environment() {
    let node = Node::new();
    let p = set_up(&node);
    let mut c = container("main");
    c.mounts = vec![
        with_sub_path(mount("scratch", "/logs"), SubPath::Expr("$(POD)/logs".into())),
        with_sub_path(mount("conf", "/etc/k"), SubPath::Plain("k".into())),
        with_sub_path(mount("host", "/data"), SubPath::Plain("sub".into())),
        with_sub_path(mount("scratch", "/all"), SubPath::Plain(String::new())),
    ];
    let env = [("POD".to_owned(), "web-0".to_owned())];
    let got = container_mounts(&node, &p, &c, &env).unwrap();
    let bound = node.pod_dir(&p).join("volume-subpaths");
    assert_eq!(got[0].source, bound.join("scratch/main/0"));
    assert_eq!(got[1].source, bound.join("conf/main/1"));
    assert_eq!(got[3].source, node.volume_dir(&p, "scratch"));
    fs::write(got[0].source.join("f"), "x").unwrap();
    assert!(node.volume_dir(&p, "scratch").join("web-0/logs/f").exists());
    assert_eq!(fs::read_to_string(&got[1].source).unwrap(), "1");
    assert!(node.path().join("host/sub").is_dir());
    let before = node.mounts();
    assert_eq!(container_mounts(&node, &p, &c, &env).unwrap(), got);
    assert_eq!(node.mounts(), before);
    // A running container keeps the old file; the next one gets the new file.
    assert!(node.volumes.refresh(&p, &facts(), &config_map("cm", &[("k", b"2")])).unwrap());
    assert_eq!(fs::read_to_string(&got[1].source).unwrap(), "1");
    container_mounts(&node, &p, &c, &env).unwrap();
    assert_eq!(fs::read_to_string(&got[1].source).unwrap(), "2");
}

#[test]
fn a_missing_key_of_a_config_map_is_an_empty_directory() {
    let node = Node::new();
    let p = set_up(&node);
    let mut c = container("main");
    c.mounts = vec![with_sub_path(mount("conf", "/x"), SubPath::Plain("nokey".into()))];
    let made = container_mounts(&node, &p, &c, &[]).unwrap().remove(0);
    assert!(made.read_only);
    assert_eq!(std::fs::read_dir(&made.source).unwrap().count(), 0);
}

#[test]
fn an_error_of_a_mount_names_volume_and_container() {
    let node = Node::new();
    let mut p = set_up(&node);
    p.volumes.push(volume("late", empty_dir(Medium::Disk)));
    let scratch = node.volume_dir(&p, "scratch");
    std::os::unix::fs::symlink("/etc", scratch.join("out")).unwrap();
    std::os::unix::fs::symlink("nowhere", scratch.join("dead")).unwrap();
    std::fs::write(scratch.join("file"), "").unwrap();
    let refuse = |m: VolumeMount| {
        let mut c = container("main");
        c.mounts = vec![m];
        container_mounts(&node, &p, &c, &[]).unwrap_err().message()
    };
    let recursive = VolumeMount { recursive_read_only: RecursiveReadOnly::Enabled, ..mount("scratch", "/x") };
    let shared = VolumeMount { propagation: MountPropagation::Bidirectional, ..mount("scratch", "/x") };
    let plain = |s: &str| with_sub_path(mount("scratch", "/x"), SubPath::Plain(s.into()));
    for (m, text) in [
        (mount("nope", "/x"), "cannot find volume \"nope\" to mount into container \"main\""),
        (mount("late", "/x"), "volume \"late\" of container \"main\" is not set up"),
        (plain("/abs"), "subPath \"/abs\" of volume \"scratch\" must not be an absolute path"),
        (plain("a/../b"), "subPath \"a/../b\" of volume \"scratch\" must not contain '..'"),
        // The target outside the volume exists already. A sub-path must not lead to it.
        (plain("out"), "failed to prepare subPath for volumeMount \"scratch\" of container \"main\""),
        (plain("out/cron.d"), "failed to prepare subPath for volumeMount \"scratch\" of container \"main\""),
        (plain("file/below"), "failed to prepare subPath for volumeMount \"scratch\" of container \"main\""),
        (
            plain("dead/end"),
            "failed to create subPath directory for volumeMount \"scratch\" of container \"main\"",
        ),
        (with_sub_path(mount("scratch", "/x"), SubPath::Expr("$(B)/$(A)".into())), "missing value for A, B"),
        (
            recursive,
            "mount of volume \"scratch\" in container \"main\" requested recursive read-only mode, but it is not read-only",
        ),
        (
            shared,
            "mount of volume \"scratch\" in container \"main\" asks for Bidirectional propagation, which only privileged containers get",
        ),
    ] {
        assert_eq!(refuse(m), text);
    }
}

#[test]
fn an_untyped_host_path_is_made_when_a_container_needs_it() {
    let node = Node::new();
    let mut p = pod("web");
    let path = node.path().join("made/late");
    p.volumes = vec![volume("h", VolumeSource::HostPath { path: path.clone(), kind: HostPathType::Unset })];
    node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap();
    assert!(!path.exists());
    let mut c = container("main");
    c.mounts = vec![mount("h", "/h")];
    container_mounts(&node, &p, &c, &[]).unwrap();
    assert!(path.is_dir());
}

#[test]
fn the_termination_file_is_mounted_where_it_is_wanted() {
    let node = Node::new();
    let p = set_up(&node);
    let mut c = container("main");
    let m = node.volumes.termination_mount(&p, &c, Attempt(2)).unwrap().unwrap();
    assert_eq!(m.destination, "/dev/termination-log");
    assert!(m.source.is_file() && !m.read_only);
    c.termination_message_path = "tmp/why".into();
    assert_eq!(node.volumes.termination_mount(&p, &c, Attempt(2)).unwrap().unwrap().destination, "/tmp/why");
    c.termination_message_path.clear();
    assert_eq!(node.volumes.termination_mount(&p, &c, Attempt(2)).unwrap(), None);
}
