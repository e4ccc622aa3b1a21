//! The executor: a small trait by which a worker acts on the node. `berth-executor` implements the
//! trait on a real node, a fake implements it in tests.

use berth_core::{
    event::Event,
    ids::{ContainerId, ContainerName, PodUid},
    model::{Objects, Pod, Probe, Resources},
    plan::{Action, Exit, Fact, Failure, Observed, ObservedContainer, ObservedSandbox, RunState},
    probe::ProbeResult,
    time::{Boottime, Now},
};
use berth_sys::clock;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
};

/// A process of the node. The start time distinguishes the process from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeProcess {
    /// The process id in the host's PID namespace.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
    pub start_time: u64,
}

/// The inputs of an action beside the action itself, as the worker knew them when the action began.
#[derive(Debug, Clone)]
pub struct Context {
    /// The action's pod.
    pub pod: Arc<Pod>,
    /// The objects that the pod may refer to, such as ConfigMaps and Secrets.
    pub objects: Arc<Objects>,
    /// The pod's sandbox. `None` where the pod has none.
    pub sandbox: Option<ObservedSandbox>,
    /// The process of the action's container run. `None` where the run has no process, and for actions
    /// without a run.
    pub process: Option<NodeProcess>,
    /// The action's container run. `None` for actions without a run.
    pub run: Option<ObservedContainer>,
    /// The newest run of the container that the action's ephemeral container targets, with its process where it runs.
    pub target: Option<(ContainerId, Option<NodeProcess>)>,
    /// The moment by which a hook must have ended. `None` where the action sets no such limit.
    pub deadline: Option<Boottime>,
    /// Whether the pod has to end.
    pub ending: bool,
}

/// A change that an action made to the observed state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObservedChange {
    /// The new state of the sandbox.
    Sandbox(Option<ObservedSandbox>),
    /// The new state of the volumes.
    Volumes {
        /// All volumes and the pod's own files are mounted.
        mounted: bool,
        /// Some part of the volumes is on the node.
        present: bool,
    },
    /// The new state of a container record, with its process where the container runs.
    Container(ContainerId, Box<ObservedContainer>, Option<NodeProcess>),
    /// A container's exit is stored on its record.
    Recorded(ContainerId, Exit),
    /// A container's task is deleted.
    Reaped(ContainerId),
    /// Other resources are set on a container and its record.
    Resized(ContainerId, Resources),
    /// A container's record is deleted.
    Removed(ContainerId),
}

impl ObservedChange {
    /// Applies the change to the observed state and the known processes.
    pub fn apply(self, seen: &mut Observed, processes: &mut BTreeMap<ContainerId, NodeProcess>) {
        match self {
            ObservedChange::Sandbox(s) => seen.sandbox = s,
            ObservedChange::Volumes { mounted, present } => {
                seen.volumes_mounted = mounted;
                seen.volumes_present = present;
            }
            ObservedChange::Container(id, c, process) => {
                if let Some(p) = process {
                    processes.insert(id.clone(), p);
                }
                seen.containers.insert(id, *c);
            }
            ObservedChange::Recorded(id, exit) => {
                if let Some(c) = seen.containers.get_mut(&id) {
                    c.state = RunState::Recorded(exit);
                }
                processes.remove(&id);
            }
            ObservedChange::Reaped(id) => {
                if let Some(c) = seen.containers.get_mut(&id) {
                    c.task = false;
                }
            }
            ObservedChange::Resized(id, resources) => {
                if let Some(c) = seen.containers.get_mut(&id) {
                    c.resources = Some(resources);
                }
            }
            ObservedChange::Removed(id) => {
                seen.containers.remove(&id);
                processes.remove(&id);
            }
        }
    }
}

/// The result of an action.
#[derive(Debug)]
pub struct ActionResult {
    /// Whether the action succeeded.
    pub outcome: Result<(), Failure>,
    /// The changes that the action made, including those before a failure half way.
    pub changes: Vec<ObservedChange>,
    /// The action's parts and the time that each took, for performance analysis.
    pub steps: Vec<(&'static str, std::time::Duration)>,
    /// What the action learned beside its end; taken before its end.
    pub facts: Vec<Fact>,
    /// Events of an action that succeeded with a defect. A worker publishes each distinct event once in its
    /// life.
    pub events: Vec<Event>,
}

impl Default for ActionResult {
    fn default() -> ActionResult {
        ActionResult::done(Vec::new())
    }
}

impl ActionResult {
    /// The result of an action that succeeded with these changes.
    pub fn done(changes: Vec<ObservedChange>) -> ActionResult {
        ActionResult { outcome: Ok(()), changes, steps: Vec::new(), facts: Vec::new(), events: Vec::new() }
    }

