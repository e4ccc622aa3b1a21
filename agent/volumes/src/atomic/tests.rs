use super::*;
use std::{fs, os::unix::fs::symlink};

fn payload(files: &[(&str, &str)]) -> VolumeFiles {
    files
        .iter()
        .map(|(p, t)| ((*p).into(), PayloadFile { bytes: t.as_bytes().to_vec(), mode: 0o644, owner: None }))
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|n| !n.starts_with("..20"));
    names.sort();
    names
}

#[test]
fn a_write_without_changes_makes_no_new_version() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!is_set_up(dir.path()));
    let one = payload(&[("a", "1"), ("d/e/f", "2"), ("d/g", "3")]);
    assert!(write(dir.path(), &one, None).unwrap());
    assert!(is_set_up(dir.path()));
    assert!(!write(dir.path(), &one, None).unwrap());
    assert_eq!(names(dir.path()), ["..data", "a", "d"]);
    assert_eq!(fs::read_to_string(dir.path().join("d/e/f")).unwrap(), "2");
    for changed in [
        payload(&[("a", "1"), ("d/e/f", "2"), ("d/g", "4")]),
        payload(&[("a", "1"), ("d/e/f", "2")]),
        payload(&[("a", "1"), ("d/e", "2")]),
        payload(&[("a", "1"), ("b", "")]),
        payload(&[]),
    ] {
        assert!(write(dir.path(), &changed, None).unwrap(), "{changed:?}");
        assert!(!write(dir.path(), &changed, None).unwrap(), "{changed:?}");
        let versions = fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("..20"))
            .count();
        assert_eq!(versions, 1);
        for (path, file) in &changed {
            assert_eq!(fs::read(dir.path().join(path)).unwrap(), file.bytes);
        }
    }
    assert_eq!(names(dir.path()), ["..data"]);
}

#[test]
fn a_crash_at_any_step_is_finished_by_the_next_write() {
    let one = payload(&[("a", "1"), ("gone", "1")]);
    let two = payload(&[("a", "2"), ("new", "2")]);
    let steps: [&dyn Fn(&Path); 5] = [
        &|dir| fs::create_dir(dir.join("..2026_01_01_00_00_00.1")).unwrap(),
        &|dir| {
            let version = dir.join("..2026_01_01_00_00_00.1");
            fs::create_dir(&version).unwrap();
            fs::write(version.join("a"), "half").unwrap();
            symlink("..2026_01_01_00_00_00.1", dir.join("..data_tmp")).unwrap();
        },
        &|dir| {
            // The new version is published; the links and the old version are not yet removed.
            let version = dir.join("..2026_01_01_00_00_00.1");
            fs::create_dir(&version).unwrap();
            fs::write(version.join("a"), "2").unwrap();
            fs::write(version.join("new"), "2").unwrap();
            fs::remove_file(dir.join("..data")).unwrap();
            symlink("..2026_01_01_00_00_00.1", dir.join("..data")).unwrap();
        },
        &|dir| fs::remove_file(dir.join("..data")).unwrap(),
        &|dir| {
            fs::remove_file(dir.join("..data")).unwrap();
            fs::create_dir(dir.join("..data")).unwrap();
            fs::write(dir.join("..data/x"), "").unwrap();
        },
    ];
    for (n, crash) in steps.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &one, None).unwrap();
        crash(dir.path());
        write(dir.path(), &two, None).unwrap();
        assert_eq!(names(dir.path()), ["..data", "a", "new"], "step {n}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4, "step {n}: one version");
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "2", "step {n}");
        assert_eq!(fs::read_to_string(dir.path().join("new")).unwrap(), "2", "step {n}");
        assert!(!write(dir.path(), &two, None).unwrap(), "step {n}");
    }
}

#[test]
fn a_failed_write_leaves_the_old_version() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &payload(&[("a", "1")]), None).unwrap();
    // A file cannot be created below another file.
    assert!(write(dir.path(), &payload(&[("a", "2"), ("a/b", "2")]), None).is_err());
    assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "1");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn the_volumes_own_names_are_never_taken_for_a_version() {
    for (name, is) in [
        ("..2026", true),
        ("..x", true),
        ("..", false),
        (".", false),
        ("..data", false),
        ("..data_tmp", false),
        ("../x", false),
        ("..a/b", false),
        ("a", false),
    ] {
        assert_eq!(is_version(name.as_bytes()), is, "{name}");
    }
}
