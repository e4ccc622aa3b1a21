//! The manager of pods: decides which pods have a worker. One task owns the workers, their mailboxes and the
//! wanted pods that still wait for a worker.
//!
//! Inputs: the desired set (a `watch`), the node's events (an `mpsc`), and the ends of the manager's own
//! tasks (a `JoinSet`: workers, restart delays of pods whose worker panicked, cleanup of orphans).
//!
//! Invariants:
//!
//! - The manager never waits for the node, so that no pod waits for another.
//! - No pod starts before containerd has answered once. No pod ends before its source has listed.
//! - Of two pods with one name, the second waits until nothing of the first is left.
//! - A worker that panics is started again from what the node shows. Other pods are not affected.
//! - A pod has no worker while its orphan is being removed.

mod cleanup;

use crate::{
    executor::{Executor, PodSnapshot},
    names::Names,
    refs::References,
    report::Reports,
    store::Store,
    waiting,
    worker::{self, InitialState, WorkerConfig, WorkerMessage},
};
use berth_core::{
    event::{Event, EventRecord, Involved},
    ids::PodUid,
    model::{Objects, Pod},
    plan::{Desired, Ending, Failure, Memory},
    time::Boottime,
    unsupported::unsupported,
};
use cleanup::{CLEANUP_PERIOD, CLEANUP_RETRY};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{Id, JoinError, JoinSet},
};

/// Delay before the worker of a pod is started again after its first panic. Each further panic doubles the
/// delay.
const AFTER_PANIC: Duration = Duration::from_secs(5);
/// The longest such delay.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// The age up to which a worker begins with the pod's snapshot from the relist. With an older snapshot the
/// worker observes the pod itself.
const FRESH: Duration = Duration::from_secs(1);

/// The objects that the source wants on this node.
#[derive(Debug, Clone, Default)]
pub struct DesiredSet {
    /// Whether the source has listed. Until then no pod is ended because the set lacks it.
    pub listed: bool,
    /// The wanted pods.
    pub pods: BTreeMap<PodUid, Arc<Pod>>,
    /// The objects that the pods may refer to, such as ConfigMaps and Secrets.
    pub objects: Arc<Objects>,
}

/// A pod that a relist found in containerd.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The pod as stored on its containers. `None` where the record cannot be read.
    pub pod: Option<Arc<Pod>>,
    /// The snapshot of the pod that the relist took.
    pub snapshot: PodSnapshot,
}

/// An event from the node to the manager.
#[derive(Debug)]
pub enum NodeEvent {
    /// A message for the worker of one pod.
    One(PodUid, WorkerMessage),
    /// The machine shuts down: every pod ends within this grace, in seconds, and keeps its record for the
    /// next boot.
    Shutdown(u32),
    /// containerd does not answer.
    RuntimeLost,
    /// containerd answers, for the first time or again. The event carries every pod that has a container or a
    /// sandbox.
    RuntimeBack {
        /// The pods that the relist could observe.
        found: BTreeMap<PodUid, Found>,
        /// Pods that have a container or a sandbox but could not be observed. Their workers observe them on
        /// their own.
        unseen: BTreeSet<PodUid>,
        /// The moment at which the relist began.
        taken: Boottime,
    },
}

/// What [`run`] needs to run pods.
#[derive(Debug)]
pub struct ManagerConfig<H, R> {
    /// The executor that carries out the actions of all workers.
    pub executor: Arc<H>,
    /// The receiver of pod reports and events.
    pub reports: Arc<R>,
    /// The store of the pods' memory.
    pub store: Store,
    /// The desired set, as the source changes it.
    pub desired: watch::Receiver<Arc<DesiredSet>>,
    /// Events from the node.
    pub incoming: mpsc::Receiver<NodeEvent>,
    /// Ends the manager. Every pod stays as it is.
    pub stop: oneshot::Receiver<()>,
}

/// Handle of a pod that has a worker, or that waits for its restart after the worker panicked.
struct WorkerHandle {
    pod: Arc<Pod>,
    /// The worker's mailbox. `None` while the pod waits for its restart.
    mailbox: Option<mpsc::UnboundedSender<WorkerMessage>>,
    ending: bool,
    /// Set by the worker once the pod has ended, and from the start for a rejected pod. Such a pod uses no
    /// resources of the node, and admission does not count them.
    over: Arc<AtomicBool>,
}

/// The subject of a task in the manager's `JoinSet`.
#[derive(Debug, Clone)]
enum ManagerTask {
    Worker(PodUid),
    RestartDelay(PodUid),
    /// Lists the orphans of pods that the manager does not know.
    ListOrphans,
    CleanupPod(PodUid),
    CleanupNode,
    /// Sleeps until the next cleanup round.
    CleanupWait,
}

