//! Clones and snapshots, and a driver that is killed while it copies.

use crate::setup::{Driver, clone, code, restored, until, volume};
use berth_csi_proto::csi::ListSnapshotsRequest;
use std::{fs, path::Path};
use tonic::Code;

/// Files of a tree with their content, by path.
fn tree(root: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut left) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                left.push(path);
            } else {
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn fill(dir: &Path, files: usize) {
    for n in 0..files {
        let at = dir.join(format!("d{}", n % 37));
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join(format!("f{n}")), n.to_string()).unwrap();
    }
}

#[tokio::test]
async fn clones_and_restored_snapshots_are_equal_to_their_source() {
    let mut driver = Driver::start().await;
    let source = driver.create(volume("source", &[])).await.unwrap();
    fill(&driver.files(&source), 200);
    let copy = driver.create(clone("copy", &source)).await.unwrap();
    assert_eq!(tree(&driver.files(&copy)), tree(&driver.files(&source)));
    let snapshot = driver.ready_snapshot("snapshot", &source).await;
    let bytes: usize = tree(&driver.files(&source)).iter().map(|(_, content)| content.len()).sum();
    assert_eq!(usize::try_from(snapshot.size_bytes).unwrap(), bytes);
    let before = tree(&driver.files(&source));
    fs::write(driver.files(&source).join("later"), "x").unwrap();
    let back = driver.create(restored("back", &snapshot)).await.unwrap();
    assert_eq!(tree(&driver.files(&back)), before);
    assert_eq!(back.content_source, restored("back", &snapshot).volume_content_source);

    // The same call again finds the volume; another source is another volume.
    assert_eq!(driver.create(restored("back", &snapshot)).await.unwrap().volume_id, back.volume_id);
    assert_eq!(code(driver.create(clone("back", &source)).await), Code::AlreadyExists);
    driver.delete(&source).await.unwrap();
    driver.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
    driver.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
    assert_eq!(code(driver.create(restored("more", &snapshot)).await), Code::NotFound);
    assert_eq!(tree(&driver.files(&copy)).len(), 200, "a copy outlives its source");
    assert!(
        driver.own("snapshots").is_empty()
            && driver.own("copies").is_empty()
            && driver.own("removed").is_empty()
    );
}

/// The driver is killed while it copies: the snapshot is not ready, and the next driver makes it whole.
#[tokio::test]
async fn a_copy_that_a_kill_interrupts_is_made_anew() {
    let mut driver = Driver::start().await;
    let source = driver.create(volume("source", &[])).await.unwrap();
    fill(&driver.files(&source), if driver.server.is_real() { 300 } else { 4000 });
    for round in 0..if driver.server.is_real() { 1 } else { 3 } {
        let name = format!("snapshot-{round}");
        let call = {
            let (mut controller, id) = (driver.controller.clone(), source.volume_id.clone());
            let name = name.clone();
            tokio::spawn(async move {
                let request = berth_csi_proto::csi::CreateSnapshotRequest {
                    name,
                    source_volume_id: id,
                    ..Default::default()
                };
                controller.create_snapshot(request).await
            })
        };
        let begun = |driver: &Driver| {
            driver.own("copies").first().is_some_and(|c| fs::read_dir(c).is_ok_and(|e| e.count() > round * 5))
        };
        until("the copy's beginning", || begun(&driver) || call.is_finished()).await;
        assert!(!call.is_finished(), "the copy was over before the kill");
        driver.kill();
        _ = call.await.unwrap();
        assert_eq!(driver.own("copies").len(), 1, "the kill left a part");
        driver.again().await;
        let all =
            driver.controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
        let ready: Vec<bool> =
            all.entries.iter().map(|e| e.snapshot.as_ref().unwrap().ready_to_use).collect();
        assert_eq!(ready.iter().filter(|ready| !**ready).count(), 1, "{ready:?}");
        let snapshot = driver.ready_snapshot(&name, &source).await;
        assert!(driver.own("copies").is_empty(), "the part is gone");
        let data = driver.own("snapshots").into_iter().find(|p| {
            p.extension().is_some_and(|e| e == "data")
                && snapshot.snapshot_id.ends_with(&*p.file_stem().unwrap().to_string_lossy())
        });
        assert_eq!(tree(&data.unwrap()), tree(&driver.files(&source)));
    }
}

/// A volume that is being copied is not deleted, and a copy that nobody wants any more ends.
#[tokio::test]
async fn deletions_wait_for_copies_of_what_they_delete() {
    let mut driver = Driver::start().await;
    let source = driver.create(volume("source", &[])).await.unwrap();
    fill(&driver.files(&source), if driver.server.is_real() { 300 } else { 4000 });
    let call = {
        let (mut controller, request) = (driver.controller.clone(), clone("copy", &source));
        tokio::spawn(async move { controller.create_volume(request).await })
    };
    until("the copy's beginning", || !driver.own("copies").is_empty() || call.is_finished()).await;
    assert!(!call.is_finished(), "the copy was over before the deletion");
    let refused = driver.delete(&source).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert!(refused.message().contains("copying"), "{refused}");
    let again = driver.create(clone("copy", &source)).await;
    assert!(again.is_ok() || again.as_ref().unwrap_err().message().contains("entries"), "{again:?}");
    let copy = loop {
        match driver.create(clone("copy", &source)).await {
            Ok(copy) => break copy,
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    // A call is answered after 50 s at the latest.
    let first = call.await.unwrap().map(drop);
    assert!(first.as_ref().err().is_none_or(|status| status.code() == Code::Aborted), "{first:?}");
    assert_eq!(tree(&driver.files(&copy)), tree(&driver.files(&source)));
    driver.delete(&source).await.unwrap();
    assert!(!driver.files(&source).exists());
}
