//! Table and JSON of `berth events`, and the events of other pages.

use crate::{
    table::{Table, plain},
    time,
};
use berth_core::{
    event::{EventKind, EventRecord, Involved},
    time::Wall,
};
use serde_json::{Value, json};

/// An event as one line.
pub(crate) fn line(e: &EventRecord, now: Wall) -> String {
    let times = if e.count > 1 {
        format!(" (x{} over {})", e.count, time::age(Some(e.first), now))
    } else {
        String::new()
    };
    let ago = time::age(Some(e.last), now);
    plain(&format!("{ago} ago{times}  {}  {}  {}", object(e), e.event.reason, e.event.message))
}

/// Whether an event is about the Service of this name: `namespace/name`, or `name` in any
/// namespace, with or without the prefix `service/`.
pub(crate) fn is_of_service(e: &EventRecord, name: &str) -> bool {
    let Involved::Service { key, .. } = &e.involved else { return false };
    let name = name.strip_prefix("service/").or(name.strip_prefix("svc/")).unwrap_or(name);
    match name.split_once('/') {
        Some((namespace, name)) => key.namespace.as_str() == namespace && key.name.as_str() == name,
        None => key.name.as_str() == name,
    }
}

fn object(e: &EventRecord) -> String {
    let key = e.involved.key();
    match (&e.involved, &e.event.container) {
        (Involved::Pod { .. }, Some(container)) => format!("{key}/{container}"),
        (Involved::Pod { .. }, None) => key.to_string(),
        // A name without a kind is a pod's.
        (Involved::Service { .. }, _) => format!("service {key}"),
    }
}

fn kind(e: &EventRecord) -> &'static str {
    match e.event.kind {
        EventKind::Normal => "Normal",
        EventKind::Warning => "Warning",
    }
}

/// The table of events.
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

/// The events as `v1.Event`s.
pub(crate) fn json(events: &[EventRecord]) -> Vec<Value> {
    events
        .iter()
        .map(|e| {
            let key = e.involved.key();
            let mut involved = json!({
                "apiVersion": "v1", "kind": e.involved.kind(),
                "namespace": key.namespace, "name": key.name, "uid": e.involved.uid(),
            });
            if let (Some(path), Some(fields)) = (e.event.field_path(), involved.as_object_mut()) {
                fields.insert("fieldPath".to_owned(), path.into());
            }
            json!({
                "apiVersion": "v1", "kind": "Event",
                "metadata": {
                    "namespace": key.namespace,
                    // The nanosecond of the first occurrence makes the name unique among the
                    // object's events.
                    "name": format!("{}.{:x}", key.name, e.first.0),
                    "creationTimestamp": time::stamp(e.first),
                },
                "involvedObject": involved,
                "type": kind(e), "reason": e.event.reason, "message": e.event.message,
                "firstTimestamp": time::stamp(e.first), "lastTimestamp": time::stamp(e.last),
                "count": e.count,
                "source": { "component": e.involved.component() },
                "reportingComponent": e.involved.component(), "reportingInstance": "",
            })
        })
        .collect()
}
