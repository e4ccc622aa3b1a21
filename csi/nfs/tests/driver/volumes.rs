//! Creation and deletion of volumes.

use crate::setup::{Driver, code, volume};
use std::fs;
use tonic::Code;

#[tokio::test]
async fn a_deleted_volume_is_deleted_retained_or_archived() {
    let mut driver = Driver::start().await;
    for policy in ["delete", "retain", "archive"] {
        let created = driver.create(volume(&format!("pvc-{policy}"), &[("onDelete", policy)])).await.unwrap();
        let files = driver.files(&created);
        fs::write(files.join("file"), policy).unwrap();
        driver.delete(&created).await.unwrap();
        driver.delete(&created).await.unwrap();
        let archived = files.with_file_name(format!("archived-pvc-{policy}"));
        assert_eq!(
            (files.exists(), archived.exists()),
            (policy == "retain", policy == "archive"),
            "{policy}"
        );
        let kept = if policy == "archive" { archived } else { files };
        assert!(policy == "delete" || fs::read_to_string(kept.join("file")).unwrap() == policy);
    }
    for dir in ["volumes", "copies", "removed"] {
        assert_eq!(driver.own(dir), Vec::<std::path::PathBuf>::new(), "{dir}");
    }
    driver.terminate().await;
    assert!(!driver.path("driver@csi.sock").exists());
    assert_eq!(fs::read_dir(driver.path("registry")).unwrap().count(), 0);
}

#[tokio::test]
async fn data_that_others_use_or_had_before_is_not_deleted() {
    let mut driver = Driver::start().await;
    let shared = [("subDir", "shared")];
    let (first, second) = (
        driver.create(volume("a", &shared)).await.unwrap(),
        driver.create(volume("b", &shared)).await.unwrap(),
    );
    assert_ne!(first.volume_id, second.volume_id);
    let inner = driver.create(volume("c", &[("subDir", "shared/inner")])).await.unwrap();
    fs::write(driver.files(&first).join("file"), "data").unwrap();
    driver.delete(&first).await.unwrap();
    assert!(driver.files(&second).join("file").exists(), "the second volume is in the same directory");
    driver.delete(&second).await.unwrap();
    assert!(driver.files(&inner).exists(), "the third is in it");

    fs::create_dir(driver.server.files.join("old")).unwrap();
    fs::write(driver.server.files.join("old/file"), "data").unwrap();
    let adopted = driver.create(volume("d", &[("subDir", "old")])).await.unwrap();
    driver.delete(&adopted).await.unwrap();
    assert!(driver.server.files.join("old/file").exists(), "it was there before the volume");
}

#[tokio::test]
async fn a_volume_has_the_mode_and_the_name_that_its_class_says() {
    use std::os::unix::fs::PermissionsExt;
    let mut driver = Driver::start().await;
    let parameters = [
        ("mountPermissions", "2770"),
        ("subDir", "${pvc.metadata.namespace}/${pvc.metadata.name}"),
        ("csi.storage.k8s.io/pvc/name", "data"),
        ("csi.storage.k8s.io/pvc/namespace", "web"),
    ];
    let created = driver.create(volume("pvc-1", &parameters)).await.unwrap();
    let meta = fs::metadata(driver.server.files.join("web/data")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o2770);
    let target = driver.target("pod");
    // Somebody changed it: it is set again for a pod that may write.
    fs::set_permissions(driver.server.files.join("web/data"), fs::Permissions::from_mode(0o700)).unwrap();
    driver.publish(&created, &target).await.unwrap();
    let meta = fs::metadata(driver.server.files.join("web/data")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o2770);
    driver.unpublish(&created, &target).await.unwrap();
    for bad in [
        ("subDir", "../out"),
        ("subDir", "/abs"),
        ("subDir", ".berth-csi-nfs/x"),
        ("sub", "x"),
        ("onDelete", "x"),
    ] {
        assert_eq!(code(driver.create(volume("x", &[bad])).await), Code::InvalidArgument, "{bad:?}");
    }
    assert_eq!(driver.own("volumes").len(), 1);
}

/// Many calls for one volume at a time: each is answered with the one volume, or told to come again.
#[tokio::test]
async fn calls_at_the_same_time_make_one_volume() {
    let driver = Driver::start().await;
    let calls: Vec<_> = (0..12)
        .map(|_| {
            let mut controller = driver.controller.clone();
            tokio::spawn(async move { controller.create_volume(volume("one", &[])).await })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    for call in calls {
        match call.await.unwrap() {
            Ok(answer) => _ = ids.insert(answer.into_inner().volume.unwrap().volume_id),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
        }
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(driver.own("volumes").len(), 1);
}
