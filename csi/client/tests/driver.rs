//! The driver for tests itself: it mounts what is published, and leaves nothing. Needs root.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use berth_csi_client::{
    testing::{Options, Outcome, TestDriver},
    *,
};
use std::{fs, path::Path};

fn mounts_below(dir: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|l| l.split(' ').nth(4).is_some_and(|p| Path::new(p).starts_with(dir))).count()
}

#[tokio::test]
async fn published_volumes_are_mounted_and_go_with_the_driver() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::create_dir(root.join("staging")).unwrap();
    let server = TestDriver::start(&root, Options { mounts: true, ..Options::default() }).unwrap();
    let driver = server.client().unwrap();
    let volume = VolumeId::new("v").unwrap();
    let capability = VolumeCapability {
        access_mode: AccessMode::SingleNodeWriter,
        access_type: AccessType::Mount(MountVolume::default()),
    };
    let stage = Stage {
        volume: volume.clone(),
        publish_context: Default::default(),
        staging_target_path: root.join("staging"),
        capability: capability.clone(),
        secrets: Secrets::default(),
        volume_context: Default::default(),
    };
    let publish = |target: &str, access_type| Publish {
        volume: volume.clone(),
        publish_context: Default::default(),
        staging_target_path: Some(root.join("staging")),
        target_path: root.join(target),
        capability: VolumeCapability { access_type, ..capability.clone() },
        readonly: target == "readonly",
        secrets: Secrets::default(),
        volume_context: Default::default(),
    };
    let mounted = || AccessType::Mount(MountVolume::default());
    let error = driver.publish(&publish("a", mounted())).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::FailedPrecondition), "{error}");
    driver.stage(&stage).await.unwrap();
    driver.stage(&stage).await.unwrap();
    driver.publish(&publish("a", mounted())).await.unwrap();
    driver.publish(&publish("readonly", mounted())).await.unwrap();
    driver.publish(&publish("device", AccessType::Block)).await.unwrap();
    assert_eq!(mounts_below(&root), 4);
    fs::write(root.join("a/file"), "data").unwrap();
    assert_eq!(fs::read_to_string(root.join("readonly/file")).unwrap(), "data");
    assert!(fs::write(root.join("readonly/file"), "").is_err());
    fs::write(root.join("device"), "bytes").unwrap();
    assert_eq!(fs::read_to_string(server.data("v").join("block")).unwrap(), "bytes");
    let unstage = Unstage { volume: volume.clone(), staging_target_path: root.join("staging") };
    assert_eq!(driver.unstage(&unstage).await.unwrap_err().code(), Some(Code::FailedPrecondition));
    driver.unpublish(&Unpublish { volume: volume.clone(), target_path: root.join("a") }).await.unwrap();
    driver.unpublish(&Unpublish { volume: volume.clone(), target_path: root.join("a") }).await.unwrap();
    assert!(!root.join("a").exists());
    let outcomes: Vec<Outcome> = server.journal().iter().map(|e| e.outcome).collect();
    use Outcome::{Done, Refused, Repeated};
    assert_eq!(outcomes, [Refused, Done, Repeated, Done, Done, Done, Refused, Done, Repeated]);
    drop(server);
    assert_eq!(mounts_below(&root), 0);
    assert_eq!(fs::read_to_string(TestDriver::data_in(&root, "v").join("file")).unwrap(), "data");
}
