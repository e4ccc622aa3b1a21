//! The status files follow the published pods, and leftover files are removed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use berth_api::{files, view::PodView};
use berth_core::{
    event::{Event, EventRecord, Involved},
    ids::NodeName,
    roots::Roots,
    time::Wall,
};
use berth_server::{WatchCache, status_files};
use std::time::{Duration, Instant};
use tokio::{sync::oneshot, time::timeout};

const SOON: Duration = Duration::from_secs(10);

fn pod(n: usize) -> PodView {
    serde_json::from_value(serde_json::json!({
        "uid": format!("u{n}"), "key": {"namespace": "d", "name": format!("p{n}")},
        "object": {"metadata": {"name": format!("p{n}")}},
    }))
    .unwrap()
}

#[tokio::test]
async fn status_files_follow_the_pods_and_leftovers_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), "x");
    status_files::prepare(&roots).unwrap();
    std::fs::write(files::pod_file(&roots, &pod(9).uid), "{").unwrap();
    let cache = WatchCache::default();
    let (stop, stopped) = oneshot::channel();
    let keeper = tokio::spawn(status_files::keep(cache.clone(), roots.clone(), stopped));
    let shown = |what: Vec<(PodView, usize)>| {
        let roots = roots.clone();
        async move {
            let end = Instant::now() + SOON;
            loop {
                let found = files::read_pods(&roots).unwrap().0;
                let found: Vec<_> = found.into_iter().map(|f| (f.pod, f.events.len())).collect();
                if found == what {
                    return;
                }
                assert!(Instant::now() < end, "{found:?}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    };
    tokio::task::yield_now().await;
    cache.publish(pod(1));
    cache.publish(pod(2));
    shown(vec![(pod(1), 0), (pod(2), 0)]).await;
    let event = Event::warning("BackOff", "m");
    let involved = Involved::Pod { key: pod(2).key, uid: pod(2).uid };
    cache.event(EventRecord::once(involved, event, Wall(1)));
    cache.remove(&pod(1).uid);
    shown(vec![(pod(2), 1)]).await;
    assert_eq!(files::read_pods(&roots).unwrap().1.len(), 1, "the torn file is told");
    status_files::cleanup(&cache, &roots).unwrap();
    assert_eq!(files::read_pods(&roots).unwrap().1.len(), 0);
    // The last change is written before the writer ends.
    cache.publish(PodView { ready: true, ..pod(2) });
    drop(stop);
    timeout(SOON, keeper).await.unwrap().unwrap();
    assert_eq!(files::read_pods(&roots).unwrap().0.first().unwrap().pod, PodView { ready: true, ..pod(2) });
}
