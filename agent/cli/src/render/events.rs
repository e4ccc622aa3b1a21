//! `berth events`, and events where they are part of another page.

use crate::{
    table::{Table, plain},
    time,
};
use berth_core::{
    event::{EventKind, EventRecord},
    time::Wall,
};
use serde_json::{Value, json};

/// One line.
pub(crate) fn line(e: &EventRecord, now: Wall) -> String {
    let times = if e.count > 1 {
        format!(" (x{} over {})", e.count, time::age(Some(e.first), now))
    } else {
        String::new()
    };
    let ago = time::age(Some(e.last), now);
    plain(&format!("{ago} ago{times}  {}  {}  {}", object(e), e.event.reason, e.event.message))
}

fn object(e: &EventRecord) -> String {
    match &e.event.container {
        Some(container) => format!("{}/{container}", e.pod),
        None => e.pod.to_string(),
    }
}

fn kind(e: &EventRecord) -> &'static str {
    match e.event.kind {
        EventKind::Normal => "Normal",
        EventKind::Warning => "Warning",
    }
}

/// The table.
pub(crate) fn table(events: &[EventRecord], now: Wall) -> Table {
    let mut table = Table::new(&["LAST SEEN", "COUNT", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
    for e in events {
        table.row(vec![
            time::age(Some(e.last), now),
            e.count.to_string(),
            kind(e).to_owned(),
            e.event.reason.clone(),
            object(e),
            e.event.message.clone(),
        ]);
    }
    table
}

/// As `v1.Event`s.
pub(crate) fn json(events: &[EventRecord]) -> Vec<Value> {
    events
        .iter()
        .map(|e| {
            let mut involved = json!({
                "apiVersion": "v1", "kind": "Pod",
                "namespace": e.pod.namespace, "name": e.pod.name, "uid": e.uid,
            });
            if let (Some(container), Some(fields)) = (&e.event.container, involved.as_object_mut()) {
                fields.insert("fieldPath".to_owned(), format!("spec.containers{{{container}}}").into());
            }
            json!({
                "apiVersion": "v1", "kind": "Event",
                "metadata": {
                    "namespace": e.pod.namespace,
                    // The nanosecond in which it was first told sets it apart from the others of its pod.
                    "name": format!("{}.{:x}", e.pod.name, e.first.0),
                    "creationTimestamp": time::stamp(e.first),
                },
                "involvedObject": involved,
                "type": kind(e), "reason": e.event.reason, "message": e.event.message,
                "firstTimestamp": time::stamp(e.first), "lastTimestamp": time::stamp(e.last),
                "count": e.count,
                "source": { "component": "kubelet" },
                "reportingComponent": "kubelet", "reportingInstance": "",
            })
        })
        .collect()
}
