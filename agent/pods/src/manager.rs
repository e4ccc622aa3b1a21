//! The manager of pods: decides which pods have a worker. One task owns the workers, their mailboxes and the
//! wanted pods that still wait for a worker.
//!
//! Inputs: the desired set (a `watch`), the node's events (an `mpsc`), and the ends of the manager's own
//! tasks (a `JoinSet`: workers, restart delays of pods whose worker panicked, cleanup of orphans).
//!
//! Invariants:
//!
//! - The manager never waits for the node, so that no pod waits for another.
//! - No pod starts before containerd has answered once. No pod ends for being absent before the source of its origin has
//!   listed.
//! - Of two pods with one name, the second waits until nothing of the first is left, unless it is the API server's.
//! - A worker that panics is started again from what the node shows. Other pods are not affected.
//! - A pod has no worker while its orphan is being removed.

mod cleanup;
mod inputs;
mod labels;
mod reconcile;
mod resizes;
mod start;

pub use inputs::{DesiredSet, FoundPod, NodeEvent};

use crate::{
    executor::Executor, names::NameHolders, refs::References, report::Reports, store::MemoryStore,
    waiting::WaitReason, worker::WorkerMessage,
};
use berth_core::{
    ids::PodUid,
    model::Pod,
    plan::{Desired, Failure, Memory},
    status::{Phase, PodStatus},
    time::{Boottime, Wall, backoff},
};
use cleanup::CleanupState;
use labels::LabelMatches;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::{Id, JoinError, JoinSet},
};

/// Delay before the worker of a pod is started again after its first panic. Each further panic doubles the
/// delay.
const PANIC_BACKOFF: Duration = Duration::from_secs(5);
/// The longest such delay.
const PANIC_BACKOFF_MAX: Duration = Duration::from_secs(300);

/// What [`run`] needs to run pods.
#[derive(Debug)]
pub struct ManagerConfig<H, R> {
    /// The executor that carries out the actions of all workers.
    pub executor: Arc<H>,
    /// The receiver of pod reports and events.
    pub reports: Arc<R>,
    /// The store of the pods' memory.
    pub store: MemoryStore,
    /// The desired set, as the source changes it.
    pub desired: watch::Receiver<Arc<DesiredSet>>,
    /// Events from the node.
    pub incoming: mpsc::Receiver<NodeEvent>,
    /// Ends the manager. Every pod stays as it is.
    pub stop: oneshot::Receiver<()>,
}

/// Handle of a pod that has a worker, or that waits for its restart after the worker panicked.
struct WorkerHandle {
    /// Desired state as its source gave it last.
    wanted: Desired,
    /// Desired state that was last sent to the worker: `wanted`, with the resources that are allocated to the pod.
    desired: Desired,
    /// The worker's mailbox. `None` while the pod waits for its restart.
    mailbox: Option<mpsc::UnboundedSender<WorkerMessage>>,
    /// No source wants the pod, and the worker has a message that says so.
    unwanted: bool,
    /// The worker began with the pod's memory, or knows of the pod's past what its source does.
    told: bool,
    /// The node rejected the pod.
    rejected: bool,
    /// The status that the worker published last.
    published: watch::Receiver<Option<Arc<PodStatus>>>,
}

impl WorkerHandle {
    /// Whether admission counts the pod's resources. A rejected or ended pod uses none.
    fn uses_resources(&self) -> bool {
        let ended = |status: &Arc<PodStatus>| matches!(status.phase, Phase::Succeeded | Phase::Failed);
        !self.rejected && !self.published.borrow().as_ref().is_some_and(ended)
    }
}

/// The subject of a task in the manager's `JoinSet`.
#[derive(Debug, Clone)]
enum ManagerTask {
    Worker(PodUid),
    RestartDelay(PodUid),
    /// Sleeps until the labels of the node are looked at again.
    LabelWait,
    /// Sleeps until pending resizes are tried again.
    ResizeRetry,
    /// Lists the orphans of pods that the manager does not know.
    ListOrphans,
    CleanupPod(PodUid),
    CleanupNode,
    /// Sleeps until the next cleanup round.
    CleanupWait,
}

