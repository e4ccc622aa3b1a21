//! Memory of a pod: plain data that the world cannot show. The worker stores it before an action begins; a
//! reboot of the node discards it.

use super::{Action, Failure, backoff::CrashBackoff};
use crate::{
    ids::{Attempt, ContainerId, ContainerName, SandboxAttempt},
    resize::{Allocation, PendingReason},
    status::{ConditionType, ContainerStatus, Phase, Terminated, Truth},
    time::{Boottime, Wall},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// What a worker remembers of its pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Actions that have begun and not ended. The set is not stored, because actions die with the agent.
    #[serde(skip)]
    pub in_flight: BTreeSet<Action>,
    /// When the pod was first planned on this node, as `status.startTime` shows it.
    pub start_time: Option<Wall>,
    /// The same moment on the boot clock, for `activeDeadlineSeconds`.
    pub start_boottime: Option<Boottime>,
    /// How long the pod was active before this boot, for `activeDeadlineSeconds`.
    #[serde(default)]
    pub active_before: Duration,
    /// Set once the pod has to end.
    pub ending: Option<Ending>,
    /// Set once the machine shuts down: the containers end within this grace period, and no container starts
    /// any more.
    #[serde(default)]
    pub shutdown: Option<Ending>,
    /// Reason and message of phase Failed, where the pod failed for a cause that its containers do not show.
    pub failed: Option<Failure>,
    /// The node rejected the pod on admission: `failed` holds the reason, and nothing of the pod was ever
    /// created.
    #[serde(default, rename = "refused")]
    pub rejected: bool,
    /// The newest sandbox attempt, planned or observed.
    #[serde(rename = "incarnation")]
    pub sandbox_attempt: Option<SandboxAttempt>,
    /// The phase published last. The phase only moves forward (Pending, Running, Succeeded or Failed).
    #[serde(default)]
    pub phase: Option<Phase>,
    /// The addresses that the status showed last. It still shows them once the pod has ended or is ending.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Stray runs, with the time of the last SIGKILL: runs that are not the newest of their container, or
    /// whose container the pod does not name.
    #[serde(default)]
    pub strays: BTreeMap<ContainerId, Boottime>,
    /// Whether `RemovePod` succeeded.
    pub removed: bool,
    /// Memory of each container, by name.
    pub containers: BTreeMap<ContainerName, ContainerMemory>,
    /// Failed actions, each with the cause and the time from which it may be tried again.
    #[serde(with = "retries")]
    pub retries: BTreeMap<Action, Retry>,
    /// The allocation of the last decision. Another one begins a resize.
    #[serde(default)]
    pub allocated: Option<Allocation>,
    /// The allocation that is set on the pod's cgroup.
    #[serde(default)]
    pub cgroup: Option<Allocation>,
    /// The resize in progress.
    #[serde(default)]
    pub resize: Option<Resize>,
    /// Why a resize is pending, and since when for that reason.
    #[serde(default)]
    pub resize_pending: Option<(PendingReason, Wall)>,
    /// The last status of each condition and the time of its last transition.
    pub conditions: BTreeMap<ConditionType, (Truth, Wall)>,
}

impl Memory {
    /// The memory of a pod that the node rejects on admission (`rejectPod`, kubelet).
    pub fn of_rejected(why: Failure) -> Memory {
        let message = format!("Pod was rejected: {}", why.message);
        Memory { failed: Some(Failure { message, ..why }), rejected: true, ..Memory::default() }
    }
}

/// A resize in progress: its resources are allocated, and not yet set on all that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// The generation of the spec that began it.
    pub generation: Option<i64>,
    /// Why the resources could not be set, at the last try.
    pub error: Option<String>,
    /// Since when there is no error, or one.
    pub since: Wall,
}

/// A required end: of the pod, or at shutdown of all that runs of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// When the end was first required with this grace period.
    pub since: Boottime,
    /// The grace period in seconds, counted from `since`.
    pub grace: u32,
}

/// The state of a failed action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// The number of failures in a row.
    pub failures: u32,
    /// The earliest time of the next try.
    pub not_before: Boottime,
    /// The cause of the last failure.
    pub failure: Failure,
    /// The failed pull is known to wait for its back-off, as status and events show it.
    #[serde(default)]
    pub backing_off: bool,
}

