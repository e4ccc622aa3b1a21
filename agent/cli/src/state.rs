//! The node's state: from the agent, or, where no agent runs, from its status files, with each
//! process checked again.

use crate::{error::Error, names::Candidate, render::pull_progress::summary, time, v1};
use berth_api::{
    client::Client,
    files,
    message::{Reply, Request},
    view::{NodeView, PodView, PullView},
};
use berth_core::{error::Chain, event::EventRecord, roots::Roots, time::Wall};
use berth_sys::process;
use serde_json::{Value, json};
use std::time::Duration;

/// Deadline of a request to the agent.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);

/// Message of a container whose process ended while no agent ran.
const ENDED_UNSEEN: &str = "its process ended while the agent was not running; the exit code is not known";

/// The node's pods and events, and whether an agent reported them.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// The pods, by name.
    pub(crate) pods: Vec<PodView>,
    /// Set where the pods are from status files, because the agent cannot be reached.
    pub(crate) offline: Option<Offline>,
    /// The events, oldest first; empty unless requested.
    pub(crate) events: Vec<EventRecord>,
}

/// State that was read from status files.
#[derive(Debug, Clone)]
pub(crate) struct Offline {
    /// When the agent last showed that it is alive.
    pub(crate) as_of: Option<Wall>,
    /// Why the agent cannot be reached.
    pub(crate) why: String,
    /// The status files that cannot be read, each with the reason.
    pub(crate) unread: Vec<String>,
}

impl Offline {
    /// The warning on standard error.
    pub(crate) fn banner(&self) -> String {
        let when = self.as_of.map_or_else(|| "never".to_owned(), time::stamp);
        let mut text = format!("agent not running; as of {when}, processes looked at now");
        for file in &self.unread {
            text.push_str(&format!("\n{file}"));
        }
        text
    }
}

/// Reads the state from the agent, or from its status files where it cannot be reached.
pub(crate) async fn read(roots: &Roots, with_events: bool) -> Result<State, Error> {
    match live(roots, with_events).await {
        Ok(state) => Ok(state),
        Err(e) if e.is_unreachable() => offline(roots, Chain(&e).to_string()),
        Err(e) => Err(e.into()),
    }
}

async fn live(roots: &Roots, with_events: bool) -> Result<State, berth_api::Error> {
    let mut client = Client::connect(&roots.agent_socket()).await?;
    let mut pods = client.pods(ANSWER).await?;
    if pods.iter().any(|pod| pod.waiting_for.is_some()) {
        show_pulls(&mut pods, &pulls(&mut client).await?);
    }
    let events = if with_events { events(&mut client).await? } else { Vec::new() };
    Ok(State { pods, offline: None, events })
}

