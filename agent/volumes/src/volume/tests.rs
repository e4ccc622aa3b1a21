use super::*;
use crate::testing::{
    Node, config_map, container, empty_dir, facts, keyed, keys, mount, mounting_all, pod, volume,
};
use berth_core::{
    model::{
        ClaimRef, HostPathType, KeysVolume, Medium, ObjectKind, PersistentVolume, PersistentVolumeClaim,
        PersistentVolumeSource, StorageObject, SubPath, VolumeDevice, VolumeMode, VolumeMount, VolumeSource,
    },
    refs::refs,
    value::Why,
};
use berth_harness::race::Stop;
use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn is_tmpfs(path: &Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    u64::try_from(rustix::fs::statfs(path).unwrap().f_type).unwrap() == TMPFS_MAGIC
}

fn pod_with(volumes: Vec<Volume>) -> Pod {
    mounting_all(Pod { volumes, ..pod("web") })
}

#[test]
fn a_volume_that_no_container_mounts_is_not_set_up() {
    let node = Node::new();
    let unmounted = Pod {
        volumes: vec![
            volume("s", VolumeSource::Secret(keys("nosuch"))),
            volume("claim", VolumeSource::NotYet { kind: "persistentVolumeClaim".into() }),
            volume("e", empty_dir(Medium::Disk)),
        ],
        ..pod("web")
    };
    node.volumes.mount(&unmounted, &facts(), &Objects::listed()).unwrap();
    assert!(!node.volume_dir(&unmounted, "e").exists());
    assert_eq!(refs(&unmounted).len(), 0);
    let mounted = mounting_all(unmounted);
    assert!(node.volumes.mount(&mounted, &facts(), &Objects::listed()).is_err());
    assert_eq!(refs(&mounted).len(), 1);
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn an_empty_dir_is_writable_by_all_and_never_changed_again() {
    for node in [Node::new(), Node::on_tmpfs()] {
        let p = pod_with(vec![volume("scratch", empty_dir(Medium::Disk))]);
        node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap();
        let dir = node.volume_dir(&p, "scratch");
        assert!(dir.ends_with("pods/uid-1/volumes/kubernetes.io~empty-dir/scratch"));
        assert_eq!((mode(&dir), mode(&node.pod_dir(&p))), (0o777, 0o750));
        // Files that the pod writes are kept by the next mount.
        fs::write(dir.join("kept"), "x").unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap();
        assert_eq!((read(&dir.join("kept")).as_str(), mode(&dir)), ("x", 0o700));
    }
}

#[test]
fn a_set_up_that_a_crash_interrupted_is_finished() {
    let node = Node::new();
    let mut p =
        pod_with(vec![volume("scratch", empty_dir(Medium::Disk)), volume("mem", empty_dir(Medium::Memory))]);
    p.security.fs_group = Some(4321);
    let dir = node.volume_dir(&p, "scratch");
    fs::create_dir_all(dir.parent().unwrap().join(".new-scratch")).unwrap();
    fs::create_dir_all(node.volume_dir(&p, "mem")).unwrap();
    node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap();
    assert_eq!((mode(&dir), fs::metadata(&dir).unwrap().gid()), (0o2777, 4321));
    let mem = node.volume_dir(&p, "mem");
    assert!(is_tmpfs(&mem));
    assert_eq!((mode(&mem), fs::metadata(&mem).unwrap().gid()), (0o3777, 4321));
}

#[test]
fn a_memory_volume_is_a_tmpfs_of_the_least_limit() {
    let node = Node::new();
    let mut p = pod_with(vec![volume(
        "mem",
        VolumeSource::EmptyDir { medium: Medium::Memory, size_limit: Some("64Mi".parse().unwrap()) },
    )]);
    p.containers[0].resources.limits.insert("memory".into(), "8Mi".parse().unwrap());
    node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap();
    let dir = node.volume_dir(&p, "mem");
    let stat = rustix::fs::statvfs(&dir).unwrap();
    assert_eq!((stat.f_blocks * stat.f_frsize, mode(&dir)), (8 << 20, 0o1777));
    fs::write(dir.join("kept"), "x").unwrap();
    node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap();
    assert_eq!(node.mounts().len(), 1, "not mounted twice");
    assert_eq!(read(&dir.join("kept")), "x");
    // After a reboot the directory still exists and its tmpfs does not.
    berth_sys::mount::unmount(&dir).unwrap();
    node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap();
    assert!(is_tmpfs(&dir) && !dir.join("kept").exists());
}

#[test]
fn a_volume_of_huge_pages_has_the_page_size_that_the_pod_requests_and_its_limit() {
    let node = Node::new();
    let huge = |size: &str, limit: Option<&str>| VolumeSource::EmptyDir {
        medium: Medium::HugePages(Some(size.into())),
        size_limit: limit.map(|limit| limit.parse().unwrap()),
    };
    let mut p =
        pod_with(vec![volume("huge", huge("2Mi", Some("3Mi"))), volume("ok", empty_dir(Medium::Disk))]);
    p.security.fs_group = Some(4321);
    let e = node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap_err();
    let text = "MountVolume.SetUp failed for volume \"huge\" : medium HugePages-2Mi: hugePages storage requested, but there is no resource request for huge pages";
    assert_eq!(e.event().message, text);
    assert!(node.volume_dir(&p, "ok").exists() && node.mounts().is_empty());
    if !Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
        println!("skip: this machine has no huge pages of 2 MiB");
        return;
    }
    p.containers[0].resources.requests.insert("hugepages-2Mi".into(), "4Mi".parse().unwrap());
    for _ in 0..2 {
        node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap();
        assert_eq!(node.mounts().len(), 1, "not mounted twice");
    }
    let dir = node.volume_dir(&p, "huge");
    let found = rustix::fs::statfs(&dir).unwrap();
    assert_eq!((found.f_bsize, found.f_blocks), (2 << 20, 2), "whole pages");
    assert_eq!((mode(&dir), fs::metadata(&dir).unwrap().gid()), (0o3777, 4321));
    // Pages of a size that the machine does not have.
    let mut q = pod_with(vec![volume("odd", huge("3Mi", None))]);
    q.uid = "uid-2".parse().unwrap();
    q.containers[0].resources.requests.insert("hugepages-3Mi".into(), "3Mi".parse().unwrap());
    let e = node.volumes.mount(&q, &facts(), &Objects::listed()).unwrap_err();
    assert!(e.event().message.contains("cannot mount huge pages at"), "{e:?}");
}

