//! The start of one attempt of a container: image, environment, mounts, user, spec, output and task.

mod files;
mod image;
mod spec;

use crate::{NodeExecutor, command::entry_of, stop::stream_of, stop_signal, stopwatch::Stopwatch};
use berth_core::{
    error::Chain,
    event::Event,
    ids::{Attempt, ContainerId, ContainerName, SandboxAttempt},
    model::{Container, Pod, Resources},
    plan::{Exit, Failure, ObservedContainer, RunState},
    status::ContainerUser,
    sync::lock,
    volume::with_volume_groups,
};
use berth_logd::{StreamPaths, StreamSpec};
use berth_pods::{ActionResult, Context, NodeProcess, ObservedChange};
use berth_runtime::{
    ExitRecord, Image, START_ERROR_EXIT_CODE, Stage, StartError, StartFailure, StartRequest, Stdio,
    spec::{UserFiles, image_volumes},
};
use files::PreparedFiles;
use std::sync::Arc;

fn config_error(message: impl Into<String>) -> Failure {
    Failure::new("CreateContainerConfigError", message)
}

/// The image is found before each start, so one that is missing now was removed in between. The next try finds or pulls
/// it again.
fn image_gone(spec: &Container) -> Failure {
    Failure::new("ImageInspectError", format!("image {:?} is not on this node any more", spec.image))
}

fn no_such_container() -> Failure {
    config_error("the pod has no such container")
}

/// The run that a start creates, with what its record holds from the beginning.
struct NewRun {
    container: ContainerName,
    attempt: Attempt,
    sandbox_attempt: SandboxAttempt,
    id: ContainerId,
    image_id: String,
    user: Option<ContainerUser>,
    resources: Resources,
}

impl NewRun {
    /// The change that shows the run in this state.
    fn change(self, state: RunState, task: bool, process: Option<NodeProcess>) -> ObservedChange {
        let NewRun { container, attempt, sandbox_attempt, id, image_id, user, resources } = self;
        let resources = Some(resources);
        let run =
            ObservedContainer { container, attempt, sandbox_attempt, image_id, user, resources, state, task };
        ObservedChange::Container(id, Box::new(run), process)
    }

    /// The result of a start that containerd did not carry out.
    fn not_started(self, error: StartError) -> Result<ActionResult, Failure> {
        let message = error.message();
        match error.failure {
            StartFailure::Finished(exit) => {
                let state = RunState::Recorded(exit_of(exit));
                Ok(ActionResult::done(vec![self.change(state, true, None)]))
            }
            StartFailure::CommandNotFound | StartFailure::NotExecutable | StartFailure::Refused
                if matches!(error.stage, Stage::Create | Stage::Start) =>
            {
                // A command that cannot be run counts as a failed run, with back-off, and not as a failed
                // action.
                let exit = Exit {
                    code: START_ERROR_EXIT_CODE,
                    at: berth_sys::clock::wall(),
                    oom: false,
                    reason: Some("StartError".to_owned()),
                    message: Some(message),
                    started_at: None,
                };
                Ok(ActionResult::done(vec![self.change(RunState::Ended(exit), false, None)]))
            }
            StartFailure::Unknown => Err(Failure::new("RunContainerError", message)),
            _ => Err(Failure::new("CreateContainerError", message)),
        }
    }
}

/// The output's FIFOs as the task takes them.
fn stdio(fifos: StreamPaths, terminal: bool) -> Stdio {
    let stderr = fifos.stderr.unwrap_or_default();
    Stdio { stdout: fifos.stdout, stderr, stdin: fifos.stdin, terminal }
}

/// The number of the image's stop signal. An image that names no signal's name adds an event.
fn image_stop_signal(
    image: &Image,
    spec: &Container,
    container: &ContainerName,
    events: &mut Vec<Event>,
) -> Option<i32> {
    let name = image.config.stop_signal.as_deref()?;
    let number = stop_signal::number(name);
    if number.is_none() {
        let text =
            format!("image {:?} names the stop signal {name:?}, which is none: SIGTERM is sent", spec.image);
        events.push(Event::warning("InvalidStopSignal", text).of(container));
    }
    number
}