/// What a worker remembers of one container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerMemory {
    /// The newest run that was begun or observed.
    pub attempt: Option<Attempt>,
    /// The state of that run.
    pub run: Option<Run>,
    /// The image is present for the next run. The end of a run clears it.
    pub image_ready: bool,
    /// The image was pulled for the next run, which events tell. The end of a run clears it.
    #[serde(default)]
    pub image_pulled: bool,
    /// The crash back-off.
    pub backoff: CrashBackoff,
    /// The sandbox in which this init container finished with exit code 0.
    pub finished_in: Option<SandboxAttempt>,
    /// The dead run for whose back-off a `BackOff` event was already emitted.
    #[serde(rename = "backoff_told")]
    pub backoff_event_for: Option<ContainerId>,
    /// The largest `restartCount` observed, so that the published count never falls.
    #[serde(default)]
    pub restarts: u32,
    /// The last Terminated status of the container, kept while the pod ends and after. The status shows it
    /// once the container record is removed.
    #[serde(default)]
    pub last: Option<ContainerStatus>,
    /// The run that the API's status showed when this memory was made of it.
    #[serde(default)]
    pub past: Option<PastRun>,
}

/// A run of a container that the API's status told of. The pod's status shows it where no record of a run tells more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastRun {
    /// The run's container id.
    pub id: Option<ContainerId>,
    /// The run's end; `None` where it did not run.
    pub end: Option<Terminated>,
    /// The end of the run before it.
    pub before: Option<Terminated>,
}

/// What a worker remembers of one run of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The run's container id.
    pub id: ContainerId,
    /// The image, as the pod named it when the run began; `None` for an adopted run, whose image is not
    /// known.
    #[serde(default)]
    pub image: Option<String>,
    /// When the process started; `None` while the start is under way.
    pub started_at: Option<Boottime>,
    /// Progress of the postStart hook. A hook that had begun when the agent died counts as done, because a
    /// hook is never run twice.
    pub post_start: HookState,
    /// The startup probe succeeded, or the container has none.
    pub startup_done: bool,
    /// Whether the run is ready.
    pub readiness: Readiness,
    /// The message of the last failing startup or readiness probe. A success clears it.
    #[serde(default)]
    pub unready_because: Option<String>,
    /// Set once the run has to stop.
    pub stop: Option<Stop>,
    /// When the run ended, on the boot clock; set when the end is first observed.
    pub ended_at: Option<Boottime>,
}

/// Progress of a lifecycle hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum HookState {
    /// The hook has not begun.
    #[default]
    NotYet,
    /// The hook has begun.
    Begun,
    /// The hook has ended, with or without success.
    Done,
}

/// Whether a run is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Readiness {
    /// No verdict is remembered, as for an adopted run. The next verdict of the readiness probe decides.
    Unknown,
    /// The run is not ready, or not ready yet.
    #[default]
    No,
    /// The run is ready.
    Yes,
}

/// Progress of stopping a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Why the run is stopped.
    pub cause: StopCause,
    /// When the stop was decided.
    pub since: Boottime,
    /// Seconds from `since` until SIGKILL.
    pub grace: u32,
    /// Progress of the preStop hook.
    pub pre_stop: HookState,
    /// When the stop signal was first requested. SIGKILL follows no earlier than the minimum grace period
    /// after this time.
    pub signalled: Option<Boottime>,
    /// The stop signal is known to be sent. An agent that finds `signalled` set after a restart, and this
    /// flag not, sends the signal again.
    #[serde(default)]
    pub signal_sent: bool,
    /// When SIGKILL was last sent.
    pub killed: Option<Boottime>,
}

/// Why a run is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopCause {
    /// The pod ends.
    PodEnds,
    /// The liveness probe failed.
    Liveness,
    /// The startup probe failed.
    Startup,
    /// The postStart hook failed.
    PostStart,
    /// The sandbox is lost.
    SandboxLost,
    /// The pod now names another image for the container.
    Changed,
    /// The container has other resources now, which by its policy it gets by a restart.
    Resized,
}

impl Run {
    /// Memory of a run that begins now with this image.
    pub(super) fn begun(id: ContainerId, image: &str) -> Run {
        Run { image: Some(image.to_owned()), ..Run::new(id) }
    }

    fn new(id: ContainerId) -> Run {
        Run {
            id,
            image: None,
            started_at: None,
            post_start: HookState::NotYet,
            startup_done: false,
            readiness: Readiness::No,
            unready_because: None,
            stop: None,
            ended_at: None,
        }
    }

    /// Memory of a run that was found without any. The run counts as started, its postStart hook as done, and
    /// its readiness as unknown.
    pub(super) fn adopted(id: ContainerId) -> Run {
        Run { post_start: HookState::Done, startup_done: true, readiness: Readiness::Unknown, ..Run::new(id) }
    }
}

/// Serializes the retries as a list of pairs, because JSON maps cannot have actions as keys.
mod retries {
    use super::{Action, BTreeMap, Retry};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(map: &BTreeMap<Action, Retry>, s: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(s)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(d: D) -> Result<BTreeMap<Action, Retry>, D::Error> {
        Ok(Vec::<(Action, Retry)>::deserialize(d)?.into_iter().collect())
    }
}