#[test]
fn a_volume_of_an_unsupported_kind_is_an_error_that_names_the_kind() {
    let node = Node::new();
    let source = VolumeSource::NotYet { kind: "iscsi".into() };
    let p = pod_with(vec![volume("v", source), volume("ok", empty_dir(Medium::Disk))]);
    let e = node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap_err();
    assert!(matches!(&e, Error::NotYet { kind, .. } if kind == "iscsi"), "{e:?}");
    let text = "MountVolume.SetUp failed for volume \"v\" : volumes of kind iscsi are not supported yet";
    assert_eq!(e.event().message, text);
    assert!(node.volume_dir(&p, "ok").exists(), "the others are set up");
}

#[test]
fn keys_become_files_behind_links() {
    for node in [Node::new(), Node::on_tmpfs()] {
        let mut objects = config_map("cm", &[("a", b"1"), ("b", b"2")]);
        objects.put_secret(keyed("s", &[("pw", b"hush")]));
        let mut secret = keys("s");
        secret.default_mode = 0o400;
        let mut p = pod_with(vec![
            volume("conf", VolumeSource::ConfigMap(keys("cm"))),
            volume("pw", VolumeSource::Secret(secret)),
        ]);
        p.security.fs_group = Some(77);
        node.volumes.mount(&p, &facts(), &objects).unwrap();
        let (conf, pw) = (node.volume_dir(&p, "conf"), node.volume_dir(&p, "pw"));
        assert!(conf.ends_with("kubernetes.io~configmap/conf") && pw.ends_with("kubernetes.io~secret/pw"));
        assert_eq!(read(&conf.join("a")), "1");
        assert_eq!(fs::read_link(conf.join("a")).unwrap(), Path::new("..data/a"));
        let version = fs::read_link(conf.join("..data")).unwrap();
        assert!(version.to_str().unwrap().starts_with("..20"), "{version:?}");
        assert_eq!((mode(&conf), mode(&conf.join(&version))), (0o2777, 0o2755));
        assert_eq!(mode(&conf.join("..data/a")), 0o644);
        let file = fs::metadata(pw.join("pw")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.gid()), (0o440, 77), "readable by the pod's group");
        assert_eq!(is_tmpfs(&pw), node.mounts().contains(&pw.canonicalize().unwrap()));
        assert!(is_tmpfs(&pw), "secrets do not reach the disk");
        assert!(!node.mounts().iter().any(|m| m.ends_with("conf")), "ConfigMaps lie on the disk");
    }
}