impl NodeExecutor {
    pub(crate) async fn start(
        &self,
        context: Context,
        container: ContainerName,
        attempt: Attempt,
        sandbox_attempt: SandboxAttempt,
        id: ContainerId,
    ) -> Result<ActionResult, Failure> {
        self.claim(&context.pod.uid, Some(&id)).await;
        let mut steps = Stopwatch::start();
        let _slot = self.starts.acquire().await;
        steps.lap("slot");
        let pod = Arc::clone(&context.pod);
        let spec = pod.container(&container).ok_or_else(no_such_container)?;
        if let Some(why) = &spec.unsupported {
            return Err(config_error(format!("this node does not run the container: {why}")));
        }
        let image = self.fresh_image(spec).await?.ok_or_else(|| image_gone(spec))?;
        let runtime = self.runtime()?;
        steps.lap("image");

        let target = target_of(&pod, spec, context.target.as_ref())?;
        let with_groups = with_volume_groups(&pod, &context.objects);
        let (tty, stdin, stdin_once) = (spec.tty, spec.stdin, spec.stdin_once);
        let stream = StreamSpec { tty, stdin, stdin_once, ..stream_of(&pod, &container, &id, attempt) };
        let (fifos, prepared, users) = tokio::join!(
            self.logd.register(stream),
            self.prepare_files(context, container.clone(), attempt),
            self.users.of(&runtime, &image),
        );
        let (mut prepared, (passwd, group)) = (prepared?, users?);
        let fifos =
            fifos.map_err(|e| Failure::new("CreateContainerError", format!("output: {}", Chain(&e))))?;
        steps.lap("files+logd");

        let volumes = image_volumes(&image.config, &prepared.mounts);
        if !volumes.is_empty() {
            prepared.mounts.extend(self.image_volumes(&runtime, &pod, &id, &image, volumes).await?);
            steps.lap("image volumes");
        }

        let files = UserFiles { passwd: passwd.as_deref(), group: group.as_deref() };
        let oci = self.spec(&with_groups, spec, &id, &image, &prepared, files, target)?;
        let user = user_of(&oci);
        let encode = |e: serde_json::Error| Failure::new("CreateContainerError", e.to_string());
        let oci = serde_json::to_value(&oci).map_err(encode)?;
        let extension = serde_json::to_value(pod.as_ref()).map_err(encode)?;
        lock(&self.specs).insert(id.clone(), Arc::new(entry_of(&oci)));
        let stop = image_stop_signal(&image, spec, &container, &mut prepared.events);
        steps.lap("spec");

        let image_id = image.image_id.clone();
        let resources = spec.resources.clone();
        let run = NewRun { container, attempt, sandbox_attempt, id, image_id, user, resources };
        let request = StartRequest {
            id: run.id.clone(),
            pod: pod.uid.clone(),
            key: pod.key.clone(),
            container: run.container.clone(),
            attempt,
            sandbox_attempt,
            image,
            spec: oci,
            extension: serde_json::json!({
                "pod": extension, "stopSignal": stop, "user": run.user, "resources": run.resources,
            }),
            stdio: stdio(fifos, tty),
            shim_group: pod.uid.to_string(),
        };
        let started = match runtime.create_and_start(request).await {
            Ok(started) => started,
            Err(error) => return run.not_started(error),
        };
        let process = NodeProcess { pid: started.pid, start_time: started.start_time };
        let state = match started.exit {
            Some(exit) => RunState::Ended(exit_of(exit)),
            None => RunState::Running { started_at: started.started_at },
        };
        Ok(ActionResult {
            outcome: Ok(()),
            changes: vec![run.change(state, true, Some(process))],
            steps: steps.into_parts().into_iter().chain(started.timings).collect(),
            facts: Vec::new(),
            events: prepared.events,
        })
    }
}

/// The process whose PID namespace the container joins. A pod whose containers share one namespace, or the node's, has no
/// other for an ephemeral container either. Texts are the kubelet's and those of containerd's CRI plugin.
fn target_of(
    pod: &Pod,
    spec: &Container,
    newest: Option<&(ContainerId, Option<NodeProcess>)>,
) -> Result<Option<u32>, Failure> {
    let Some(name) = &spec.target else { return Ok(None) };
    if pod.namespaces.host_pid || pod.namespaces.share_pid {
        return Ok(None);
    }
    let Some((id, process)) = newest else {
        return Err(config_error(format!("unable to find target container {name}")));
    };
    let alive = |p: &NodeProcess| berth_sys::process::alive(p.pid, p.start_time).unwrap_or(false);
    match process.filter(alive) {
        Some(process) => Ok(Some(process.pid)),
        None => {
            let id = id.as_str();
            let text = format!(
                "invalid target container: container {id:?} is not running - in state CONTAINER_EXITED"
            );
            Err(Failure::new("CreateContainerError", text))
        }
    }
}

/// User and groups of the process that the spec names.
fn user_of(spec: &oci_spec::runtime::Spec) -> Option<ContainerUser> {
    let user = spec.process().as_ref()?.user();
    let groups = user.additional_gids().clone().unwrap_or_default();
    Some(ContainerUser { uid: user.uid(), gid: user.gid(), groups })
}

/// Converts an exit from the runtime's form to the plan's.
pub(crate) fn exit_of(e: ExitRecord) -> Exit {
    Exit {
        code: e.code,
        at: e.at,
        oom: e.oom,
        reason: e.reason,
        message: e.message,
        started_at: e.started_at,
    }
}

#[cfg(test)]
mod tests;
