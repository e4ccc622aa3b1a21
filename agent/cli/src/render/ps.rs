//! Table and JSON of `berth ps`. The JSON:
//!
//! ```json
//! {"apiVersion": "berth/v1", "kind": "ContainerList", "items": [{
//!   "namespace": "default", "pod": "web", "podUID": "…", "name": "app", "init": false, "ephemeral": false, "sidecar": false,
//!   "state": "running", "reason": null, "ready": true, "restarts": 0, "exitCode": null,
//!   "pid": 4242, "id": "…", "image": "…", "imageID": "…", "startedAt": "…", "finishedAt": null}]}
//! ```
//! `state` is `running`, `waiting` or `terminated`; unknown fields are null.

use crate::{
    table::{Table, plain},
    time,
    v1::{self, ContainerKind},
};
use berth_api::view::PodView;
use berth_core::time::Wall;
use serde_json::{Value, json};

/// The table of these pods' containers, or of the containers named `only`.
pub(crate) fn table(pods: &[PodView], only: Option<&str>, wide: bool, now: Wall) -> Table {
    let mut head = vec!["CONTAINER", "STATE", "RESTARTS", "PID", "ID", "IMAGE", "AGE"];
    if wide {
        head.push("IMAGE ID");
    }
    let mut table = Table::new(&head);
    for view in pods {
        let pod = v1::Pod::of(view);
        for c in pod.containers().filter(|c| only.is_none_or(|o| o == c.spec.name)) {
            let id = c.status.map(v1::ContainerStatus::id).unwrap_or_default();
            let none = || "-".to_owned();
            let mut cells = vec![
                format!("{}/{}", view.key, c.spec.name),
                state(c, now),
                c.status.map_or(0, |s| s.restart_count).to_string(),
                pid(view, id).map_or_else(none, |p| p.to_string()),
                Some(id).filter(|i| !i.is_empty()).map_or_else(none, |i| i.chars().take(13).collect()),
                c.spec.image.clone(),
                since(c).map_or_else(none, |at| time::age(Some(at), now)),
            ];
            if wide {
                cells.push(c.status.map(|s| s.image_id.clone()).unwrap_or_default());
            }
            table.row(cells);
        }
    }
    table
}

/// The JSON list of these pods' containers, or of the containers named `only`.
pub(crate) fn json(pods: &[PodView], only: Option<&str>) -> Value {
    let mut items = Vec::new();
    for view in pods {
        let pod = v1::Pod::of(view);
        for c in pod.containers().filter(|c| only.is_none_or(|o| o == c.spec.name)) {
            let status = c.status.cloned().unwrap_or_default();
            let (state, reason) = match (&status.state.running, &status.state.terminated) {
                (Some(_), _) => ("running", None),
                (None, Some(t)) => ("terminated", Some(&t.reason)),
                (None, None) => ("waiting", status.state.waiting.as_ref().map(|w| &w.reason)),
            };
            let ended = status.state.terminated.as_ref();
            let started = status.state.running.as_ref().map(|r| &r.started_at);
            let text = |t: Option<&String>| t.filter(|t| !t.is_empty()).cloned();
            items.push(json!({
                "namespace": pod.metadata.namespace,
                "pod": pod.metadata.name,
                "podUID": pod.metadata.uid,
                "name": c.spec.name,
                "init": c.kind == ContainerKind::Init,
                "ephemeral": c.kind == ContainerKind::Ephemeral,
                "sidecar": c.sidecar,
                "state": state,
                "reason": text(reason),
                "ready": status.ready,
                "restarts": status.restart_count,
                "exitCode": ended.map(|t| t.exit_code),
                "pid": pid(view, status.id()),
                "id": text(Some(&status.id().to_owned())),
                "image": c.spec.image,
                "imageID": text(Some(&status.image_id)),
                "startedAt": text(started.or(ended.map(|t| &t.started_at))),
                "finishedAt": text(ended.map(|t| &t.finished_at)),
            }));
        }
    }
    json!({ "apiVersion": "berth/v1", "kind": "ContainerList", "items": items })
}

fn pid(view: &PodView, id: &str) -> Option<u32> {
    view.containers.iter().find(|c| c.id.as_str() == id).map(|c| c.pid)
}

/// The STATE column of a container.
pub(crate) fn state(c: v1::Shown<'_>, now: Wall) -> String {
    let Some(status) = c.status else { return "Waiting".to_owned() };
    match (&status.state.running, &status.state.terminated, &status.state.waiting) {
        (Some(_), _, _) if status.ready || !c.counts() => "Running".to_owned(),
        (Some(_), _, _) => "Running, not ready".to_owned(),
        (None, Some(t), _) => match time::parse(&t.finished_at) {
            Some(at) => {
                format!("{} ({}) {} ago", t.reason, t.exit_code, time::age(Some(at), now))
            }
            None => format!("{} ({})", t.reason, t.exit_code),
        },
        (None, None, Some(w)) if !w.reason.is_empty() => w.reason.clone(),
        _ => "Waiting".to_owned(),
    }
}

fn since(c: v1::Shown<'_>) -> Option<Wall> {
    let state = &c.status?.state;
    let started = state.running.as_ref().map(|r| &r.started_at);
    time::parse(started.or(state.terminated.as_ref().map(|t| &t.started_at))?)
}

/// The containers' names, one a line.
pub(crate) fn names(pods: &[PodView], only: Option<&str>) -> String {
    let mut text = String::new();
    for view in pods {
        for c in v1::Pod::of(view).containers().filter(|c| only.is_none_or(|o| o == c.spec.name)) {
            text.push_str(&format!("{}/{}\n", view.key, plain(&c.spec.name)));
        }
    }
    text
}
