//! Takes the ends of actions and the verdicts of probes into the memory.

use super::{
    Action, Failure, HookState, Memory, Readiness, Run, StopCause,
    backoff::after_failure,
    memory::{Resize, Retry, Stop},
};
use crate::{
    event::Event,
    ids::{ContainerId, ContainerName},
    image::go_duration,
    model::{Container, Pod, ProbeKind, RestartPolicy},
    resize,
    time::Now,
};
use std::time::Duration;

/// An event that the memory has to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// An action ended. [`super::Observed`] already shows its effect.
    Finished(Action, Result<(), Failure>),
    /// A start came as far as executing the container's command, and the command cannot be executed. The run
    /// has ended, as [`super::Observed`] shows.
    Unstartable {
        /// The start action.
        action: Action,
        /// The runtime's error, for the event and the container state.
        message: String,
    },
    /// The verdict of a probe changed.
    Probe {
        /// The run that was probed.
        id: ContainerId,
        /// Startup, liveness or readiness.
        kind: ProbeKind,
        /// Whether the probe now succeeds.
        success: bool,
    },
    /// A startup or readiness probe failed, whether or not its verdict changed.
    ProbeFailed {
        /// The run that was probed.
        id: ContainerId,
        /// The probe's message.
        message: String,
    },
    /// The pod's specification, ConfigMaps, Secrets or images changed. Actions that failed for want of them
    /// may be tried again at once.
    InputsChanged,
    /// An action in flight was dropped without an end, for example by a panic of its task.
    Dropped(Action),
    /// The pull of a container's image has begun, or waits for its turn.
    Pulling(ContainerName),
    /// Secrets that a pull needs and that are not there.
    PullSecretsMissing(Vec<String>),
    /// A container's image was pulled.
    Pulled {
        /// The container.
        container: ContainerName,
        /// How long the pull itself took.
        took: Duration,
        /// How long it took with the wait for its turn.
        waited: Duration,
        /// Bytes of the image.
        size: u64,
    },
}

/// Takes a fact into the memory, and returns the events that follow.
pub fn learn(pod: &Pod, memory: &mut Memory, fact: Fact, now: Now) -> Vec<Event> {
    let mut events = Vec::new();
    match fact {
        Fact::Finished(action, outcome) => {
            memory.in_flight.remove(&action);
            match outcome {
                Ok(()) => {
                    memory.retries.remove(&action);
                    succeeded(pod, memory, &action, now, &mut events);
                }
                Err(failure) => failed(pod, memory, action, failure, now, &mut events),
            }
        }
        Fact::Unstartable { action, message } => {
            memory.in_flight.remove(&action);
            memory.retries.remove(&action);
            if let (Some(container), Some(id)) = (action.container(), action.run()) {
                if let Some((_, run)) = run_of(memory, pod, id) {
                    run.started_at.get_or_insert(now.boottime);
                }
                events.extend(present(pod, memory, container));
                events.push(Event::normal("Created", "Container created").of(container));
                events.push(Event::warning("Failed", format!("Error: {message}")).of(container));
            }
        }
        Fact::Probe { id, kind, success } => probed(pod, memory, &id, kind, success, now, &mut events),
        Fact::ProbeFailed { id, message } => {
            if let Some((_, run)) = run_of(memory, pod, &id) {
                run.unready_because = Some(message);
            }
        }
        Fact::InputsChanged => memory.retries.retain(|a, _| {
            !matches!(a, Action::MountVolumes | Action::EnsureImage(_) | Action::Start { .. })
        }),
        Fact::Dropped(action) => {
            memory.in_flight.remove(&action);
        }
        Fact::Pulling(container) => {
            let text = format!("Pulling image {:?}", image_of(pod, &container));
            events.push(Event::normal("Pulling", text).of(&container));
        }
        Fact::PullSecretsMissing(names) => {
            let names = names.join(", ");
            let text = format!(
                "Unable to retrieve some image pull secrets ({names}); attempting to pull the image may not succeed."
            );
            events.push(Event::warning("FailedToRetrieveImagePullSecret", text));
        }
        Fact::Pulled { container, took, waited, size } => {
            memory.containers.entry(container.clone()).or_default().image_pulled = true;
            let text = format!(
                "Successfully pulled image {:?} in {} ({} including waiting). Image size: {size} bytes.",
                image_of(pod, &container),
                go_duration(took),
                go_duration(waited),
            );
            events.push(Event::normal("Pulled", text).of(&container));
        }
    }
    events
}

