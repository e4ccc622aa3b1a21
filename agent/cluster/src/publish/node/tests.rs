//! The newest Node among watch and answers, and when a status is sent.

use super::*;
use berth_core::status::Truth;
use berth_kube::reflector::ResourceVersion;
use serde_json::json;

fn node(uid: &str, version: &str) -> Value {
    json!({"metadata": {"name": "n1", "uid": uid, "resourceVersion": version, "managedFields": [{}]}})
}

#[test]
fn the_newer_version_wins_and_a_late_removal_of_an_earlier_node_removes_nothing() {
    let newest = NewestNode::default();
    assert_eq!(newest.uid(), None);
    newest.put(node("u1", "99"));
    newest.put(node("u1", "100"));
    newest.put(node("u1", "99"));
    let known = newest.get().unwrap();
    assert_eq!(known["metadata"], json!({"name": "n1", "uid": "u1", "resourceVersion": "100"}));
    newest.put(node("u2", "101"));
    newest.remove("u1");
    assert_eq!(newest.uid().as_deref(), Some("u2"));
    newest.remove("u2");
    assert_eq!(newest.get(), None);
}

#[tokio::test]
async fn a_list_without_the_node_removes_it() {
    let newest = NewestNode::default();
    let (changes, incoming) = mpsc::channel(8);
    let (meta, object) =
        OwnNode { query: String::new() }.read(node("u1", "7").to_string().as_bytes()).unwrap();
    assert_eq!((&*meta.name, &*meta.uid, meta.resource_version.as_str()), ("n1", "u1", "7"));
    let complete = |version| Change::Complete(ResourceVersion::new(version).unwrap());
    let all = [Change::Begin, Change::Put(meta, object), complete("8")];
    for change in all {
        changes.send(change).await.unwrap();
    }
    let keeping = tokio::spawn(keep(incoming, newest.clone()));
    let mut seen = newest.changes();
    seen.wait_for(Option::is_some).await.unwrap();
    for change in [Change::Begin, complete("9")] {
        changes.send(change).await.unwrap();
    }
    seen.wait_for(Option::is_none).await.unwrap();
    drop(changes);
    keeping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_status_is_due_five_minutes_after_the_last() {
    let mut sent = Sent::default();
    let now = Instant::now();
    assert_eq!(sent.heartbeat(now), Heartbeat::Due, "the first");
    sent.due = Some(now + REPORT_EVERY);
    assert_eq!(sent.heartbeat(now + EVERY), Heartbeat::OnChange);
    assert_eq!(sent.heartbeat(now + REPORT_EVERY), Heartbeat::Due);
}

/// A restarted agent does not know yet what is in use: a controller would detach what it left out.
#[test]
fn what_is_in_use_stays_listed_until_the_node_knows_better() {
    let listed = serde_json::json!({ "status": { "volumesInUse": ["kubernetes.io/csi/d^h"] } });
    let patch = |volumes_in_use| {
        let report = NodeReport { volumes_in_use, ..transitions::tests::report(Truth::True) };
        let patch = status_patch(&listed, &report, Heartbeat::OnChange, Wall(0)).unwrap();
        patch["status"].get("volumesInUse").cloned()
    };
    assert_eq!(patch(None), None, "no change");
    assert_eq!(patch(Some(["kubernetes.io/csi/d^h".to_owned()].into())), None);
    assert_eq!(patch(Some(Default::default())), Some(Value::Null), "it is free");
}
