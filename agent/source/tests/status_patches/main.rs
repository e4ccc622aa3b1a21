//! Status patches against the API server's merge: random pairs against a merge of this test's own, and recordings of a
//! real API server that check both the patches and that merge.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod api_server;
mod merge;
mod nodes;
mod pods;
mod random;
mod recorded;

use serde_json::{Map, Value};

/// A value as a reader sees it: without null and empty members, which the API server leaves out or fills in. An empty
/// value is null.
fn shown(value: &Value) -> Value {
    let shown = match value {
        Value::Object(map) => {
            let kept: Map<String, Value> = map
                .iter()
                .map(|(name, value)| (name.clone(), shown(value)))
                .filter(|(_, value)| !is_empty(value))
                .collect();
            kept.into()
        }
        Value::Array(list) => list.iter().map(shown).collect::<Vec<_>>().into(),
        other => other.clone(),
    };
    if is_empty(&shown) { Value::Null } else { shown }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
