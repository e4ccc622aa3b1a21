//! Comparison of a pod's events with the recorded events of the kubelet.

use crate::compare::{Leaves, Unlike};
use crate::text::Plain;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// An event. The message has its changing parts replaced ([`Plain`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    kind: String,
    pub(crate) reason: String,
    /// The container as `spec.containers{app}`; empty for an event of the pod.
    subject: String,
    message: String,
}

/// Reasons of events about the end of a pod. Other events after the removal of the manifest belong to actions
/// that were still under way.
const OF_THE_END: [&str; 3] = ["Killing", "FailedPreStopHook", "FailedKillPod"];

/// Converts the node's records of events, ordered by their first occurrence.
pub(crate) fn shown(list: &[Value], plain: &Plain) -> Vec<Event> {
    let mut list: Vec<&Value> = list.iter().collect();
    list.sort_by_key(|e| e["first"].as_i64());
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    list.into_iter()
        .map(|record| {
            let event = &record["event"];
            let of = if event["init"] == true { "initContainers" } else { "containers" };
            let subject = event["container"].as_str().map(|c| format!("spec.{of}{{{c}}}"));
            Event {
                kind: text(&event["kind"]),
                reason: text(&event["reason"]),
                subject: subject.unwrap_or_default(),
                message: plain.text(event["message"].as_str().unwrap_or_default()),
            }
        })
        .collect()
}

/// Converts the events of a recording.
pub(crate) fn recorded(list: &Value) -> Vec<Event> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let all = list.as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter()
        .map(|e| Event {
            kind: text(&e["type"]),
            reason: text(&e["reason"]),
            subject: text(&e["fieldPath"]),
            message: text(&e["message"]),
        })
        .collect()
}

/// Returns the events about the end of the pod.
pub(crate) fn of_the_end(events: &[Event]) -> Vec<Event> {
    events.iter().filter(|e| OF_THE_END.contains(&e.reason.as_str())).cloned().collect()
}

impl Event {
    fn leaf(&self) -> String {
        let subject = if self.subject.is_empty() { "pod" } else { &self.subject };
        format!("{subject}.{}: {}", self.reason, self.message)
    }
}

/// Differences of two lists of events. Each event is one value at the path `<prefix>.<subject>.<reason>:
/// <message>`, whose value is the event's type. Events that both sides have must also have the same order
/// within each subject.
pub(crate) fn unlike(prefix: &str, kubelet: &[Event], berth: &[Event]) -> Vec<Unlike> {
    let leaves = |events: &[Event]| -> Leaves {
        events.iter().map(|e| (format!("{prefix}.{}", e.leaf()), json!(e.kind))).collect()
    };
    let mut found = crate::compare::unlike(&leaves(kubelet), &leaves(berth));
    let common = |of: &[Event], other: &[Event]| -> BTreeMap<String, Vec<String>> {
        let mut by_subject: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for e in of.iter().filter(|e| other.contains(e)) {
            let seen = by_subject.entry(e.subject.clone()).or_default();
            if !seen.contains(&e.leaf()) {
                seen.push(e.leaf());
            }
        }
        by_subject
    };
    let (theirs, ours) = (common(kubelet, berth), common(berth, kubelet));
    for (subject, order) in theirs {
        let other = ours.get(&subject).cloned().unwrap_or_default();
        if order != other {
            found.push(Unlike {
                path: format!("{prefix}.order.{subject}"),
                kubelet: json!(order),
                berth: json!(other),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: &str, message: &str) -> Event {
        Event {
            kind: "Normal".into(),
            reason: reason.into(),
            subject: "spec.containers{app}".into(),
            message: message.into(),
        }
    }

    #[test]
    fn every_event_counts_and_their_order() {
        let all = [event("Created", "a"), event("Started", "b")];
        assert!(unlike("events", &all, &all).is_empty());
        assert_eq!(unlike("events", &all, &all[..1]).len(), 1);
        assert_eq!(unlike("events", &all[1..], &all).len(), 1);
        let other = [event("Created", "a"), event("Started", "c")];
        let paths: Vec<String> = unlike("events", &all, &other).into_iter().map(|u| u.path).collect();
        assert_eq!(
            paths,
            ["events.spec.containers{app}.Started: b", "events.spec.containers{app}.Started: c"]
        );
        let turned = [all[1].clone(), all[0].clone()];
        assert_eq!(unlike("events", &all, &turned)[0].path, "events.order.spec.containers{app}");
        let warning = [Event { kind: "Warning".into(), ..all[0].clone() }, all[1].clone()];
        assert_eq!(unlike("events", &all, &warning).len(), 1);
    }
}
