//! Page of `berth describe pod`: specification, status, events and last actions of one pod.

use super::pods;
use crate::{
    state::Offline,
    table::plain,
    time,
    v1::{self, ContainerKind},
};
use berth_api::view::{ActionView, PodView};
use berth_core::{event::EventRecord, time::Wall};
use serde_json::Value;
use std::collections::BTreeMap;

/// A page of indented lines under headings. Empty fields are left out.
#[derive(Default)]
struct Page(String);

impl Page {
    fn field(&mut self, depth: usize, name: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        let name = format!("{}{name}:", "  ".repeat(depth));
        self.0.push_str(&format!("{name:<22}{}\n", plain(value)));
    }

    fn head(&mut self, depth: usize, name: &str) {
        self.0.push_str(&format!("{}{}:\n", "  ".repeat(depth), plain(name)));
    }

    fn line(&mut self, depth: usize, text: &str) {
        self.0.push_str(&format!("{}{}\n", "  ".repeat(depth), plain(text)));
    }
}

/// The page of a pod.
pub(crate) fn page(view: &PodView, events: &[EventRecord], offline: Option<&Offline>, now: Wall) -> String {
    let pod = v1::Pod::of(view);
    let mut page = Page::default();
    let p = &mut page;
    identity(p, &pod, view);
    status(p, &pod, view, now);
    specification(p, &pod, now);
    let as_of = offline.map_or("", |_| " (agent not running)");
    p.field(0, "As of", &format!("{}{as_of}", time::stamp(view.as_of)));
    for (kind, name) in [
        (ContainerKind::Init, "Init containers"),
        (ContainerKind::Main, "Containers"),
        (ContainerKind::Ephemeral, "Ephemeral containers"),
    ] {
        let list: Vec<_> = pod.containers().filter(|c| c.kind == kind).collect();
        if !list.is_empty() {
            p.head(0, name);
            list.iter().for_each(|c| container(p, *c, view, now));
        }
    }
    conditions(p, &pod.status.conditions, now);
    if !pod.spec.volumes.is_empty() {
        p.head(0, "Volumes");
        pod.spec.volumes.iter().for_each(|v| p.line(1, &volume(v)));
    }
    if !view.timeline.is_empty() {
        p.head(0, "Timeline (the last actions, oldest first)");
        view.timeline.iter().for_each(|a| action(p, a));
    }
    if !events.is_empty() {
        p.head(0, "Events");
        events.iter().for_each(|e| p.line(1, &super::events::line(e, now)));
    }
    page.0
}

fn identity(p: &mut Page, pod: &v1::Pod, view: &PodView) {
    p.field(0, "Name", &pod.metadata.name);
    p.field(0, "Namespace", &pod.metadata.namespace);
    p.field(0, "UID", &pod.metadata.uid);
    p.field(0, "Node", &pod.spec.node_name);
    p.field(0, "Source", &view.file.as_ref().map(|f| f.display().to_string()).unwrap_or_default());
    p.field(0, "Labels", &pairs(&pod.metadata.labels));
    p.field(0, "Annotations", &pairs(&pod.metadata.annotations));
}

fn status(p: &mut Page, pod: &v1::Pod, view: &PodView, now: Wall) {
    p.field(0, "Status", &pods::state(pod, view));
    p.field(0, "Phase", &pod.status.phase);
    p.field(0, "Reason", &pod.status.reason);
    p.field(0, "Message", &pod.status.message);
    let (ready, all) = pods::ready(pod);
    p.field(0, "Ready", &format!("{ready}/{all}"));
    p.field(0, "Waiting for", view.waiting_for.as_deref().unwrap_or_default());
    if let Some(at) = view.next_try {
        p.field(0, "Next try", &format!("{} ({})", time::stamp(at), time::until(at, now)));
    }
    p.field(0, "Held", view.held.as_deref().unwrap_or_default());
    let ips: Vec<&str> = pod.status.pod_ips.iter().map(|a| a.ip.as_str()).collect();
    p.field(0, "IPs", &ips.join(", "));
}

