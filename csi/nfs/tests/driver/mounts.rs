//! Mounts for pods.

use crate::setup::{Driver, capability, code, publish, volume};
use berth_csi_proto::csi::{NodePublishVolumeRequest, Volume, volume_capability::access_mode::Mode};
use std::{fs, os::unix::fs::symlink, path::Path};
use tonic::Code;

/// Mounts at a path.
fn mounted(target: &Path) -> usize {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter(|line| line.split(' ').nth(4) == target.to_str()).count()
}

#[tokio::test]
async fn two_pods_share_a_volume_and_one_only_reads() {
    let mut driver = Driver::start().await;
    let shared = driver.create(volume("shared", &[])).await.unwrap();
    let [first, second, reader] = ["first", "second", "reader"].map(|name| driver.target(name));
    for target in [&first, &second, &first] {
        driver.publish(&shared, target).await.unwrap();
    }
    assert_eq!(mounted(&first), 1, "a repeated call mounts nothing more");
    let read_only = NodePublishVolumeRequest { readonly: true, ..publish(&shared, &reader) };
    driver.node.node_publish_volume(read_only).await.unwrap();
    fs::write(first.join("file"), "content").unwrap();
    assert_eq!(fs::read_to_string(second.join("file")).unwrap(), "content");
    assert_eq!(fs::read_to_string(reader.join("file")).unwrap(), "content");
    let refused = fs::write(reader.join("file"), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    let stats = driver.stats(&shared, &first).await.unwrap();
    assert!(stats.usage.len() == 2 && stats.usage.iter().all(|u| u.total > 0), "{stats:?}");
    assert!(!stats.volume_condition.unwrap().abnormal);

    for target in [&first, &second, &reader, &first] {
        driver.unpublish(&shared, target).await.unwrap();
        assert!(!target.exists() && mounted(target) == 0);
    }
    assert_eq!(fs::read_to_string(driver.files(&shared).join("file")).unwrap(), "content", "no data is lost");
    assert_eq!(code(driver.stats(&shared, &first).await), Code::NotFound);
}

#[tokio::test]
async fn what_is_at_a_path_is_not_mounted_over() {
    let mut driver = Driver::start().await;
    let (one, two) =
        (driver.create(volume("one", &[])).await.unwrap(), driver.create(volume("two", &[])).await.unwrap());
    let target = driver.target("pod");
    driver.publish(&one, &target).await.unwrap();
    assert_eq!(code(driver.publish(&two, &target).await), Code::AlreadyExists);
    let read_only = NodePublishVolumeRequest { readonly: true, ..publish(&one, &target) };
    assert_eq!(code(driver.node.node_publish_volume(read_only).await), Code::AlreadyExists);
    driver.unpublish(&one, &target).await.unwrap();

    let outside = driver.path("outside");
    fs::create_dir(&outside).unwrap();
    let link = driver.target("link");
    symlink(&outside, &link).unwrap();
    assert!(driver.publish(&one, &link).await.is_err());
    assert_eq!(mounted(&outside), 0);
    assert!(driver.unpublish(&one, &link).await.is_err(), "a link is no directory of the driver");

    // A directory with files and without a mount is not emptied.
    let full = driver.target("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("file"), "data").unwrap();
    assert!(driver.unpublish(&one, &full).await.is_err());
    assert_eq!(fs::read_to_string(full.join("file")).unwrap(), "data");
}

#[tokio::test]
async fn a_volume_of_one_pod_is_mounted_once_also_after_a_restart() {
    let mut driver = Driver::start().await;
    let own = driver.create(volume("own", &[])).await.unwrap();
    let request = |target: &Path| NodePublishVolumeRequest {
        volume_capability: Some(capability(Mode::SingleNodeSingleWriter, &[])),
        ..publish(&own, target)
    };
    let (first, second) = (driver.target("first"), driver.target("second"));
    driver.node.node_publish_volume(request(&first)).await.unwrap();
    assert_eq!(code(driver.node.node_publish_volume(request(&second)).await), Code::FailedPrecondition);
    driver.kill();
    driver.again().await;
    assert_eq!(code(driver.node.node_publish_volume(request(&second)).await), Code::FailedPrecondition);
    driver.node.node_publish_volume(request(&first)).await.unwrap();
    driver.unpublish(&own, &first).await.unwrap();
    driver.node.node_publish_volume(request(&second)).await.unwrap();
    driver.unpublish(&own, &second).await.unwrap();
}

#[tokio::test]
async fn volumes_by_hand_and_in_pods_are_mounted_by_their_attributes() {
    let mut driver = Driver::start().await;
    fs::create_dir_all(driver.server.files.join("by/hand")).unwrap();
    fs::write(driver.server.files.join("by/hand/file"), "x").unwrap();
    let context = |sub: &str| {
        [("server", driver.server.name.as_str()), ("share", &driver.server.share), ("subDir", sub)]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into_iter()
            .chain([("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned())])
            .collect()
    };
    let static_volume = |sub: &str| Volume {
        volume_id: "by-hand".into(),
        volume_context: context(sub),
        ..Default::default()
    };
    let (whole, part) = (static_volume(""), static_volume("by/hand"));
    let bad = [static_volume("../.."), static_volume("/etc"), static_volume("nowhere")];
    let target = driver.target("pod");
    driver.publish(&part, &target).await.unwrap();
    assert!(target.join("file").exists());
    driver.unpublish(&part, &target).await.unwrap();
    driver.publish(&whole, &target).await.unwrap();
    assert!(target.join("by/hand/file").exists());
    driver.unpublish(&whole, &target).await.unwrap();
    for volume in bad {
        assert!(driver.publish(&volume, &target).await.is_err());
        assert_eq!(mounted(&target), 0);
    }
    let unknown = Volume { volume_id: "by-hand".into(), ..Default::default() };
    assert_eq!(code(driver.publish(&unknown, &target).await), Code::InvalidArgument);
}

/// Each version that the kernel's client knows, and options that only NFS has.
#[tokio::test]
async fn versions_and_options_are_those_that_are_asked_for() {
    let mut driver = Driver::start().await;
    let created = driver.create(volume("pvc", &[])).await.unwrap();
    let target = driver.target("pod");
    for (flags, wanted) in [
        (&["vers=4.2"][..], "vers=4.2"),
        (&["nfsvers=4.1", "noatime"], "vers=4.1"),
        (&["vers=4.0"], "vers=4.0"),
        (&["vers=3", "nolock", "timeo=100"], "vers=3"),
        (&["rsize=65536"], "vers=4.2"),
    ] {
        let request = NodePublishVolumeRequest {
            volume_capability: Some(capability(Mode::MultiNodeMultiWriter, flags)),
            ..publish(&created, &target)
        };
        driver.node.node_publish_volume(request).await.unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == target.to_str()).unwrap();
        assert!(!driver.server.is_real() || line.contains(wanted), "{line}");
        fs::write(target.join("file"), wanted).unwrap();
        driver.unpublish(&created, &target).await.unwrap();
        assert_eq!(fs::read_to_string(driver.files(&created).join("file")).unwrap(), wanted);
    }
    let request = NodePublishVolumeRequest {
        volume_capability: Some(capability(Mode::MultiNodeMultiWriter, &["addr=127.0.0.9"])),
        ..publish(&created, &target)
    };
    assert_eq!(code(driver.node.node_publish_volume(request).await), Code::InvalidArgument);
}
