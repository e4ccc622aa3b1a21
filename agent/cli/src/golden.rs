//! Output of the commands for one state, against `tests/golden`. `BERTH_UPDATE_GOLDEN=1` rewrites
//! the files.

use crate::{
    render::{self, describe, events, images, pods, ps, status},
    state::{Offline, State},
    v1,
};
use berth_api::view::{Health, ImageView, NodeView, PodView};
use berth_core::{event::EventRecord, time::Wall};
use serde::Deserialize;
use std::{fs, path::PathBuf};

/// The time of the state: 2026-01-02T03:04:05Z.
const NOW: Wall = Wall(1_767_323_045_000_000_000);

#[derive(Deserialize)]
struct Known {
    pods: Vec<PodView>,
    events: Vec<EventRecord>,
    node: NodeView,
    images: Vec<ImageView>,
}

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn known() -> Known {
    serde_json::from_slice(&fs::read(dir().join("state.json")).unwrap()).unwrap()
}

pub(crate) fn check(name: &str, shown: &str) {
    let path = dir().join(name);
    if std::env::var_os("BERTH_UPDATE_GOLDEN").is_some() {
        fs::write(&path, shown).unwrap();
        return;
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(shown, wanted, "{} differs; BERTH_UPDATE_GOLDEN=1 rewrites it", path.display());
}

pub(crate) fn check_json(name: &str, shown: &serde_json::Value) {
    check(name, &crate::output::pretty(shown).unwrap());
}

fn state(offline: bool) -> State {
    let Known { pods, events, .. } = known();
    let offline = offline.then(|| Offline {
        as_of: Some(Wall(NOW.0 - 65_000_000_000)),
        why: "cannot reach the agent at /run/berth/agent.sock: Connection refused (os error 111)".into(),
        unread: vec!["cannot read /run/berth/status/pod-x.json: EOF while parsing a value".into()],
    });
    State { pods, events, offline }
}

#[test]
fn pods_have_the_golden_table_wide_and_json_output() {
    let views = known().pods;
    for (form, name) in [(pods::Form::Table, "pods.txt"), (pods::Form::Wide, "pods-wide.txt")] {
        let mut table = pods::table(form);
        views.iter().for_each(|v| pods::row(&mut table, form, v, NOW));
        check(name, &table.take());
    }
    check_json("pods.json", &render::list(views.into_iter().map(|v| v.object).collect()));
}

#[test]
fn containers_have_the_golden_table_wide_json_and_name_output() {
    let views = known().pods;
    check("ps.txt", &ps::table(&views, None, false, NOW).take());
    check("ps-wide.txt", &ps::table(&views, Some("app"), true, NOW).take());
    check_json("ps.json", &ps::json(&views, None));
    check("ps-names.txt", &ps::names(&views, None));
}

#[test]
fn status_has_the_golden_output_with_an_agent_and_without() {
    let node = known().node;
    for (name, offline, stuck) in
        [("status", false, false), ("status-offline", true, false), ("status-stuck", true, true)]
    {
        let state = state(offline);
        let page = status::Page { node: Some(&node), state: &state, stuck };
        check(&format!("{name}.txt"), &page.text(NOW));
        check_json(&format!("{name}.json"), &page.json(NOW).unwrap());
    }
    let nothing = State { offline: state(true).offline, ..State::default() };
    let page = status::Page { node: None, state: &nothing, stuck: false };
    check("status-nothing.txt", &page.text(NOW));
}

#[test]
fn a_healthy_node_has_no_problems() {
    let Known { mut node, mut pods, .. } = known();
    node.network.ok = true;
    node.sources.clear();
    node.services = Some(Health::good("answered"));
    node.addresses = None;
    pods.retain(|p| p.ready || v1::Pod::of(p).status.phase == "Succeeded");
    let state = State { pods, ..State::default() };
    let page = status::Page { node: Some(&node), state: &state, stuck: false };
    assert_eq!(page.problems(NOW), Vec::<String>::new());
    assert_eq!(state.pods.len(), 2);
}

#[test]
fn descriptions_have_the_golden_output() {
    let Known { pods, events, .. } = known();
    let offline = state(true).offline;
    for view in &pods {
        let events: Vec<_> = events.iter().filter(|e| e.involved.is_pod(&view.uid)).cloned().collect();
        let offline = offline.as_ref().filter(|_| view.key.name.as_str() == "crash");
        check(&format!("describe-{}.txt", view.key.name), &describe::page(view, &events, offline, NOW));
    }
}

#[test]
fn events_and_images_have_the_golden_output() {
    let Known { events, images, .. } = known();
    check("events.txt", &events::table(&events, NOW).take());
    check_json("events.json", &render::list(events::json(&events)));
    check("images.txt", &images::table(&images, NOW).take());
    check_json("images.json", &images::json(&images));
    check("offline-banner.txt", &state(true).offline.unwrap().banner());
}

/// An agent of another version may send, and a broken file may hold, any object.
#[test]
fn any_json_as_a_pods_object_is_shown() {
    for object in ["null", "7", "[]", r#"{"status":7,"spec":null}"#, r#"{"spec":{"containers":[{}]}}"#] {
        let text = format!(
            r#"{{"uid":"u","key":{{"namespace":"d","name":"p"}},"object":{object},"next_try":9223372036854775807}}"#
        );
        let view: PodView = serde_json::from_str(&text).unwrap();
        let mut table = pods::table(pods::Form::Wide);
        pods::row(&mut table, pods::Form::Wide, &view, Wall(i64::MIN));
        assert!(table.take().contains("\nd           p "), "{object}");
        assert!(describe::page(&view, &[], None, NOW).contains("\nNamespace:"), "{object}");
        ps::json(std::slice::from_ref(&view), None);
        ps::table(&[view], None, true, NOW);
    }
}

/// Mutated pod views, 10,000 or `BERTH_MUTATIONS`: each one that parses is shown, and none makes a
/// command panic. At least 30 % are valid JSON.
#[test]
fn mutations_of_pod_views_are_shown_or_rejected() {
    let pages: u32 = std::env::var("BERTH_MUTATIONS").map_or(10_000, |count| count.parse().unwrap());
    let text = fs::read(dir().join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let corpus: Vec<String> = state["pods"].as_array().unwrap().iter().map(ToString::to_string).collect();
    let with =
        ["null", "7", "-1", "1e300", "\"\"", "\"\\u0000\\u001b[2J\"", "[]", "{}", "[[]]", "true", "\"é\""];
    let mut rng = berth_harness::rng::Rng::new(1);
    let mut roll = |below: usize| rng.index(below);
    let (mut parsed, mut shown) = (0, 0);
    for _ in 0..pages {
        let mut text = corpus[roll(corpus.len())].clone();
        for _ in 0..=roll(3) {
            // One value is replaced, one byte is changed, or the rest is cut off.
            let at = roll(text.len());
            let value = text.get(at..).and_then(|rest| Some(at + rest.find(':')? + 1));
            match (roll(8), value) {
                (0, _) => text = String::from_utf8_lossy(&text.as_bytes()[..at.max(1)]).into_owned(),
                (1, _) => {
                    let mut bytes = text.into_bytes();
                    bytes[at] ^= 1 << roll(8);
                    text = String::from_utf8_lossy(&bytes).into_owned();
                }
                (_, Some(start)) => {
                    let mut values =
                        serde_json::Deserializer::from_str(&text[start..]).into_iter::<serde_json::Value>();
                    if values.next().is_some_and(|v| v.is_ok()) {
                        let end = start + values.byte_offset();
                        text.replace_range(start..end, with[roll(with.len())]);
                    }
                }
                (_, None) => {}
            }
        }
        parsed += u32::from(serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok());
        let Ok(view) = serde_json::from_str::<PodView>(&text) else { continue };
        shown += 1;
        if shown % 4 != 0 {
            continue;
        }
        let mut table = pods::table(pods::Form::Wide);
        pods::row(&mut table, pods::Form::Wide, &view, NOW);
        assert!(!table.take().contains('\x1b'));
        if shown % 12 == 0 {
            assert!(!describe::page(&view, &[], None, NOW).contains('\x1b'));
            ps::json(std::slice::from_ref(&view), None);
            crate::state::candidates(&[view]);
        }
    }
    println!("{} % past the syntax, {} % shown", parsed * 100 / pages, shown * 100 / pages);
    assert!(parsed * 100 / pages >= 30 && shown * 100 / pages >= 30);
}
