//! What a worker needs of the world: a small trait, filled by [`crate::node`] on a real node and by a fake in tests.

use berth_core::{
    event::Event,
    ids::{ContainerId, ContainerName, PodUid},
    model::{Objects, Pod, Probe},
    plan::{Action, Exit, Failure, Observed, ObservedContainer, ObservedSandbox, RunState},
    probe::ProbeResult,
    time::{Boottime, Now},
};
use berth_sys::clock;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
};

/// A process of the node, told from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// The process id in the host's PID namespace.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
    pub start_time: u64,
}

/// What an action may need beside itself, as the worker knew it when the action began.
#[derive(Debug, Clone)]
pub struct Context {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What it may refer to.
    pub objects: Arc<Objects>,
    /// Its sandbox.
    pub sandbox: Option<ObservedSandbox>,
    /// The process of the run concerned.
    pub process: Option<Process>,
    /// The run concerned.
    pub run: Option<ObservedContainer>,
    /// When a hook must have ended.
    pub deadline: Option<Boottime>,
}

/// A change of what is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The sandbox is this now.
    Sandbox(Option<ObservedSandbox>),
    /// The volumes are so now.
    Volumes {
        /// All of them, and the pod's files.
        mounted: bool,
        /// Anything of them.
        present: bool,
    },
    /// A container record is this now.
    Container(ContainerId, Box<ObservedContainer>, Option<Process>),
    /// A container's exit is stored.
    Recorded(ContainerId, Exit),
    /// A container's task is gone.
    Reaped(ContainerId),
    /// A container's record is gone.
    Removed(ContainerId),
}

impl Change {
    /// Takes the change into what is seen.
    pub fn apply(self, seen: &mut Observed, processes: &mut BTreeMap<ContainerId, Process>) {
        match self {
            Change::Sandbox(s) => seen.sandbox = s,
            Change::Volumes { mounted, present } => {
                seen.volumes_mounted = mounted;
                seen.volumes_present = present;
            }
            Change::Container(id, c, process) => {
                if let Some(p) = process {
                    processes.insert(id.clone(), p);
                }
                seen.containers.insert(id, *c);
            }
            Change::Recorded(id, exit) => {
                if let Some(c) = seen.containers.get_mut(&id) {
                    c.state = RunState::Recorded(exit);
                }
                processes.remove(&id);
            }
            Change::Reaped(id) => {
                if let Some(c) = seen.containers.get_mut(&id) {
                    c.task = false;
                }
            }
            Change::Removed(id) => {
                seen.containers.remove(&id);
                processes.remove(&id);
            }
        }
    }
}

/// What came of an action.
#[derive(Debug)]
pub struct ActionResult {
    /// Whether it succeeded.
    pub outcome: Result<(), Failure>,
    /// What it changed, also where it failed half way.
    pub changes: Vec<Change>,
    /// The parts of it and the time each took, for those who look for time.
    pub steps: Vec<(&'static str, std::time::Duration)>,
    /// What somebody should know although it went on; the worker tells each once in its life.
    pub events: Vec<Event>,
}

impl Default for ActionResult {
    fn default() -> ActionResult {
        ActionResult::done(Vec::new())
    }
}

impl ActionResult {
    /// It succeeded with these changes.
    pub fn done(changes: Vec<Change>) -> ActionResult {
        ActionResult { outcome: Ok(()), changes, steps: Vec::new(), events: Vec::new() }
    }

    /// It failed and changed nothing that is known.
    pub fn failed(failure: Failure) -> ActionResult {
        ActionResult { outcome: Err(failure), ..ActionResult::default() }
    }
}

/// One look at a pod.
#[derive(Debug, Default, Clone)]
pub struct PodSnapshot {
    /// What is there. Volumes are never shown as mounted: who has not mounted them in this life does it once more.
    pub seen: Observed,
    /// The processes of what runs.
    pub processes: BTreeMap<ContainerId, Process>,
    /// Containers whose state could not be found out, as when their shim does not answer: what is shown of them is a
    /// guess, and whoever knows better goes on with that.
    pub unsure: BTreeSet<ContainerId>,
    /// When the look began: what changed later is not in it.
    pub taken: Boottime,
}

impl PodSnapshot {
    /// Nothing is there of the pod, and containerd answers.
    pub fn nothing(taken: Boottime) -> PodSnapshot {
        let seen = Observed { runtime_answers: true, ..Observed::default() };
        PodSnapshot { seen, taken, ..PodSnapshot::default() }
    }
}

/// Carries actions out. Every call has a deadline of its own making; a call that is dropped leaves a world that the
/// same action can be tried in again.
pub trait Executor: Send + Sync + 'static {
    /// The clocks that everything here goes by.
    fn now(&self) -> Now {
        clock::now()
    }

    /// Whether the node takes a new pod on beside those; asked before anything of it is made. The error is the reason
    /// that the pod fails with, and its message without the words that every such message begins with.
    ///
    /// # Errors
    /// It does not.
    fn admit(&self, pod: &Pod, others: &[Arc<Pod>]) -> Result<(), Failure> {
        let _ = (pod, others);
        Ok(())
    }

    /// Carries out one action.
    fn perform(&self, context: Context, action: Action) -> impl Future<Output = ActionResult> + Send;

    /// Looks at one pod anew. An error means that it could not be found out, and changes nothing.
    fn observe(&self, pod: &PodUid) -> impl Future<Output = Result<PodSnapshot, Failure>> + Send;

    /// Asks one probe of a run once, within its timeout.
    fn probe(
        &self,
        context: Context,
        container: ContainerId,
        spec: Probe,
        of: ContainerName,
    ) -> impl Future<Output = ProbeResult> + Send;

    /// Refreshes volumes that show ConfigMaps, Secrets or the pod itself.
    fn refresh(&self, context: Context) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The pods of which something is left on this node, the known ones apart.
    fn orphaned_pods(
        &self,
        known: BTreeSet<PodUid>,
    ) -> impl Future<Output = Result<BTreeSet<PodUid>, Failure>> + Send;

    /// Removes what is left of a pod that nobody will ask for any more. No worker of it is started meanwhile.
    fn cleanup_pod(&self, pod: &PodUid) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Removes what belongs to no pod's directory: stale addresses, leases and output streams of pods other than the
    /// known ones. Pods that come meanwhile are not harmed.
    fn cleanup_node(&self, known: BTreeSet<PodUid>) -> impl Future<Output = ()> + Send;
}