#[test]
fn a_missing_object_is_waited_for() {
    let node = Node::new();
    let p = pod_with(vec![volume("conf", VolumeSource::ConfigMap(keys("cm")))]);
    let e = node.volumes.mount(&p, &facts(), &Objects::listed()).unwrap_err();
    assert_eq!(e.event().reason, "FailedMount");
    assert_eq!(
        e.event().message,
        "MountVolume.SetUp failed for volume \"conf\" : configmap \"cm\" not found"
    );
    assert!(!node.volume_dir(&p, "conf").exists());
    node.volumes.mount(&p, &facts(), &config_map("cm", &[("a", b"1")])).unwrap();
    assert_eq!(read(&node.volume_dir(&p, "conf").join("a")), "1");
}

#[test]
fn refresh_follows_the_objects_and_returns_whether_files_changed() {
    let node = Node::new();
    let mut p = pod_with(vec![
        volume("conf", VolumeSource::ConfigMap(keys("cm"))),
        volume(
            "info",
            VolumeSource::DownwardApi {
                items: vec![berth_core::model::DownwardItem {
                    path: "labels".into(),
                    value: berth_core::model::DownwardValue::Field("metadata.labels".into()),
                    mode: None,
                }],
                default_mode: 0o644,
            },
        ),
    ]);
    let old = config_map("cm", &[("gone", b"1"), ("stays", b"1")]);
    assert!(!node.volumes.refresh(&p, &facts(), &old).unwrap(), "nothing is set up yet");
    assert!(!node.volume_dir(&p, "conf").exists());
    node.volumes.mount(&p, &facts(), &old).unwrap();
    assert!(!node.volumes.refresh(&p, &facts(), &old).unwrap());
    let dir = node.volume_dir(&p, "conf");
    let version = fs::read_link(dir.join("..data")).unwrap();

    let new = config_map("cm", &[("stays", b"2"), ("new", b"2")]);
    assert!(node.volumes.refresh(&p, &facts(), &new).unwrap());
    assert_eq!((read(&dir.join("stays")), read(&dir.join("new"))), ("2".into(), "2".into()));
    assert!(fs::symlink_metadata(dir.join("gone")).is_err());
    assert_ne!(fs::read_link(dir.join("..data")).unwrap(), version);
    assert!(!dir.join(version).exists(), "the old version is removed");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 4, "two links, ..data and its version");

    p.labels.insert("app".into(), "x".into());
    assert!(node.volumes.refresh(&p, &facts(), &new).unwrap());
    assert_eq!(read(&node.volume_dir(&p, "info").join("labels")), "app=\"x\"");

    let e = node.volumes.refresh(&p, &facts(), &Objects::listed()).unwrap_err();
    assert!(matches!(e, Error::MissingObject { .. }));
    assert_eq!(read(&dir.join("stays")), "2", "the last content stays");
}