fn specification(p: &mut Page, pod: &v1::Pod, now: Wall) {
    p.field(0, "Host network", if pod.spec.host_network { "yes" } else { "" });
    p.field(0, "QoS class", &pod.status.qos_class);
    p.field(0, "Restart policy", &pod.spec.restart_policy);
    let grace = pod.spec.termination_grace_period_seconds;
    p.field(0, "Grace period", &grace.map(|s| format!("{s}s")).unwrap_or_default());
    p.field(0, "Created", &since(&pod.metadata.creation_timestamp, now));
    p.field(0, "Started", &since(&pod.status.start_time, now));
}

fn conditions(p: &mut Page, conditions: &[v1::Condition], now: Wall) {
    if conditions.is_empty() {
        return;
    }
    p.head(0, "Conditions");
    for c in conditions {
        let texts = [c.reason.as_str(), c.message.as_str()].into_iter().filter(|t| !t.is_empty());
        let because = texts.collect::<Vec<_>>().join(": ");
        let since = time::age(time::parse(&c.last_transition_time), now);
        p.line(1, &format!("{:<27}{:<9}{since:<8}{because}", c.r#type, c.status));
    }
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(", ")
}

fn since(text: &str, now: Wall) -> String {
    match time::parse(text) {
        Some(at) => format!("{text} ({} ago)", time::age(Some(at), now)),
        None => text.to_owned(),
    }
}

fn container(p: &mut Page, c: v1::Shown<'_>, view: &PodView, now: Wall) {
    p.head(1, &format!("{}{}", c.spec.name, if c.sidecar { " (sidecar)" } else { "" }));
    p.field(2, "Image", &c.spec.image);
    p.field(2, "Target container", &c.spec.target_container_name);
    let status = c.status.cloned().unwrap_or_default();
    p.field(2, "Image ID", &status.image_id);
    p.field(2, "Container ID", status.id());
    let pid = view.containers.iter().find(|v| v.name.as_str() == c.spec.name).map(|v| v.pid.to_string());
    p.field(2, "PID", &pid.unwrap_or_default());
    p.field(2, "Command", &c.spec.command.join(" "));
    p.field(2, "Args", &c.spec.args.join(" "));
    let ports: Vec<String> = c.spec.ports.iter().map(port).collect();
    p.field(2, "Ports", &ports.join(", "));
    for (name, amounts) in [("Requests", &c.spec.resources.requests), ("Limits", &c.spec.resources.limits)] {
        let text: Vec<String> = amounts.iter().map(|(k, v)| format!("{k}={}", scalar(v))).collect();
        p.field(2, name, &text.join(", "));
    }
    state(p, "State", &status.state, now);
    if c.kind != ContainerKind::Ephemeral {
        p.field(2, "Ready", if status.ready { "yes" } else { "no" });
        p.field(2, "Restarts", &status.restart_count.to_string());
    }
    state(p, "Last state", &status.last_state, now);
    for (name, probe) in [
        ("Startup probe", &c.spec.startup_probe),
        ("Liveness probe", &c.spec.liveness_probe),
        ("Readiness probe", &c.spec.readiness_probe),
    ] {
        p.field(2, name, &probe.as_ref().map(self::probe).unwrap_or_default());
    }
    for m in &c.spec.volume_mounts {
        let sub = if m.sub_path.is_empty() { String::new() } else { format!(" ({})", m.sub_path) };
        let mode = if m.read_only { "ro" } else { "rw" };
        p.field(2, "Mount", &format!("{} from {}{sub}, {mode}", m.mount_path, m.name));
    }
}

fn state(p: &mut Page, name: &str, state: &v1::State, now: Wall) {
    if let Some(running) = &state.running {
        p.field(2, name, &format!("Running since {}", since(&running.started_at, now)));
    } else if let Some(t) = &state.terminated {
        p.field(2, name, &format!("Terminated, {}, exit code {}", t.reason, t.exit_code));
        p.field(3, "Message", &t.message);
        p.field(3, "Started", &since(&t.started_at, now));
        p.field(3, "Finished", &since(&t.finished_at, now));
    } else if let Some(w) = &state.waiting {
        p.field(2, name, &format!("Waiting, {}", w.reason));
        p.field(3, "Message", &w.message);
    }
}

fn port(port: &v1::Port) -> String {
    let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
    let mut text = format!("{}/{protocol}", port.container_port);
    if !port.name.is_empty() {
        text.push_str(&format!(" ({})", port.name));
    }
    if let Some(host) = port.host_port {
        text.push_str(&format!(" on host port {host}"));
    }
    text
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A probe as `kubectl describe` writes it.
fn probe(probe: &Value) -> String {
    let at = |path: &str| probe.pointer(path).map(scalar).unwrap_or_default();
    let asks = if probe.get("httpGet").is_some() {
        let scheme = match at("/httpGet/scheme").to_ascii_lowercase() {
            s if s.is_empty() => "http".to_owned(),
            s => s,
        };
        format!("http-get {scheme}://{}:{}{}", at("/httpGet/host"), at("/httpGet/port"), at("/httpGet/path"))
    } else if probe.get("tcpSocket").is_some() {
        format!("tcp-socket {}:{}", at("/tcpSocket/host"), at("/tcpSocket/port"))
    } else if probe.get("grpc").is_some() {
        format!("grpc :{} {}", at("/grpc/port"), at("/grpc/service")).trim_end().to_owned()
    } else {
        let command = probe.pointer("/exec/command").and_then(Value::as_array);
        let words: Vec<String> = command.into_iter().flatten().map(scalar).collect();
        format!("exec [{}]", words.join(" "))
    };
    let number = |field: &str, default: i64| probe.get(field).and_then(Value::as_i64).unwrap_or(default);
    format!(
        "{asks} delay={}s timeout={}s period={}s success={} failure={}",
        number("initialDelaySeconds", 0),
        number("timeoutSeconds", 1),
        number("periodSeconds", 10),
        number("successThreshold", 1),
        number("failureThreshold", 3),
    )
}

fn volume(volume: &serde_json::Map<String, Value>) -> String {
    let name = volume.get("name").map(scalar).unwrap_or_default();
    let Some((kind, source)) = volume.iter().find(|(k, _)| *k != "name") else { return name };
    let detail = ["name", "secretName", "path", "medium", "sizeLimit"]
        .iter()
        .filter_map(|field| source.get(field).map(|v| format!("{field}={}", scalar(v))))
        .collect::<Vec<_>>()
        .join(", ");
    format!("{name}: {kind} {detail}").trim_end().to_owned()
}

fn action(p: &mut Page, a: &ActionView) {
    let of = a.container.as_ref().map(|c| format!(" {c}")).unwrap_or_default();
    let what = format!("{}{of}", a.kind);
    let failed = a.failure.as_ref().map(|f| format!("  FAILED: {f}")).unwrap_or_default();
    p.line(1, &format!("{}  {what:<32} {:>10}{failed}", precise(a.begun), time::millis(a.took_ms)));
    if !a.steps.is_empty() {
        let steps: Vec<String> =
            a.steps.iter().map(|(name, ms)| format!("{name} {}", time::millis(*ms))).collect();
        p.line(3, &steps.join(", "));
    }
}

/// A time with milliseconds, so that the order of actions is visible.
fn precise(at: Wall) -> String {
    let stamp = time::stamp(at);
    let ms = at.0.rem_euclid(1_000_000_000) / 1_000_000;
    format!("{}.{ms:03}Z", stamp.trim_end_matches('Z'))
}
