//! Text and JSON of each command, as pure functions of the state and the time.

mod control_plane;
pub(crate) mod describe;
pub(crate) mod events;
pub(crate) mod image_page;
pub(crate) mod images;
pub(crate) mod pods;
pub(crate) mod ps;
pub(crate) mod pull_progress;
pub(crate) mod status;
pub(crate) mod volumes;

use crate::time;
use berth_api::view::PodView;
use berth_core::time::Wall;
use serde_json::{Value, json};

/// Why a pod is not Ready and when the next try is, in one line; empty where there is no reason.
pub(crate) fn why(view: &PodView, now: Wall) -> String {
    let next = view.next_try.map(|at| format!("next try {}", time::until(at, now)));
    view.waiting_for.iter().cloned().chain(next).collect::<Vec<_>>().join("; ")
}

/// A `v1.List`, as `kubectl get -o json` prints it.
pub(crate) fn list(items: Vec<Value>) -> Value {
    json!({ "apiVersion": "v1", "items": items, "kind": "List", "metadata": { "resourceVersion": "" } })
}