#[test]
fn a_reader_never_sees_a_mix_of_two_versions() {
    const VERSIONS: u32 = 400;
    let node = Node::new();
    let objects = |n: u32| {
        let text = n.to_string().repeat(50);
        config_map("cm", &[("a", text.as_bytes()), ("b", text.as_bytes()), ("c", text.as_bytes())])
    };
    let p = pod_with(vec![volume("conf", VolumeSource::ConfigMap(keys("cm")))]);
    node.volumes.mount(&p, &facts(), &objects(0)).unwrap();
    let dir = node.volume_dir(&p, "conf");
    let done = AtomicBool::new(false);
    let (whole, last) = std::thread::scope(|s| {
        let reader = s.spawn(|| {
            let (mut whole, mut seen) = (0u32, std::collections::BTreeSet::new());
            while !done.load(Ordering::Acquire) {
                // The reader resolves `..data` once, as a careful program does.
                let Ok(version) = fs::canonicalize(dir.join("..data")) else { continue };
                let texts: Vec<_> =
                    ["a", "b", "c"].iter().map(|k| fs::read_to_string(version.join(k))).collect();
                // A version may be removed while it is read. All files that were read must be of one version.
                let texts: Vec<String> = texts.into_iter().flatten().collect();
                assert!(texts.windows(2).all(|w| w[0] == w[1]), "{texts:?}");
                assert!(texts.iter().all(|t| !t.is_empty()), "an unfinished file");
                if texts.len() == 3 {
                    whole += 1;
                    seen.extend(texts);
                }
            }
            (whole, seen.len())
        });
        let stop = Stop(&done);
        for n in 1..=VERSIONS {
            assert!(node.volumes.refresh(&p, &facts(), &objects(n)).unwrap());
        }
        drop(stop);
        reader.join().unwrap()
    });
    assert!(whole > 10 && last > 3, "the reader saw only {last} versions in {whole} reads");
}

#[test]
fn a_volume_under_attack_is_written_inside_only() {
    let node = Node::new();
    let p = pod_with(vec![volume("conf", VolumeSource::ConfigMap(keys("cm")))]);
    let outside = node.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("a"), "precious").unwrap();
    node.volumes.mount(&p, &facts(), &config_map("cm", &[("a", b"0")])).unwrap();
    let dir = node.volume_dir(&p, "conf");
    let attacks: [&dyn Fn(); 5] = [
        &|| {
            fs::remove_file(dir.join("..data")).unwrap();
            symlink(&outside, dir.join("..data")).unwrap();
        },
        &|| {
            fs::remove_file(dir.join("..data")).unwrap();
            symlink("../../../../outside", dir.join("..data")).unwrap();
        },
        &|| symlink(&outside, dir.join("..data_tmp")).unwrap(),
        &|| symlink(&outside, dir.join("..2020_old")).unwrap(),
        &|| {
            let version = dir.join(fs::read_link(dir.join("..data")).unwrap());
            fs::remove_dir_all(&version).unwrap();
            symlink(&outside, &version).unwrap();
        },
    ];
    for (n, attack) in attacks.iter().enumerate() {
        attack();
        let text = format!("v{n}");
        let objects = config_map("cm", &[("a", text.as_bytes())]);
        assert!(
            node.volumes.refresh(&p, &facts(), &objects).unwrap_or(false) || {
                node.volumes.mount(&p, &facts(), &objects).unwrap();
                true
            }
        );
        assert_eq!(read(&dir.join("a")), text, "attack {n}");
        assert_eq!(read(&outside.join("a")), "precious", "attack {n}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "attack {n}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3, "attack {n} leaves nothing");
    }
}

