//! One pod's worker: a task that feeds [`plan`] with what it hears and carries out what comes of it.
//!
//! Owns: the pod's [`Observed`] and [`Memory`], the actions in flight (a `JoinSet`), the probes. Hears: its mailbox
//! (desired state, exits, outages), the ends of actions, the news of probes, the time.
//! Invariants: memory is stored before an action is begun; an action that panics is a failed action; nothing here
//! waits for another pod.

use crate::{
    failpoint::{Side, pass},
    hands::{Change, Context, Hands, Performed, Process, Sight},
    probes::{News, Probes},
    report::{ActionRecord, PodReport, Reports},
    store::Store,
};
use berth_core::{
    event::{Event, EventKind, EventRecord},
    ids::ContainerId,
    model::{Objects, Pod},
    plan::{Action, Desired, Exit, Fact, Failure, Memory, Observed, Plan, SandboxState, Seen, learn, plan},
    probe::Verdict,
    status::PodStatus,
    time::Boottime,
};
use berth_sys::clock;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::mpsc,
    task::{Id, JoinSet},
};

/// How many ended actions and decisions are kept to be looked at.
const RING: usize = 32;
/// The longest sleep: the slow reconcile beneath the events.
const RECONCILE: Duration = Duration::from_secs(300);
/// How long a look at the pod is put off after one failed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a worker hears from its manager.
#[derive(Debug)]
pub enum Letter {
    /// The source wants this now.
    Desired(Desired),
    /// What pods refer to has changed.
    Objects(Arc<Objects>),
    /// A process of the pod ended.
    Exit(ContainerId, Exit),
    /// The kernel killed something in that container for memory.
    Oom(ContainerId),
    /// The pause process is gone.
    PauseDied,
    /// containerd does not answer.
    RuntimeLost,
    /// containerd answers again, and this is what it shows.
    Sight(Box<Sight>),
}

/// What a worker begins with.
pub(crate) struct Start<H, R> {
    pub(crate) desired: Desired,
    pub(crate) objects: Arc<Objects>,
    pub(crate) memory: Memory,
    pub(crate) sight: Sight,
    pub(crate) hands: Arc<H>,
    pub(crate) reports: Arc<R>,
    pub(crate) store: Store,
    pub(crate) agent_start: Boottime,
}

/// A step of the recorder: what was decided on, and what came of it. `plan` over `seen` and `memory` at `at` gives
/// `actions` again.
#[derive(Debug, Clone)]
pub struct Decision {
    /// When.
    pub at: berth_core::time::Now,
    /// What was seen.
    pub seen: Observed,
    /// What was remembered after the decision.
    pub memory: Memory,
    /// What was begun.
    pub actions: Vec<Action>,
}

struct Flight {
    action: Action,
    begun: Instant,
    begun_wall: berth_core::time::Wall,
}

pub(crate) struct Worker<H, R> {
    desired: Desired,
    objects: Arc<Objects>,
    memory: Memory,
    stored: Option<Memory>,
    seen: Observed,
    processes: BTreeMap<ContainerId, Process>,
    /// Exits that came before the end of their start.
    early: BTreeMap<ContainerId, Exit>,
    oomed: Vec<ContainerId>,
    hands: Arc<H>,
    reports: Arc<R>,
    store: Store,
    flights: JoinSet<Performed>,
    by_task: BTreeMap<Id, Flight>,
    probes: Probes,
    timeline: VecDeque<ActionRecord>,
    ring: VecDeque<Arc<Decision>>,
    told: Option<Arc<PodStatus>>,
    told_gone: bool,
    wake_at: Option<Boottime>,
    look_at: Option<Boottime>,
}

