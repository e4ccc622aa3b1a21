//! The steps that mount and unmount one volume of a CSI driver. Pure: from what is wanted and what was observed follows
//! the next step, so that any crash and any failure lead to the same end.
//!
//! A volume is staged once for the node, and published for each pod. A call whose result is not known counts as
//! perhaps done: it is repeated where its effect is wanted, and undone where it is not, before the volume counts as
//! free. Every call of the Container Storage Interface may be repeated.

use crate::ids::PodUid;
use std::collections::{BTreeMap, BTreeSet};

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Progress {
    /// It was not made, or was undone, or has failed without effect.
    #[default]
    None,
    /// It was begun, and its result is not known.
    Uncertain,
    /// It has succeeded.
    Done,
}

/// What was observed of a volume on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeState {
    /// The staging of the volume.
    pub staged: Progress,
    /// The publishing for each pod. A pod that is not in it has nothing of the volume.
    pub published: BTreeMap<PodUid, Progress>,
}

/// What is wanted of a volume on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeWanted {
    /// The pods that want the volume.
    pub pods: BTreeSet<PodUid>,
    /// Whether the driver has a stage of its own (`STAGE_UNSTAGE_VOLUME`).
    pub stages: bool,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeStep {
    /// NodeStageVolume.
    Stage,
    /// NodePublishVolume for a pod.
    Publish(PodUid),
    /// NodeUnpublishVolume of a pod.
    Unpublish(PodUid),
    /// NodeUnstageVolume.
    Unstage,
}

/// The next step of a volume; `None` once it is as wanted. What is in the way goes first: a pod that no longer wants
/// the volume frees it before another one gets it.
pub fn next_step(wanted: &VolumeWanted, state: &VolumeState) -> Option<VolumeStep> {
    let unwanted =
        state.published.iter().find(|(pod, at)| **at != Progress::None && !wanted.pods.contains(*pod));
    if let Some((pod, _)) = unwanted {
        return Some(VolumeStep::Unpublish(pod.clone()));
    }
    if wanted.pods.is_empty() {
        return (state.staged != Progress::None).then_some(VolumeStep::Unstage);
    }
    let published = |pod: &PodUid| state.published.get(pod).copied().unwrap_or_default();
    let missing = wanted.pods.iter().find(|pod| published(pod) != Progress::Done)?;
    if wanted.stages && state.staged != Progress::Done {
        return Some(VolumeStep::Stage);
    }
    Some(VolumeStep::Publish(missing.clone()))
}

/// The result of a step's call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepResult {
    /// The call has succeeded.
    Done,
    /// The call has failed and had no effect.
    Failed,
    /// The call may have had its effect.
    Uncertain,
}

impl VolumeState {
    /// Whether a call that makes the volume usable has succeeded.
    pub fn is_in_use(&self) -> bool {
        self.staged == Progress::Done || self.published.values().any(|at| *at == Progress::Done)
    }

    /// Takes that a step begins. From here on until its result it counts as uncertain.
    pub fn begin(&mut self, step: &VolumeStep) {
        self.end(step, StepResult::Uncertain);
    }

    /// Takes the result of a step. A repeated call that fails without effect leaves what an earlier call may have done.
    pub fn finish(&mut self, before: &VolumeState, step: &VolumeStep, result: StepResult) {
        if result == StepResult::Failed {
            self.clone_from(before);
            return;
        }
        self.end(step, result);
    }

    fn end(&mut self, step: &VolumeStep, result: StepResult) {
        let up = if result == StepResult::Done { Progress::Done } else { Progress::Uncertain };
        let down = if result == StepResult::Done { Progress::None } else { Progress::Uncertain };
        match step {
            VolumeStep::Stage => self.staged = up,
            VolumeStep::Unstage => self.staged = down,
            VolumeStep::Publish(pod) => drop(self.published.insert(pod.clone(), up)),
            VolumeStep::Unpublish(pod) if down == Progress::None => drop(self.published.remove(pod)),
            VolumeStep::Unpublish(pod) => drop(self.published.insert(pod.clone(), down)),
        }
    }
}

#[cfg(test)]
mod tests;
