//! Tests of the machine and the store together: single situations here, a model of the server in `model`,
//! damaged streams in `mutations`.

mod model;
mod mutations;

use super::*;
use crate::status::Refusal;
use serde_json::{Value, json};
use std::time::Duration;

/// Objects with a number.
pub(super) struct Numbers;

#[derive(Deserialize)]
struct Number {
    metadata: Meta,
    number: u64,
}

impl Kind for Numbers {
    type Item = u64;

    fn path(&self) -> &str {
        "/api/v1/numbers"
    }

    fn query(&self) -> &str {
        ""
    }

    fn read(&self, json: &[u8]) -> Result<(Meta, u64), Bad> {
        let number: Number = serde_json::from_slice(json).map_err(|e| Bad(e.to_string()))?;
        Ok((number.metadata, number.number))
    }
}

pub(super) fn object(name: &str, version: u64, number: u64) -> Value {
    json!({"metadata": {"namespace": "n", "name": name, "uid": format!("u-{name}"), "resourceVersion": version.to_string()}, "number": number})
}

pub(super) fn line(kind: &str, object: &Value) -> Vec<u8> {
    json!({"type": kind, "object": object}).to_string().into_bytes()
}

pub(super) fn bookmark(version: u64, end: bool) -> Vec<u8> {
    let annotations = if end { json!({"k8s.io/initial-events-end": "true"}) } else { Value::Null };
    line(
        "BOOKMARK",
        &json!({"metadata": {"resourceVersion": version.to_string(), "annotations": annotations}}),
    )
}

pub(super) fn page(items: &[Value], version: u64, token: Option<&str>) -> Vec<u8> {
    json!({"kind": "NumberList", "metadata": {"resourceVersion": version.to_string(), "continue": token}, "items": items})
        .to_string()
        .into_bytes()
}

