//! Table of `berth pods`.

use super::why;
use crate::{
    table::Table,
    time,
    v1::{self, ContainerKind},
};
use berth_api::view::PodView;
use berth_core::time::Wall;

/// The columns of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Table,
    Wide,
}

/// An empty table with the form's header.
pub(crate) fn table(form: Form) -> Table {
    match form {
        Form::Table => {
            Table::new(&["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "WHY NOT READY"])
        }
        Form::Wide => Table::new(&[
            "NAMESPACE",
            "NAME",
            "READY",
            "STATUS",
            "RESTARTS",
            "AGE",
            "IP",
            "QOS",
            "FILE",
            "WHY NOT READY",
        ]),
    }
}

/// Index of the AGE column, the only one that changes without a change of the pod.
pub(crate) const AGE: usize = 5;

/// Adds the row of a pod.
pub(crate) fn row(table: &mut Table, form: Form, view: &PodView, now: Wall) {
    table.row(cells(form, view, now));
}

/// The cells of a pod's row.
pub(crate) fn cells(form: Form, view: &PodView, now: Wall) -> Vec<String> {
    let pod = v1::Pod::of(view);
    let (ready, all) = ready(&pod);
    let mut cells = vec![
        pod.metadata.namespace.clone(),
        pod.metadata.name.clone(),
        format!("{ready}/{all}"),
        state(&pod, view),
        restarts(&pod, now),
        time::age(time::parse(&pod.metadata.creation_timestamp), now),
    ];
    if form == Form::Wide {
        let none = || "<none>".to_owned();
        cells.push(pod.status.pod_ips.first().map_or_else(none, |a| a.ip.clone()));
        cells.push(pod.status.qos_class.clone());
        cells.push(view.file.as_ref().map_or_else(none, |f| f.display().to_string()));
    }
    let held = view.held.as_ref().map(|h| format!("held as it was: {h}"));
    let why = Some(why(view, now)).filter(|w| !w.is_empty());
    cells.push(why.into_iter().chain(held).collect::<Vec<_>>().join("; "));
    cells
}

/// The numbers of ready containers and of all; main containers and sidecars count.
pub(crate) fn ready(pod: &v1::Pod) -> (usize, usize) {
    let counted: Vec<_> = pod.containers().filter(v1::Shown::counts).collect();
    let ready =
        counted.iter().filter(|c| c.status.is_some_and(|s| s.ready && s.state.running.is_some())).count();
    (ready, counted.len())
}

/// The STATUS column, computed as `kubectl` does (`printPod`).
pub(crate) fn state(pod: &v1::Pod, view: &PodView) -> String {
    if view.terminating {
        return "Terminating".to_owned();
    }
    if let Some(text) = initialising(pod) {
        return text;
    }
    let mut reason =
        if pod.status.reason.is_empty() { &pod.status.phase } else { &pod.status.reason }.clone();
    let mut running = false;
    let mains = pod.containers().filter(|c| c.kind == ContainerKind::Main);
    for c in mains.filter_map(|c| c.status).collect::<Vec<_>>().iter().rev() {
        match (&c.state.waiting, &c.state.terminated) {
            (Some(w), _) if !w.reason.is_empty() => reason.clone_from(&w.reason),
            (_, Some(t)) => reason = ended(t),
            _ => running |= c.ready && c.state.running.is_some(),
        }
    }
    if reason == "Completed" && running {
        let ready = pod.status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True");
        reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
    if reason.is_empty() { "Unknown".to_owned() } else { reason }
}

fn ended(t: &v1::Terminated) -> String {
    match (t.reason.as_str(), t.exit_code) {
        ("", code) if code > 128 => format!("Signal:{}", code.saturating_sub(128)),
        ("", code) => format!("ExitCode:{code}"),
        (reason, _) => reason.to_owned(),
    }
}

fn initialising(pod: &v1::Pod) -> Option<String> {
    // A pod that was initialized once stays so, whatever its sidecars do.
    if pod.status.conditions.iter().any(|c| c.r#type == "Initialized" && c.status == "True") {
        return None;
    }
    let all = pod.spec.init_containers.len();
    let init = pod.containers().filter(|c| c.kind == ContainerKind::Init);
    for (n, c) in init.enumerate() {
        let status = c.status?;
        let state = &status.state;
        match (&state.terminated, &state.waiting) {
            (Some(t), _) if t.exit_code == 0 => continue,
            _ if c.sidecar && status.started == Some(true) => continue,
            (Some(t), _) => return Some(format!("Init:{}", ended(t))),
            (None, Some(w)) if !w.reason.is_empty() && w.reason != "PodInitializing" => {
                return Some(format!("Init:{}", w.reason));
            }
            _ => return Some(format!("Init:{n}/{all}")),
        }
    }
    None
}

fn restarts(pod: &v1::Pod, now: Wall) -> String {
    let statuses = || pod.containers().filter(v1::Shown::counts).filter_map(|c| c.status);
    let count = statuses().fold(0u32, |sum, s| sum.saturating_add(s.restart_count));
    let last = statuses()
        .filter_map(|s| time::parse(&s.last_state.terminated.as_ref()?.finished_at))
        .max()
        .filter(|_| count > 0);
    match last {
        Some(at) => format!("{count} ({} ago)", time::age(Some(at), now)),
        None => count.to_string(),
    }
}
