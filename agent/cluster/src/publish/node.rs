//! This node's Node object: registered where there is none, its labels reconciled, its status sent.
//!
//! Two tasks: one follows the object by its name, because others write it too (extended resources, conditions, taints);
//! one registers and reports. The status is computed every ten seconds and upon each new report, and sent where it
//! differs from the newest object, else every five minutes. A Node that was deleted while the agent runs is not
//! registered again, as with the kubelet; its status is sent again once it exists.
//!
//! Changes of the status are told as events too, those that the kubelet has.
//!
//! On failure: registration is tried again after 0.1 s to 7 s, a status after five tries with the next tick.

mod transitions;

use crate::{
    Task,
    object::{is_newer, version},
    publish::events::Events,
    rights,
    wait::{backoff, jittered},
};
use berth_core::{error::Chain, event::Event, ids::NodeName, time::Wall};
use berth_kube::{
    Error,
    pool::Pool,
    reflector::{Bad, Change, Health, Kind, ListWatch, Meta, Options, follow},
    request::{Patch, Request},
};
use berth_source::{
    cluster::drop_managed_fields,
    node::{NodeReport, Registration, node_metadata, node_object, node_status},
    patch::{self, Heartbeat},
};
use berth_sys::clock;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

/// Time between two looks at the status (`nodeStatusUpdateFrequency`).
const EVERY: Duration = Duration::from_secs(10);

/// Time after which an unchanged status is sent (`nodeStatusReportFrequency`).
const REPORT_EVERY: Duration = Duration::from_secs(300);

/// Share by which [`REPORT_EVERY`] varies, so that the nodes of a cluster do not report together.
const JITTER: f64 = 0.5;

/// The tries of one status.
const TRIES: u32 = 5;

/// First and longest wait between two tries of a registration.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(7));

/// Deadline of a request.
const DEADLINE: Duration = Duration::from_secs(10);

const PATH: &str = "/api/v1/nodes";

/// The newest version of this node's Node, by its watch or by an answer. Clones share it.
#[derive(Debug, Clone)]
pub struct NewestNode(Arc<watch::Sender<Option<Arc<Value>>>>);

impl Default for NewestNode {
    fn default() -> NewestNode {
        NewestNode(Arc::new(watch::channel(None).0))
    }
}

impl NewestNode {
    /// The object; `None` while it is unknown, and once it was deleted.
    pub fn get(&self) -> Option<Arc<Value>> {
        self.0.borrow().clone()
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> Option<String> {
        self.get()?.pointer("/metadata/uid")?.as_str().map(str::to_owned)
    }

    /// A receiver of each new version.
    pub fn changes(&self) -> watch::Receiver<Option<Arc<Value>>> {
        self.0.subscribe()
    }

    /// Takes a version; one that is not newer than the known one is dropped.
    fn put(&self, mut object: Value) {
        drop_managed_fields(&mut object);
        self.0.send_if_modified(|known| {
            let newer = known.as_ref().is_none_or(|known| is_newer(version(&object), version(known)));
            if newer {
                *known = Some(Arc::new(object));
            }
            newer
        });
    }

    /// Takes that the object with this UID was deleted.
    fn remove(&self, uid: &str) {
        self.0.send_if_modified(|known| {
            let same = known.as_ref().is_some_and(|known| known["metadata"]["uid"] == uid);
            if same {
                *known = None;
            }
            same
        });
    }
}

/// The tasks of the Node. They end with this value.
#[derive(Debug)]
pub struct NodeTasks {
    newest: NewestNode,
    health: watch::Receiver<Health>,
    _followed: [Task; 2],
    _reporter: Option<Task>,
}

impl NodeTasks {
    /// The newest version of the Node.
    pub fn newest(&self) -> NewestNode {
        self.newest.clone()
    }