    /// The result of an action that failed without a known change.
    pub fn failed(failure: Failure) -> ActionResult {
        ActionResult { outcome: Err(failure), ..ActionResult::default() }
    }
}

/// The state of one pod at one observation.
#[derive(Debug, Default, Clone)]
pub struct PodSnapshot {
    /// The observed state. A snapshot never shows volumes as mounted: a worker that has not mounted them
    /// since the agent's start mounts them again.
    pub seen: Observed,
    /// The processes of the running containers.
    pub processes: BTreeMap<ContainerId, NodeProcess>,
    /// Containers whose state could not be read, for example because their shim does not answer. Their state
    /// in `seen` is a guess, and a cache that already knows the container keeps its own state.
    pub unsure: BTreeSet<ContainerId>,
    /// The moment at which the observation began. Later changes are not in the snapshot.
    pub taken: Boottime,
}

impl PodSnapshot {
    /// The snapshot of a pod of which the node has nothing, while containerd answers.
    pub fn nothing(taken: Boottime) -> PodSnapshot {
        let seen = Observed { runtime_answers: true, ..Observed::default() };
        PodSnapshot { seen, taken, ..PodSnapshot::default() }
    }
}

/// Carries out actions on the node. The executor gives every call a deadline. After a dropped call the same
/// action can be tried again.
pub trait Executor: Send + Sync + 'static {
    /// The clocks that the worker and the executor use.
    fn now(&self) -> Now {
        clock::now()
    }

    /// Whether the node admits a new pod beside `others`. The manager asks before anything of the pod is
    /// created.
    ///
    /// # Errors
    ///
    /// The failure holds the reason with which the pod fails, and the message without the words that begin
    /// every such message.
    fn admit(&self, pod: &Pod, others: &[Arc<Pod>]) -> Result<(), Failure> {
        let _ = (pod, others);
        Ok(())
    }

    /// Whether the node's name and labels, as the node knows them now, match the pod's node selector and affinity, and the
    /// pod tolerates the node's taints.
    fn suits(&self, pod: &Pod) -> bool {
        let _ = pod;
        true
    }

    /// Whether the kernel's OOM killer has ended a process of this container, by the kernel's own count. The worker
    /// asks at each exit by SIGKILL, because containerd may tell of the kill after the exit.
    fn oom_killed(&self, pod: &Pod, container: &ContainerId) -> bool {
        let _ = (pod, container);
        false
    }

    /// Carries out one action.
    fn perform(&self, context: Context, action: Action) -> impl Future<Output = ActionResult> + Send;

    /// Observes one pod. An error means that the pod's state could not be read, and changes nothing in the
    /// cache.
    fn observe(&self, pod: &PodUid) -> impl Future<Output = Result<PodSnapshot, Failure>> + Send;

    /// Runs one probe of a container run once, within the probe's timeout.
    fn probe(
        &self,
        context: Context,
        container: ContainerId,
        spec: Probe,
        of: ContainerName,
    ) -> impl Future<Output = ProbeResult> + Send;

    /// Refreshes the volumes that show ConfigMaps, Secrets or the pod itself.
    fn refresh(&self, context: Context) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The pods outside `known` that left something on this node.
    fn orphaned_pods(
        &self,
        known: BTreeSet<PodUid>,
    ) -> impl Future<Output = Result<BTreeSet<PodUid>, Failure>> + Send;

    /// Removes the orphan of a pod. The manager starts no worker of that pod meanwhile.
    fn cleanup_pod(&self, pod: &PodUid) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Removes what belongs to no pod's directory: stale addresses, leases and output streams of pods outside
    /// `known`. Pods that start meanwhile are not harmed.
    fn cleanup_node(&self, known: BTreeSet<PodUid>) -> impl Future<Output = ()> + Send;
}
