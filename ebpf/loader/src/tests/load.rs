//! Loading, adopting, refusing, and switching to other builds and schemas.

use super::{Cgroup, Scratch, kills, other_build};
use crate::{
    Access, Attached, Datapath, Error, OBJECT, Pins, Prepared, Sizes, SocketHook, SocketRecords, attach,
    attach_sockets, begin, detach, digest, load, load_sized,
    object::Contents,
    pins::{list, make_dir, pin_over},
    prepare,
    records::refused_by_the_kernel,
    report,
    sys::create_map,
};
use berth_ebpf_abi::{SCHEMA, Service, ServiceKey, maps};
use std::{
    fs,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

const KEY: ServiceKey<u32> = ServiceKey { addr: 77, port: 5, proto: 6, pad: 0 };
const PATIENCE: Duration = Duration::from_secs(60);

fn service() -> Service<u32> {
    Service { id: 9, ..Service::default() }
}

/// Asserts that programs, maps and links are complete, live and of one build, and that no unfinished pins
/// remain.
pub(super) fn assert_whole(pins: &Pins, object: &[u8]) {
    let contents = Contents::parse(object).unwrap();
    assert_eq!(pins.loaded_digest().unwrap(), Some(digest(object)));
    let report = report(pins, false).unwrap();
    let names: Vec<_> = report.programs.iter().map(|program| program.name.clone()).collect();
    assert_eq!(names, contents.programs);
    let names: Vec<_> = report.maps.iter().map(|map| &map.name).collect();
    assert_eq!(names, contents.maps.iter().map(|map| &map.name).collect::<Vec<_>>());
    assert_iterators(pins);
    assert_eq!(report.links.len(), SocketHook::ALL.len(), "{:?}", report.links);
    for link in report.links {
        let program = report.programs.iter().find(|program| program.name == link.name).unwrap();
        assert!(link.live && link.program == program.id, "{link:?} {program:?}");
    }
}

/// Asserts that the iterators are there, or, on a kernel that allows none, its reason. Returns whether they are.
pub(super) fn assert_iterators(pins: &Pins) -> bool {
    let Some(refusal) = refused_by_the_kernel() else {
        SocketRecords::open(pins).unwrap();
        return true;
    };
    let Err(Error::OpenPin { source, .. }) = SocketRecords::open(pins) else {
        panic!("the kernel refuses them")
    };
    assert_eq!(source.to_string(), refusal, "the kernel's reason is kept");
    assert_eq!(list(&pins.iterators()).unwrap().len(), 1, "it stands in the place of both");
    eprintln!("this kernel allows no iterators: {refusal}");
    false
}

#[test]
fn everything_is_pinned_attached_once_and_adopted_by_the_next() {
    let (scratch, cgroup) = (Scratch::new(), Cgroup::new());
    let pins = scratch.pins();
    load(&pins, OBJECT, |_| {}).unwrap();
    assert_eq!(list(&pins.links()).unwrap(), [], "nothing is attached before the tables are full");
    Datapath::open(&pins, Access::Write).unwrap().service4.put(&KEY, &service()).unwrap();
    assert_eq!(attach(&pins, cgroup.path()).unwrap(), Attached { made: 8, ..Attached::default() });
    assert_whole(&pins, OBJECT);

    // No child is needed: the path names no program.
    let start = Instant::now();
    assert_eq!(
        prepare(&pins, Path::new("/nowhere"), &Sizes::default(), PATIENCE).unwrap(),
        Prepared::Adopted
    );
    let prepared = start.elapsed();
    assert_eq!(attach(&pins, cgroup.path()).unwrap(), Attached { kept: 8, ..Attached::default() });
    let attached = start.elapsed();
    Datapath::open(&pins, Access::Write).unwrap();
    println!("restart: prepare {prepared:?}, with attach {attached:?}, with open {:?}", start.elapsed());
    let memory = report(&pins, false).unwrap().map_memory();
    println!("maps when empty: {memory} bytes");
    assert!(memory < 30_000_000, "{memory}");

    // Another build takes over in the same links; the maps are kept.
    let links = |pins| report(pins, false).unwrap().links.iter().map(|link| link.id).collect::<Vec<_>>();
    let before = links(&pins);
    load(&pins, &other_build(1), |_| {}).unwrap();
    assert_eq!(attach(&pins, cgroup.path()).unwrap(), Attached { swapped: 8, ..Attached::default() });
    assert_eq!(links(&pins), before);
    assert_whole(&pins, &other_build(1));
    let read = Datapath::open(&pins, Access::Read).unwrap();
    assert_eq!(read.service4.get(&KEY).unwrap(), Some(service()));
    assert!(read.service4.put(&KEY, &service()).is_err());

    // With another cgroup, the links are new.
    let other = Cgroup::new();
    assert_eq!(attach(&pins, other.path()).unwrap().made, 8);
    detach(&pins).unwrap();
    detach(&pins).unwrap();
    assert!(!pins.root().exists());
}

#[test]
fn a_map_that_differs_is_named_and_nothing_is_changed() {
    let wanted = Contents::parse(OBJECT).unwrap();
    let wanted = wanted.maps.iter().find(|map| map.name == maps::SERVICE4).unwrap();
    let right = (wanted.kind, wanted.key_size, wanted.value_size, wanted.max_entries, wanted.flags);
    let cases = [
        ("kind", (9, right.1, right.2, right.3, 0)),
        ("key size", (right.0, right.1 + 4, right.2, right.3, right.4)),
        ("value size", (right.0, right.1, right.2 + 8, right.3, right.4)),
        ("flags", (right.0, right.1, right.2, right.3, 0)),
    ];
    for (wrong, (kind, key, value, max, flags)) in cases {
        let scratch = Scratch::new();
        let pins = scratch.pins();
        make_dir(pins.root()).unwrap();
        pins.make().unwrap();
        pins.write_digest("of an older build").unwrap();
        let other = create_map(kind, key, value, max, flags).unwrap();
        pin_over(other.as_fd(), &pins.maps().join(maps::SERVICE4)).unwrap();
        let refused = load(&pins, OBJECT, |_| {}).unwrap_err();
        let Error::MapMismatch { map, field, .. } = &refused else { panic!("{refused}") };
        assert_eq!((map.as_str(), *field), (maps::SERVICE4, wrong));
        assert_eq!(list(&pins.maps()).unwrap().len(), 1);
        assert_eq!(list(&pins.programs()).unwrap(), []);
        assert_eq!(pins.loaded_digest().unwrap().as_deref(), Some("of an older build"));
        // The mismatch is also found where the digest says that all is loaded.
        pins.write_digest(&digest(OBJECT)).unwrap();
        let refused = prepare(&pins, Path::new("/nowhere"), &Sizes::default(), PATIENCE).unwrap_err();
        assert!(matches!(refused, Error::MapMismatch { .. }), "{refused}");
    }
}

#[test]
fn maps_are_made_as_large_as_wanted_and_keep_their_size() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    let entries = |name: &str| {
        let maps = report(&pins, false).unwrap().maps;
        maps.into_iter().find(|map| map.name == name).unwrap().max_entries
    };
    load_sized(&pins, OBJECT, &Sizes { services: [500, 300], ..Sizes::default() }).unwrap();
    assert_eq!([entries(maps::SERVICE4), entries(maps::SERVICE6), entries(maps::CHUNK4)], [500, 300, 65_536]);
    Datapath::open(&pins, Access::Write).unwrap().service4.put(&KEY, &service()).unwrap();
    // A load with other sizes adopts the pinned maps as they are.
    load(&pins, &other_build(1), |_| {}).unwrap();
    assert_eq!(entries(maps::SERVICE4), 500);
    assert_eq!(Datapath::open(&pins, Access::Read).unwrap().service4.get(&KEY).unwrap(), Some(service()));
    fs::remove_file(pins.maps().join(maps::CHUNK4)).unwrap();
    load_sized(&pins, OBJECT, &Sizes { services: [900, 900], chunks: [50, 1], ..Sizes::default() }).unwrap();
    assert_eq!([entries(maps::SERVICE4), entries(maps::CHUNK4)], [500, 50]);
}