/// The result of a task in the manager's `JoinSet`.
enum Outcome {
    Done,
    Listed(Result<BTreeSet<PodUid>, Failure>),
    Cleaned(Result<(), Failure>),
}

/// State of the cleanup of orphans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CleanupState {
    /// The next round begins once the source has listed and containerd answers.
    Due,
    /// A round is running, or the pause before the next round is.
    Busy,
}

struct Manager<H, R> {
    executor: Arc<H>,
    reports: Arc<R>,
    store: Store,
    desired: Arc<DesiredSet>,
    workers: BTreeMap<PodUid, WorkerHandle>,
    names: Names,
    references: References,
    tasks: JoinSet<Outcome>,
    task_kinds: HashMap<Id, ManagerTask>,
    /// Pods whose orphans are being removed. These pods get no worker meanwhile.
    cleaned: BTreeSet<PodUid>,
    cleanup: CleanupState,
    clean_failed: bool,
    /// The first round has ended without a failure. Later rounds clean the node only where they found an
    /// orphan.
    swept: bool,
    /// Pods and memory that the store holds from before the agent's start and that have no worker yet.
    stored: BTreeMap<PodUid, (Arc<Pod>, Memory)>,
    found: BTreeMap<PodUid, Found>,
    /// Pods that have a container or a sandbox but that the last relist could not observe.
    unseen: BTreeSet<PodUid>,
    /// Pods with containers whose spec cannot be read. Their containers are left alone.
    unreadable: BTreeSet<PodUid>,
    panics: HashMap<PodUid, u32>,
    /// Wanted pods that are reported as waiting, each with its reason.
    shown_waiting: BTreeMap<PodUid, &'static str>,
    runtime_answers: bool,
    /// containerd has answered at least once since the agent's start.
    answered: bool,
    /// The longest grace of a pod in seconds, once the machine shuts down.
    shutdown: Option<u32>,
    agent_start: Boottime,
}

/// Runs the manager until `stop` fires or the channel of node events closes.
pub async fn run<H: Executor, R: Reports>(config: ManagerConfig<H, R>) {
    let ManagerConfig { executor, reports, store, mut desired, mut incoming, mut stop } = config;
    let stored = store.load().unwrap_or_else(|error| {
        tracing::error!(%error, "memory of pods not read; what runs is taken for started");
        Vec::new()
    });
    let agent_start = executor.now().boottime;
    let mut m = Manager {
        executor,
        reports,
        store,
        desired: desired.borrow_and_update().clone(),
        workers: BTreeMap::new(),
        names: Names::default(),
        references: References::default(),
        tasks: JoinSet::new(),
        task_kinds: HashMap::new(),
        cleaned: BTreeSet::new(),
        cleanup: CleanupState::Due,
        clean_failed: false,
        swept: false,
        stored: stored.into_iter().map(|k| (k.pod.uid.clone(), (k.pod, k.memory))).collect(),
        found: BTreeMap::new(),
        unseen: BTreeSet::new(),
        unreadable: BTreeSet::new(),
        panics: HashMap::new(),
        shown_waiting: BTreeMap::new(),
        runtime_answers: false,
        answered: false,
        shutdown: None,
        agent_start,
    };
    m.reconcile();
    let mut source_lives = true;
    loop {
        let changed = tokio::select! {
            changed = desired.changed(), if source_lives => {
                // After the source is gone, the last desired set stays in force.
                source_lives = changed.is_ok();
                let now = desired.borrow_and_update().clone();
                m.want(now);
                true
            }
            i = incoming.recv() => match i {
                Some(i) => m.hear(i),
                None => return,
            },
            Some(ended) = m.tasks.join_next_with_id() => m.ended(ended),
            _ = &mut stop => return,
        };
        if changed {
            m.reconcile();
        }
    }
}

impl<H: Executor, R: Reports> Manager<H, R> {
    fn want(&mut self, now: Arc<DesiredSet>) {
        let before = std::mem::replace(&mut self.desired, now);
        if !Arc::ptr_eq(&before.objects, &self.desired.objects) {
            let changed = self.desired.objects.changed_since(&before.objects);
            for uid in self.references.holders(&changed) {
                self.send(&uid, WorkerMessage::Objects(Arc::clone(&self.desired.objects)));
            }
        }
    }

    fn send(&self, uid: &PodUid, message: WorkerMessage) {
        if let Some(mailbox) = self.workers.get(uid).and_then(|l| l.mailbox.as_ref()) {
            // A worker that has just ended needs no message. The JoinSet holds its end.
            mailbox.send(message).ok();
        }
    }

