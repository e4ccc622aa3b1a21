//! Drivers that answer, hang and refuse.

use super::*;
use berth_csi_client::{
    Call, Code, Deadlines, VolumeId,
    testing::{Answer, Fault, Options, TestDriver},
};
use std::time::Instant;

/// Longer than anything takes that these tests wait for.
const LONG: Duration = Duration::from_secs(20);

struct Setup {
    _dir: tempfile::TempDir,
    server: TestDriver,
    driver: Driver,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let server = TestDriver::start(dir.path(), Options::default()).unwrap();
    let driver = server.client().unwrap();
    Setup { _dir: dir, server, driver }
}

fn of_driver(driver: &Driver, n: usize) -> RemoteVolume {
    let path = PathBuf::from(format!("/pods/{n}/mount"));
    let volume = VolumeId::new(&format!("v{n}")).unwrap();
    let stats = GetVolumeStats { volume, volume_path: path.clone(), staging_target_path: None };
    RemoteVolume { path, asked: Asked::Driver(driver.clone(), stats) }
}

fn asked(server: &TestDriver) -> usize {
    server.journal().iter().filter(|e| e.call == Call::NodeGetVolumeStats).count()
}

/// Waits until no task runs.
async fn rest(known: &RemoteVolumes) {
    let look = async {
        while !lock(&known.0).running.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LONG, look).await.unwrap();
}

#[tokio::test]
async fn a_volume_is_asked_once_a_minute_and_its_numbers_are_shown() {
    let Setup { _dir, server, driver } = setup();
    let known = RemoteVolumes::default();
    let volumes: Vec<RemoteVolume> = (0..3).map(|n| of_driver(&driver, n)).collect();
    for _ in 0..3 {
        known.refresh(volumes.clone(), LONG).await;
    }
    assert_eq!(asked(&server), 3);
    let expected = VolumeNumbers {
        capacity: Capacity { bytes: 1000, available: 600, used: 400, inodes: 100, inodes_free: 60 },
        abnormal: Some(false),
    };
    assert!(volumes.iter().all(|v| known.get(&v.path) == Some(expected)));
    // A minute later they are asked again; those that nobody wants any more are forgotten.
    let later = clock::boottime() + MAX_AGE;
    assert_eq!(known.due(volumes[1..].to_vec(), later).values().map(Vec::len).sum::<usize>(), 2);
    assert_eq!(known.get(&volumes[0].path), None);
    assert_eq!(known.get(&volumes[1].path), Some(expected));
}

#[tokio::test]
async fn a_driver_that_hangs_has_one_call_and_costs_a_question_its_patience() {
    let Setup { _dir, server, driver } = setup();
    let within = Duration::from_millis(300);
    let hasty = driver.clone().with_deadlines(Deadlines { stats: within, ..Deadlines::default() });
    server.fault(Call::NodeGetVolumeStats, Fault::after(Answer::Never));
    let known = RemoteVolumes::default();
    let volumes: Vec<RemoteVolume> = (0..20).map(|n| of_driver(&hasty, n)).collect();
    let began = Instant::now();
    for _ in 0..5 {
        known.refresh(volumes.clone(), Duration::from_millis(1)).await;
    }
    assert!(began.elapsed() < within);
    rest(&known).await;
    // After the first there was no reason to ask the other nineteen.
    assert_eq!(asked(&server), 1);
    assert!(volumes.iter().all(|v| known.get(&v.path).is_none()));
    // A refusal is of its volume alone.
    let known = RemoteVolumes::default();
    server.fault(Call::NodeGetVolumeStats, Fault::instead(Answer::Code(Code::NotFound)));
    known.refresh(volumes.clone(), LONG).await;
    assert_eq!(known.get(&volumes[0].path), None);
    assert!(volumes[1..].iter().all(|v| known.get(&v.path).is_some()));
}

#[tokio::test]
async fn file_systems_and_drivers_do_not_wait_for_each_other() {
    let Setup { _dir, server, driver } = setup();
    server.fault(Call::NodeGetVolumeStats, Fault::after(Answer::Never));
    let known = RemoteVolumes::default();
    let of_file_system = |path: PathBuf| RemoteVolume { path, asked: Asked::FileSystem };
    let mount = of_file_system("/proc".into());
    let (missing, unmounted) =
        (of_file_system(_dir.path().join("missing")), of_file_system(_dir.path().to_owned()));
    let volumes = vec![of_driver(&driver, 0), missing.clone(), unmounted.clone(), mount.clone()];
    let refreshing = tokio::spawn({
        let known = known.clone();
        async move { known.refresh(volumes, LONG).await }
    });
    let look = async {
        while known.get(&mount.path).is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LONG, look).await.unwrap();
    assert!(!refreshing.is_finished());
    let of_file_systems = async {
        while lock(&known.0).running.iter().any(|work| matches!(work, Work::FileSystem(_))) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LONG, of_file_systems).await.unwrap();
    assert_eq!((known.get(&missing.path), known.get(&unmounted.path)), (None, None));
    refreshing.abort();
}

#[tokio::test]
async fn a_file_system_that_has_not_answered_is_not_asked_again() {
    let known = RemoteVolumes::default();
    let volume = RemoteVolume { path: "/mnt".into(), asked: Asked::FileSystem };
    let now = clock::boottime();
    assert_eq!(known.due(vec![volume.clone()], now).len(), 1);
    for minutes in 1..10 {
        assert_eq!(known.due(vec![volume.clone()], now + MAX_AGE * minutes).len(), 0);
    }
}
