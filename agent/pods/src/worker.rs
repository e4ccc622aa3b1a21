//! One pod's worker: a task that passes the pod's state to [`plan`] and carries out the actions that [`plan`]
//! returns.
//!
//! Owns: the pod cache ([`PodCache`]) and the pod's [`Memory`], the actions in flight, at most one
//! observation and one volume refresh at a time (each a `JoinSet`), and the probes. Inputs: the mailbox
//! (desired state, exits, outages), the ends of actions, probe updates, and the clock.
//!
//! Invariants:
//!
//! - Before the first observation the worker decides, stores and claims nothing of the pod, and reports the
//!   pod as remembered: a pod that was never observed is not an empty pod.
//! - Memory is stored before an action begins.
//! - An action that panics counts as a failed action.
//! - A worker never waits for another pod. The mailbox never waits for an action, an observation or a
//!   refresh.

mod message;
mod observe;
mod publish;

pub use message::WorkerMessage;
pub(crate) use message::{InitialState, WorkerConfig};

use crate::{
    executor::{ActionResult, Context, Executor, NodeProcess, ObservedChange, PodSnapshot},
    metrics,
    pod_cache::PodCache,
    probes::{ProbeManager, ProbeUpdate, Trouble},
    report::{ActionRecord, Reports},
    store::MemoryStore,
};
use berth_core::{
    event::Event,
    ids::ContainerId,
    model::{Objects, Pod},
    plan::{Action, Desired, Ending, Fact, Failure, Memory, Plan, RunState, learn, plan},
    probe::ProbeVerdict,
    status::PodStatus,
    time::{Boottime, Now, Wall},
};
use berth_sys::failpoint::{Side, pass};
use observe::OBSERVE_RETRY_MAX;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{Id, JoinError, JoinSet},
};

/// The error of a start whose command cannot be run. `None` for every other action and for a start without
/// that error.
fn start_error(action: &Action, changes: &[ObservedChange]) -> Option<String> {
    let Action::Start { id, .. } = action else { return None };
    changes.iter().find_map(|change| match change {
        ObservedChange::Container(of, seen, _) if of == id => {
            let exit = seen.state.exit().filter(|e| e.reason.as_deref() == Some("StartError"))?;
            Some(exit.message.clone().unwrap_or_default())
        }
        _ => None,
    })
}

/// Whether the changed pod mounts a volume that it did not mount before, as an ephemeral container may.
fn mounts_more(before: &Pod, now: &Pod) -> bool {
    now.mounted_volumes().any(|volume| !before.mounted_volumes().any(|known| known.name == volume.name))
}

/// The longest sleep of a worker. The boot clock counts suspended time and tokio's timers do not, so a longer
/// sleep could overshoot after a suspend.
const MAX_SLEEP: Duration = Duration::from_secs(300);
/// The shortest sleep, used where a decision asked for a moment that has passed. The limit keeps any input
/// from making a worker spin.
const MIN_SLEEP: Duration = Duration::from_millis(100);

/// Exit code of a process that a SIGKILL ended, as the OOM killer's does.
const KILLED: i32 = 137;

struct RunningAction {
    action: Action,
    begun: Instant,
    begun_wall: Wall,
}

struct Worker<H, R> {
    desired: Desired,
    objects: Arc<Objects>,
    memory: Arc<Memory>,
    stored: Option<Arc<Memory>>,
    cache: PodCache,
    /// The pod was observed at least once: what the cache lacks is not on the node.
    observed_once: bool,
    executor: Arc<H>,
    reports: Arc<R>,
    store: MemoryStore,
    running: JoinSet<ActionResult>,
    by_task: BTreeMap<Id, RunningAction>,
    observations: JoinSet<Result<PodSnapshot, Failure>>,
    observe_at: Option<Boottime>,
    observe_failures: u32,
    refreshes: JoinSet<Result<(), Failure>>,
    refresh_at: Option<Boottime>,
    /// The mount in flight does not know of a volume that the pod mounts since.
    mount_again: bool,
    probes: ProbeManager,
    timeline: VecDeque<ActionRecord>,
    /// When the worker began, until its first decision and the pod's start were counted.
    begun: Instant,
    counted: metrics::Counted,
    /// Status that was published last. The manager reads it for admission.
    published: watch::Sender<Option<Arc<PodStatus>>>,
    /// Told when the pod has ended.
    freed: Arc<Notify>,
    /// `gone` and `reclaimed` of the last report.
    last_ends: (bool, bool),
    /// A report of the observed pod was published, not only the remembered status.
    published_observed: bool,
    logged_events: BTreeSet<Event>,
    wake_at: Option<Boottime>,
}