    /// Handles an event from the node. Returns true where the workers have to be reconciled.
    fn hear(&mut self, incoming: NodeEvent) -> bool {
        match incoming {
            NodeEvent::One(uid, message) => {
                self.send(&uid, message);
                false
            }
            NodeEvent::Shutdown(grace) => {
                tracing::info!(grace, "the machine is shut down: pods end");
                self.shutdown = Some(grace);
                self.workers.keys().for_each(|u| self.send(u, WorkerMessage::Shutdown(grace)));
                true
            }
            NodeEvent::RuntimeLost => {
                self.runtime_answers = false;
                self.workers.keys().for_each(|u| self.send(u, WorkerMessage::RuntimeLost));
                false
            }
            NodeEvent::RuntimeBack { mut found, unseen, taken } => {
                self.runtime_answers = true;
                self.answered = true;
                for (uid, live) in &self.workers {
                    // A pod that waits for its restart drops the snapshot: its next worker observes the pod
                    // itself.
                    let found = found.remove(uid);
                    let Some(mailbox) = &live.mailbox else { continue };
                    let message = match found {
                        Some(f) => WorkerMessage::Snapshot(Box::new(f.snapshot)),
                        None if unseen.contains(uid) => WorkerMessage::Observe,
                        None => WorkerMessage::NothingThere(taken),
                    };
                    mailbox.send(message).ok();
                }
                self.found = found;
                self.unseen = unseen;
                true
            }
        }
    }

    /// Brings the workers in line with the desired set and with what the node shows.
    fn reconcile(&mut self) {
        // The order matters: pods found on the node take their names before new pods do, and ending pods free
        // their ports and resources for new pods.
        self.adopt();
        self.end_unwanted();
        self.start_wanted();
        self.show_waiting();
        self.cleanup_orphans();
    }

    /// Gives a worker to each pod that is on the node but not wanted. The pod keeps running until the source
    /// has listed, and ends after that.
    fn adopt(&mut self) {
        if !self.answered {
            return;
        }
        let strays: BTreeSet<PodUid> = self
            .found
            .keys()
            .chain(self.stored.keys())
            .filter(|u| !self.workers.contains_key(*u) && !self.desired.pods.contains_key(*u))
            .filter(|u| !self.cleaned.contains(*u))
            .cloned()
            .collect();
        for uid in strays {
            let found = self.found.get(&uid);
            let stored = found.and_then(|f| f.pod.clone());
            let Some(pod) = stored.or_else(|| self.stored.get(&uid).map(|k| Arc::clone(&k.0))) else {
                let has_containers = found.is_some_and(|f| !f.snapshot.seen.containers.is_empty());
                if has_containers && self.unreadable.insert(uid.clone()) {
                    tracing::error!(%uid, "containers of a pod whose spec cannot be read are left alone");
                }
                self.found.remove(&uid);
                continue;
            };
            let end = self.desired.listed.then_some(pod.grace_seconds);
            tracing::info!(pod = %pod.key, %uid, "found, and not wanted as far as is known");
            self.start(pod, end);
        }
    }

    fn start_wanted(&mut self) {
        let desired = Arc::clone(&self.desired);
        let mut new = Vec::new();
        for (uid, pod) in &desired.pods {
            if let Some(live) = self.workers.get_mut(uid) {
                if live.pod != *pod {
                    live.pod = Arc::clone(pod);
                    self.references.put(pod);
                    self.names.take(&pod.key, uid);
                    self.send(uid, WorkerMessage::Desired(Desired { pod: Arc::clone(pod), end: None }));
                }
            } else {
                new.push(pod);
            }
        }
        // Older pods start first, as in the kubelet: of two pods that want one host port, the older gets the
        // port.
        new.sort_by_key(|pod| (pod.created.seconds(), pod.origin.clone(), pod.created));
        for pod in new {
            if self.start_blocked_by(&pod.uid, pod).is_none() {
                self.start(Arc::clone(pod), None);
            }
        }
    }

