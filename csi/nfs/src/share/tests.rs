#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use super::{records::*, *};
use crate::handle::{SnapshotHandle, VolumeHandle};
use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
};

fn share(dir: &Path) -> Share {
    let share = Share::new(File::open(dir).unwrap().into());
    share.make_own_dirs().unwrap();
    share
}

fn volume(name: &str, sub: &str) -> (VolumeHandle, VolumeRecord) {
    let id = format!("v1#h#/s#{sub}#delete#{}", Key::of(name).as_str());
    let record = VolumeRecord {
        name: name.into(),
        id: id.clone(),
        capacity: 5,
        source: None,
        adopted: false,
        copied: None,
        ready: true,
    };
    (VolumeHandle::parse(&id).unwrap(), record)
}

#[test]
fn records_are_read_back_listed_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    let all: Vec<_> = (0..7).map(|n| volume(&format!("pvc-{n}"), &format!("d{n}"))).collect();
    for (handle, record) in &all {
        share.store_volume(handle, record).unwrap();
        share.store_volume(handle, record).unwrap();
        assert_eq!(share.volume(&handle.key).unwrap().unwrap().0, *record);
    }
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let (page, next) = share.list_volumes(&token, 3).unwrap();
        assert!(page.len() <= 3);
        found.extend(page.into_iter().map(|r| r.name));
        // A volume of a page that was told is deleted: no other is missed or told twice.
        share.forget_volume(&all.iter().find(|(_, r)| Some(&r.name) == found.last()).unwrap().0).unwrap();
        token = next;
        if token.is_empty() {
            break;
        }
    }
    found.sort();
    assert_eq!(found, (0..7).map(|n| format!("pvc-{n}")).collect::<Vec<_>>());
    assert!(matches!(share.list_volumes("invalid-token", 3), Err(Error::Busy { .. })));
    assert!(matches!(share.list_volumes("../x.json", 3), Err(Error::Busy { .. })));
    let left = share.list_volumes("", 100).unwrap().0;
    assert_eq!(left.len(), 4);
}

#[test]
fn snapshots_are_listed_by_their_source() {
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    for n in 0..5 {
        let name = format!("snapshot-{n}");
        let id = format!("s1#h#/s#{}", Key::of(&name).as_str());
        let (key, source) = (SnapshotHandle::parse(&id).unwrap().key, format!("v{}", n % 2));
        let record = SnapshotRecord { name, id, source, created: 1, bytes: 2, ready: n > 0 };
        share.store_snapshot(&key, &record).unwrap();
        assert_eq!(share.snapshot(&key).unwrap().unwrap(), record);
        fs::create_dir(dir.path().join(Share::data_path(&key))).unwrap();
    }
    let of = |source: &str| share.list_snapshots("", 10, |r| r.source == source).unwrap().0.len();
    assert_eq!((of("v0"), of("v1"), of("v2")), (3, 2, 0));
    let (page, token) = share.list_snapshots("", 2, |r| r.source == "v0").unwrap();
    assert_eq!((page.len(), share.list_snapshots(&token, 2, |r| r.source == "v0").unwrap().0.len()), (2, 1));
}

#[test]
fn a_record_that_lies_is_an_error_and_none_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    let (handle, record) = volume("a", "a");
    assert!(share.volume(&handle.key).unwrap().is_none());
    share.store_volume(&handle, &record).unwrap();
    let volumes = dir.path().join(OWN_DIR).join("volumes");
    let file = fs::read_dir(&volumes).unwrap().next().unwrap().unwrap().path();
    let (_, other) = volume("b", "b");
    for bad in [serde_json::to_string(&other).unwrap(), "{".into(), String::new(), "x".repeat(100_000)] {
        fs::write(&file, bad).unwrap();
        assert!(share.volume(&handle.key).is_err());
    }
    fs::remove_file(&file).unwrap();
    for make in [
        |file: &Path| symlink("/etc/passwd", file).unwrap(),
        |file: &Path| fs::create_dir(file).unwrap(),
        |file: &Path| {
            rustix::fs::mknodat(rustix::fs::CWD, file, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap()
        },
    ] {
        make(&file);
        assert!(share.volume(&handle.key).is_err());
        _ = fs::remove_file(&file);
        _ = fs::remove_dir(&file);
    }
}