/// Runs one pod until nothing of it is left or the mailbox closes.
pub(crate) async fn run<H: Hands, R: Reports>(start: Start<H, R>, mut mail: mpsc::UnboundedReceiver<Letter>) {
    let (probes, mut news) = Probes::new(start.agent_start);
    let mut w = Worker {
        desired: start.desired,
        objects: start.objects,
        memory: start.memory,
        stored: None,
        seen: start.sight.seen,
        processes: start.sight.processes,
        early: BTreeMap::new(),
        oomed: Vec::new(),
        hands: start.hands,
        reports: start.reports,
        store: start.store,
        flights: JoinSet::new(),
        by_task: BTreeMap::new(),
        probes,
        timeline: VecDeque::new(),
        ring: VecDeque::new(),
        told: None,
        told_gone: false,
        wake_at: None,
        look_at: None,
    };
    loop {
        if w.think() {
            let uid = w.desired.pod.uid.clone();
            w.reports.removed(&uid);
            return;
        }
        let now = clock::boottime();
        let next = [w.wake_at, w.look_at].into_iter().flatten().min().unwrap_or(now + RECONCILE);
        let rest = next.since(now).min(RECONCILE);
        tokio::select! {
            letter = mail.recv() => match letter {
                Some(letter) => w.read(letter),
                None => return,
            },
            Some(ended) = w.flights.join_next_with_id() => w.land(ended),
            Some(n) = news.recv() => w.hear(n),
            () = tokio::time::sleep(rest) => {}
        }
        while let Ok(letter) = mail.try_recv() {
            w.read(letter);
        }
        while let Some(ended) = w.flights.try_join_next_with_id() {
            w.land(ended);
        }
        if w.look_at.is_some_and(|t| t <= clock::boottime()) {
            w.look().await;
        }
    }
}

impl<H: Hands, R: Reports> Worker<H, R> {
    fn pod(&self) -> &Arc<Pod> {
        &self.desired.pod
    }

    /// Decides, stores, begins, tells. True once nothing of the pod is left.
    fn think(&mut self) -> bool {
        let now = clock::now();
        let p: Plan = plan(&self.desired, &self.seen, &self.memory, now);
        self.memory = p.memory;
        self.wake_at = p.wake_at;
        for e in p.events {
            self.event(e);
        }
        if p.finished {
            if let Err(error) = self.store.forget(&self.desired.pod.uid) {
                tracing::warn!(pod = %self.desired.pod.key, %error, "memory of an ended pod is left behind");
            }
            self.tell(p.status, true);
            return true;
        }
        self.save();
        if !p.actions.is_empty() {
            self.record(now, &p.actions);
        }
        for action in p.actions {
            self.begin(action);
        }
        let context = |id: &ContainerId| Context {
            pod: Arc::clone(&self.desired.pod),
            objects: Arc::clone(&self.objects),
            sandbox: self.seen.sandbox.clone(),
            process: self.processes.get(id).copied(),
            run: self.seen.containers.get(id).cloned(),
            deadline: None,
        };
        self.probes.reconcile(&p.probes, &self.desired.pod, &self.memory, &self.hands, context);
        self.tell(p.status, p.gone);
        false
    }

    fn save(&mut self) {
        if self.stored.as_ref() == Some(&self.memory) {
            return;
        }
        match self.store.save(&self.desired.pod, &self.memory) {
            Ok(()) => self.stored = Some(self.memory.clone()),
            Err(error) => tracing::error!(pod = %self.desired.pod.key, %error, "memory not stored"),
        }
    }

    fn record(&mut self, at: berth_core::time::Now, actions: &[Action]) {
        if self.ring.len() == RING {
            self.ring.pop_front();
        }
        let (seen, memory) = (self.seen.clone(), self.memory.clone());
        self.ring.push_back(Arc::new(Decision { at, seen, memory, actions: actions.to_vec() }));
    }

