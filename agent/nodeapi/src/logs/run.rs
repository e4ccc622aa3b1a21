//! Which run of a container a request for logs means, by the pod's status (the kubelet's `validateContainerLogStatus`).
//! Pure.

use crate::LogRun;
use berth_core::{
    ids::ContainerId,
    model::Pod,
    status::{ContainerState, ContainerStatus, PodStatus},
};

/// The run, or the text of the 400.
pub(crate) fn run(pod: &Pod, status: &PodStatus, container: &str, previous: bool) -> Result<LogRun, String> {
    let Some(found) = status.all_containers().find(|status| status.name.as_str() == container) else {
        return Err(format!("container {container:?} in pod {:?} is not available", pod.key.name.as_str()));
    };
    let (id, restarts_before) = id(found, previous).map_err(|why| {
        let (before, after) = why;
        format!("{before} {container:?} in pod {:?} {after}", pod.key.name.as_str())
    })?;
    Ok(LogRun {
        key: pod.key.clone(),
        pod: pod.uid.clone(),
        container: found.name.clone(),
        id: id.clone(),
        attempt_by_status: found.restart_count.saturating_sub(restarts_before),
    })
}

/// The id of the run, and how many restarts ago it was; else the words around the names of container and pod.
fn id(status: &ContainerStatus, previous: bool) -> Result<(&ContainerId, u32), (&'static str, String)> {
    let last = status.last_state.as_ref().and_then(|ended| ended.id.as_ref());
    let terminated = || ("container", "is terminated".to_owned());
    if previous {
        let waits = matches!(status.state, ContainerState::Waiting { .. });
        let id = last.ok_or_else(|| ("previous terminated container", "not found".to_owned()))?;
        return Ok((id, u32::from(!waits)));
    }
    match &status.state {
        ContainerState::Running { .. } => status.id.as_ref().map(|id| (id, 0)).ok_or_else(terminated),
        ContainerState::Terminated(ended) => {
            let of_last = last.map(|id| (id, 1));
            ended.id.as_ref().map(|id| (id, 0)).or(of_last).ok_or_else(terminated)
        }
        ContainerState::Waiting { .. } if status.last_state.is_some() => {
            last.map(|id| (id, 0)).ok_or_else(terminated)
        }
        ContainerState::Waiting { reason, .. } => {
            let reason = match reason.as_str() {
                "ErrImagePull" => "image can't be pulled",
                "ImagePullBackOff" => "trying and failing to pull image",
                other => other,
            };
            Err(("container", format!("is waiting to start: {reason}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::{
        status::{Terminated, Truth},
        time::Wall,
    };

    /// An id that is easy to tell apart.
    fn hash(letter: &str) -> ContainerId {
        letter.repeat(64).parse().unwrap()
    }

    fn ended(id: Option<&str>) -> Terminated {
        Terminated {
            exit_code: 1,
            reason: "Error".into(),
            message: None,
            started_at: None,
            finished_at: None,
            id: id.map(hash),
        }
    }

    fn told(state: ContainerState, last_state: Option<Terminated>, previous: bool) -> String {
        let status = ContainerStatus {
            name: "c".parse().unwrap(),
            image: "i".into(),
            image_id: String::new(),
            id: Some(hash("a")),
            ready: Truth::False,
            started: None,
            restart_count: 3,
            state,
            last_state,
            user: None,
            resources: None,
        };
        match id(&status, previous) {
            Ok((id, before)) => format!("{}-{before}", &id.to_string()[..1]),
            Err((before, after)) => format!("{before} C {after}"),
        }
    }

    #[test]
    fn the_run_is_the_one_that_the_kubelet_chooses() {
        let running = || ContainerState::Running { started_at: Wall(0) };
        let waiting = |reason: &str| ContainerState::Waiting { reason: reason.into(), message: None };
        assert_eq!(told(running(), None, false), "a-0");
        assert_eq!(told(running(), Some(ended(Some("b"))), true), "b-1");
        assert_eq!(told(running(), None, true), "previous terminated container C not found");
        assert_eq!(told(running(), Some(ended(None)), true), "previous terminated container C not found");
        assert_eq!(told(ContainerState::Terminated(ended(Some("c"))), None, false), "c-0");
        let lost = || ContainerState::Terminated(ended(None));
        assert_eq!(told(lost(), Some(ended(Some("b"))), false), "b-1");
        assert_eq!(told(lost(), None, false), "container C is terminated");
        assert_eq!(told(waiting("CrashLoopBackOff"), Some(ended(Some("b"))), false), "b-0");
        assert_eq!(told(waiting("CrashLoopBackOff"), Some(ended(None)), false), "container C is terminated");
        assert_eq!(told(waiting("CrashLoopBackOff"), Some(ended(Some("b"))), true), "b-0");
        assert_eq!(
            told(waiting("ContainerCreating"), None, false),
            "container C is waiting to start: ContainerCreating"
        );
        assert_eq!(
            told(waiting("ErrImagePull"), None, false),
            "container C is waiting to start: image can't be pulled"
        );
        assert_eq!(
            told(waiting("ImagePullBackOff"), None, false),
            "container C is waiting to start: trying and failing to pull image"
        );
    }
}