#[test]
fn volumes_in_one_directory_know_of_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    let [a, b, c, d] =
        [("1", "x"), ("2", "x/y"), ("3", "xy"), ("4", "x/z")].map(|(name, sub)| volume(name, sub));
    for (handle, record) in [&a, &b, &c, &d] {
        share.store_volume(handle, record).unwrap();
    }
    let count = |v: &(VolumeHandle, VolumeRecord)| share.overlapping(&v.0).unwrap().len();
    assert_eq!([count(&a), count(&b), count(&c), count(&d)], [2, 1, 0, 1]);
}

/// Links, FIFOs, devices, sockets and a depth that no path can have: all is removed, and nothing outside.
#[test]
fn a_hostile_tree_is_removed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("sentinel"), "s").unwrap();
    let root = dir.path().join("share");
    fs::create_dir_all(root.join("v/d")).unwrap();
    let share = share(&root);
    for (name, to) in [
        ("v/up", "../../outside"),
        ("v/d/abs", "/"),
        ("v/d/self", "."),
        ("v/d/file", "../../../outside/sentinel"),
    ] {
        symlink(to, root.join(name)).unwrap();
    }
    for (name, kind) in
        [("fifo", rustix::fs::FileType::Fifo), ("null", rustix::fs::FileType::CharacterDevice)]
    {
        rustix::fs::mknodat(rustix::fs::CWD, root.join("v").join(name), kind, Mode::RUSR, 0x103).unwrap();
    }
    let mut at: OwnedFd = File::open(root.join("v")).unwrap().into();
    for _ in 0..3000 {
        mkdirat(&at, "deep", Mode::RWXU).unwrap();
        at = open_dir(at.as_fd(), b"deep").unwrap();
    }
    drop(at);
    share.remove("v", &Key::of("v"), &Operation::alone()).unwrap();
    assert!(!root.join("v").exists());
    assert_eq!(fs::read_dir(root.join(OWN_DIR).join("removed")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(outside.join("sentinel")).unwrap(), "s");
    share.remove("v", &Key::of("v"), &Operation::alone()).unwrap();
}

#[test]
fn a_link_in_the_place_of_a_directory_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("share"), dir.path().join("outside"));
    fs::create_dir_all(outside.join("v")).unwrap();
    fs::create_dir(&root).unwrap();
    fs::write(outside.join("v/sentinel"), "s").unwrap();
    let share = share(&root);
    symlink(&outside, root.join("a")).unwrap();
    let sub = SubDir::parse("a/v").unwrap();
    let operation = Operation::alone();
    assert!(share.open(&sub).is_err());
    assert!(share.make("a/new").is_err());
    assert!(share.archive(&sub, &Key::of("v")).is_err());
    assert!(share.remove("a/v", &Key::of("v"), &operation).is_err());
    let (_, copy) = share.begin_copy(&Key::of("v"), &operation).unwrap();
    assert!(share.place(&copy, "a/w").is_err());
    // The link itself is what a volume of that name would be: it goes, and what it points to stays.
    share.remove("a", &Key::of("v"), &operation).unwrap_err();
    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["v"]);
    assert_eq!(fs::read_to_string(outside.join("v/sentinel")).unwrap(), "s");
}

#[test]
fn a_copy_that_was_not_whole_is_removed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    let (key, other, operation) = (Key::of("a"), Key::of("b"), Operation::alone());
    let (_, killed) = share.begin_copy(&key, &operation).unwrap();
    fs::write(dir.path().join(&killed).join("half"), "x").unwrap();
    let (_, of_other) = share.begin_copy(&other, &operation).unwrap();
    let (_, next) = share.begin_copy(&key, &operation).unwrap();
    assert!(!dir.path().join(&killed).exists() && dir.path().join(&of_other).exists());
    share.place(&next, "x/y").unwrap();
    assert!(dir.path().join("x/y").is_dir());
    let (_, second) = share.begin_copy(&key, &operation).unwrap();
    fs::write(dir.path().join("x/y/file"), "data").unwrap();
    assert!(share.place(&second, "x/y").is_err(), "what holds files is not replaced");
}

#[test]
fn an_archived_directory_keeps_its_content_and_an_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    let sub = SubDir::parse("ns/pvc").unwrap();
    for content in ["first", "second"] {
        share.make(sub.as_str()).unwrap();
        fs::write(dir.path().join("ns/pvc/file"), content).unwrap();
        let to = share.archive(&sub, &Key::of("pvc")).unwrap().unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("ns").join(to).join("file")).unwrap(), content);
    }
    assert_eq!(fs::read_to_string(dir.path().join("ns/archived-pvc/file")).unwrap(), "first");
    assert_eq!(share.archive(&sub, &Key::of("pvc")).unwrap(), None);
}