/// The pulls that are under way; none of an agent that does not tell them.
async fn pulls(client: &mut Client) -> Result<Vec<PullView>, berth_api::Error> {
    match client.ask(&Request::Pulls, ANSWER).await {
        Ok(Reply::Pulls { pulls }) => Ok(pulls),
        Ok(_) | Err(berth_api::Error::Agent { .. }) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Says of each pod that waits for a pull how far the pull is.
fn show_pulls(pods: &mut [PodView], pulls: &[PullView]) {
    for view in pods.iter_mut().filter(|view| view.waiting_for.is_some()) {
        let pod = v1::Pod::of(view);
        let waits = |c: &v1::Shown<'_>| {
            c.status.is_none_or(|s| s.state.running.is_none() && s.state.terminated.is_none())
        };
        let pulled = pod.containers().filter(waits).find_map(|c| {
            let pull = pulls.iter().find(|p| p.wanted.contains(&c.spec.image))?;
            Some(format!("container {}: {}", c.spec.name, summary(&c.spec.image, &pull.progress)))
        });
        if pulled.is_some() {
            view.waiting_for = pulled;
        }
    }
}

async fn events(client: &mut Client) -> Result<Vec<EventRecord>, berth_api::Error> {
    match client.ask(&Request::Events { pod: None }, ANSWER).await? {
        Reply::Events { events } => Ok(events),
        _ => Err(berth_api::Error::Unexpected),
    }
}

/// Reads the state from the status files; `why` is the reason why the agent cannot be reached.
pub(crate) fn offline(roots: &Roots, why: String) -> Result<State, Error> {
    let (found, unread) = files::read_pods(roots)?;
    let node = files::read_node(roots).ok().flatten();
    if found.is_empty() && unread.is_empty() && node.is_none() {
        return Err(Error::NoState { path: roots.status_dir(), why });
    }
    let written = found.iter().map(|f| f.pod.as_of).chain(node.map(|n| n.as_of)).max();
    let as_of = written.max(files::last_alive(roots));
    let (mut pods, mut events) = (Vec::new(), Vec::new());
    for mut file in found {
        mark_ended(&mut file.pod, |pid, start| process::alive(pid, start).unwrap_or(true));
        // Without an agent nothing is retried.
        file.pod.next_try = None;
        pods.push(file.pod);
        events.extend(file.events);
    }
    events.sort_by_key(|e| e.last);
    let unread = unread.iter().map(|e| Chain(e).to_string()).collect();
    Ok(State { pods, offline: Some(Offline { as_of, why, unread }), events })
}

/// The node's view from the agent, or the last one in its status file with the reason why the agent
/// cannot be reached.
pub(crate) async fn node(roots: &Roots) -> Result<(Option<NodeView>, Option<String>), Error> {
    let asked = async {
        let mut client = Client::connect(&roots.agent_socket()).await?;
        client.ask(&Request::Status, ANSWER).await
    };
    match asked.await {
        Ok(Reply::Status(view)) => Ok((Some(*view), None)),
        Ok(_) => Err(berth_api::Error::Unexpected.into()),
        Err(e) if e.is_unreachable() => Ok((files::read_node(roots)?, Some(Chain(&e).to_string()))),
        Err(e) => Err(e.into()),
    }
}

/// The statuses of ephemeral containers.
const EPHEMERAL: &str = "ephemeralContainerStatuses";

/// Marks containers whose process has ended as terminated: reason `ContainerStatusUnknown` and exit
/// code 137, as the kubelet does.
fn mark_ended(pod: &mut PodView, alive: impl Fn(u32, u64) -> bool) {
    let (running, ended): (Vec<_>, Vec<_>) =
        std::mem::take(&mut pod.containers).into_iter().partition(|c| alive(c.pid, c.start_time));
    pod.containers = running;
    if ended.is_empty() {
        return;
    }
    let mut names: Vec<&str> = ended.iter().map(|c| c.name.as_str()).collect();
    for list in ["initContainerStatuses", "containerStatuses", EPHEMERAL] {
        let statuses = pod.object.pointer_mut(&format!("/status/{list}")).and_then(Value::as_array_mut);
        for status in statuses.into_iter().flatten() {
            let name = status.get("name").and_then(Value::as_str);
            if !name.is_some_and(|n| names.contains(&n)) {
                continue;
            }
            let started = status.pointer("/state/running/startedAt").cloned().unwrap_or(Value::Null);
            let id = status.get("containerID").cloned().unwrap_or(Value::Null);
            if let Some(fields) = status.as_object_mut() {
                let ended = json!({ "terminated": {
                    "exitCode": 137,
                    "reason": "ContainerStatusUnknown",
                    "message": ENDED_UNSEEN,
                    "startedAt": started,
                    "finishedAt": null,
                    "containerID": id,
                }});
                fields.insert("state".to_owned(), ended);
                fields.insert("ready".to_owned(), false.into());
                if list != EPHEMERAL {
                    fields.insert("started".to_owned(), false.into());
                }
            }
        }
    }
    // The pod's readiness does not count an ephemeral container.
    let ephemeral = pod.object.pointer(&format!("/status/{EPHEMERAL}")).and_then(Value::as_array);
    names.retain(|name| !ephemeral.into_iter().flatten().any(|status| status["name"] == *name));
    if names.is_empty() {
        return;
    }
    if let Some(conditions) = pod.object.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            let kind = condition.get("type").and_then(Value::as_str);
            if matches!(kind, Some("Ready" | "ContainersReady")) {
                condition.insert("status".to_owned(), "False".into());
                condition.insert("reason".to_owned(), "ContainersNotReady".into());
                let message = format!("containers with unready status: [{}]", names.join(" "));
                condition.insert("message".to_owned(), message.into());
            }
        }
    }
    pod.ready = false;
    pod.waiting_for = Some(format!("container {} ended while the agent was not running", names.join(", ")));
    pod.next_try = None;
}

/// The pods as candidates for names.
pub(crate) fn candidates(pods: &[PodView]) -> Vec<Candidate> {
    pods.iter()
        .map(|view| {
            let pod = v1::Pod::of(view);
            let ids = |c: &v1::Shown<'_>| {
                c.status.map(|s| s.id().to_owned()).into_iter().filter(|id| !id.is_empty()).collect()
            };
            Candidate {
                key: view.key.clone(),
                uid: view.uid.clone(),
                containers: pod.containers().map(|c| (c.spec.name.clone(), ids(&c))).collect(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_ended_without_an_agent_is_terminated_and_others_stay() {
        let mut view: PodView = serde_json::from_value(json!({
            "uid": "u", "key": {"namespace": "d", "name": "p"}, "ready": true,
            "object": {"status": {
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}],
                "containerStatuses": [
                    {"name": "a", "containerID": "containerd://aa", "ready": true,
                     "state": {"running": {"startedAt": "2023-11-14T22:13:20Z"}}},
                    {"name": "b", "ready": true, "state": {"running": {}}},
                ],
                "ephemeralContainerStatuses": [{"name": "e", "ready": false, "state": {"running": {}}}]}},
            "containers": [
                {"name": "a", "id": "a".repeat(64), "pid": 5, "start_time": 1},
                {"name": "b", "id": "b".repeat(64), "pid": 6, "start_time": 1},
                {"name": "e", "id": "e".repeat(64), "pid": 7, "start_time": 1},
            ],
        }))
        .unwrap();
        let before = view.clone();
        mark_ended(&mut view, |_, _| true);
        assert_eq!(view, before);
        mark_ended(&mut view, |pid, _| pid != 7);
        assert!(view.ready && view.containers.len() == 2, "an ephemeral container does not count");
        mark_ended(&mut view, |pid, _| pid == 6);
        assert!(!view.ready && view.containers.len() == 1);
        let at = |p: &str| view.object.pointer(p).unwrap().clone();
        assert_eq!(at("/status/conditions/0/status"), "False");
        assert_eq!(at("/status/conditions/1/status"), "True");
        assert_eq!(at("/status/ephemeralContainerStatuses/0/state/terminated/exitCode"), 137);
        assert_eq!(at("/status/containerStatuses/0/state/terminated/reason"), "ContainerStatusUnknown");
        assert_eq!(at("/status/containerStatuses/0/state/terminated/startedAt"), "2023-11-14T22:13:20Z");
        assert_eq!(at("/status/containerStatuses/1/ready"), true);
    }
}