    fn begin(&mut self, action: Action) {
        let context = self.context(&action);
        let hands = Arc::clone(&self.hands);
        let kind = action.kind();
        let performing = action.clone();
        let handle = self.flights.spawn(async move {
            pass(Side::Before, kind);
            let performed = hands.perform(context, performing).await;
            pass(Side::After, kind);
            performed
        });
        let flight = Flight { action, begun: Instant::now(), begun_wall: clock::wall() };
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
            sandbox: self.seen.sandbox.clone(),
            process: id.and_then(|id| self.processes.get(id).copied()),
            run: id.and_then(|id| self.seen.containers.get(id).cloned()),
            deadline,
        }
    }

    /// An action ended.
    fn land(&mut self, ended: Result<(Id, Performed), tokio::task::JoinError>) {
        let (id, performed) = match ended {
            Ok((id, performed)) => (id, performed),
            Err(error) => {
                let failure =
                    Failure::new("InternalError", format!("the action's task ended early: {error}"));
                self.look_at = Some(clock::boottime());
                (error.id(), Performed::failed(failure))
            }
        };
        let Some(flight) = self.by_task.remove(&id) else { return };
        let took = flight.begun.elapsed();
        for change in performed.changes {
            self.apply(change);
        }
        self.note(&flight, took, performed.steps, &performed.outcome);
        if performed.outcome.is_err() && flight.action.container().is_some() {
            // What a failed call to containerd left is not known: look.
            self.look_at.get_or_insert(clock::boottime());
        }
        let now = clock::now();
        let events =
            learn(&self.desired.pod, &mut self.memory, Fact::Finished(flight.action, performed.outcome), now);
        for e in events {
            self.event(e);
        }
        self.probes.nudge();
    }

    fn note(
        &mut self,
        flight: &Flight,
        took: Duration,
        steps: Vec<(&'static str, Duration)>,
        outcome: &Result<(), Failure>,
    ) {
        let kind = flight.action.kind();
        let container = flight.action.container().map(ToString::to_string);
        let took_ms = took.as_secs_f64() * 1000.0;
        tracing::debug!(pod = %self.desired.pod.key, container, kind, ?steps, "steps");
        match outcome {
            Ok(()) => tracing::info!(pod = %self.desired.pod.key, container, kind, took_ms, "done"),
            Err(failure) => {
                tracing::warn!(pod = %self.desired.pod.key, container, kind, took_ms, reason = failure.reason, why = failure.message, "failed");
            }
        }
        if self.timeline.len() == RING {
            self.timeline.pop_front();
        }
        self.timeline.push_back(ActionRecord {
            kind,
            container,
            begun: flight.begun_wall,
            took,
            steps,
            failure: outcome.as_ref().err().map(ToString::to_string),
        });
    }

    fn apply(&mut self, change: Change) {
        let started = match &change {
            Change::Container(id, c, _) if matches!(c.state, Seen::Running { .. }) => Some(id.clone()),
            _ => None,
        };
        change.apply(&mut self.seen, &mut self.processes);
        if let Some(id) = started
            && let Some(exit) = self.early.remove(&id)
        {
            self.exit(id, exit);
        }
    }

    fn read(&mut self, letter: Letter) {
        match letter {
            Letter::Desired(d) => {
                let changed = d.pod != self.desired.pod;
                self.desired = d;
                if changed {
                    self.stored = None;
                    self.refresh();
                }
            }
            Letter::Objects(o) => {
                self.objects = o;
                let events = learn(&self.desired.pod, &mut self.memory, Fact::InputsChanged, clock::now());
                events.into_iter().for_each(|e| self.event(e));
                self.refresh();
            }
            Letter::Exit(id, exit) => self.exit(id, exit),
            Letter::Oom(id) => self.oomed.push(id),
            Letter::PauseDied => {
                if let Some(s) = self.seen.sandbox.as_mut().filter(|s| s.state == SandboxState::Ready) {
                    s.state = SandboxState::NoPause;
                }
            }
            Letter::RuntimeLost => self.seen.runtime_answers = false,
            Letter::Sight(sight) => self.see(*sight),
        }
    }

    fn refresh(&mut self) {
        if !self.seen.volumes_mounted {
            return;
        }
        let context = self.context(&Action::MountVolumes);
        let (hands, key) = (Arc::clone(&self.hands), self.pod().key.clone());
        // Ends by itself; a refresh that is lost with the agent is made up for at the next change or start.
        tokio::spawn(async move {
            if let Err(failure) = hands.refresh(context).await {
                tracing::warn!(pod = %key, reason = failure.reason, why = failure.message, "volumes not refreshed");
            }
        });
    }

    fn exit(&mut self, id: ContainerId, mut exit: Exit) {
        exit.oom |= self.oomed.contains(&id);
        match self.seen.containers.get_mut(&id) {
            Some(c) => match &c.state {
                Seen::Running { started_at } => {
                    exit.started_at.get_or_insert(*started_at);
                    tracing::info!(pod = %self.desired.pod.key, container = %c.container, code = exit.code, oom = exit.oom, "exited");
                    c.state = Seen::Ended(exit);
                    self.processes.remove(&id);
                }
                Seen::NotStarted => {
                    self.early.insert(id, exit);
                }
                Seen::Ended(_) | Seen::Recorded(_) => {}
            },
            None => {
                self.early.insert(id, exit);
            }
        }
    }

    fn hear(&mut self, news: News) {
        if let Some(message) = news.failure {
            let text = format!("{:?} probe failed: {message}", news.kind);
            self.event(Event::warning("Unhealthy", text).of(&news.container));
            if news.kind != berth_core::model::ProbeKind::Liveness {
                let fact = Fact::ProbeFailed { id: news.id.clone(), message };
                learn(&self.desired.pod, &mut self.memory, fact, clock::now());
            }
        }
        if let Some(verdict) = news.verdict {
            let success = verdict == Verdict::Success;
            tracing::info!(pod = %self.desired.pod.key, container = %news.container, kind = ?news.kind, success, "probe verdict");
            let fact = Fact::Probe { id: news.id, kind: news.kind, success };
            let events = learn(&self.desired.pod, &mut self.memory, fact, clock::now());
            events.into_iter().for_each(|e| self.event(e));
        }
    }

    /// Takes a whole new look at the pod. What actions in flight are about to change stays as the worker knows it.
    fn see(&mut self, sight: Sight) {
        self.look_at = None;
        let busy = |test: fn(&Action) -> bool| self.memory.in_flight.iter().any(test);
        let sandbox_busy = busy(|a| {
            matches!(a, Action::MakeSandbox(_) | Action::RestartPause(_) | Action::TeardownSandbox(_))
        });
        let volumes_busy = busy(|a| matches!(a, Action::MountVolumes | Action::UnmountVolumes));
        let old = std::mem::replace(&mut self.seen, sight.seen);
        if sandbox_busy {
            self.seen.sandbox = old.sandbox;
        }
        if volumes_busy {
            self.seen.volumes_mounted = old.volumes_mounted;
            self.seen.volumes_present = old.volumes_present;
        }
        for (id, c) in old.containers {
            let in_hand = self.memory.in_flight.iter().any(|a| touches(a, &id));
            match self.seen.containers.get(&id).map(|n| &n.state) {
                // An exit that was stored or seen is not unseen.
                Some(Seen::Running { .. }) if matches!(c.state, Seen::Ended(_) | Seen::Recorded(_)) => {}
                Some(Seen::Ended(_)) if matches!(c.state, Seen::Ended(_)) => {}
                _ if in_hand => {}
                _ => continue,
            }
            self.seen.containers.insert(id, c);
        }
        self.processes.extend(sight.processes);
        let oomed = &self.oomed;
        for (id, c) in &mut self.seen.containers {
            if let Seen::Ended(exit) = &mut c.state {
                exit.oom |= oomed.contains(id);
            }
        }
    }

    async fn look(&mut self) {
        let uid = self.desired.pod.uid.clone();
        match self.hands.look(&uid).await {
            Ok(sight) => self.see(sight),
            Err(failure) => {
                self.look_at = Some(clock::boottime() + LOOK_AGAIN);
                tracing::debug!(pod = %self.desired.pod.key, why = failure.message, "could not look at the pod");
            }
        }
    }

    fn event(&self, event: Event) {
        let at = clock::wall();
        let pod = self.pod();
        if event.kind == EventKind::Warning {
            tracing::info!(pod = %pod.key, reason = event.reason, message = event.message, "event");
        }
        self.reports.event(EventRecord {
            pod: pod.key.clone(),
            uid: pod.uid.clone(),
            event,
            first: at,
            last: at,
            count: 1,
        });
    }

    fn tell(&mut self, status: PodStatus, gone: bool) {
        if self.told.as_deref() == Some(&status) && self.told_gone == gone {
            return;
        }
        let was_ready = self.told.as_ref().is_some_and(|s| s.is_ready());
        if was_ready != status.is_ready() {
            tracing::info!(pod = %self.desired.pod.key, ready = status.is_ready(), "readiness");
        }
        let status = Arc::new(status);
        self.told = Some(Arc::clone(&status));
        self.told_gone = gone;
        self.reports.pod(PodReport {
            pod: Arc::clone(&self.desired.pod),
            status,
            processes: self.processes.clone(),
            timeline: self.timeline.iter().cloned().collect(),
            decisions: self.ring.iter().cloned().collect(),
            gone,
            as_of: clock::wall(),
        });
    }
}

/// Whether an action is changing what is known of that run.
fn touches(action: &Action, run: &ContainerId) -> bool {
    matches!(
        action,
        Action::Start { .. } | Action::RecordExit { .. } | Action::Reap { .. } | Action::Remove { .. }
    ) && action.run() == Some(run)
}
