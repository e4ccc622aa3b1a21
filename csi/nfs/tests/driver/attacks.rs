//! Shares whose content is hostile.

use crate::setup::{Driver, clone, volume};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::{
    fs,
    os::unix::fs::{FileTypeExt, symlink},
};

#[tokio::test]
async fn links_fifos_and_devices_are_copied_and_deleted_as_such() {
    let mut driver = Driver::start().await;
    let sentinel = driver.path("sentinel");
    fs::create_dir(&sentinel).unwrap();
    fs::write(sentinel.join("file"), "SENTINEL").unwrap();
    let source = driver.create(volume("source", &[])).await.unwrap();
    let files = driver.files(&source);
    symlink(&sentinel, files.join("dir")).unwrap();
    symlink("../../../../../../../../etc/passwd", files.join("up")).unwrap();
    symlink(sentinel.join("file"), files.join("file")).unwrap();
    mknodat(CWD, files.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    mknodat(CWD, files.join("zero"), FileType::CharacterDevice, Mode::RUSR, 0x105).unwrap();
    let copy = driver.create(clone("copy", &source)).await.unwrap();
    let copied = driver.files(&copy);
    assert_eq!(fs::read_link(copied.join("dir")).unwrap(), sentinel);
    assert!(fs::symlink_metadata(copied.join("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::symlink_metadata(copied.join("zero")).unwrap().file_type().is_char_device());
    for volume in [&source, &copy] {
        driver.delete(volume).await.unwrap();
        assert!(!driver.files(volume).exists());
    }
    assert_eq!(fs::read_to_string(sentinel.join("file")).unwrap(), "SENTINEL");
}

/// Somebody with the whole share replaces directories by links: no call leaves the share.
#[tokio::test]
async fn links_in_the_place_of_directories_lead_nowhere() {
    let mut driver = Driver::start().await;
    let outside = driver.path("outside");
    fs::create_dir_all(outside.join("pvc")).unwrap();
    fs::write(outside.join("pvc/file"), "SENTINEL").unwrap();
    let created = driver.create(volume("pvc", &[("subDir", "ns/pvc")])).await.unwrap();
    let other = driver.create(volume("other", &[])).await.unwrap();
    fs::rename(driver.server.files.join("ns"), driver.server.files.join("was")).unwrap();
    symlink(&outside, driver.server.files.join("ns")).unwrap();
    assert!(driver.create(clone("copy", &created)).await.is_err());
    assert!(driver.snapshot("snapshot", &created).await.is_err());
    assert!(driver.create(volume("new", &[("subDir", "ns/new")])).await.is_err());
    assert!(driver.delete(&created).await.is_err());
    assert_eq!(fs::read_to_string(outside.join("pvc/file")).unwrap(), "SENTINEL");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    // The records themselves.
    for record in driver.own("volumes") {
        fs::remove_file(&record).unwrap();
        symlink("/etc/passwd", &record).unwrap();
    }
    assert!(driver.delete(&other).await.is_err());
    assert!(driver.files(&other).exists());
}
