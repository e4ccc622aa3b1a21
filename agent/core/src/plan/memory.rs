//! What the world cannot show: plain data, stored before acting, gone with the boot.

use super::{Action, Failure, backoff::CrashBackoff};
use crate::{
    ids::{Attempt, ContainerId, ContainerName, SandboxAttempt},
    status::{ConditionType, ContainerStatus, Phase, Truth},
    time::{Boottime, Wall},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// What is remembered of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Begun and not ended; dies with the agent, as the actions do.
    #[serde(skip)]
    pub in_flight: BTreeSet<Action>,
    /// When the pod was first seen by this node.
    pub start_time: Option<Wall>,
    /// The same, for the active deadline.
    pub start_boottime: Option<Boottime>,
    /// Set once the pod is being ended.
    pub ending: Option<Ending>,
    /// Set once the machine is shut down: containers end within this grace, and none is started any more.
    #[serde(default)]
    pub shutdown: Option<Ending>,
    /// A verdict over the whole pod that the containers alone do not show: reason and message of phase Failed.
    pub failed: Option<Failure>,
    /// The node did not take the pod on: `failed` says why, and nothing of it was ever made.
    #[serde(default, rename = "refused")]
    pub rejected: bool,
    /// The last sandbox that was asked for.
    #[serde(rename = "incarnation")]
    pub sandbox_attempt: Option<SandboxAttempt>,
    /// The phase that was told last: it goes on to the next and never back.
    #[serde(default)]
    pub phase: Option<Phase>,
    /// When the pod was first told to have ended.
    #[serde(default)]
    pub ended_at: Option<Wall>,
    /// The addresses of the last sandbox: a pod that has ended is shown with them.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// When runs that have no place in the pod were last killed.
    #[serde(default)]
    pub strays: BTreeMap<ContainerId, Boottime>,
    /// Whether RemovePod succeeded.
    pub removed: bool,
    /// By container.
    pub containers: BTreeMap<ContainerName, ContainerMemory>,
    /// Actions that failed, when they may be tried again and why they failed.
    #[serde(with = "retries")]
    pub retries: BTreeMap<Action, Retry>,
    /// The last status of each condition and since when.
    pub conditions: BTreeMap<ConditionType, (Truth, Wall)>,
}

impl Memory {
    /// Of a pod that the node does not take on (`rejectPod`).
    pub fn of_rejected(why: Failure) -> Memory {
        let message = format!("Pod was rejected: {}", why.message);
        Memory { failed: Some(Failure { message, ..why }), rejected: true, ..Memory::default() }
    }
}

/// That the pod, or what runs of it, shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Since when.
    pub since: Boottime,
    /// The grace in seconds from then.
    pub grace: u32,
}

/// A failed action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// How often in a row.
    pub failures: u32,
    /// Not before.
    pub not_before: Boottime,
    /// Why.
    pub failure: Failure,
}

/// What is remembered of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerMemory {
    /// The last run that was begun.
    pub attempt: Option<Attempt>,
    /// About the last run.
    pub run: Option<Run>,
    /// The image was found for the next run.
    pub image_ready: bool,
    /// Between crashes.
    pub backoff: CrashBackoff,
    /// The sandbox in which this init container has finished with 0.
    pub finished_in: Option<SandboxAttempt>,
    /// A BackOff event was sent for this back-off.
    pub backoff_told: Option<ContainerId>,
    /// The largest `restartCount` that was seen: it never falls.
    #[serde(default)]
    pub restarts: u32,
    /// What was told last of a container of an ending pod that has ended: shown on once its record is removed.
    #[serde(default)]
    pub last: Option<ContainerStatus>,
}

/// What is remembered of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Which.
    pub id: ContainerId,
    /// The image that it was begun with, as the pod names it; `None` where that is not remembered.
    #[serde(default)]
    pub image: Option<String>,
    /// Since when its process runs; `None` while the start is under way.
    pub started_at: Option<Boottime>,
    /// Its postStart hook. One that was begun when the agent died counts as done: it is never run twice.
    pub post_start: HookState,
    /// Its startup probe succeeded, or it has none.
    pub startup_done: bool,
    /// Its readiness.
    pub readiness: Readiness,
    /// What the last failing startup or readiness probe was told.
    #[serde(default)]
    pub unready_because: Option<String>,
    /// Set once it is being stopped.
    pub stop: Option<Stop>,
    /// When its end was first seen.
    pub ended_at: Option<Boottime>,
}

/// A hook's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum HookState {
    /// Not begun.
    #[default]
    NotYet,
    /// Begun.
    Begun,
    /// Ended, well or not.
    Done,
}

/// Whether a run is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Readiness {
    /// Nothing is remembered; the next verdict of its probe decides.
    Unknown,
    /// Not, or not yet.
    #[default]
    No,
    /// Ready.
    Yes,
}

/// That a run is being stopped, and how far that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Why.
    pub cause: StopCause,
    /// Since when.
    pub since: Boottime,
    /// Seconds from `since` until SIGKILL.
    pub grace: u32,
    /// Its preStop hook.
    pub pre_stop: HookState,
    /// When sending the stop signal was begun: SIGKILL is counted from it.
    pub signalled: Option<Boottime>,
    /// Whether it is known to have been sent. A new agent that finds it begun and not known sends it again.
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
    /// Its liveness probe failed.
    Liveness,
    /// Its startup probe failed.
    Startup,
    /// Its postStart hook failed.
    PostStart,
    /// Its sandbox is lost.
    SandboxLost,
    /// The pod names another image for it.
    Changed,
}

impl Run {
    /// A run that begins now, with this image.
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

    /// A run that is found without any memory of it: taken for started, its hook for done, its readiness for unknown.
    pub(super) fn adopted(id: ContainerId) -> Run {
        Run { post_start: HookState::Done, startup_done: true, readiness: Readiness::Unknown, ..Run::new(id) }
    }
}

/// JSON has no maps with such keys: a list of pairs.
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
