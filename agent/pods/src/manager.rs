//! Which pods have a worker. One task owns the workers, their mailboxes and the wishes that wait.
//!
//! Hears: the desired set (a `watch`), what the node tells (an `mpsc`), the ends of its own tasks (a `JoinSet`:
//! workers, the rest of a pod whose worker panicked, the cleaning of what unknown pods left).
//! Invariants: nothing here waits for the node, so that no pod waits for another; nothing begins before containerd has
//! answered once, and a pod is ended only after its source has listed; of two pods with one name the second waits until
//! nothing of the first is left; a worker that panics is started again from what the world shows, and no other pod
//! notices; nobody works on a pod while its leftovers are cleaned away.

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

/// How long a pod whose worker panicked rests the first time; doubled with each further panic.
const AFTER_PANIC: Duration = Duration::from_secs(5);
/// The longest such rest.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// A list of the node that is older than this is not what a worker begins with: it looks for itself.
const FRESH: Duration = Duration::from_secs(1);

/// What the source wants of this node.
#[derive(Debug, Clone, Default)]
pub struct DesiredSet {
    /// Whether the source has listed; until then nothing is ended for not being in it.
    pub listed: bool,
    /// The pods.
    pub pods: BTreeMap<PodUid, Arc<Pod>>,
    /// What they may refer to.
    pub objects: Arc<Objects>,
}

/// A pod that containerd shows.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The pod as stored on its containers, where that could be read.
    pub pod: Option<Arc<Pod>>,
    /// What is there of it.
    pub snapshot: PodSnapshot,
}

/// What the node tells.
#[derive(Debug)]
pub enum NodeEvent {
    /// Something about one pod.
    One(PodUid, WorkerMessage),
    /// The machine is shut down: every pod ends within this grace in seconds, and stays on record for the next boot.
    Shutdown(u32),
    /// containerd does not answer.
    RuntimeLost,
    /// containerd answers, for the first time or again: every pod that has a container or a sandbox.
    RuntimeBack {
        /// The pods.
        found: BTreeMap<PodUid, Found>,
        /// Those of which something is there that could not be looked at: whoever has them looks for itself.
        unseen: BTreeSet<PodUid>,
        /// When the look at them began.
        taken: Boottime,
    },
}

/// What is needed to run pods.
#[derive(Debug)]
pub struct ManagerConfig<H, R> {
    /// Carries actions out.
    pub executor: Arc<H>,
    /// Is told.
    pub reports: Arc<R>,
    /// Keeps memory.
    pub store: Store,
    /// What is wanted.
    pub desired: watch::Receiver<Arc<DesiredSet>>,
    /// What the node tells.
    pub incoming: mpsc::Receiver<NodeEvent>,
    /// Ends the manager, leaving every pod as it is.
    pub stop: oneshot::Receiver<()>,
}

/// A pod that has a worker, or rests after its worker panicked.
struct WorkerHandle {
    pod: Arc<Pod>,
    /// `None` while it rests.
    mailbox: Option<mpsc::UnboundedSender<WorkerMessage>>,
    ending: bool,
    /// It has ended, or was not taken on: it needs nothing of the node.
    over: Arc<AtomicBool>,
}

/// What one of the manager's tasks is about.
#[derive(Debug, Clone)]
enum ManagerTask {
    Worker(PodUid),
    RestartDelay(PodUid),
    /// The leftovers of unknown pods are listed.
    ListOrphans,
    CleanupPod(PodUid),
    CleanupNode,
    /// Time passes until the next listing.
    CleanupWait,
}

/// What came of it.
enum Outcome {
    Done,
    Listed(Result<BTreeSet<PodUid>, Failure>),
    Cleaned(Result<(), Failure>),
}

/// How far the cleaning away of leftovers is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CleanupState {
    /// Waits for the source to list and for containerd.
    Due,
    /// Goes on, or rests until the next time.
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
    /// Pods whose leftovers are being removed: nobody starts them.
    cleaned: BTreeSet<PodUid>,
    cleanup: CleanupState,
    clean_failed: bool,
    /// The first round has ended with nothing left: from then on the node is swept only after something was found.
    swept: bool,
    /// From before the agent's start.
    stored: BTreeMap<PodUid, (Arc<Pod>, Memory)>,
    found: BTreeMap<PodUid, Found>,
    /// Those of which something is there that the last list could not look at.
    unseen: BTreeSet<PodUid>,
    /// Containers of these are there and nobody can tell what pod they belong to: left alone.
    unreadable: BTreeSet<PodUid>,
    panics: HashMap<PodUid, u32>,
    /// Desired pods that are shown as waiting, and for what.
    shown_waiting: BTreeMap<PodUid, &'static str>,
    runtime_answers: bool,
    /// containerd has answered in this life.
    answered: bool,
    /// The machine is shut down: the longest grace of a pod.
    shutdown: Option<u32>,
    agent_start: Boottime,
}

/// Runs the pods until told to stop.
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
                // Where the source is gone, what was wanted last stays wanted.
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
            // A worker that has just ended needs no message any more; its end is in the JoinSet.
            mailbox.send(message).ok();
        }
    }

    /// True where workers have to be brought in line.
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
                    // One that rests keeps what was found of it for nobody: it will look for itself.
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

    /// Brings the workers in line with what is wanted and with what is there.
    fn reconcile(&mut self) {
        // What is there takes its names before what is new; what ends leaves its ports and resources to what is new.
        self.adopt();
        self.end_unwanted();
        self.start_wanted();
        self.show_waiting();
        self.cleanup_orphans();
    }

    /// Gives a worker to what is there and not wanted: kept running until the source has listed, ended after that.
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
        // The older first, as the kubelet does: of two that want one port it has it.
        new.sort_by_key(|pod| (pod.created.seconds(), pod.origin.clone(), pod.created));
        for pod in new {
            if self.start_blocked_by(&pod.uid, pod).is_none() {
                self.start(Arc::clone(pod), None);
            }
        }
    }

    /// Why a wanted pod has no worker yet.
    fn start_blocked_by(&self, uid: &PodUid, pod: &Pod) -> Option<&'static str> {
        if !self.answered {
            return Some(waiting::RUNTIME);
        }
        if self.cleaned.contains(uid) {
            return Some(waiting::LEFTOVERS);
        }
        // What runs is looked after, whoever else has its name.
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

    /// Tells of wanted pods that have no worker yet, and why.
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
            // Neither containerd's list nor the memory knew of it, and no worker has had it since.
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

    /// What is remembered of a new pod that the node does not take on; `None` where it does. Pods that no source wants
    /// do not count, as to the kubelet, which forgets what its sources take away (`HandlePodRemoves`).
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

    /// One of the manager's tasks ended; true where workers have to be brought in line.
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

    /// Nothing of a pod is left.
    fn over(&mut self, uid: &PodUid) {
        self.workers.remove(uid);
        self.names.release(uid);
        self.references.remove(uid);
        self.panics.remove(uid);
    }

    /// A pod whose worker panicked keeps its name and rests.
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