#[test]
fn host_paths_are_checked_by_type() {
    use HostPathType::*;
    let node = Node::new();
    let at = |name: &str| node.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("file"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("sock")).unwrap();
    symlink(at("dir"), at("link")).unwrap();
    let check = |path: &Path, kind| {
        let p = pod_with(vec![volume("h", VolumeSource::HostPath { path: path.into(), kind })]);
        node.volumes.mount(&p, &facts(), &Objects::listed()).map_err(|e| e.event().message)
    };
    for (name, kind) in [
        ("none", Unset),
        ("file", Unset),
        ("dir", Directory),
        ("link", Directory),
        ("dir", DirectoryOrCreate),
        ("made/deep", DirectoryOrCreate),
        ("file", File),
        ("file", FileOrCreate),
        ("made-file", FileOrCreate),
        ("sock", Socket),
    ] {
        check(&at(name), kind).unwrap_or_else(|e| panic!("{name} {kind:?}: {e}"));
    }
    check(Path::new("/dev/null"), CharDevice).unwrap();
    assert_eq!((mode(&at("made/deep")), mode(&at("made-file"))), (0o755, 0o644));
    assert!(at("made-file").is_file() && !at("none").exists());
    assert!(fs::metadata(at("sock")).unwrap().file_type().is_socket());
    for (name, kind, wanted) in [
        ("none", Directory, "a directory"),
        ("file", Directory, "a directory"),
        ("file", DirectoryOrCreate, "a directory"),
        ("dir", File, "a file"),
        ("sock", FileOrCreate, "a file"),
        ("none", File, "a file"),
        ("file", Socket, "a socket file"),
        ("file", CharDevice, "a character device"),
        ("sock", BlockDevice, "a block device"),
    ] {
        let path = at(name);
        assert_eq!(
            check(&path, kind).unwrap_err(),
            format!(
                "MountVolume.SetUp failed for volume \"h\" : hostPath type check failed: {} is not {wanted}",
                path.display()
            )
        );
    }
    assert!(check(&at("made-file/x"), DirectoryOrCreate).is_err());
}

#[test]
fn mount_points_inside_read_only_volumes_are_made() {
    let node = Node::new();
    let mut p = pod_with(vec![
        volume("conf", VolumeSource::ConfigMap(keys("cm"))),
        volume("scratch", empty_dir(Medium::Disk)),
    ]);
    let mut other = container("other");
    other.mounts =
        vec![mount("conf", "/etc/app"), mount("scratch", "/etc/app/a"), mount("scratch", "/etc/application")];
    p.containers.push(other);
    p.containers[0].mounts = vec![
        mount("conf", "/etc/app/"),
        mount("scratch", "/etc/app/x/y"),
        mount("scratch", "/etc/app/x/y/z"),
        mount("scratch", "/etc/app/../evil"),
    ];
    p.containers[0]
        .mounts
        .push(VolumeMount { sub_path: Some(SubPath::Plain("a".into())), ..mount("conf", "/") });
    node.volumes.mount(&p, &facts(), &config_map("cm", &[("k", b"1")])).unwrap();
    let dir = node.volume_dir(&p, "conf");
    assert!(dir.join("x/y").is_dir() && dir.join("a").is_dir() && !dir.join("x/y/z").exists());
    assert!(!dir.join("evil").exists() && !dir.parent().unwrap().join("evil").exists());
    node.volumes.refresh(&p, &facts(), &config_map("cm", &[("k", b"2")])).unwrap();
    assert!(dir.join("x/y").is_dir(), "kept by an update");
    assert_eq!(read(&dir.join("k")), "2");
}

#[test]
fn an_unknown_object_is_not_an_absent_one() {
    let node = Node::new();
    let optional = KeysVolume { optional: true, ..keys("cm") };
    let p = mounting_all(Pod { volumes: vec![volume("v", VolumeSource::ConfigMap(optional))], ..pod("web") });
    let why = Why::Unreachable("connection refused".into());
    let mut unknown = config_map("cm", &[]);
    unknown.put_unknown(ObjectKind::ConfigMap, p.key.namespace.clone(), "cm".into(), why);
    for objects in [Objects::default(), unknown.clone()] {
        let e = node.volumes.mount(&p, &facts(), &objects).unwrap_err();
        assert!(matches!(e, Error::UnknownObject { .. }), "{e}");
    }
    node.volumes.mount(&p, &facts(), &config_map("cm", &[("k", b"1")])).unwrap();
    let file = node.volume_dir(&p, "v").join("k");
    assert_eq!(read(&file), "1");
    assert!(!node.volumes.refresh(&p, &facts(), &unknown).unwrap(), "nothing changes");
    assert_eq!(read(&file), "1");
    assert!(node.volumes.refresh(&p, &facts(), &Objects::listed()).unwrap());
    assert!(!file.exists(), "an optional object that is gone");
}