/// Runs one pod until nothing of the pod is left or the mailbox closes.
pub(crate) async fn run<H: Executor, R: Reports>(
    config: WorkerConfig<H, R>,
    mut mailbox: mpsc::UnboundedReceiver<WorkerMessage>,
) {
    let (probes, mut news) = ProbeManager::new(config.agent_start);
    let now = config.executor.now().boottime;
    let mut cache = PodCache::default();
    let (observed_once, observe_at) = match config.snapshot {
        InitialState::Observed(snapshot) => {
            let unsure = !snapshot.unsure.is_empty();
            cache.merge(*snapshot, &BTreeSet::new());
            (true, unsure.then_some(now + OBSERVE_RETRY_MAX))
        }
        InitialState::Observe => (false, Some(now)),
        InitialState::Wait => (false, None),
    };
    let mut w = Worker {
        desired: Desired { unknown: config.objects.unknown_of(&config.desired.pod), ..config.desired },
        objects: config.objects,
        memory: Arc::new(config.memory),
        stored: None,
        cache,
        observed_once,
        executor: config.executor,
        reports: config.reports,
        store: config.store,
        running: JoinSet::new(),
        by_task: BTreeMap::new(),
        observations: JoinSet::new(),
        observe_at,
        observe_failures: 0,
        refreshes: JoinSet::new(),
        refresh_at: None,
        mount_again: false,
        probes,
        timeline: VecDeque::new(),
        begun: Instant::now(),
        counted: metrics::Counted::default(),
        published: config.published,
        freed: config.freed,
        last_ends: (false, false),
        published_observed: false,
        logged_events: BTreeSet::new(),
        wake_at: None,
    };
    loop {
        if !w.observed_once {
            w.publish_remembered();
        } else if w.sync() {
            let uid = w.desired.pod.uid.clone();
            w.reports.removed(&uid);
            return;
        }
        w.spawn_due();
        let sleep = w.until_due();
        tokio::select! {
            message = mailbox.recv() => match message {
                Some(message) => w.handle(message),
                None => return,
            },
            Some(ended) = w.running.join_next_with_id() => w.action_ended(ended),
            Some(observed) = w.observations.join_next() => w.observation_ended(observed),
            Some(refreshed) = w.refreshes.join_next() => w.refreshed(refreshed),
            Some(n) = news.recv() => w.take_probe_update(n),
            () = tokio::time::sleep(sleep) => {}
        }
        while let Ok(message) = mailbox.try_recv() {
            w.handle(message);
        }
        while let Some(ended) = w.running.try_join_next_with_id() {
            w.action_ended(ended);
        }
    }
}

impl<H: Executor, R: Reports> Worker<H, R> {
    fn pod(&self) -> &Arc<Pod> {
        &self.desired.pod
    }

    fn boottime(&self) -> Boottime {
        self.executor.now().boottime
    }

    /// Time until the clock makes the next step due.
    fn until_due(&self) -> Duration {
        let now = self.boottime();
        // A running observation or refresh schedules its successor at its own end.
        let look = self.observe_at.filter(|_| self.observations.is_empty());
        let refresh = self.refresh_at.filter(|_| self.refreshes.is_empty() && self.may_refresh());
        match [self.wake_at, look, refresh].into_iter().flatten().min() {
            Some(next) if next <= now => MIN_SLEEP,
            Some(next) => next.since(now).min(MAX_SLEEP),
            None => MAX_SLEEP,
        }
    }

    /// Makes one decision: stores the memory, begins the actions, publishes the status. Returns true once
    /// nothing of the pod is left.
    fn sync(&mut self) -> bool {
        let (now, begun) = (self.executor.now(), Instant::now());
        let p: Plan = plan(&self.desired, &self.cache.seen, &self.memory, now);
        // A pod at rest has its memory once.
        self.memory = match self.stored.as_ref().filter(|stored| ***stored == p.memory) {
            Some(stored) => Arc::clone(stored),
            None => Arc::new(p.memory),
        };
        self.wake_at = p.wake_at;
        for e in p.events {
            self.event(e);
        }
        // The memory of a pod of which nothing is left stays until its source lets the pod go.
        self.save();
        if p.finished {
            self.publish(p.status, true, true);
            return true;
        }
        for action in p.actions {
            self.begin(action);
        }
        let context = |id: &ContainerId| Context {
            pod: Arc::clone(&self.desired.pod),
            objects: Arc::clone(&self.objects),
            sandbox: self.cache.seen.sandbox.clone(),
            process: self.cache.processes.get(id).copied(),
            run: self.cache.seen.containers.get(id).cloned(),
            target: None,
            deadline: None,
            ending: false,
        };
        self.probes.reconcile(&p.probes, &self.desired.pod, &self.memory, &self.executor, context);
        self.count_decision(&p.status, now, begun);
        self.publish(p.status, p.gone, p.reclaimed);
        false
    }

