//! An in-memory node: containers, sandboxes and volumes as plain data, with delays and outages set by the
//! tests. The node checks the invariants that hold in every test.

mod actions;
mod agent;
pub mod pods;
pub mod reports;

pub use agent::{Agent, everywhere, memory_files, store, wanted};

use berth_core::{
    admit::admit,
    ids::{ContainerId, ContainerName, PodUid},
    model::{NodeInfo, NodeLabels, Pod, Probe, ResourceList},
    plan::{Action, Exit, Failure, Observed, ObservedContainer, RunState},
    probe::ProbeResult,
    sync::lock,
    time::{Boottime, Now, Wall},
};
use berth_pods::{
    ActionResult, Context, Executor, FoundPod, NodeEvent, NodeProcess, PodSnapshot, WorkerMessage,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

/// Duration of an action unless a test sets another.
const WORK: Duration = Duration::from_millis(5);
/// Deadline of a test's wait, in the paused clock's time, which passes at once.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Fault injected into an action or an observation of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The action never ends.
    Stuck,
    /// The action takes this long.
    Slow(Duration),
    /// The action fails before any effect.
    Fails,
    /// The action fails half way and reports only the failure.
    FailsHalfWay,
    /// The action panics once.
    Panics,
}

#[derive(Debug, Default, Clone)]
pub struct State {
    pub up: bool,
    pub pods: BTreeMap<PodUid, (Option<Arc<Pod>>, Observed)>,
    processes: BTreeMap<ContainerId, NodeProcess>,
    /// Every action that began: time since the node's start, pod, action.
    pub log: Vec<(Duration, PodUid, Action)>,
    /// Injected faults by pod and kind of action. Further kinds: `observe` for an observation, `refresh` for
    /// a refresh of volumes, `clean` for cleanup.
    pub trouble: BTreeMap<(PodUid, &'static str), Trouble>,
    /// Probe results by container; success where a container has none.
    pub answers: BTreeMap<ContainerName, ProbeResult>,
    pub ask_panics: bool,
    pub asked: u64,
    pub observations: BTreeMap<PodUid, u32>,
    pub refreshed: Vec<PodUid>,
    /// Pods that the relist cannot observe.
    pub unseen: BTreeSet<PodUid>,
    /// Containers whose shim does not answer.
    pub unsure: BTreeSet<ContainerId>,
    /// The labels of the node.
    pub labels: NodeLabels,
    /// What the node has for pods; a resource that is not named has no limit.
    pub allocatable: ResourceList,
    /// Containers of which the kernel counts an OOM kill.
    pub oom_killed: BTreeSet<ContainerId>,
    /// Containers whose command does not exist.
    pub unstartable: BTreeSet<ContainerName>,
    /// Containers that exit before the start action reports its end.
    pub ends_at_once: BTreeSet<ContainerName>,
    /// Events that start actions report in addition to success.
    pub events: Vec<berth_core::event::Event>,
    pub orphans: BTreeSet<PodUid>,
    pub cleaned: Vec<PodUid>,
    pub sweeps: u32,
    pub violations: Vec<String>,
}

pub struct Node {
    state: Mutex<State>,
    incoming: Mutex<Option<mpsc::Sender<NodeEvent>>>,
    begun: Instant,
    /// Signals every change of the state to waiting tests.
    pub bump: watch::Sender<u64>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let broken = &self.lock().violations;
            assert!(broken.is_empty(), "{broken:#?}");
        }
    }
}