#[test]
fn another_schema_is_made_beside_and_takes_over_the_links() {
    let (scratch, cgroup) = (Scratch::new(), Cgroup::new());
    let old = scratch.pins();
    load(&old, OBJECT, |_| {}).unwrap();
    Datapath::open(&old, Access::Write).unwrap().service4.put(&KEY, &service()).unwrap();
    attach(&old, cgroup.path()).unwrap();
    let links = |pins| report(pins, false).unwrap().links.iter().map(|link| link.id).collect::<Vec<_>>();
    let before = links(&old);

    let new = scratch.pins().with_schema(SCHEMA + 1);
    assert!(Datapath::open(&new, Access::Write).is_err());
    load(&new, OBJECT, |_| {}).unwrap();
    assert_eq!(Datapath::open(&new, Access::Read).unwrap().service4.count().unwrap(), 0);
    assert_eq!(Datapath::open(&old, Access::Read).unwrap().service4.count().unwrap(), 1);
    assert_whole(&old, OBJECT);
    let attached = attach(&new, cgroup.path()).unwrap();
    assert_eq!(attached, Attached { swapped: 8, retired: vec![SCHEMA], ..Attached::default() });
    assert_eq!(links(&new), before);
    assert_whole(&new, OBJECT);
    assert!(Datapath::open(&old, Access::Read).is_err());
}

