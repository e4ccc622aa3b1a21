//! Which pods count as active, and which have their events in the API.

use super::*;
use berth_core::{ids::PodKey, model::QosClass, status::PodStatus};

fn report(uid: &str, phase: Phase) -> PodReport {
    let key = PodKey { namespace: "default".parse().unwrap(), name: uid.parse().unwrap() };
    let status = PodStatus::new(phase, QosClass::BestEffort);
    PodReport {
        pod: Arc::new(Pod::new(uid.parse().unwrap(), key, "n".parse().unwrap())),
        status: Arc::new(status),
        processes: BTreeMap::new(),
        timeline: Vec::new(),
        observed: true,
        gone: false,
        reclaimed: false,
        as_of: Wall(0),
    }
}

#[tokio::test]
async fn terminated_and_rejected_pods_are_not_active() {
    let (_owner, node) = watch::channel(Arc::new(NodeInfo::new("n".parse().unwrap())));
    let manager = StatusManager::new(
        WatchCache::default(),
        watch::channel(berth_source::Sources::default()).1,
        node,
        None,
    );
    let active = || manager.active_pods().iter().map(|p| p.uid.to_string()).collect::<Vec<_>>();
    for (uid, phase) in [
        ("done", Phase::Succeeded),
        ("rejected", Phase::Failed),
        ("runs", Phase::Running),
        ("waits", Phase::Pending),
    ] {
        manager.pod(report(uid, phase));
    }
    assert_eq!(active(), ["runs", "waits"]);
    // The first notification is of the pods above; the end of a pod must notify again, so that the
    // QoS groups follow.
    manager.changed.notified().await;
    manager.pod(report("waits", Phase::Pending));
    manager.pod(report("runs", Phase::Failed));
    tokio::time::timeout(std::time::Duration::from_secs(10), manager.changed.notified()).await.unwrap();
    assert_eq!(active(), ["waits"]);
}

#[tokio::test]
async fn pods_of_the_api_server_and_static_pods_have_their_events_in_the_api() {
    let (_owner, node) = watch::channel(Arc::new(NodeInfo::new("n".parse().unwrap())));
    let latest = watch::channel(berth_source::Sources::default()).1;
    let manager = StatusManager::new(WatchCache::default(), latest, node, None);
    for (uid, origin, expected) in [
        ("api", Origin::Cluster, true),
        ("static", Origin::StaticFile("f".into()), true),
        ("manifest", Origin::Manifest("f".into()), false),
    ] {
        let mut report = report(uid, Phase::Running);
        Arc::make_mut(&mut report.pod).origin = origin;
        let key = report.pod.key.clone();
        manager.pod(report);
        let involved = Involved::Pod { key, uid: uid.parse().unwrap() };
        assert_eq!(manager.is_of_api(&involved), expected, "{uid}");
    }
    let key = PodKey { namespace: "default".parse().unwrap(), name: "unknown".parse().unwrap() };
    assert!(!manager.is_of_api(&Involved::Pod { key: key.clone(), uid: "unknown".parse().unwrap() }));
    assert!(!manager.is_of_api(&Involved::Service { key, uid: "unknown".into() }));
}