/// The result of a task in the manager's `JoinSet`.
enum TaskOutcome {
    Done,
    Listed(Result<BTreeSet<PodUid>, Failure>),
    Cleaned(Result<(), Failure>),
}

struct Manager<H, R> {
    executor: Arc<H>,
    reports: Arc<R>,
    store: MemoryStore,
    desired: Arc<DesiredSet>,
    workers: BTreeMap<PodUid, WorkerHandle>,
    names: NameHolders,
    references: References,
    tasks: JoinSet<TaskOutcome>,
    task_kinds: HashMap<Id, ManagerTask>,
    /// Pods whose orphans are being removed. These pods get no worker meanwhile.
    being_cleaned: BTreeSet<PodUid>,
    cleanup: CleanupState,
    cleanup_failed: bool,
    /// The first round has ended without a failure. Later rounds clean the node only where they found an
    /// orphan.
    cleaned_once: bool,
    /// Pods and memory that the store holds from before the agent's start and that have no worker yet.
    stored: BTreeMap<PodUid, (Arc<Pod>, Memory)>,
    found: BTreeMap<PodUid, FoundPod>,
    /// Pods that have a container or a sandbox but that the last relist could not observe.
    unseen: BTreeSet<PodUid>,
    /// Pods with containers whose spec cannot be read. Their containers are left alone.
    unreadable: BTreeSet<PodUid>,
    /// Pods of which nothing is left and which their source still has, because they end there more slowly: a finalizer
    /// keeps them, or their deletion was not sent yet. They get no second worker, and their memory stays until their
    /// source lets them go, so that the next agent does not give them one either.
    done: BTreeSet<PodUid>,
    panics: HashMap<PodUid, u32>,
    /// Pods that want other resources than are allocated to them, each with the time since when.
    resizes: BTreeMap<PodUid, Wall>,
    /// The next try of pending resizes is scheduled.
    resize_retry: bool,
    /// Told by workers whose pod has ended: what it had is free.
    freed: Arc<Notify>,
    labels: LabelMatches,
    /// Wanted pods that are reported as waiting, each with its reason.
    shown_waiting: BTreeMap<PodUid, WaitReason>,
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
        tracing::error!(%error, "cannot read the pods' memory: containers that run count as started");
        Vec::new()
    });
    let agent_start = executor.now().boottime;
    let mut m = Manager {
        executor,
        reports,
        store,
        desired: desired.borrow_and_update().clone(),
        workers: BTreeMap::new(),
        names: NameHolders::default(),
        references: References::default(),
        tasks: JoinSet::new(),
        task_kinds: HashMap::new(),
        being_cleaned: BTreeSet::new(),
        cleanup: CleanupState::Due,
        cleanup_failed: false,
        cleaned_once: false,
        stored: stored.into_iter().map(|k| (k.pod.uid.clone(), (k.pod, k.memory))).collect(),
        found: BTreeMap::new(),
        unseen: BTreeSet::new(),
        unreadable: BTreeSet::new(),
        done: BTreeSet::new(),
        panics: HashMap::new(),
        resizes: BTreeMap::new(),
        resize_retry: false,
        freed: Arc::default(),
        labels: LabelMatches::default(),
        shown_waiting: BTreeMap::new(),
        runtime_answers: false,
        answered: false,
        shutdown: None,
        agent_start,
    };
    m.reconcile();
    let freed = Arc::clone(&m.freed);
    let mut source_lives = true;
    loop {
        let changed = tokio::select! {
            changed = desired.changed(), if source_lives => {
                // After the source is gone, the last desired set stays in force.
                source_lives = changed.is_ok();
                let now = desired.borrow_and_update().clone();
                m.set_desired(now);
                true
            }
            i = incoming.recv() => match i {
                Some(i) => m.handle_event(i),
                None => return,
            },
            Some(ended) = m.tasks.join_next_with_id() => m.ended(ended),
            () = freed.notified() => !m.resizes.is_empty(),
            _ = &mut stop => return,
        };
        if changed {
            m.reconcile();
        }
    }
}

