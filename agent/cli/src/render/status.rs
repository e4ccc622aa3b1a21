//! Page of `berth status`: the node's state, then its problems. The JSON has the same facts, with
//! `problems` as a list.

use super::{control_plane, why};
use crate::{state::State, table::plain, time, v1};
use berth_api::view::{AddressesView, Health, NodeView};
use berth_core::{
    event::{EventKind, EventRecord},
    time::Wall,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Most warnings on the page.
const WARNINGS: usize = 5;

/// The facts of the page.
#[derive(Debug)]
pub(crate) struct Page<'s> {
    /// The node's view; `None` where no agent has left one.
    pub(crate) node: Option<&'s NodeView>,
    /// The pods and events.
    pub(crate) state: &'s State,
    /// Whether the agent's process runs although the agent does not answer.
    pub(crate) stuck: bool,
}

impl Page<'_> {
    /// The problems that need attention, one line each.
    pub(crate) fn problems(&self, now: Wall) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(offline) = &self.state.offline {
            problems.push(match self.stuck {
                true => format!("the agent runs but does not answer: {}", offline.why),
                false => "the agent is not running; pods run on, nothing is restarted".to_owned(),
            });
            problems.extend(offline.unread.iter().cloned());
        }
        if let Some(node) = self.node {
            if self.state.offline.is_none() {
                for (what, health) in parts(node) {
                    if !health.ok {
                        let since = health.since.map(|since| format!(" (since {})", time::stamp(since)));
                        problems.push(format!("{what}: {}{}", health.message, since.unwrap_or_default()));
                    }
                }
                problems.extend(node.addresses.iter().flat_map(|a| a.problems.iter().cloned()));
            }
            if let Some(server) = node.control_plane.as_ref().filter(|_| self.state.offline.is_none()) {
                problems.extend(control_plane::problems(server));
            }
            for source in &node.sources {
                if !source.listed {
                    let dir = source.dir.display();
                    problems.push(format!("{dir} is not listed: nothing is deleted for missing in it"));
                }
                for e in &source.errors {
                    problems.push(manifest(e));
                }
                for (key, reason) in &source.held {
                    problems.push(format!("{key} is held as it was: {reason}"));
                }
            }
        }
        for view in &self.state.pods {
            let phase = v1::Pod::of(view).status.phase;
            let ended = matches!(phase.as_str(), "Succeeded") || view.terminating;
            if !view.ready && !ended {
                let why = why(view, now);
                let why = if why.is_empty() { phase } else { why };
                problems.push(format!("pod {} is not ready: {why}", view.key));
            }
        }
        problems
    }

    /// The page as text.
    pub(crate) fn text(&self, now: Wall) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            text.push_str(&format!("{name:<12}{}\n", plain(&value)));
        };
        match self.node {
            Some(node) => self.node_lines(node, now, &mut line),
            None => line("Agent", "not running".to_owned()),
        }
        line("Pods", self.pods());
        if let Some(offline) = &self.state.offline {
            line("As of", offline.as_of.map_or_else(|| "never".to_owned(), time::stamp));
        }
        let problems = self.problems(now);
        if problems.is_empty() {
            text.push_str("\nNo problems.\n");
        } else {
            text.push_str("\nProblems\n");
            for p in &problems {
                text.push_str(&format!("  {}\n", plain(p)));
            }
        }
        let warnings = warnings(&self.state.events);
        if !warnings.is_empty() {
            text.push_str("\nLast warnings\n");
            for e in warnings {
                text.push_str(&format!("  {}\n", super::events::line(e, now)));
            }
        }
        text
    }

    /// The lines about the agent, the parts of the node and its sources.
    fn node_lines(&self, node: &NodeView, now: Wall, line: &mut impl FnMut(&str, String)) {
        line("Node", node.node.to_string());
        let since = format!("since {} ({})", time::stamp(node.since), time::age(Some(node.since), now));
        let process = format!("{}, process {}", node.version, node.pid);
        line(
            "Agent",
            match &self.state.offline {
                None => format!("{process}, {since}"),
                Some(_) if self.stuck => format!("does not answer: {process}, {since}"),
                Some(_) => format!("not running; was {process}"),
            },
        );
        if self.state.offline.is_none() {
            for (name, health) in parts(node) {
                line(name, show(health));
            }
            if let Some(addresses) = &node.addresses {
                line("Addresses", self::addresses(addresses));
            }
        }
        if let Some(server) = node.control_plane.as_ref().filter(|_| self.state.offline.is_none()) {
            line("Cluster", control_plane::line(server, now));
            let certificates = control_plane::certificates(server, now);
            if !certificates.is_empty() {
                line("TLS", certificates);
            }
        }
        for source in &node.sources {
            let listed = if source.listed { "" } else { ", not listed" };
            let bad = match source.errors.len() {
                0 => String::new(),
                n => format!(", {n} errors"),
            };
            line("Manifests", format!("{}: {} pods{listed}{bad}", source.dir.display(), source.pods));
        }
    }

    /// The number of pods, of each phase, and of ready ones.
    fn pods(&self) -> String {
        let mut phases: BTreeMap<String, usize> = BTreeMap::new();
        for view in &self.state.pods {
            let count = phases.entry(v1::Pod::of(view).status.phase).or_default();
            *count = count.saturating_add(1);
        }
        let ready = self.state.pods.iter().filter(|p| p.ready).count();
        let phases: Vec<String> = phases.iter().map(|(phase, n)| format!("{n} {phase}")).collect();
        let mut pods = self.state.pods.len().to_string();
        if !phases.is_empty() {
            pods.push_str(&format!(": {}; {ready} ready", phases.join(", ")));
        }
        pods
    }

    /// The page as JSON.
    pub(crate) fn json(&self, now: Wall) -> Result<Value, serde_json::Error> {
        let pods: Vec<Value> = self
            .state
            .pods
            .iter()
            .map(|p| {
                json!({
                    "namespace": p.key.namespace, "name": p.key.name, "uid": p.uid, "ready": p.ready,
                    "phase": v1::Pod::of(p).status.phase, "waitingFor": p.waiting_for,
                    "nextTry": p.next_try.map(time::stamp), "held": p.held,
                })
            })
            .collect();
        let node = self.node;
        let health =
            |h: &Health| json!({ "ok": h.ok, "message": h.message, "since": h.since.map(time::stamp) });
        let live = self.state.offline.is_none();
        let of = |pick: fn(&NodeView) -> &Health| node.filter(|_| live).map(|n| health(pick(n)));
        let may = |pick: fn(&NodeView) -> Option<&Health>| node.filter(|_| live).and_then(pick).map(health);
        let addresses = node.filter(|_| live).and_then(|n| n.addresses.as_ref());
        Ok(json!({
            "apiVersion": "berth/v1",
            "kind": "NodeStatus",
            "node": node.map(|n| &n.node),
            "agent": {
                "running": live || self.stuck,
                "answers": live,
                "version": node.map(|n| &n.version),
                "pid": node.map(|n| n.pid),
                "since": node.map(|n| time::stamp(n.since)),
            },
            "asOf": self.state.offline.as_ref().map_or(Some(now), |o| o.as_of).map(time::stamp),
            "containerd": of(|n| &n.containerd),
            "network": of(|n| &n.network),
            "output": of(|n| &n.logd),
            "services": may(|n| n.services.as_ref()),
            "dns": may(|n| n.dns.as_ref()),
            "csi": may(|n| n.csi.as_ref()),
            "nodeIPs": addresses.map(|a| &a.node_ips),
            "uplinks": addresses.map(|a| &a.uplinks),
            "controlPlane": serde_json::to_value(
                node.filter(|_| live).and_then(|n| n.control_plane.as_ref()).map(control_plane::json),
            )?,
            "sources": serde_json::to_value(node.map(|n| n.sources.as_slice()).unwrap_or_default())?,
            "pods": pods,
            "warnings": serde_json::to_value(warnings(&self.state.events))?,
            "problems": self.problems(now),
        }))
    }
}