    /// Whether the Node is followed without delay.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }
}

/// Starts to register and report the node, and keeps `newest` current. Nothing is sent before the first report.
pub fn start(
    pool: Pool,
    registration: Registration,
    newest: NewestNode,
    reports: watch::Receiver<Option<Arc<NodeReport>>>,
    events: Events,
) -> NodeTasks {
    events.report_of_node(Event::normal("Starting", "Starting kubelet."));
    let (followed, health) = followed(&pool, &registration.name, &newest);
    let reporter = Task::spawn(run(Reporter { pool, registration, reports, newest: newest.clone(), events }));
    NodeTasks { newest, health, _followed: followed, _reporter: Some(reporter) }
}

/// Keeps `newest` current, and reports nothing: another agent registers and reports this node.
pub fn start_following(pool: &Pool, name: &NodeName, newest: NewestNode) -> NodeTasks {
    let (followed, health) = followed(pool, name, &newest);
    NodeTasks { newest, health, _followed: followed, _reporter: None }
}

fn followed(pool: &Pool, name: &NodeName, newest: &NewestNode) -> ([Task; 2], watch::Receiver<Health>) {
    let (health_out, health) = watch::channel(Health::unknown());
    let (changes, incoming) = mpsc::channel(8);
    let kind = OwnNode { query: format!("fieldSelector=metadata.name%3D{name}") };
    let machine = ListWatch::new(Options::set());
    let tasks = [
        Task::spawn(follow(kind, pool.clone(), machine, changes, health_out)),
        Task::spawn(keep(incoming, newest.clone())),
    ];
    (tasks, health)
}

/// This node's Node, a set of one.
struct OwnNode {
    query: String,
}

impl Kind for OwnNode {
    type Item = Value;

    fn path(&self) -> &str {
        PATH
    }

    fn query(&self) -> &str {
        &self.query
    }