/// A node with a persistent volume that is bound to the claim of a pod.
fn claimed(node: &Node, source: PersistentVolumeSource, mode: VolumeMode, read_only: bool) -> (Pod, Objects) {
    let namespace: berth_core::ids::Namespace = "default".parse().unwrap();
    let claim_of = ClaimRef { namespace: "default".into(), name: "claim".into(), uid: "cu".into() };
    let volume = PersistentVolume {
        uid: "vu".into(),
        mode,
        claim: Some(claim_of),
        ..PersistentVolume::new("pv.one", source)
    };
    let claim = PersistentVolumeClaim {
        uid: "cu".into(),
        mode,
        volume: Some("pv.one".into()),
        bound: true,
        ..PersistentVolumeClaim::new(namespace.clone(), "claim")
    };
    let mut objects = Objects::listed();
    let key = |kind, name: &str| (kind, namespace.clone(), name.to_owned());
    let claim = StorageObject::Claim(std::sync::Arc::new(claim));
    objects.put_storage(key(ObjectKind::PersistentVolumeClaim, "claim"), claim);
    let volume = StorageObject::Volume(std::sync::Arc::new(volume));
    objects.put_storage(key(ObjectKind::PersistentVolume, "pv.one"), volume);
    fs::create_dir_all(node.path().join("data")).unwrap();
    let source = VolumeSource::PersistentVolumeClaim { claim: "claim".into(), read_only };
    let mut p = pod("web");
    p.volumes = vec![crate::testing::volume("data", source)];
    (p, objects)
}

#[test]
fn a_local_volume_is_bound_with_its_group_and_its_data_outlives_the_pod() {
    let node = Node::new();
    let data = node.path().join("data");
    let source = PersistentVolumeSource::Local { path: data.clone(), fs_type: None };
    let (p, objects) = claimed(&node, source, VolumeMode::Filesystem, false);
    fs::write(data.join("sentinel"), "precious").unwrap();
    let mut p = mounting_all(p);
    p.security.fs_group = Some(4711);
    for _ in 0..2 {
        node.volumes.mount(&p, &facts(), &objects).unwrap();
    }
    let root = node.pod_dir(&p).join("volumes/kubernetes.io~local-volume/pv.one");
    assert_eq!(read(&root.join("sentinel")), "precious");
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&fs::metadata(data.join("sentinel")).unwrap()), 4711);
    let known = (&objects, &*facts().node);
    let mut c = p.containers[0].clone();
    c.mounts.push(VolumeMount { sub_path: Some(SubPath::Plain("sub".into())), ..mount("data", "/sub") });
    let mounts = node.volumes.container_mounts(&p, &c, known, &[]).unwrap();
    assert_eq!((mounts[0].source.as_path(), mounts[0].read_only), (root.as_path(), false));
    assert!(data.join("sub").is_dir(), "a sub-path is made in the volume");
    node.volumes.unmount(&p.uid).unwrap();
    assert!(!node.pod_dir(&p).exists());
    assert_eq!(read(&data.join("sentinel")), "precious");
}