pub(super) fn refusal(code: u16) -> Refusal {
    Refusal { code, reason: String::new(), message: "no".into(), retry_after: None }
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The query of the next request, which must be due at `now`.
fn asked(machine: &mut ListWatch, now: Duration, streams: bool) -> String {
    match machine.next(now, 500, streams) {
        Step::List { query } | Step::Watch { query, .. } => query,
        Step::Wait(until) => panic!("waits until {until:?}"),
    }
}

/// The machine's wait for the largest random number.
fn wait(machine: &mut ListWatch, now: Duration) -> Duration {
    match machine.next(now, 1000, true) {
        Step::Wait(until) => until - now,
        other => panic!("asks at once: {other:?}"),
    }
}

/// A machine that watches from version 7.
fn watching() -> ListWatch {
    let mut machine = ListWatch::new(Options::set());
    asked(&mut machine, s(0), false);
    machine.page(&Numbers, &page(&[], 7, None), s(0));
    assert!(asked(&mut machine, s(0), false).ends_with("&resourceVersion=7"));
    machine.answered(s(0));
    machine
}

#[test]
fn a_list_in_pages_is_followed_by_a_watch_from_its_version() {
    let mut machine = ListWatch::new(Options::set());
    assert_eq!(asked(&mut machine, s(0), false), "limit=500", "no version at the start, and never 0");
    let first = machine.page(&Numbers, &page(&[object("a", 3, 1)], 7, Some("to/ken=")), s(0));
    assert!(matches!(first.as_slice(), [Change::Begin, Change::Put(_, 1)]), "{first:?}");
    assert_eq!(asked(&mut machine, s(0), false), "limit=500&continue=to%2Fken%3D");
    let last = machine.page(&Numbers, &page(&[object("b", 4, 2)], 7, None), s(0));
    assert!(
        matches!(last.as_slice(), [Change::Put(_, 2), Change::Complete(v)] if v.as_str() == "7"),
        "{last:?}"
    );
    let query = asked(&mut machine, s(0), false);
    assert_eq!(query, "watch=1&allowWatchBookmarks=true&timeoutSeconds=450&resourceVersion=7");
}

#[test]
fn a_streaming_list_ends_with_its_bookmark() {
    let mut machine = ListWatch::new(Options::single());
    let query = asked(&mut machine, s(0), true);
    assert_eq!(
        query,
        "watch=1&allowWatchBookmarks=true&timeoutSeconds=2700&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion="
    );
    machine.answered(s(0));
    assert!(machine.is_listing());
    let mut changes = Vec::new();
    for line in [
        line("ADDED", &object("a", 30, 1)),
        bookmark(20, false),
        line("ADDED", &object("b", 4, 2)),
        bookmark(31, true),
    ] {
        changes.extend(machine.line(&Numbers, &line, s(0)));
    }
    assert!(
        matches!(changes.as_slice(), [Change::Begin, Change::Put(_, 1), Change::Put(_, 2), Change::Complete(v)] if v.as_str() == "31"),
        "{changes:?}"
    );
    machine.line(&Numbers, &bookmark(40, false), s(1));
    machine.ended(End::Closed, s(9));
    assert!(asked(&mut machine, s(9), true).ends_with("&resourceVersion=40"));
}

/// kube-apiserver 1.36.3 on etcd 3.4.23 answers 200 and this event.
#[test]
fn a_server_that_refuses_streaming_lists_is_listed_at_once_and_remembered() {
    let disabled = json!({"kind": "Status", "status": "Failure", "reason": "InternalError", "code": 500,
        "message": "required storage feature RequestWatchProgress is disabled"});
    let mut machine = ListWatch::new(Options::set());
    asked(&mut machine, s(0), true);
    machine.answered(s(0));
    assert!(machine.line(&Numbers, &line("ERROR", &disabled), s(0)).is_empty());
    assert!(
        !machine.is_open() && machine.take_refusal_of_streaming() && !machine.take_refusal_of_streaming()
    );
    assert_eq!(asked(&mut machine, s(0), true), "limit=500");
    assert_eq!(machine.behind(), Some("not listed yet"), "no failure");
    for code in [400, 422, 500] {
        let mut machine = ListWatch::new(Options::set());
        asked(&mut machine, s(0), true);
        machine.ended(End::Refused(refusal(code)), s(0));
        assert!(machine.take_refusal_of_streaming(), "{code}");
        assert_eq!(asked(&mut machine, s(0), true), "limit=500", "{code}");
    }
}

/// A server that answers with a plain watch never ends the list.
#[test]
fn streaming_lists_that_never_complete_give_way_to_pages() {
    let mut machine = ListWatch::new(Options::set());
    let mut now = s(0);
    for _ in 0..2 {
        assert!(asked(&mut machine, now, true).contains("sendInitialEvents=true"));
        machine.answered(now);
        machine.line(&Numbers, &line("ADDED", &object("a", 3, 1)), now);
        now += s(31);
        machine.ended(End::Failed("nothing more came".into()), now);
        now += wait(&mut machine, now);
    }
    assert_eq!(asked(&mut machine, now, true), "limit=500");
}

#[test]
fn an_expired_version_is_listed_anew_at_once_and_a_second_time_after_a_wait() {
    let expired = Refusal { reason: "Expired".into(), ..refusal(410) };
    for in_stream in [true, false] {
        let mut machine = watching();
        if in_stream {
            let status = json!({"kind": "Status", "reason": "Expired", "code": 410});
            machine.line(&Numbers, &line("ERROR", &status), s(5));
        } else {
            machine.ended(End::Refused(expired.clone()), s(5));
        }
        assert_eq!(asked(&mut machine, s(5), false), "limit=500");
        machine.page(&Numbers, &page(&[], 9, None), s(5));
        asked(&mut machine, s(5), false);
        machine.ended(End::Refused(expired.clone()), s(6));
        assert_eq!(wait(&mut machine, s(6)), 2 * FIRST, "the second failure");
    }
}

const FIRST: Duration = Duration::from_millis(800);

#[test]
fn an_expired_token_restarts_the_list_whole() {
    let mut machine = ListWatch::new(Options::set());
    let mut store = Store::default();
    for change in [Change::Begin, Change::Put(meta("old"), 1), Change::Complete(version(2))] {
        store.apply(change);
    }
    asked(&mut machine, s(0), false);
    for change in machine.page(&Numbers, &page(&[object("a", 3, 1)], 7, Some("t")), s(0)) {
        store.apply(change);
    }
    asked(&mut machine, s(0), false);
    machine.ended(End::Refused(refusal(410)), s(0));
    assert_eq!(store.len(), 2, "half a list deletes nothing");
    assert_eq!(asked(&mut machine, s(0), false), "limit=500");
    let changes = machine.page(&Numbers, &page(&[object("b", 8, 2)], 9, None), s(0));
    assert!(matches!(changes.first(), Some(Change::Begin)));
    for change in changes {
        store.apply(change);
    }
    assert_eq!(store.iter().map(|(m, _)| &*m.name).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn other_failures_of_a_page_ask_for_the_same_page_again() {
    let mut machine = ListWatch::new(Options::set());
    asked(&mut machine, s(0), false);
    machine.page(&Numbers, &page(&[], 7, Some("t")), s(0));
    asked(&mut machine, s(0), false);
    machine.ended(End::Refused(refusal(503)), s(0));
    assert_eq!(asked(&mut machine, s(30), false), "limit=500&continue=t");
}

#[test]
fn waits_double_to_thirty_seconds_and_two_good_minutes_forget_failures() {
    let mut machine = watching();
    let mut now = s(1);
    let mut waits = Vec::new();
    for _ in 0..8 {
        machine.ended(End::Refused(refusal(500)), now);
        let wait = wait(&mut machine, now);
        waits.push(wait.as_millis());
        now += wait;
        asked(&mut machine, now, true);
        machine.answered(now);
    }
    assert_eq!(waits, [800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
    machine.ended(End::Failed("reset".into()), now + s(119));
    assert_eq!(wait(&mut machine, now + s(119)), s(30));
    now += s(149);
    asked(&mut machine, now, true);
    machine.answered(now);
    machine.ended(End::Failed("reset".into()), now + s(120));
    assert_eq!(wait(&mut machine, now + s(120)), FIRST);
    assert_eq!(machine.behind(), Some("reset"));
}

#[test]
fn what_the_server_asks_to_wait_is_waited() {
    let mut machine = watching();
    machine.ended(End::Refused(Refusal { retry_after: Some(s(7)), ..refusal(429) }), s(1));
    assert_eq!(machine.next(s(1), 0, true), Step::Wait(s(8)));
    let status = json!({"code": 429, "details": {"retryAfterSeconds": 5}});
    let mut machine = watching();
    machine.line(&Numbers, &line("ERROR", &status), s(1));
    assert_eq!(machine.next(s(1), 0, true), Step::Wait(s(6)));
}

#[test]
fn ends_in_order_and_broken_connections_wait_for_nothing() {
    let mut machine = watching();
    machine.line(&Numbers, &bookmark(9, false), s(1));
    for end in [End::Closed, End::Disconnected("cut".into())] {
        machine.ended(end, s(300));
        assert!(asked(&mut machine, s(300), true).ends_with("&resourceVersion=9"));
        machine.answered(s(300));
        machine.line(&Numbers, &bookmark(9, false), s(300));
        assert_eq!(machine.behind(), None);
    }
    machine.ended(End::Disconnected("cut".into()), s(301));
    assert_eq!(machine.behind(), Some("cut"));
}

#[test]
fn a_server_that_ends_watches_at_once_is_not_asked_in_a_loop() {
    let mut machine = watching();
    machine.ended(End::Closed, Duration::from_millis(100));
    assert_eq!(wait(&mut machine, Duration::from_millis(100)), FIRST);
}

/// The node authorizer learns of a pod's references late.
#[test]
fn early_refusals_of_a_single_object_are_asked_again_soon_and_told_to_nobody() {
    let mut machine = ListWatch::new(Options::single());
    let mut now = Duration::ZERO;
    for expected in [50, 100, 200, 400] {
        asked(&mut machine, now, false);
        machine.ended(End::Refused(refusal(403)), now);
        let waited = wait(&mut machine, now);
        assert_eq!((waited.as_millis(), machine.behind()), (expected, Some("not listed yet")));
        now += waited;
    }
    asked(&mut machine, s(3), false);
    machine.ended(End::Refused(refusal(403)), s(3));
    assert_eq!(wait(&mut machine, s(3)), FIRST);
    assert!(machine.behind().is_some_and(|why| why.contains("403")));
}

#[test]
fn a_consumer_can_begin_at_a_known_version() {
    let mut machine = ListWatch::resume(Options::set(), version(5));
    assert!(asked(&mut machine, s(0), true).ends_with("&resourceVersion=5"));
    machine.answered(s(0));
    let changes = machine.line(&Numbers, &line("MODIFIED", &object("a", 6, 2)), s(0));
    assert!(matches!(changes.as_slice(), [Change::Put(_, 2)]), "no Begin: {changes:?}");
    machine.ended(End::Refused(refusal(410)), s(0));
    assert!(asked(&mut machine, s(0), true).contains("sendInitialEvents"));
}

#[test]
fn answers_that_are_no_list_delete_nothing() {
    let whole = page(&[object("a", 3, 1)], 7, None);
    for body in [
        &b"{}"[..],
        b"null",
        b"",
        br#"{"metadata":{"resourceVersion":"7"}}"#,
        br#"{"kind":"Status","metadata":{"resourceVersion":"7"}}"#,
        br#"{"kind":"NumberList","metadata":{},"items":[]}"#,
        br#"{"kind":"NumberList","metadata":{"resourceVersion":""},"items":[]}"#,
        br#"{"kind":"NumberList","metadata":{"resourceVersion":"7"},"items":[{}]}"#,
        &whole[..whole.len() - 1],
    ] {
        let mut machine = ListWatch::new(Options::set());
        asked(&mut machine, s(0), false);
        assert_eq!(machine.page(&Numbers, body, s(0)), [], "{}", body.escape_ascii());
        assert!(machine.behind().is_some());
        wait(&mut machine, s(0));
    }
    let mut machine = ListWatch::new(Options::set());
    asked(&mut machine, s(0), false);
    let empty = br#"{"kind":"NumberList","metadata":{"resourceVersion":"7","continue":null},"items":null}"#;
    assert_eq!(machine.page(&Numbers, empty, s(0)), [Change::Begin, Change::Complete(version(7))]);
}

#[test]
fn an_unreadable_object_is_told_and_does_not_stop_the_others() {
    let mut odd = object("odd", 8, 0);
    odd["number"] = json!("many");
    let mut machine = watching();
    let changes = machine.line(&Numbers, &line("ADDED", &odd), s(1));
    assert!(
        matches!(changes.as_slice(), [Change::Unreadable(meta, _)] if &*meta.name == "odd"),
        "{changes:?}"
    );
    assert!(machine.is_open());
    let gone = machine.line(&Numbers, &line("DELETED", &odd), s(1));
    assert!(matches!(gone.as_slice(), [Change::UnreadableGone(_)]), "{gone:?}");
    machine.ended(End::Closed, s(2));
    assert!(asked(&mut machine, s(2), true).ends_with("&resourceVersion=8"));
}

#[test]
fn a_line_that_stays_unreadable_leads_to_a_new_list() {
    let mut machine = watching();
    machine.line(&Numbers, b"{\"type\":", s(1));
    assert!(!machine.is_open());
    let now = s(1) + wait(&mut machine, s(1));
    assert!(asked(&mut machine, now, false).ends_with("&resourceVersion=7"));
    machine.answered(now);
    machine.line(&Numbers, b"{\"type\":", now);
    let now = now + wait(&mut machine, now);
    assert_eq!(asked(&mut machine, now, false), "limit=500");
}

#[test]
fn pages_become_smaller_where_they_are_too_large() {
    let mut machine = ListWatch::new(Options::set());
    let mut now = s(0);
    for query in ["limit=500", "limit=62", "limit=7", "limit=1", "limit=1"] {
        assert_eq!(asked(&mut machine, now, false), query);
        machine.ended(End::PageTooLarge, now);
        now += wait(&mut machine, now);
    }
}

fn version(number: u64) -> ResourceVersion {
    ResourceVersion::new(&number.to_string()).unwrap()
}

fn meta(name: &str) -> Meta {
    Meta {
        namespace: "n".into(),
        name: name.into(),
        uid: format!("u-{name}").into(),
        resource_version: version(1),
    }
}