    fn read(&self, json: &[u8]) -> Result<(Meta, Value), Bad> {
        super::read_object(json)
    }
}

/// Applies the changes of the watch.
async fn keep(mut incoming: mpsc::Receiver<Change<Value>>, newest: NewestNode) {
    let mut store = berth_kube::reflector::Store::default();
    while let Some(change) = incoming.recv().await {
        // The object itself goes to `newest` alone; the store tells what a list lacks.
        let change = match change {
            Change::Put(meta, object) => {
                newest.put(object);
                Change::Put(meta, ())
            }
            Change::Gone(meta, _) => Change::Gone(meta, ()),
            Change::Begin => Change::Begin,
            Change::Unreadable(meta, bad) => {
                tracing::warn!("cannot read Node {}: {bad}", meta.name);
                Change::Unreadable(meta, bad)
            }
            Change::UnreadableGone(meta) => Change::UnreadableGone(meta),
            Change::Complete(version) => Change::Complete(version),
        };
        for effect in store.apply(change) {
            if let berth_kube::reflector::Effect::Removed(meta, _) = effect {
                newest.remove(&meta.uid);
            }
        }
    }
}

struct Reporter {
    pool: Pool,
    registration: Registration,
    reports: watch::Receiver<Option<Arc<NodeReport>>>,
    newest: NewestNode,
    events: Events,
}

async fn run(mut reporter: Reporter) {
    let Ok(first) = reporter.reports.wait_for(Option::is_some).await.map(|report| report.clone()) else {
        return;
    };
    if let Some(report) = first {
        reporter.register(&report).await;
    }
    let mut sent = Sent::default();
    let mut tick = Instant::now();
    loop {
        let report = reporter.reports.borrow_and_update().clone();
        if let Some(report) = report {
            reporter.report(&report, &mut sent).await;
        }
        // A tick that was missed is not made up for.
        while tick <= Instant::now() {
            tick += EVERY;
        }
        tokio::select! {
            () = sleep_until(tick) => {}
            changed = reporter.reports.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// When the status was sent last.
#[derive(Debug, Default)]
struct Sent {
    /// When an unchanged status is sent; `None` before the first.
    due: Option<Instant>,
    /// Whether the last try failed.
    failing: bool,
}

impl Sent {
    fn heartbeat(&self, now: Instant) -> Heartbeat {
        if self.due.is_none_or(|due| due <= now) { Heartbeat::Due } else { Heartbeat::OnChange }
    }
}

impl Reporter {
    /// Makes sure that the Node exists with its labels. Ends when it does.
    async fn register(&self, report: &NodeReport) {
        let (mut failures, mut told) = (0, None);
        while let Err(error) = self.try_register(report).await {
            failures += 1;
            let name = &self.registration.name;
            let why = format!("{}{}", Chain(&error), rights::remedy("nodes", error.refusal(), name));
            if told.as_ref() != Some(&why) {
                tracing::warn!("cannot register the node {name}: {why}");
                told = Some(why);
            }
            let asked = error.refusal().and_then(|refusal| refusal.retry_after);
            sleep(asked.unwrap_or_else(|| backoff(failures, WAITS.0, WAITS.1))).await;
        }
    }

    async fn try_register(&self, report: &NodeReport) -> Result<(), Error> {
        match self.send(&Request::get(self.path(""))).await {
            Ok(()) => {}
            Err(error) if error.refusal().is_some_and(berth_kube::status::Refusal::is_not_found) => {
                let node = node_object(&self.registration, report, clock::wall());
                match self.send(&Request::create(PATH, node.to_string())).await {
                    // Created meanwhile, or by a request whose answer was lost.
                    Err(error) if error.refusal().is_some_and(berth_kube::status::Refusal::is_conflict) => {
                        self.send(&Request::get(self.path(""))).await?;
                    }
                    Ok(()) => {
                        tracing::info!("the node {} is registered", self.registration.name);
                        self.tell(&Value::Null, report);
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
        let Some(node) = self.newest.get() else { return Ok(()) };
        if let Some(patch) = node_metadata(&self.registration, &node) {
            self.send(&Request::patch(self.path(""), Patch::StrategicMerge, patch.to_string())).await?;
        }
        Ok(())
    }

    /// Sends the status where it has changed or is due.
    async fn report(&self, report: &NodeReport, sent: &mut Sent) {
        for left in (0..TRIES).rev() {
            // A deleted Node has no status; its watch tells when it exists again.
            let Some(node) = self.newest.get() else { return };
            let Some(patch) = status_patch(&node, report, sent.heartbeat(Instant::now()), clock::wall())
            else {
                return;
            };
            let request = Request::patch(self.path("/status"), Patch::StrategicMerge, patch.to_string());
            match self.send(&request).await {
                Ok(()) => {
                    self.tell(&node, report);
                    sent.due = Some(Instant::now() + jittered(REPORT_EVERY, JITTER, rand::random()));
                    if std::mem::take(&mut sent.failing) {
                        tracing::info!("the status of the node {} is sent again", self.registration.name);
                    }
                    return;
                }
                Err(error) if left == 0 || error.refusal().is_some_and(|r| r.is_not_found()) => {
                    if !std::mem::replace(&mut sent.failing, true) {
                        let name = &self.registration.name;
                        let remedy = rights::remedy("nodes", error.refusal(), name);
                        tracing::warn!(
                            "cannot send the status of the node {name}: {}{remedy}",
                            Chain(&error)
                        );
                    }
                    return;
                }
                Err(error) => {
                    let asked = error.refusal().and_then(|refusal| refusal.retry_after);
                    sleep(asked.unwrap_or_else(|| backoff(TRIES - left, WAITS.0, WAITS.1))).await;
                }
            }
        }
    }

    /// Reports as events what the status changed of the Node as it was before.
    fn tell(&self, before: &Value, report: &NodeReport) {
        for event in transitions::transitions(&self.registration.name, before, report) {
            self.events.report_of_node(event);
        }
    }

    /// Sends a request that the API server answers with the Node.
    async fn send(&self, request: &Request) -> Result<(), Error> {
        let answer = self.pool.send(&request.clone().within(DEADLINE)).await?;
        match serde_json::from_slice::<Value>(&answer.body) {
            Ok(node) if node.is_object() => self.newest.put(node),
            // The watch brings the same version.
            _ => tracing::debug!("the API server answered with no Node"),
        }
        Ok(())
    }

    fn path(&self, below: &str) -> String {
        node_path(&self.registration.name, below)
    }
}

fn node_path(name: &NodeName, below: &str) -> String {
    format!("{PATH}/{name}{below}")
}

/// The patch of the Node's status; `None` where there is nothing to send.
fn status_patch(node: &Value, report: &NodeReport, heartbeat: Heartbeat, now: Wall) -> Option<Value> {
    let mut wanted = node_status(report, now);
    if report.volumes_in_use.is_none()
        && let Some(known) = node.pointer("/status/volumesInUse")
    {
        wanted["volumesInUse"] = known.clone();
    }
    patch::node_status(&node["status"], &wanted, heartbeat)
}

#[cfg(test)]
mod tests;