#[test]
fn a_claim_that_is_read_only_and_a_missing_path_are_told() {
    let node = Node::new();
    let path = node.path().join("data");
    let source = PersistentVolumeSource::Local { path: path.clone(), fs_type: None };
    let (p, objects) = claimed(&node, source.clone(), VolumeMode::Filesystem, true);
    let p = mounting_all(p);
    node.volumes.mount(&p, &facts(), &objects).unwrap();
    let root = node.pod_dir(&p).join("volumes/kubernetes.io~local-volume/pv.one");
    assert!(fs::write(root.join("x"), "x").is_err());
    let known = (&objects, &*facts().node);
    assert!(node.volumes.container_mounts(&p, &p.containers[0], known, &[]).unwrap()[0].read_only);
    node.volumes.unmount(&p.uid).unwrap();
    fs::remove_dir(&path).unwrap();
    let message = node.volumes.mount(&p, &facts(), &objects).unwrap_err().event().message;
    let wanted = format!("MountVolume.SetUp failed for volume \"pv.one\" : path {path:?} does not exist");
    assert_eq!(message, wanted);
    let mut unbound = Objects::listed();
    let error = node.volumes.mount(&p, &facts(), &unbound).unwrap_err();
    assert_eq!(
        error.event().message,
        "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[data]: error processing PVC default/claim: failed to fetch PVC from API server: persistentvolumeclaims \"claim\" not found"
    );
    unbound.put_unknown(
        ObjectKind::PersistentVolumeClaim,
        "default".parse().unwrap(),
        "claim".into(),
        berth_core::value::Why::NotAsked,
    );
    assert!(matches!(node.volumes.mount(&p, &facts(), &unbound), Err(Error::UnknownObject { .. })));
}

#[test]
fn a_host_path_volume_of_a_claim_is_used_as_it_is_and_a_given_up_kind_names_its_successor() {
    let node = Node::new();
    let path = node.path().join("made");
    let source =
        PersistentVolumeSource::HostPath { path: path.clone(), kind: HostPathType::DirectoryOrCreate };
    let (p, objects) = claimed(&node, source, VolumeMode::Filesystem, false);
    let p = mounting_all(p);
    node.volumes.mount(&p, &facts(), &objects).unwrap();
    let known = (&objects, &*facts().node);
    assert_eq!(node.volumes.container_mounts(&p, &p.containers[0], known, &[]).unwrap()[0].source, path);
    node.volumes.unmount(&p.uid).unwrap();
    assert!(path.is_dir());
    let kind = "gcePersistentDisk".to_owned();
    let (p, objects) = claimed(&node, PersistentVolumeSource::NotYet { kind }, VolumeMode::Filesystem, false);
    let message = node.volumes.mount(&mounting_all(p), &facts(), &objects).unwrap_err().event().message;
    assert_eq!(
        message,
        "MountVolume.SetUp failed for volume \"data\" : volume type gcePersistentDisk is no longer supported by Kubernetes: use the CSI driver pd.csi.storage.gke.io"
    );
}

#[test]
fn a_block_volume_gives_the_device_and_a_directory_is_refused() {
    let node = Node::new();
    // A device of its own: a loop device may not be there, so a node with the numbers of one stands for it.
    let device = node.path().join("device");
    let numbers = rustix::fs::makedev(7, 250);
    rustix::fs::mknodat(rustix::fs::CWD, &device, rustix::fs::FileType::BlockDevice, 0o600.into(), numbers)
        .unwrap();
    for (path, good) in [(device.clone(), true), (node.path().join("data"), false)] {
        let source = PersistentVolumeSource::Local { path, fs_type: None };
        let (mut p, objects) = claimed(&node, source, VolumeMode::Block, false);
        p.containers[0].devices =
            vec![VolumeDevice { volume: "data".parse().unwrap(), path: "/dev/xvda".into() }];
        let mounted = node.volumes.mount(&p, &facts(), &objects);
        if !good {
            assert!(mounted.unwrap_err().event().message.ends_with("is no block device"));
            continue;
        }
        mounted.unwrap();
        let known = (&objects, &*facts().node);
        let devices = node.volumes.container_devices(&p, &p.containers[0], known).unwrap();
        assert_eq!((devices[0].numbers, devices[0].destination.as_str()), ((7, 250), "/dev/xvda"));
    }
}
