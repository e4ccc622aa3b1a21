use super::*;
use berth_core::{ids::PodKey, model::Pod};
use serde_json::json;
use std::sync::Arc;

fn at(seconds: u64) -> Now {
    Now { boottime: Boottime(Duration::from_secs(seconds)), ..Now::default() }
}

fn pod() -> Arc<Pod> {
    let key = PodKey { namespace: "default".parse().unwrap(), name: "p".parse().unwrap() };
    Arc::new(Pod::new("u1".parse().unwrap(), key, "n".parse().unwrap()))
}

fn report(phase: &str) -> PodToPublish {
    let status = json!({ "phase": phase, "startTime": "2026-01-01T00:00:00Z" });
    PodToPublish { pod: pod(), status, observed: true, may_run: phase == "Running", reclaimed: false }
}

fn api(version: u32, phase: &str) -> Value {
    json!({
        "metadata": { "uid": "u1", "resourceVersion": version.to_string() },
        "status": { "phase": phase, "startTime": "2026-01-01T00:00:00Z" },
    })
}

fn deleted(mut api: Value) -> Value {
    api["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z".into();
    api
}

fn patched(before: u32, after: u32) -> Answer {
    Answer::Patched { before: Some(before.to_string()), after: Some(after.to_string()) }
}

fn phase(step: &Step) -> &str {
    match step {
        Step::Patch(patch) => patch["status"]["phase"].as_str().unwrap_or("same phase"),
        Step::Delete => "delete",
        Step::Wait(_) => "wait",
        Step::Nothing => "nothing",
    }
}

#[test]
fn one_request_is_in_flight_and_none_follows_where_nothing_differs() {
    let mut entry = Entry::default();
    entry.report_changed(Boottime(Duration::ZERO));
    let step = entry.next(&api(1, "Pending"), &report("Running"), at(0));
    assert_eq!(phase(&step), "Running");
    entry.report_changed(Boottime(Duration::ZERO));
    assert_eq!(entry.next(&api(1, "Pending"), &report("Failed"), at(0)), Step::Nothing, "in flight");
    entry.answered(patched(1, 2), at(0));
    // The newest report follows at once; those between are left out.
    assert_eq!(phase(&entry.next(&api(2, "Running"), &report("Failed"), at(0))), "Failed");
    entry.answered(patched(2, 3), at(0));
    for _ in 0..3 {
        entry.report_changed(Boottime(Duration::ZERO));
        assert_eq!(entry.next(&api(3, "Failed"), &report("Failed"), at(1)), Step::Nothing);
    }
}

#[test]
fn a_report_of_a_pod_that_was_not_observed_is_not_sent() {
    let mut entry = Entry::default();
    entry.report_changed(Boottime(Duration::ZERO));
    let remembered = PodToPublish { observed: false, ..report("Pending") };
    assert_eq!(entry.next(&api(1, "Running"), &remembered, at(0)), Step::Nothing);
}

#[test]
fn what_others_overwrite_is_repaired_each_ten_seconds() {
    let mut entry = Entry::default();
    entry.report_changed(Boottime(Duration::ZERO));
    entry.next(&api(1, "Pending"), &report("Running"), at(100));
    entry.answered(patched(1, 2), at(100));
    let overwritten = api(3, "Pending");
    assert_eq!(entry.next(&overwritten, &report("Running"), at(101)), Step::Wait(at(110).boottime));
    assert_eq!(phase(&entry.next(&overwritten, &report("Running"), at(110))), "Running");
}

#[test]
fn a_patch_without_effect_or_refused_waits_for_another_version() {
    for answer in [patched(1, 1), Answer::Refused { version: Some("1".into()) }] {
        let mut entry = Entry::default();
        entry.report_changed(Boottime(Duration::ZERO));
        entry.next(&api(1, "Pending"), &report("Running"), at(0));
        entry.answered(answer, at(0));
        assert_eq!(entry.next(&api(1, "Pending"), &report("Running"), at(1000)), Step::Nothing);
        assert_eq!(phase(&entry.next(&api(2, "Pending"), &report("Running"), at(1000))), "Running");
    }
}

#[test]
fn failures_wait_longer_and_the_server_may_ask_for_more() {
    let mut entry = Entry::default();
    entry.report_changed(Boottime(Duration::ZERO));
    let mut waits = Vec::new();
    let mut now = at(0);
    for retry_after in [None, None, None, Some(Duration::from_secs(7)), None, None, None, None, None] {
        assert_eq!(phase(&entry.next(&api(1, "Pending"), &report("Running"), now)), "Running");
        entry.answered(Answer::Failed { retry_after }, now);
        let Step::Wait(until) = entry.next(&api(1, "Pending"), &report("Running"), now) else { panic!() };
        waits.push(u64::try_from(until.since(now.boottime).as_millis()).unwrap());
        now = Now { boottime: until, ..now };
    }
    assert_eq!(waits, [200, 400, 800, 7000, 3200, 6400, 10_000, 10_000, 10_000]);
}

#[test]
fn a_pod_is_deleted_only_after_the_api_shows_its_end_and_nothing_of_it_is_left() {
    let mut entry = Entry::default();
    let over = PodToPublish { reclaimed: true, may_run: false, ..report("Failed") };
    // Not deleted by anybody: a finished pod stays.
    assert_eq!(entry.next(&api(1, "Failed"), &over, at(0)), Step::Nothing);
    // The API server does not show the end yet.
    entry.report_changed(Boottime(Duration::ZERO));
    assert_eq!(phase(&entry.next(&deleted(api(2, "Running")), &over, at(0))), "Failed");
    entry.answered(patched(2, 3), at(0));
    // Something is left on the node.
    let left = PodToPublish { reclaimed: false, ..over.clone() };
    assert_eq!(entry.next(&deleted(api(3, "Failed")), &left, at(0)), Step::Nothing);
    assert_eq!(entry.next(&deleted(api(3, "Failed")), &over, at(0)), Step::Delete);
    assert_eq!(entry.next(&deleted(api(3, "Failed")), &over, at(0)), Step::Nothing, "in flight");
    entry.answered(Answer::Failed { retry_after: None }, at(0));
    assert_eq!(entry.next(&deleted(api(3, "Failed")), &over, at(1)), Step::Delete, "tried again");
    entry.answered(Answer::Deleted, at(1));
    assert_eq!(
        entry.next(&deleted(api(4, "Failed")), &over, at(1000)),
        Step::Nothing,
        "a finalizer holds it"
    );
}

/// The last condition of a pod costs no request of its own, unless the object stays after its deletion.
#[test]
fn a_pod_that_goes_is_deleted_without_another_patch_of_its_conditions() {
    let with_condition = |mut object: Value, status: &str| {
        object["conditions"] = json!([{ "type": "PodReadyToStartContainers", "status": status }]);
        object
    };
    let shown = |finalizers: Value| {
        let mut api = deleted(api(3, "Failed"));
        api["metadata"]["finalizers"] = finalizers;
        api["status"] = with_condition(api["status"].take(), "True");
        api
    };
    let ended = report("Failed");
    let over = PodToPublish {
        reclaimed: true,
        may_run: false,
        status: with_condition(ended.status.clone(), "False"),
        ..ended
    };
    let next = |api: &Value, report: &PodToPublish| {
        let mut entry = Entry::default();
        entry.report_changed(Boottime(Duration::ZERO));
        entry.next(api, report, at(0))
    };
    assert_eq!(next(&shown(Value::Null), &over), Step::Delete);
    assert_eq!(next(&shown(json!([])), &over), Step::Delete);
    assert!(
        matches!(next(&shown(json!(["example.com/hold"])), &over), Step::Patch(_)),
        "others still read it"
    );
    let left = PodToPublish { reclaimed: false, ..over.clone() };
    assert!(matches!(next(&shown(Value::Null), &left), Step::Patch(_)), "something is left on the node");
    let mut more = over;
    more.status["message"] = "m".into();
    more.status["podIP"] = "10.0.0.1".into();
    assert!(matches!(next(&shown(Value::Null), &more), Step::Patch(_)), "more than conditions differs");
}

/// A step on the way is sent only where the next one does not come soon.
#[test]
fn a_status_that_a_pod_only_passes_waits_for_the_next() {
    let millis = |ms: u64| Now { boottime: Boottime(Duration::from_millis(ms)), ..Now::default() };
    let pending = |reason: &str| PodToPublish {
        status: json!({ "phase": "Pending", "startTime": "2026-01-01T00:00:00Z", "reason": reason }),
        ..report("Pending")
    };
    let mut entry = Entry::default();
    entry.report_changed(Boottime(Duration::from_millis(1000)));
    assert_eq!(
        entry.next(&api(1, "Pending"), &pending("a"), millis(1000)),
        Step::Wait(millis(1200).boottime)
    );
    // A later change does not wait anew.
    entry.report_changed(Boottime(Duration::from_millis(1150)));
    assert_eq!(
        entry.next(&api(1, "Pending"), &pending("b"), millis(1150)),
        Step::Wait(millis(1200).boottime)
    );
    assert!(matches!(entry.next(&api(1, "Pending"), &pending("b"), millis(1200)), Step::Patch(_)));
    entry.answered(patched(1, 2), millis(1210));
    // Nothing holds up a new phase, nor what others overwrite.
    entry.report_changed(Boottime(Duration::from_millis(1300)));
    assert_eq!(phase(&entry.next(&api(2, "Pending"), &report("Running"), millis(1300))), "Running");
    entry.answered(patched(2, 3), millis(1310));
    // A running pod's changes are sent at once, but for those of a pod that is being deleted.
    let stopping = PodToPublish { status: json!({ "phase": "Running", "reason": "c" }), ..report("Running") };
    entry.report_changed(Boottime(Duration::from_millis(1400)));
    let deleting = deleted(api(3, "Running"));
    assert_eq!(entry.next(&deleting, &stopping, millis(1400)), Step::Wait(millis(1600).boottime));
    assert!(matches!(entry.next(&api(3, "Running"), &stopping, millis(1400)), Step::Patch(_)));
    entry.answered(patched(3, 4), millis(1410));
    entry.report_changed(Boottime(Duration::from_millis(1500)));
    assert_eq!(phase(&entry.next(&deleting, &report("Failed"), millis(1500))), "Failed");
}