fn parts(node: &NodeView) -> Vec<(&'static str, &Health)> {
    let mut parts =
        vec![("containerd", &node.containerd), ("Network", &node.network), ("Output", &node.logd)];
    parts.extend(node.services.as_ref().map(|health| ("Services", health)));
    parts.extend(node.dns.as_ref().map(|health| ("DNS", health)));
    parts.extend(node.image_disk.as_ref().map(|health| ("Images", health)));
    parts.extend(node.csi.as_ref().map(|health| ("CSI", health)));
    parts
}

/// The node IPs and the uplinks in one line.
fn addresses(found: &AddressesView) -> String {
    let or_none = |list: Vec<String>| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    let ips = or_none(found.node_ips.iter().map(ToString::to_string).collect());
    format!("{ips}; uplinks: {}", or_none(found.uplinks.clone()))
}

fn show(health: &Health) -> String {
    let state = if health.ok { "ok" } else { "NOT OK" };
    if health.message.is_empty() { state.to_owned() } else { format!("{state}, {}", health.message) }
}

fn manifest(e: &berth_api::view::ManifestProblem) -> String {
    let mut text = e.file.display().to_string();
    if let Some(document) = e.document {
        text.push_str(&format!(": document {document}"));
    }
    if let Some(field) = &e.field {
        text.push_str(&format!(": {field}"));
    }
    format!("{text}: {}", e.reason)
}

fn warnings(events: &[EventRecord]) -> Vec<&EventRecord> {
    let all: Vec<_> = events.iter().filter(|e| e.event.kind == EventKind::Warning).collect();
    all.get(all.len().saturating_sub(WARNINGS)..).unwrap_or_default().to_vec()
}