impl<H: Executor, R: Reports> Manager<H, R> {
    fn set_desired(&mut self, now: Arc<DesiredSet>) {
        let before = std::mem::replace(&mut self.desired, now);
        if !Arc::ptr_eq(&before.objects, &self.desired.objects) {
            for uid in self.references.holders(&before.objects, &self.desired.objects) {
                let Some(live) = self.workers.get(&uid) else { continue };
                let objects = self.desired.objects.of_pod(&live.desired.pod);
                self.send(&uid, WorkerMessage::Objects(Arc::new(objects)));
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
    fn handle_event(&mut self, incoming: NodeEvent) -> bool {
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

    fn spawn(&mut self, kind: ManagerTask, task: impl Future<Output = TaskOutcome> + Send + 'static) {
        let handle = self.tasks.spawn(task);
        self.task_kinds.insert(handle.id(), kind);
    }

    /// Handles the end of one of the manager's tasks. Returns true where the workers have to be reconciled.
    fn ended(&mut self, ended: Result<(Id, TaskOutcome), JoinError>) -> bool {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, Ok(outcome)),
            Err(e) => (e.id(), Err(e.to_string())),
        };
        match (self.task_kinds.remove(&id), outcome) {
            (Some(ManagerTask::Worker(uid)), Ok(_)) => self.worker_ended(&uid),
            (Some(ManagerTask::Worker(uid)), Err(panic)) => self.schedule_restart(uid, &panic),
            (Some(ManagerTask::RestartDelay(uid)), _) => self.restart(&uid),
            (Some(ManagerTask::LabelWait), _) => self.labels.waits = false,
            (Some(ManagerTask::ResizeRetry), _) => self.resize_retry = false,
            (Some(task), outcome) => self.cleanup_ended(task, outcome),
            (None, _) => return false,
        }
        true
    }

    /// Forgets a pod of which nothing is left.
    fn worker_ended(&mut self, uid: &PodUid) {
        self.workers.remove(uid);
        self.names.release(uid);
        self.references.remove(uid);
        self.panics.remove(uid);
        if self.desired.pods.get(uid).is_some_and(|wanted| wanted.end.is_some()) {
            self.done.insert(uid.clone());
        } else {
            self.forget(uid);
        }
    }

    /// Removes the memory of a pod of which nothing is left and that its source has let go.
    fn forget(&self, uid: &PodUid) {
        if let Err(error) = self.store.forget(uid) {
            tracing::warn!(%uid, %error, "cannot remove the memory of an ended pod");
        }
    }

    /// Schedules the restart of a pod whose worker panicked. The pod keeps its name meanwhile.
    fn schedule_restart(&mut self, uid: PodUid, panic: &str) {
        let Some(live) = self.workers.get_mut(&uid) else { return };
        live.mailbox = None;
        let panics = self.panics.entry(uid.clone()).or_default();
        *panics = panics.saturating_add(1);
        let rest = backoff(*panics, PANIC_BACKOFF, PANIC_BACKOFF_MAX);
        tracing::error!(pod = %live.desired.pod.key, %uid, panic, ?rest, "the pod's worker panicked; it will be started again");
        self.spawn(ManagerTask::RestartDelay(uid), async move {
            tokio::time::sleep(rest).await;
            TaskOutcome::Done
        });
    }

    fn restart(&mut self, uid: &PodUid) {
        let Some(live) = self.workers.remove(uid) else { return };
        match self.store.load_one(uid) {
            Ok(Some(stored)) => {
                self.stored.insert(uid.clone(), (stored.pod, stored.memory));
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%uid, %error, "cannot read the pod's memory"),
        }
        self.start(live.desired, live.unwanted);
    }
}