    /// The reason why a wanted pod has no worker yet. `None` where a worker may start.
    fn start_blocked_by(&self, uid: &PodUid, pod: &Pod) -> Option<&'static str> {
        if !self.answered {
            return Some(waiting::RUNTIME);
        }
        if self.cleaned.contains(uid) {
            return Some(waiting::LEFTOVERS);
        }
        // A pod that is already on the node gets a worker even where another pod holds its name.
        let there =
            self.found.contains_key(uid) || self.unseen.contains(uid) || self.stored.contains_key(uid);
        if !there && self.shutdown.is_some() {
            return Some(waiting::SHUTDOWN);
        }
        (!there && self.names.taken(&pod.key, uid)).then_some(waiting::NAME)
    }

    fn end_unwanted(&mut self) {
        if !self.desired.listed {
            return;
        }
        let wanted = &self.desired.pods;
        let mut over = Vec::new();
        for (uid, live) in self.workers.iter_mut().filter(|(u, l)| !l.ending && !wanted.contains_key(*u)) {
            live.ending = true;
            let pod = Arc::clone(&live.pod);
            tracing::info!(pod = %pod.key, %uid, grace = pod.grace_seconds, "no longer wanted");
            over.push(pod);
        }
        for pod in over {
            let (uid, end) = (pod.uid.clone(), Some(pod.grace_seconds));
            self.send(&uid, WorkerMessage::Desired(Desired { pod, end }));
        }
    }

    /// Reports the wanted pods that have no worker yet, with the reason.
    fn show_waiting(&mut self) {
        let desired = Arc::clone(&self.desired);
        let mut waiting = BTreeMap::new();
        for (uid, pod) in desired.pods.iter().filter(|(u, _)| !self.workers.contains_key(*u)) {
            let Some(why) = self.start_blocked_by(uid, pod) else { continue };
            waiting.insert(uid.clone(), why);
            if self.shown_waiting.get(uid) != Some(&why) {
                let memory = self.stored.get(uid).map(|k| &k.1);
                self.reports.pod(waiting::report(pod, memory, why, self.executor.now()));
            }
        }
        for uid in self.shown_waiting.keys() {
            if !waiting.contains_key(uid) && !self.workers.contains_key(uid) {
                self.reports.removed(uid);
            }
        }
        self.shown_waiting = waiting;
    }

    fn start(&mut self, pod: Arc<Pod>, end: Option<u32>) {
        let uid = pod.uid.clone();
        let now = self.executor.now().boottime;
        let mut memory = self.stored.remove(&uid).map(|k| k.1);
        let unseen = self.unseen.remove(&uid);
        let snapshot = match (self.found.remove(&uid), &memory) {
            // Neither containerd's list nor the stored memory has the pod, and no worker of the pod has
            // panicked: the pod is new.
            (None, None) if !unseen && !self.panics.contains_key(&uid) => {
                memory = self.rejection(&pod);
                if memory.is_none() && end.is_none() {
                    self.report_unsupported(&pod);
                }
                let mut nothing = PodSnapshot::nothing(now);
                nothing.seen.runtime_answers = self.runtime_answers;
                InitialState::Observed(Box::new(nothing))
            }
            _ if !self.runtime_answers => InitialState::Wait,
            (Some(f), _) if now.since(f.snapshot.taken) <= FRESH => {
                InitialState::Observed(Box::new(f.snapshot))
            }
            _ => InitialState::Observe,
        };
        let mut memory = memory.unwrap_or_default();
        if let Some(grace) = self.shutdown {
            memory.shutdown.get_or_insert(Ending { since: now, grace });
        }
        self.unreadable.remove(&uid);
        self.references.put(&pod);
        self.names.take(&pod.key, &uid);
        let (sender, mailbox) = mpsc::unbounded_channel();
        let over = Arc::new(AtomicBool::new(memory.rejected));
        let config = WorkerConfig {
            desired: Desired { pod: Arc::clone(&pod), end },
            objects: Arc::clone(&self.desired.objects),
            memory,
            snapshot,
            executor: Arc::clone(&self.executor),
            reports: Arc::clone(&self.reports),
            store: self.store.clone(),
            agent_start: self.agent_start,
            over: Arc::clone(&over),
        };
        self.spawn(ManagerTask::Worker(uid.clone()), async move {
            worker::run(config, mailbox).await;
            Outcome::Done
        });
        self.workers.insert(uid, WorkerHandle { pod, mailbox: Some(sender), ending: end.is_some(), over });
    }

    /// The memory of a new pod that the node rejects. `None` where the node admits the pod. Pods that no
    /// source wants do not count against the node, as in the kubelet, which forgets pods that its sources
    /// remove (`HandlePodRemoves`).
    fn rejection(&self, pod: &Arc<Pod>) -> Option<Memory> {
        let wanted = self.workers.iter().filter(|(uid, _)| self.desired.pods.contains_key(*uid));
        let needy = wanted.filter(|(_, l)| !l.over.load(Ordering::Relaxed));
        let others: Vec<Arc<Pod>> = needy.map(|(_, l)| Arc::clone(&l.pod)).collect();
        let why = self.executor.admit(pod, &others).err()?;
        tracing::warn!(pod = %pod.key, uid = %pod.uid, reason = why.reason, why = why.message, "not taken on");
        let now = self.executor.now().wall;
        let involved = Involved::Pod { key: pod.key.clone(), uid: pod.uid.clone() };
        let event = Event::warning(&why.reason, why.message.clone());
        self.reports.event(EventRecord::once(involved, event, now));
        Some(Memory::of_rejected(why))
    }

    fn report_unsupported(&self, pod: &Pod) {
        let now = self.executor.now().wall;
        for event in unsupported(pod) {
            let involved = Involved::Pod { key: pod.key.clone(), uid: pod.uid.clone() };
            self.reports.event(EventRecord::once(involved, event, now));
        }
    }

    fn spawn(&mut self, kind: ManagerTask, task: impl Future<Output = Outcome> + Send + 'static) {
        let handle = self.tasks.spawn(task);
        self.task_kinds.insert(handle.id(), kind);
    }

    /// Handles the end of one of the manager's tasks. Returns true where the workers have to be reconciled.
    fn ended(&mut self, ended: Result<(Id, Outcome), JoinError>) -> bool {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, Ok(outcome)),
            Err(e) => (e.id(), Err(e.to_string())),
        };
        match (self.task_kinds.remove(&id), outcome) {
            (Some(ManagerTask::Worker(uid)), Ok(_)) => self.over(&uid),
            (Some(ManagerTask::Worker(uid)), Err(panic)) => self.rest(uid, &panic),
            (Some(ManagerTask::RestartDelay(uid)), _) => self.start_again(&uid),
            (Some(ManagerTask::ListOrphans), Ok(Outcome::Listed(Ok(left)))) => self.cleanup_each(left),
            (Some(ManagerTask::ListOrphans), Ok(Outcome::Listed(Err(failure)))) => {
                tracing::warn!(why = failure.message, "leftovers of unknown pods not listed");
                self.cleanup_later(CLEANUP_RETRY);
            }
            (Some(ManagerTask::CleanupPod(uid)), outcome) => {
                self.cleaned.remove(&uid);
                match outcome {
                    Ok(Outcome::Cleaned(Err(failure))) => {
                        self.clean_failed = true;
                        tracing::warn!(%uid, why = failure.message, "leftovers of an unknown pod not removed");
                    }
                    Ok(_) => tracing::info!(%uid, "leftovers of an unknown pod removed"),
                    Err(panic) => {
                        self.clean_failed = true;
                        tracing::error!(%uid, panic, "cleaning up panicked");
                    }
                }
                if self.cleaned.is_empty() {
                    self.cleanup_node();
                }
            }
            (Some(ManagerTask::CleanupNode), _) if self.clean_failed => self.cleanup_later(CLEANUP_RETRY),
            (Some(ManagerTask::CleanupNode), _) => {
                self.swept = true;
                self.cleanup_later(CLEANUP_PERIOD);
            }
            (Some(ManagerTask::CleanupWait), _) => self.cleanup = CleanupState::Due,
            (Some(ManagerTask::ListOrphans), _) => self.cleanup_later(CLEANUP_RETRY),
            (None, _) => return false,
        }
        true
    }

    /// Forgets a pod of which nothing is left.
    fn over(&mut self, uid: &PodUid) {
        self.workers.remove(uid);
        self.names.release(uid);
        self.references.remove(uid);
        self.panics.remove(uid);
    }

    /// Schedules the restart of a pod whose worker panicked. The pod keeps its name meanwhile.
    fn rest(&mut self, uid: PodUid, panic: &str) {
        let Some(live) = self.workers.get_mut(&uid) else { return };
        live.mailbox = None;
        let panics = self.panics.entry(uid.clone()).or_default();
        let rest = AFTER_PANIC.saturating_mul(1 << (*panics).min(8)).min(LONGEST_REST);
        *panics = panics.saturating_add(1);
        tracing::error!(pod = %live.pod.key, %uid, panic, ?rest, "the pod's worker panicked; it will be started again");
        self.spawn(ManagerTask::RestartDelay(uid), async move {
            tokio::time::sleep(rest).await;
            Outcome::Done
        });
    }

    fn start_again(&mut self, uid: &PodUid) {
        let Some(live) = self.workers.remove(uid) else { return };
        match self.store.load_one(uid) {
            Ok(Some(stored)) => {
                self.stored.insert(uid.clone(), (stored.pod, stored.memory));
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%uid, %error, "memory of a pod not read"),
        }
        let end = live.ending.then_some(live.pod.grace_seconds);
        self.start(live.pod, end);
    }
}