impl Node {
    pub fn new() -> Arc<Node> {
        Arc::new(Node {
            state: Mutex::new(State { up: true, ..State::default() }),
            incoming: Mutex::default(),
            begun: Instant::now(),
            bump: watch::channel(0).0,
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock is expected: panics are part of the tests.
        lock(&self.state)
    }

    fn bumped(&self) {
        self.bump.send_modify(|n| *n += 1);
    }

    pub fn trouble(&self, pod: &PodUid, kind: &'static str, trouble: Trouble) {
        self.lock().trouble.insert((pod.clone(), kind), trouble);
    }

    pub fn no_trouble(&self) {
        self.lock().trouble.clear();
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Waits until the condition holds; the paused clock makes the wait immediate.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&State) -> bool) {
        let mut changes = self.bump.subscribe();
        let wait = async {
            loop {
                // A copy, so that the condition itself can lock the node.
                let state = self.lock().clone();
                if holds(&state) {
                    return;
                }
                changes.changed().await.unwrap();
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            panic!("{what}: not within an hour; {:#?}", self.lock());
        }
    }

    /// Lets this much of the paused clock's time pass.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    pub async fn send(&self, incoming: NodeEvent) {
        let sender = self.incoming.lock().unwrap().clone();
        if let Some(sender) = sender {
            // A killed agent receives no messages.
            sender.send(incoming).await.ok();
        }
    }

    /// The newest run of a container.
    pub fn newest(&self, pod: &PodUid, container: &str) -> Option<(ContainerId, ObservedContainer)> {
        let state = self.lock();
        let seen = &state.pods.get(pod)?.1;
        let runs = seen.containers.iter().filter(|(_, c)| c.container.as_str() == container);
        runs.max_by_key(|(_, c)| c.attempt).map(|(id, c)| (id.clone(), c.clone()))
    }

    pub fn running(&self, pod: &PodUid, container: &str) -> Option<ContainerId> {
        self.newest(pod, container)
            .filter(|(_, c)| matches!(c.state, RunState::Running { .. }))
            .map(|(id, _)| id)
    }

    fn end(&self, state: &mut State, pod: &PodUid, id: &ContainerId, code: i32) -> Option<Exit> {
        let at = self.now().wall;
        let exit = Exit { code, at, oom: false, reason: None, message: None, started_at: None };
        let c = state.pods.get_mut(pod)?.1.containers.get_mut(id)?;
        if !matches!(c.state, RunState::Running { .. }) {
            return None;
        }
        c.state = RunState::Ended(exit.clone());
        state.processes.remove(id);
        Some(exit)
    }

    /// Lets the newest run of a container exit by itself.
    pub async fn exit(&self, pod: &PodUid, container: &str, code: i32) {
        let (id, _) = self.newest(pod, container).expect("a run");
        let (exit, up) = {
            let mut state = self.lock();
            (self.end(&mut state, pod, &id, code).expect("it runs"), state.up)
        };
        if up {
            self.send(NodeEvent::One(pod.clone(), WorkerMessage::Exit(id, exit))).await;
        }
    }

    pub async fn message(&self, pod: &PodUid, message: WorkerMessage) {
        self.send(NodeEvent::One(pod.clone(), message)).await;
    }

    pub async fn outage(&self) {
        self.lock().up = false;
        self.send(NodeEvent::RuntimeLost).await;
    }

    /// The relist: everything on the node, as reported at the agent's start and after an outage.
    pub fn list(&self) -> NodeEvent {
        let taken = self.now().boottime;
        let state = self.lock();
        let there = |seen: &Observed| !seen.containers.is_empty() || seen.sandbox.is_some();
        let (unseen, seen): (Vec<_>, Vec<_>) = state
            .pods
            .iter()
            .filter(|(_, (_, seen))| there(seen))
            .partition(|(uid, _)| state.unseen.contains(*uid));
        let unseen = unseen.into_iter().map(|(uid, _)| uid.clone()).collect();
        let found = seen
            .into_iter()
            .map(|(uid, (pod, seen))| {
                let pod = pod.clone().filter(|_| !seen.containers.is_empty());
                (uid.clone(), FoundPod { pod, snapshot: snapshot(&state, seen, taken) })
            })
            .collect();
        NodeEvent::RuntimeBack { found, unseen, taken }
    }

    pub async fn back(&self) {
        self.lock().up = true;
        let list = self.list();
        self.send(list).await;
    }

    pub fn actions(&self, pod: &PodUid) -> Vec<Action> {
        let state = self.lock();
        state.log.iter().filter(|(_, u, _)| u == pod).map(|(_, _, a)| a.clone()).collect()
    }

    pub fn kinds(&self, pod: &PodUid) -> Vec<&'static str> {
        self.actions(pod).iter().map(Action::kind).collect()
    }

    /// Start time of each run of a container, since the node's start.
    pub fn starts(&self, pod: &PodUid, container: &str) -> Vec<Duration> {
        let state = self.lock();
        let starts = state.log.iter().filter(|(_, u, a)| {
            u == pod && matches!(a, Action::Start { container: c, .. } if c.as_str() == container)
        });
        starts.map(|(at, ..)| *at).collect()
    }

    async fn inject_fault(&self, pod: &PodUid, kind: &'static str) -> Result<(), Failure> {
        let trouble = {
            let mut state = self.lock();
            let key = (pod.clone(), kind);
            let trouble = state.trouble.get(&key).cloned();
            if trouble == Some(Trouble::Panics) {
                state.trouble.remove(&key);
            }
            trouble
        };
        match trouble {
            Some(Trouble::Stuck) => std::future::pending().await,
            Some(Trouble::Slow(time)) => tokio::time::sleep(time).await,
            Some(Trouble::Fails | Trouble::FailsHalfWay) => {
                return Err(Failure::new("Oops", "as the test wants"));
            }
            Some(Trouble::Panics) => panic!("as the test wants"),
            None => {}
        }
        Ok(())
    }
}

