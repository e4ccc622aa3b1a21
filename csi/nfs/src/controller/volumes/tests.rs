//! A driver that dies between any two steps leaves a state from which the next call comes to the same end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use super::*;
use crate::parameters::Map;
use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
};

fn share(dir: &Path) -> Share {
    let share = Share::new(File::open(dir).unwrap().into());
    share.make_own_dirs().unwrap();
    share
}

fn new(name: &str, source: Option<Source>) -> NewVolume {
    let given = Map::from([("server".into(), "h".into()), ("share".into(), "/s".into())]);
    NewVolume {
        parameters: VolumeParameters::read(name, &given, &Map::new()).unwrap(),
        capacity: Capacity::read(None).unwrap(),
        name: name.into(),
        source,
    }
}

/// A source with a file, and a request for a copy of it.
fn clone(share: &Share, dir: &Path) -> NewVolume {
    let source = new("source", None);
    source.create(share, share, &Operation::alone()).unwrap();
    fs::write(dir.join("source/file"), "data").unwrap();
    new("copy", Some(Source::Volume(source.handle())))
}

fn record(of: &NewVolume, copied: Option<u64>) -> VolumeRecord {
    VolumeRecord {
        name: of.name.clone(),
        id: of.handle().to_id(),
        capacity: 0,
        source: of.source.as_ref().map(Source::id),
        adopted: false,
        copied,
        ready: false,
    }
}

#[test]
fn a_creation_goes_on_from_wherever_it_stopped() {
    for step in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let (share, operation) = (share(dir.path()), Operation::alone());
        let copy = clone(&share, dir.path());
        let own = dir.path().join(".berth-csi-nfs");
        if step >= 1 {
            share.store_volume(&copy.handle(), &record(&copy, None)).unwrap();
        }
        if step >= 2 {
            let (_, part) = share.begin_copy(&copy.handle().key, &operation).unwrap();
            fs::write(dir.path().join(&part).join("file"), "da").unwrap();
            if step >= 3 {
                fs::write(dir.path().join(&part).join("file"), "data").unwrap();
                let inode = fs::metadata(dir.path().join(&part)).unwrap().ino();
                share.store_volume(&copy.handle(), &record(&copy, Some(inode))).unwrap();
            }
            if step >= 4 {
                share.place(&part, "copy").unwrap();
            }
        }
        let made = copy.create(&share, &share, &operation).unwrap();
        assert!(made.ready, "step {step}");
        assert_eq!(fs::read_to_string(dir.path().join("copy/file")).unwrap(), "data", "step {step}");
        assert_eq!(copy.create(&share, &share, &operation).unwrap(), made);
        assert_eq!(fs::read_dir(own.join("copies")).unwrap().count(), 0);
    }
}

#[test]
fn a_directory_of_somebody_else_is_not_taken_for_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (share, operation) = (share(dir.path()), Operation::alone());
    let copy = clone(&share, dir.path());
    share.store_volume(&copy.handle(), &record(&copy, None)).unwrap();
    fs::create_dir(dir.path().join("copy")).unwrap();
    let refused = copy.create(&share, &share, &operation);
    assert!(matches!(refused, Err(Error::Exists { .. })), "{refused:?}");
    // A volume that is not ready is no source, and its deletion leaves nothing of it.
    let source = Source::Volume(copy.handle());
    assert!(matches!(source.open(&share), Err(Error::NotFound(_))));
}

#[test]
fn a_deletion_goes_on_from_wherever_it_stopped() {
    for step in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let (share, operation) = (share(dir.path()), Operation::alone());
        let volume = new("pvc", None);
        volume.create(&share, &share, &operation).unwrap();
        fs::create_dir(dir.path().join("pvc/d")).unwrap();
        fs::write(dir.path().join("pvc/d/file"), "data").unwrap();
        let own = dir.path().join(".berth-csi-nfs");
        if step >= 1 {
            let removed = own.join("removed").join(format!("{}-1", volume.handle().key.as_str()));
            fs::rename(dir.path().join("pvc"), &removed).unwrap();
            if step >= 2 {
                fs::remove_dir_all(&removed).unwrap();
            }
        }
        delete(&share, &volume.handle(), &operation).unwrap();
        delete(&share, &volume.handle(), &operation).unwrap();
        assert!(!dir.path().join("pvc").exists());
        for left in ["removed", "volumes"] {
            assert_eq!(fs::read_dir(own.join(left)).unwrap().count(), 0, "step {step}: {left}");
        }
    }
}

#[test]
fn sizes_are_what_was_asked_for_or_refused() {
    let range = |required, limit| {
        Capacity::read(Some(&CapacityRange { required_bytes: required, limit_bytes: limit }))
    };
    assert!(range(10, 20).unwrap().accepts(15) && !range(10, 20).unwrap().accepts(25));
    assert!(range(10, 0).unwrap().accepts(1 << 50) && !range(10, 0).unwrap().accepts(9));
    for bad in [(10, 5), (-1, 0), (0, -1)] {
        assert!(matches!(range(bad.0, bad.1), Err(Error::Size { .. })), "{bad:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (share, operation) = (share(dir.path()), Operation::alone());
    let volume = NewVolume { capacity: range(10, 0).unwrap(), ..new("pvc", None) };
    volume.create(&share, &share, &operation).unwrap();
    assert_eq!(expand(&share, &volume.handle(), range(30, 0).unwrap()).unwrap(), 30);
    assert_eq!(expand(&share, &volume.handle(), range(20, 0).unwrap()).unwrap(), 30, "nothing shrinks");
    assert!(expand(&share, &new("other", None).handle(), range(20, 0).unwrap()).is_err());
}
