//! An in-memory node: containers, sandboxes and volumes as plain data, with delays and outages set by the
//! tests. The node checks the invariants that hold in every test.

pub mod board;
pub mod pods;

use berth_core::{
    admit::{NodeInfo, admit},
    ids::{ContainerId, ContainerName, PodUid},
    model::{NodeLabels, Pod, Probe, ResourceList},
    plan::{Action, Exit, Failure, Observed, ObservedContainer, ObservedSandbox, RunState, SandboxState},
    probe::ProbeResult,
    sync::lock,
    time::{Boottime, Now, Wall},
};
use berth_pods::{
    ActionResult, Change, Context, DesiredSet, Executor, Found, ManagerConfig, NodeEvent, PodSnapshot,
    Process, Store, WorkerMessage,
};
use board::Board;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
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
    processes: BTreeMap<ContainerId, Process>,
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

    async fn tell(&self, incoming: NodeEvent) {
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
            self.tell(NodeEvent::One(pod.clone(), WorkerMessage::Exit(id, exit))).await;
        }
    }

    pub async fn message(&self, pod: &PodUid, message: WorkerMessage) {
        self.tell(NodeEvent::One(pod.clone(), message)).await;
    }

    pub async fn outage(&self) {
        self.lock().up = false;
        self.tell(NodeEvent::RuntimeLost).await;
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
                (uid.clone(), Found { pod, snapshot: snapshot(&state, seen, taken) })
            })
            .collect();
        NodeEvent::RuntimeBack { found, unseen, taken }
    }

    pub async fn back(&self) {
        self.lock().up = true;
        let list = self.list();
        self.tell(list).await;
    }

    pub async fn send(&self, incoming: NodeEvent) {
        self.tell(incoming).await;
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

    async fn meet(&self, pod: &PodUid, kind: &'static str) -> Result<(), Failure> {
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

    /// Leaves what an action leaves that is cut off half way.
    fn carry_out_half(&self, context: &Context, action: &Action) {
        let mut state = self.lock();
        let (stored, seen) = state.pods.entry(context.pod.uid.clone()).or_default();
        stored.get_or_insert_with(|| Arc::clone(&context.pod));
        match action {
            Action::MountVolumes => seen.volumes_present = true,
            Action::UnmountVolumes => seen.volumes_mounted = false,
            Action::MakeSandbox(sandbox_attempt) | Action::TeardownSandbox(sandbox_attempt) => {
                let (sandbox_attempt, state) = (*sandbox_attempt, SandboxState::Broken);
                seen.sandbox = Some(ObservedSandbox { sandbox_attempt, state, ips: Vec::new() });
            }
            Action::Start { container, attempt, sandbox_attempt, id } => {
                let run = ObservedContainer {
                    container: container.clone(),
                    attempt: *attempt,
                    sandbox_attempt: *sandbox_attempt,
                    image_id: "sha256:1".into(),
                    user: None,
                    state: RunState::Running { started_at: self.now().wall },
                    task: true,
                };
                seen.containers.insert(id.clone(), run);
            }
            other => panic!("no half of {other:?} is known"),
        }
    }

    fn carry_out(&self, context: &Context, action: &Action) -> Result<ActionResult, Failure> {
        let needs_runtime =
            !matches!(action, Action::MountVolumes | Action::UnmountVolumes | Action::MakeSandbox(_));
        let mut state = self.lock();
        if needs_runtime && !state.up {
            return Err(Failure::new("RuntimeNotReady", "containerd does not answer"));
        }
        let uid = context.pod.uid.clone();
        let mut broken = Vec::new();
        let started_at = self.now().wall;
        let unstartable = action.container().is_some_and(|c| state.unstartable.contains(c));
        let ends_at_once = action.container().is_some_and(|c| state.ends_at_once.contains(c));
        let pid = 1000 + u32::try_from(state.log.len()).unwrap();
        let events = state.events.clone();
        let (stored, seen) = state.pods.entry(uid.clone()).or_default();
        stored.get_or_insert_with(|| Arc::clone(&context.pod));
        let runs =
            |seen: &Observed| seen.containers.values().any(|c| matches!(c.state, RunState::Running { .. }));
        let mut performed = ActionResult::default();
        let mut message = None;
        match action {
            Action::MountVolumes | Action::UnmountVolumes => {
                let mounted = *action == Action::MountVolumes;
                if !mounted && runs(seen) {
                    broken.push(format!("{uid}: volumes unmounted under a running container"));
                }
                (seen.volumes_mounted, seen.volumes_present) = (mounted, mounted);
                performed.changes.push(Change::Volumes { mounted, present: mounted });
            }
            Action::MakeSandbox(sandbox_attempt) | Action::EnsurePause(sandbox_attempt) => {
                if matches!(action, Action::MakeSandbox(_)) && seen.sandbox.is_some() {
                    broken.push(format!("{uid}: sandbox made over {:?}", seen.sandbox));
                }
                let broken_by_pause =
                    matches!(action, Action::EnsurePause(_)) && context.pod.namespaces.share_pid;
                let state = if broken_by_pause { SandboxState::Broken } else { SandboxState::Ready };
                let ips = vec!["10.0.0.1".parse().unwrap()];
                seen.sandbox = Some(ObservedSandbox { sandbox_attempt: *sandbox_attempt, state, ips });
                performed.changes.push(Change::Sandbox(seen.sandbox.clone()));
            }
            Action::TeardownSandbox(_) => {
                if runs(seen) {
                    broken.push(format!("{uid}: sandbox taken down under a running container"));
                }
                seen.sandbox = None;
                performed.changes.push(Change::Sandbox(None));
            }
            Action::EnsureImage(_) | Action::PostStart { .. } | Action::PreStop { .. } => {}
            Action::Start { container, attempt, sandbox_attempt, id } => {
                let other = seen.containers.iter().find(|(o, c)| {
                    &c.container == container && *o != id && !matches!(c.state, RunState::Recorded(_))
                });
                if let Some((other, c)) = other {
                    broken.push(format!("{uid}: {container} started beside {other}: {:?}", c.state));
                }
                if !seen.volumes_mounted || seen.sandbox.is_none() {
                    broken.push(format!("{uid}: {container} started without volumes or sandbox"));
                }
                let run = seen.containers.entry(id.clone()).or_insert_with(|| ObservedContainer {
                    container: container.clone(),
                    attempt: *attempt,
                    sandbox_attempt: *sandbox_attempt,
                    image_id: "sha256:1".into(),
                    user: None,
                    state: RunState::NotStarted,
                    task: false,
                });
                let mut process = None;
                if run.state == RunState::NotStarted {
                    (run.state, run.task) = (RunState::Running { started_at }, true);
                    process = Some(Process { pid, start_time: u64::from(pid) });
                }
                if unstartable {
                    let exit = Exit {
                        code: 128,
                        reason: Some("StartError".into()),
                        message: Some("no such file".into()),
                        ..Exit::unknown(started_at)
                    };
                    (run.state, run.task) = (RunState::Ended(exit), false);
                    process = None;
                }
                performed.changes.push(Change::Container(id.clone(), Box::new(run.clone()), process));
                performed.events = events;
                if ends_at_once {
                    let exit = Exit {
                        code: 7,
                        at: started_at,
                        oom: false,
                        reason: None,
                        message: None,
                        started_at: None,
                    };
                    run.state = RunState::Ended(exit.clone());
                    message = Some(WorkerMessage::Exit(id.clone(), exit));
                } else if let Some(process) = process {
                    state.processes.insert(id.clone(), process);
                }
            }
            Action::Signal { id, .. } | Action::Kill { id, .. } => {
                let code = if matches!(action, Action::Kill { .. }) { 137 } else { 143 };
                if let Some(exit) = self.end(&mut state, &uid, id, code) {
                    message = Some(WorkerMessage::Exit(id.clone(), exit));
                }
            }
            Action::RecordExit { id, exit, .. } => match seen.containers.get_mut(id) {
                Some(c) => {
                    if matches!(c.state, RunState::Running { .. }) {
                        broken.push(format!("{uid}: exit of running {id} recorded: {:?}", exit.0));
                    }
                    c.state = RunState::Recorded(exit.0.clone());
                    performed.changes.push(Change::Recorded(id.clone(), exit.0.clone()));
                }
                None => performed.changes.push(Change::Removed(id.clone())),
            },
            Action::Reap { id, .. } => {
                if let Some(c) = seen.containers.get_mut(id) {
                    c.task = false;
                }
                performed.changes.push(Change::Reaped(id.clone()));
            }
            Action::Remove { id, .. } => {
                if seen.containers.get(id).is_some_and(|c| matches!(c.state, RunState::Running { .. })) {
                    broken.push(format!("{uid}: running {id} removed"));
                }
                seen.containers.remove(id);
                performed.changes.push(Change::Removed(id.clone()));
            }
            Action::RemovePod => {
                if seen.sandbox.is_some() || seen.volumes_present || !seen.containers.is_empty() {
                    broken.push(format!("{uid}: removed, and leaves {seen:?}"));
                }
                state.pods.remove(&uid);
            }
        }
        state.violations.extend(broken);
        drop(state);
        if let Some(message) = message {
            // The exit event is queued before the action reports its end.
            let sender = self.incoming.lock().unwrap().clone();
            if let Some(sender) = sender {
                sender.try_send(NodeEvent::One(uid, message)).ok();
            }
        }
        Ok(performed)
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
        let (labels, allocatable) = (NodeLabels::new(), ResourceList::new());
        let node = NodeInfo { name: "n", labels: &labels, allocatable: &allocatable };
        admit(node, others.iter().map(Arc::as_ref), pod)
    }

    async fn perform(&self, context: Context, action: Action) -> ActionResult {
        self.lock().log.push((self.elapsed(), context.pod.uid.clone(), action.clone()));
        self.bumped();
        tokio::time::sleep(WORK).await;
        let done = match self.meet(&context.pod.uid, action.kind()).await {
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
        self.meet(pod, "observe").await?;
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
        self.meet(&context.pod.uid, "refresh").await
    }

    async fn orphaned_pods(&self, known: BTreeSet<PodUid>) -> Result<BTreeSet<PodUid>, Failure> {
        Ok(self.lock().orphans.difference(&known).cloned().collect())
    }

    async fn cleanup_pod(&self, pod: &PodUid) -> Result<(), Failure> {
        self.bumped();
        self.meet(pod, "cleanup").await?;
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

/// An agent on a node. Dropping the value ends the agent at once, as SIGKILL does.
pub struct Agent {
    pub node: Arc<Node>,
    pub board: Arc<Board>,
    pub desired: watch::Sender<Arc<DesiredSet>>,
    stop: Option<oneshot::Sender<()>>,
    manager: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.manager.abort();
    }
}

impl Agent {
    /// Starts an agent. The relist follows at once where containerd is up.
    pub async fn start(node: &Arc<Node>, store: &Store, desired: DesiredSet) -> Agent {
        let agent = Agent::start_unlisted(node, store, desired);
        if node.lock().up {
            node.back().await;
        }
        agent
    }

    /// Starts an agent that has not received a relist yet.
    pub fn start_unlisted(node: &Arc<Node>, store: &Store, desired: DesiredSet) -> Agent {
        let (incoming_tx, incoming) = mpsc::channel(1024);
        *node.incoming.lock().unwrap() = Some(incoming_tx);
        let board = Arc::new(Board::new(node.bump.clone()));
        let (desired_tx, desired) = watch::channel(Arc::new(desired));
        let (stop, stopped) = oneshot::channel();
        let manager = tokio::spawn(berth_pods::run(ManagerConfig {
            executor: Arc::clone(node),
            reports: Arc::clone(&board),
            store: store.clone(),
            desired,
            incoming,
            stop: stopped,
        }));
        Agent { node: Arc::clone(node), board, desired: desired_tx, stop: Some(stop), manager }
    }

    /// Aborts the agent's tasks, which comes closest to SIGKILL.
    pub async fn kill(mut self) {
        self.manager.abort();
        // The join error of the aborted task is the expected result.
        (&mut self.manager).await.ok();
    }

    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        (&mut self.manager).await.unwrap();
    }

    pub fn want(&self, change: impl FnOnce(&mut DesiredSet)) {
        let mut set = DesiredSet::clone(&self.desired.borrow());
        change(&mut set);
        self.desired.send(Arc::new(set)).unwrap();
    }

    pub async fn ready(&self, pod: &PodUid) {
        self.node.until(&format!("{pod} ready"), |_| self.board.is_ready(pod)).await;
    }

    /// Waits until nothing of the pod is left on the node or in the reports.
    pub async fn gone(&self, pod: &PodUid) {
        self.node
            .until(&format!("{pod} gone"), |s| !s.pods.contains_key(pod) && !self.board.shows(pod))
            .await;
    }
}

pub fn wanted(pods: impl IntoIterator<Item = Pod>) -> DesiredSet {
    let pods = pods.into_iter().map(|p| (p.uid.clone(), Arc::new(p))).collect();
    DesiredSet { listed: true, pods, ..DesiredSet::default() }
}

/// A store in a temporary directory.
pub fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let roots = berth_core::roots::Roots::below(
        dir.path(),
        berth_core::ids::NodeName::new("n").unwrap(),
        "berth-pods-test",
    );
    let store = Store::open(&roots, &berth_core::ids::BootId::new("boot-1").unwrap()).unwrap();
    (dir, store)
}

/// Names of the memory files in a store's directory.
pub fn memory_files(dir: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path().join("run/memory")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