fn snapshot(state: &State, seen: &Observed, taken: Boottime) -> PodSnapshot {
    let mut seen = seen.clone();
    seen.volumes_mounted = false;
    seen.runtime_answers = true;
    let processes = state.processes.iter().filter(|(id, _)| seen.containers.contains_key(*id));
    let processes = processes.map(|(id, p)| (id.clone(), *p)).collect();
    let unsure: BTreeSet<ContainerId> =
        state.unsure.iter().filter(|id| seen.containers.contains_key(*id)).cloned().collect();
    for id in &unsure {
        if let Some(c) = seen.containers.get_mut(id) {
            c.state = RunState::Running { started_at: Wall(0) };
        }
    }
    PodSnapshot { seen, processes, unsure, taken }
}

impl Executor for Node {
    fn now(&self) -> Now {
        let passed = self.begun.elapsed();
        Now {
            boottime: Boottime(Duration::from_secs(1000) + passed),
            wall: Wall(1_700_000_000_000_000_000 + i64::try_from(passed.as_nanos()).unwrap()),
        }
    }

    fn admit(&self, pod: &Pod, others: &[Arc<Pod>]) -> Result<(), Failure> {
        let (labels, allocatable) = {
            let state = self.lock();
            (state.labels.clone(), state.allocatable.clone())
        };
        let node = NodeInfo { labels, allocatable, ..NodeInfo::new("n".parse().unwrap()) };
        admit(&node, others.iter().map(Arc::as_ref), pod)
    }

    fn suits(&self, pod: &Pod) -> bool {
        pod.selects_node("n", &self.lock().labels)
    }

    fn oom_killed(&self, _pod: &Pod, container: &ContainerId) -> bool {
        self.lock().oom_killed.contains(container)
    }

    async fn perform(&self, context: Context, action: Action) -> ActionResult {
        self.lock().log.push((self.elapsed(), context.pod.uid.clone(), action.clone()));
        self.bumped();
        tokio::time::sleep(WORK).await;
        let done = match self.inject_fault(&context.pod.uid, action.kind()).await {
            Ok(()) => self.carry_out(&context, &action),
            Err(failure) => {
                let half = self.lock().trouble.get(&(context.pod.uid.clone(), action.kind()))
                    == Some(&Trouble::FailsHalfWay);
                if half {
                    self.carry_out_half(&context, &action);
                }
                Err(failure)
            }
        };
        self.bumped();
        done.unwrap_or_else(ActionResult::failed)
    }

    async fn observe(&self, pod: &PodUid) -> Result<PodSnapshot, Failure> {
        *self.lock().observations.entry(pod.clone()).or_default() += 1;
        self.bumped();
        let taken = self.now().boottime;
        self.inject_fault(pod, "observe").await?;
        let state = self.lock();
        if !state.up {
            return Err(Failure::new("RuntimeNotReady", "containerd does not answer"));
        }
        Ok(match state.pods.get(pod) {
            Some((_, seen)) => snapshot(&state, seen, taken),
            None => PodSnapshot::nothing(taken),
        })
    }

    async fn probe(&self, _: Context, _: ContainerId, _: Probe, of: ContainerName) -> ProbeResult {
        tokio::time::sleep(WORK).await;
        let (panics, answer) = {
            let mut state = self.lock();
            state.asked += 1;
            (state.ask_panics, state.answers.get(&of).cloned())
        };
        self.bumped();
        assert!(!panics, "as the test wants");
        answer.unwrap_or(ProbeResult::Success)
    }

    async fn refresh(&self, context: Context) -> Result<(), Failure> {
        self.lock().refreshed.push(context.pod.uid.clone());
        self.bumped();
        self.inject_fault(&context.pod.uid, "refresh").await
    }

    async fn orphaned_pods(&self, known: BTreeSet<PodUid>) -> Result<BTreeSet<PodUid>, Failure> {
        Ok(self.lock().orphans.difference(&known).cloned().collect())
    }

    async fn cleanup_pod(&self, pod: &PodUid) -> Result<(), Failure> {
        self.bumped();
        self.inject_fault(pod, "cleanup").await?;
        let mut state = self.lock();
        state.orphans.remove(pod);
        state.pods.remove(pod);
        state.cleaned.push(pod.clone());
        drop(state);
        self.bumped();
        Ok(())
    }

    async fn cleanup_node(&self, _known: BTreeSet<PodUid>) {
        self.lock().sweeps += 1;
        self.bumped();
    }
}