fn image_of<'p>(pod: &'p Pod, container: &ContainerName) -> &'p str {
    pod.container(container).map(|c| c.image.as_str()).unwrap_or_default()
}

fn run_of<'m>(
    memory: &'m mut Memory,
    pod: &'m Pod,
    id: &ContainerId,
) -> Option<(&'m Container, &'m mut Run)> {
    memory.containers.iter_mut().find_map(|(name, m)| {
        let run = m.run.as_mut().filter(|r| &r.id == id)?;
        Some((pod.container(name)?, run))
    })
}

/// The event that the container's image is present, emitted with the start, unless the image was pulled for it. Berth
/// checks the image while volumes and sandbox are made; the kubelet checks only after they are.
fn present(pod: &Pod, memory: &Memory, container: &ContainerName) -> Option<Event> {
    if memory.containers.get(container).is_some_and(|m| m.image_pulled) {
        return None;
    }
    let image = image_of(pod, container);
    let message =
        format!("Container image {image:?} already present on machine and can be accessed by the pod");
    Some(Event::normal("Pulled", message).of(container))
}

fn succeeded(pod: &Pod, memory: &mut Memory, action: &Action, now: Now, events: &mut Vec<Event>) {
    match action {
        Action::EnsureImage(container) => {
            memory.containers.entry(container.clone()).or_default().image_ready = true;
        }
        Action::Start { container, id, .. } => {
            if let Some((_, run)) = run_of(memory, pod, id) {
                run.started_at.get_or_insert(now.boottime);
            }
            events.extend(present(pod, memory, container));
            events.push(Event::normal("Created", "Container created").of(container));
            events.push(Event::normal("Started", "Container started").of(container));
        }
        Action::PostStart { id, .. } => {
            if let Some((_, run)) = run_of(memory, pod, id) {
                run.post_start = HookState::Done;
            }
        }
        Action::PreStop { id, .. } => end_pre_stop(pod, memory, id),
        Action::Signal { id, .. } => {
            if let Some(stop) = run_of(memory, pod, id).and_then(|(_, run)| run.stop.as_mut()) {
                stop.signal_sent = true;
            }
        }
        Action::ResizePod(resize) => memory.cgroup = Some(resize.0.allocation.clone()),
        Action::RemovePod => memory.removed = true,
        _ => {}
    }
}

fn end_pre_stop(pod: &Pod, memory: &mut Memory, id: &ContainerId) {
    if let Some(stop) = run_of(memory, pod, id).and_then(|(_, run)| run.stop.as_mut()) {
        stop.pre_stop = HookState::Done;
    }
}

fn stop(run: &mut Run, cause: StopCause, grace: u32, now: Now) {
    run.stop.get_or_insert(Stop {
        cause,
        since: now.boottime,
        grace,
        pre_stop: HookState::NotYet,
        signalled: None,
        signal_sent: false,
        killed: None,
    });
}

fn failed(
    pod: &Pod,
    memory: &mut Memory,
    action: Action,
    failure: Failure,
    now: Now,
    events: &mut Vec<Event>,
) {
    match &action {
        // A failed hook is not tried again.
        Action::PostStart { id, container } => {
            let message = format!("PostStartHook failed: {}", failure.message);
            events.push(Event::warning("FailedPostStartHook", message).of(container));
            if let Some((_, run)) = run_of(memory, pod, id) {
                run.post_start = HookState::Done;
                run.readiness = Readiness::No;
                events.push(Event::normal("Killing", "FailedPostStartHook").of(container));
                stop(run, StopCause::PostStart, pod.grace_seconds, now);
            }
            return;
        }
        Action::PreStop { id, container } => {
            let message = format!("PreStopHook failed: {}", failure.message);
            events.push(Event::warning("FailedPreStopHook", message).of(container));
            end_pre_stop(pod, memory, id);
            return;
        }
        Action::Signal { id, .. } => {
            // The signal was not sent. The next decision sends it again.
            if let Some(stop) = run_of(memory, pod, id).and_then(|(_, r)| r.stop.as_mut()) {
                stop.signalled = None;
            }
        }
        Action::Kill { id, .. } => {
            if let Some(stop) = run_of(memory, pod, id).and_then(|(_, r)| r.stop.as_mut()) {
                stop.killed = None;
            }
        }
        Action::ResizePod(_) => {
            let (generation, since) = (pod.generation, now.wall);
            let resize = memory.resize.get_or_insert(Resize { generation, error: None, since });
            if resize.error.as_ref() != Some(&failure.message) {
                if resize.error.replace(failure.message.clone()).is_none() {
                    resize.since = since;
                }
                events.push(resize::failed(pod, resize.generation, &failure.message));
            }
        }
        // The image was removed since it was found.
        Action::Start { container, .. } if failure.reason == "ImageInspectError" => {
            if let Some(container) = memory.containers.get_mut(container) {
                (container.image_ready, container.image_pulled) = (false, false);
            }
        }
        _ => {}
    }
    let failures = memory.retries.get(&action).map_or(1, |r| r.failures.saturating_add(1));
    push_failure_events(pod, memory, &action, &failure, events);
    let not_before = now.boottime + after_failure(&action, failures);
    memory.retries.insert(action, Retry { failures, not_before, failure, backing_off: false });
}