#[test]
fn an_incomplete_directory_is_not_taken_for_loaded() {
    let (scratch, cgroup) = (Scratch::new(), Cgroup::new());
    let pins = scratch.pins();
    load(&pins, OBJECT, |_| {}).unwrap();
    attach(&pins, cgroup.path()).unwrap();
    let nowhere = || prepare(&pins, Path::new("/nowhere"), &Sizes::default(), PATIENCE);
    for lost in [pins.programs().join("connect4"), pins.maps().join(maps::UDP4)] {
        fs::remove_file(&lost).unwrap();
        assert!(matches!(nowhere().unwrap_err(), Error::Child { op: "start", .. }), "{}", lost.display());
        load(&pins, OBJECT, |_| {}).unwrap();
        assert_eq!(nowhere().unwrap(), Prepared::Adopted);
    }
    // A lost link is created again, and a stray one is removed.
    fs::remove_file(pins.links().join("sendmsg6")).unwrap();
    fs::rename(pins.links().join("recvmsg4"), pins.links().join("recvmsg4-new")).unwrap();
    let attached = attach(&pins, cgroup.path()).unwrap();
    assert_eq!((attached.made, attached.swapped + attached.kept), (2, 6));
    assert_whole(&pins, OBJECT);
    assert!(matches!(load(&pins, b"no object", |_| {}), Err(Error::Object(_))));
}

#[test]
fn loaders_wait_for_each_other() {
    let (scratch, cgroup) = (Scratch::new(), Cgroup::new());
    let pins = scratch.pins();
    let mut children: Vec<_> = (0..4).map(|_| kills::start("load", &pins, cgroup.path())).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    attach(&pins, cgroup.path()).unwrap();
    assert_whole(&pins, OBJECT);
}

fn script(scratch: &Scratch, text: &str) -> std::path::PathBuf {
    let path = scratch.file("program");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

#[test]
fn the_child_loads_and_its_failure_and_its_silence_are_told() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    let failing = script(&scratch, "echo \"refused: $*\" >&2; exit 3");
    let failed = prepare(&pins, &failing, &Sizes::default(), PATIENCE).unwrap_err();
    let Error::ChildFailed { status, message } = &failed else { panic!("{failed}") };
    assert_eq!(status.code(), Some(3));
    assert_eq!(*message, format!("refused: ebpf-load --pins {}", pins.root().display()));

    let silent = script(&scratch, "exec sleep 600");
    let late = prepare(&pins, &silent, &Sizes::default(), Duration::from_millis(50)).unwrap_err();
    assert!(matches!(late, Error::ChildDeadline(_)), "{late}");

    let loading = script(&scratch, &kills::as_role("load", &pins, None));
    assert_eq!(prepare(&pins, &loading, &Sizes::default(), PATIENCE).unwrap(), Prepared::Loaded);
    assert_eq!(
        prepare(&pins, Path::new("/nowhere"), &Sizes::default(), PATIENCE).unwrap(),
        Prepared::Adopted
    );
}

#[test]
fn sockets_can_be_served_while_the_child_loads_the_rest() {
    let (scratch, cgroup) = (Scratch::new(), Cgroup::new());
    let pins = scratch.pins();
    let loading = script(&scratch, &kills::as_role("load", &pins, None));
    let mut loading = begin(&pins, &loading, &Sizes::default(), PATIENCE).unwrap().unwrap();
    loading.wait_for_sockets().unwrap();
    Datapath::open(&pins, Access::Write).unwrap().service4.put(&KEY, &service()).unwrap();
    assert_eq!(attach_sockets(&pins, cgroup.path()).unwrap(), Attached { made: 8, ..Attached::default() });
    loading.finish().unwrap();
    assert!(loading.is_over().unwrap());
    assert_eq!(attach(&pins, cgroup.path()).unwrap(), Attached { kept: 8, ..Attached::default() });
    assert_whole(&pins, OBJECT);
    assert!(begin(&pins, Path::new("/nowhere"), &Sizes::default(), PATIENCE).unwrap().is_none());
}

#[test]
fn a_child_that_fails_or_hangs_after_the_programs_of_sockets_is_told() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    let start = |text: &str, patience| {
        let mut loading =
            begin(&pins, &script(&scratch, text), &Sizes::default(), patience).unwrap().unwrap();
        loading.wait_for_sockets().unwrap();
        loading
    };
    let failed = start("echo sockets; echo refused >&2; exit 3", PATIENCE).finish().unwrap_err();
    assert!(matches!(&failed, Error::ChildFailed { message, .. } if message == "refused"), "{failed}");
    let mut hanging = start("echo sockets; exec sleep 600", Duration::from_secs(1));
    assert!(!hanging.is_over().unwrap());
    let late = hanging.finish().unwrap_err();
    assert!(matches!(late, Error::ChildDeadline(_)), "{late}");
    let mut silent = begin(&pins, &script(&scratch, "exit 4"), &Sizes::default(), PATIENCE).unwrap().unwrap();
    let failed = silent.wait_for_sockets().unwrap_err();
    assert!(matches!(failed, Error::ChildFailed { .. }), "{failed}");
}
