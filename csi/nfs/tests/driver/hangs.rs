//! A server that does not answer.

use crate::setup::{Driver, capability, publish, until, volume};
use berth_csi_proto::csi::{NodePublishVolumeRequest, volume_capability::access_mode::Mode};
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tonic::Code;

/// A mount that hangs is given up with its call, costs one thread, and holds up no other volume and no unpublish.
#[tokio::test]
async fn a_mount_that_hangs_holds_up_nobody() {
    let mut driver = Driver::start().await;
    if driver.server.is_real() {
        return a_server_that_is_gone_holds_up_nobody(driver).await;
    }
    let (stuck, good) = (
        driver.create(volume("stuck", &[])).await.unwrap(),
        driver.create(volume("good", &[])).await.unwrap(),
    );
    let (target, other) = (driver.target("stuck"), driver.target("good"));
    until("the end of earlier work", || driver.blocking_threads() == 0).await;
    let request = NodePublishVolumeRequest {
        volume_capability: Some(capability(Mode::MultiNodeMultiWriter, &["test-hang"])),
        ..publish(&stuck, &target)
    };
    let mut node = driver.node.clone();
    let hanging = request.clone();
    let call = tokio::spawn(async move { node.node_publish_volume(hanging).await });
    until("the stuck thread", || driver.blocking_threads() == 1).await;
    let again = driver.node.node_publish_volume(request).await.unwrap_err();
    assert_eq!(again.code(), Code::Aborted);
    assert!(again.message().contains("still waits"), "{again}");
    driver.publish(&good, &other).await.unwrap();
    driver.unpublish(&good, &other).await.unwrap();
    driver.unpublish(&stuck, &target).await.unwrap();
    call.abort();
    until("the end of all other work", || driver.blocking_threads() == 1).await;
    driver.terminate().await;
}

/// Cuts off one address of the server, and lets it back at the end, also of a test that fails.
struct Cut;

impl Cut {
    fn of(address: &str) -> Self {
        run("nft", &["add", "table", "ip", "csi-nfs-test"]);
        run("nft", &["add chain ip csi-nfs-test input { type filter hook input priority 0; }"]);
        run("nft", &[&format!("add rule ip csi-nfs-test input ip daddr {address} tcp dport 2049 drop")]);
        run("nft", &[&format!("add rule ip csi-nfs-test input ip saddr {address} tcp sport 2049 drop")]);
        Self
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        run("nft", &["delete", "table", "ip", "csi-nfs-test"]);
    }
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

fn mounted(target: &Path) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().any(|line| line.split(' ').nth(4) == target.to_str())
}

/// With NFS: the server has two addresses, of which one goes silent. Pods on the other go on; a pod on the first one ends
/// in spite of it; and what it had written is there when the server is back. The other is asked by NFSv3: from 4.1 on,
/// the kernel finds out that the two are one server, and asks it by the connection that it has.
async fn a_server_that_is_gone_holds_up_nobody(mut driver: Driver) {
    use std::io::Write;
    let at = |address: &'static str| [("server", address)];
    let gone = driver.create(volume("gone", &at("127.0.0.2"))).await.unwrap();
    let good = driver.create(volume("good", &at("127.0.0.1"))).await.unwrap();
    let [pod, late, other] = ["pod", "late", "other"].map(|name| driver.target(name));
    driver.publish(&gone, &pod).await.unwrap();
    let mut file = fs::File::create(pod.join("unwritten")).unwrap();
    file.write_all(&vec![7; 1 << 20]).unwrap();
    let cut = Cut::of("127.0.0.2");
    let mut node = driver.node.clone();
    let request = publish(&gone, &late);
    let stuck = tokio::spawn(async move { node.node_publish_volume(request).await });

    let begun = Instant::now();
    let by_v3 = NodePublishVolumeRequest {
        volume_capability: Some(capability(Mode::MultiNodeMultiWriter, &["vers=3", "nolock"])),
        ..publish(&good, &other)
    };
    driver.node.node_publish_volume(by_v3).await.unwrap();
    fs::write(other.join("file"), "x").unwrap();
    driver.unpublish(&good, &other).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30), "another server took {:?}", begun.elapsed());
    let stats = driver.stats(&gone, &pod).await.unwrap();
    assert!(stats.volume_condition.as_ref().unwrap().abnormal, "{stats:?}");

    // The process of the pod is gone, its last data is not.
    std::thread::spawn(move || drop(file));
    let begun = Instant::now();
    driver.unpublish(&gone, &pod).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60), "the end of the pod took {:?}", begun.elapsed());
    assert!(!mounted(&pod) && !pod.exists());
    driver.unpublish(&gone, &late).await.unwrap();
    drop(cut);
    let files = driver.files(&gone);
    until("what the pod had written", || {
        fs::metadata(files.join("unwritten")).is_ok_and(|m| m.len() == 1 << 20)
    })
    .await;
    let late_answer = stuck.await.unwrap();
    assert!(late_answer.is_err() && !mounted(&late), "{late_answer:?}");
    driver.publish(&gone, &late).await.unwrap();
    assert!(late.join("unwritten").exists());
    driver.unpublish(&gone, &late).await.unwrap();
}