/// Adds the events of a failed action, as the kubelet emits them, at each try. An image failure has two
/// events: the image's error, and the container that cannot start for it
/// (`pkg/kubelet/images/image_manager.go`). Every other failure has one.
fn push_failure_events(
    pod: &Pod,
    memory: &Memory,
    action: &Action,
    failure: &Failure,
    events: &mut Vec<Event>,
) {
    let (reason, message) = (failure.reason.as_str(), failure.message.as_str());
    match action {
        Action::EnsureImage(container) => {
            let image = image_of(pod, container);
            events.push(
                match reason {
                    "ErrImageNeverPull" => Event::warning(reason, message),
                    "ErrImagePull" => {
                        Event::warning("Failed", format!("Failed to pull image {image:?}: {message}"))
                    }
                    "InvalidImageName" => Event::warning("InspectFailed", message),
                    "ImageInspectError" => Event::warning(
                        "InspectFailed",
                        format!("Failed to inspect image {image:?}: {message}"),
                    ),
                    other => Event::warning("Failed", format!("{other}: {message}")),
                }
                .of(container),
            );
            events.push(Event::warning("Failed", format!("Error: {reason}")).of(container));
        }
        Action::Start { container, .. } => {
            events.extend(present(pod, memory, container));
            events.push(Event::warning("Failed", format!("Error: {message}")).of(container));
        }
        // Told where the failure is new.
        Action::ResizePod(_) => {}
        Action::MakeSandbox(_) if reason == "FailedCreatePodSandBox" => {
            events.push(Event::warning(reason, format!("Failed to create pod sandbox: {message}")));
        }
        _ => {
            let event = Event::warning(reason, message);
            events.push(match action.container() {
                Some(c) => event.of(c),
                None => event,
            });
        }
    }
}

/// The kubelet's message when it kills a container for a failed probe (`pkg/kubelet/kuberuntime`). For the
/// only main container of a pod with restart policy Never, the kubelet uses the message of the pod's end.
fn killing_message(pod: &Pod, spec: &Container, cause: StopCause) -> String {
    let (name, word) = (&spec.name, if cause == StopCause::Startup { "startup" } else { "liveness" });
    if spec.sidecar {
        format!("Init container {name} failed {word} probe")
    } else if pod.restart_policy != RestartPolicy::Never {
        format!("Container {name} failed {word} probe, will be restarted")
    } else if pod.containers.len() > 1 {
        format!("Container {name} failed {word} probe")
    } else {
        format!("Stopping container {name}")
    }
}

fn probed(
    pod: &Pod,
    memory: &mut Memory,
    id: &ContainerId,
    kind: ProbeKind,
    success: bool,
    now: Now,
    events: &mut Vec<Event>,
) {
    let Some((spec, run)) = run_of(memory, pod, id) else { return };
    if success {
        run.unready_because = None;
    }
    let (probe, cause) = match kind {
        ProbeKind::Readiness => {
            run.readiness = if success { Readiness::Yes } else { Readiness::No };
            return;
        }
        ProbeKind::Startup if success => {
            run.startup_done = true;
            if spec.readiness.is_none() {
                run.readiness = Readiness::Yes;
            }
            return;
        }
        ProbeKind::Liveness if success => return,
        ProbeKind::Startup => (&spec.startup, StopCause::Startup),
        ProbeKind::Liveness => (&spec.liveness, StopCause::Liveness),
    };
    if run.stop.is_none() && run.ended_at.is_none() {
        let message = killing_message(pod, spec, cause);
        events.push(Event::normal("Killing", message).of(&spec.name));
        let grace = probe.as_ref().and_then(|p| p.grace_seconds).unwrap_or(pod.grace_seconds);
        stop(run, cause, grace, now);
    }
}