    fn save(&mut self) {
        if self.stored.as_ref().is_some_and(|stored| Arc::ptr_eq(stored, &self.memory)) {
            return;
        }
        match self.store.save(&self.desired.pod, &self.memory) {
            Ok(()) => self.stored = Some(Arc::clone(&self.memory)),
            Err(error) => {
                tracing::error!(pod = %self.desired.pod.key, %error, "cannot store the pod's memory")
            }
        }
    }

    fn begin(&mut self, action: Action) {
        let context = self.context(&action);
        let executor = Arc::clone(&self.executor);
        let kind = action.kind();
        let performing = action.clone();
        let handle = self.running.spawn(async move {
            pass(Side::Before, kind);
            let performed = executor.perform(context, performing).await;
            pass(Side::After, kind);
            performed
        });
        let flight = RunningAction { action, begun: Instant::now(), begun_wall: self.executor.now().wall };
        self.by_task.insert(handle.id(), flight);
    }

    fn context(&self, action: &Action) -> Context {
        let deadline = match action {
            Action::PreStop { container, .. } => {
                let run = self.memory.containers.get(container).and_then(|m| m.run.as_ref());
                run.and_then(|r| r.stop.as_ref()).map(|s| s.since + Duration::from_secs(u64::from(s.grace)))
            }
            _ => None,
        };
        let id = action.run();
        Context {
            pod: Arc::clone(self.pod()),
            objects: Arc::clone(&self.objects),
            sandbox: self.cache.seen.sandbox.clone(),
            process: id.and_then(|id| self.cache.processes.get(id).copied()),
            run: id.and_then(|id| self.cache.seen.containers.get(id).cloned()),
            target: self.target_of(action),
            deadline,
            ending: self.memory.ending.is_some(),
        }
    }

    /// The run whose PID namespace the started container joins.
    fn target_of(&self, action: &Action) -> Option<(ContainerId, Option<NodeProcess>)> {
        let Action::Start { container, .. } = action else { return None };
        let target = self.pod().container(container)?.target.as_ref()?;
        let runs = self.cache.seen.containers.iter().filter(|(_, run)| &run.container == target);
        let (id, run) = runs.max_by_key(|(_, run)| (run.attempt, run.sandbox_attempt))?;
        let runs = matches!(run.state, RunState::Running { .. });
        Some((id.clone(), self.cache.processes.get(id).copied().filter(|_| runs)))
    }

    /// Handles the end of an action: its changes, events and failure.
    fn action_ended(&mut self, ended: Result<(Id, ActionResult), JoinError>) {
        let now = self.executor.now();
        let (id, performed) = match ended {
            Ok((id, performed)) => (id, performed),
            Err(error) => {
                let failure =
                    Failure::new("InternalError", format!("the action's task ended early: {error}"));
                (error.id(), ActionResult::failed(failure))
            }
        };
        let Some(flight) = self.by_task.remove(&id) else { return };
        let took = flight.begun.elapsed();
        let unstartable = start_error(&flight.action, &performed.changes);
        for change in performed.changes {
            let ended = self.cache.apply(change, now.boottime);
            self.note_ends(ended);
        }
        for e in performed.events {
            if self.logged_events.insert(e.clone()) {
                self.event(e);
            }
        }
        for fact in performed.facts {
            self.learn(fact, now);
        }
        self.note(&flight, took, performed.steps, &performed.outcome);
        metrics::count_action(self.pod(), &flight.action, &performed.outcome);
        if performed.outcome.is_err() && self.cache.failed(&flight.action, now.boottime) {
            self.observe_at = Some(self.observe_at.map_or(now.boottime, |t| t.min(now.boottime)));
        }
        if flight.action == Action::MountVolumes && std::mem::take(&mut self.mount_again) {
            self.cache.more_volumes(now.boottime);
        }
        if flight.action == Action::MountVolumes && performed.outcome.is_err() {
            // The next try mounts the objects as they are then.
            self.refresh_at = None;
        }
        let fact = match unstartable {
            Some(message) if performed.outcome.is_ok() => {
                Fact::Unstartable { action: flight.action, message }
            }
            _ => Fact::Finished(flight.action, performed.outcome),
        };
        self.learn(fact, now);
        self.probes.nudge();
    }

    fn learn(&mut self, fact: Fact, now: Now) {
        for e in learn(&self.desired.pod, Arc::make_mut(&mut self.memory), fact, now) {
            self.event(e);
        }
    }

    fn handle(&mut self, message: WorkerMessage) {
        let now = self.executor.now();
        match message {
            WorkerMessage::Desired(d) => {
                let changed = d.pod != self.desired.pod;
                if mounts_more(&self.desired.pod, &d.pod) {
                    self.cache.more_volumes(now.boottime);
                    self.mount_again = self.memory.in_flight.contains(&Action::MountVolumes);
                }
                self.desired = d;
                self.desired.unknown = self.objects.unknown_of(&self.desired.pod);
                if changed {
                    if !self.observed_once {
                        self.published.send_replace(None);
                    }
                    self.stored = None;
                    self.refresh_at = Some(now.boottime);
                    self.learn(Fact::InputsChanged, now);
                }
            }
            WorkerMessage::Past(api) => {
                let pod = Arc::clone(self.pod());
                Arc::make_mut(&mut self.memory).add_api_status(&pod, &api, now);
            }
            WorkerMessage::Objects(o) => {
                self.objects = o;
                self.desired.unknown = self.objects.unknown_of(&self.desired.pod);
                self.learn(Fact::InputsChanged, now);
                self.refresh_at = Some(now.boottime);
            }
            WorkerMessage::Exit(id, mut exit) => {
                exit.oom =
                    exit.oom || exit.code == KILLED && self.executor.oom_killed(&self.desired.pod, &id);
                let ended = self.cache.exit(id, exit, now.boottime);
                self.note_ends(ended);
            }
            WorkerMessage::Shutdown(grace) => {
                Arc::make_mut(&mut self.memory).shutdown.get_or_insert(Ending { since: now.boottime, grace });
            }
            WorkerMessage::Oom(id) => self.cache.oom(id),
            WorkerMessage::Learned(fact) => self.learn(fact, now),
            WorkerMessage::PauseDied => self.cache.pause_died(now.boottime),
            WorkerMessage::RuntimeLost => {
                self.cache.runtime_lost(now.boottime);
                // Observing would fail until containerd is back, and the relist then sends a snapshot.
                self.observe_at = None;
            }
            WorkerMessage::Snapshot(snapshot) => self.take_snapshot(*snapshot),
            // Until an observation succeeds the cache stays unchanged, and containerd counts as away.
            WorkerMessage::Observe => self.observe_at = Some(now.boottime),
            WorkerMessage::NothingThere(taken) => {
                self.observed_once = true;
                self.cache.nothing_there(taken, &self.memory.in_flight);
            }
        }
    }

    fn take_probe_update(&mut self, news: ProbeUpdate) {
        let now = self.executor.now();
        if let Some(trouble) = news.trouble {
            // Reasons and texts are the kubelet's (`pkg/kubelet/prober/prober.go`).
            let kind = news.kind;
            let (reason, text) = match &trouble {
                Trouble::Failed(message) => ("Unhealthy", format!("{kind:?} probe failed: {message}")),
                Trouble::Warned(what) => ("ProbeWarning", format!("{kind:?} probe warning: {what}")),
                Trouble::Errored(why) => {
                    ("Unhealthy", format!("{kind:?} probe errored and resulted in unknown state: {why}"))
                }
            };
            self.event(Event::warning(reason, text).of(&news.container));
            let message = match trouble {
                Trouble::Failed(message) | Trouble::Errored(message) => Some(message),
                Trouble::Warned(_) => None,
            };
            if let Some(message) = message
                && kind != berth_core::model::ProbeKind::Liveness
            {
                self.learn(Fact::ProbeFailed { id: news.id.clone(), message }, now);
            }
        }
        if let Some(verdict) = news.verdict {
            let success = verdict == ProbeVerdict::Success;
            tracing::info!(pod = %self.desired.pod.key, container = %news.container, kind = ?news.kind, success, "probe verdict");
            self.learn(Fact::Probe { id: news.id, kind: news.kind, success }, now);
        }
    }
}
