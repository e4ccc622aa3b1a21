//! The start of one attempt of a container: image, environment, mounts, user, spec, output and task.

use crate::{NodeExecutor, command::entry_of, pod_locks::Area, stop_signal};
use berth_core::{
    error::Chain,
    event::Event,
    ids::{Attempt, ContainerId, ContainerName, SandboxAttempt},
    model::{Container, MountPropagation, Pod, PullPolicy, RecursiveReadOnly, Seccomp},
    plan::{Exit, Failure, ObservedContainer, RunState},
    resources::{ContainerResources, oom_score_adj},
    status::ContainerUser,
    sync::lock,
};
use berth_logd::StreamSpec;
use berth_pods::{ActionResult, Change, Context, Process};
use berth_runtime::{
    ExitRecord, Image, Runtime, START_ERROR_EXIT_CODE, Stage, StartFailure, StartRequest, Stdio,
    spec::{self, HostFacts, MountSpec, NamespacePaths, PidNamespace, SpecInput, UserError, UserFiles},
};
use berth_sys::ns::NsKind;
use berth_volumes::{ContainerMount, PodHostname, env};
use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Instant};

/// How long a resolved image counts as present without another query.
const FRESH: std::time::Duration = std::time::Duration::from_secs(2);

/// The most resolved images in the cache.
const MOST_IMAGES: usize = 128;

fn config_error(message: impl Into<String>) -> Failure {
    Failure::new("CreateContainerConfigError", message)
}

/// The parts of a container that come from the node's files: environment, mounts, and events about them.
#[derive(Default)]
pub(crate) struct PreparedFiles {
    env: Vec<(String, String)>,
    mounts: Vec<MountSpec>,
    events: Vec<Event>,
}

/// The text of a user error. A violation of `runAsNonRoot` names the pod and the container in the kubelet's
/// words.
fn user_error(pod: &Pod, container: &Container, error: &UserError) -> String {
    let text = Chain(error).to_string();
    match error {
        UserError::RunAsUserIsRoot | UserError::ImageIsRoot | UserError::NonNumericUser(_) => format!(
            "{text} (pod: \"{}_{}({})\", container: {})",
            pod.key.name, pod.key.namespace, pod.uid, container.name
        ),
        _ => text,
    }
}

/// The OCI mount of a container's mount. `recursive` says whether the node can make mounts read-only together
/// with the mounts below them.
fn mount_spec(m: ContainerMount, recursive: bool) -> Result<MountSpec, Failure> {
    let recursive_read_only = match m.recursive_read_only {
        RecursiveReadOnly::Disabled => false,
        RecursiveReadOnly::IfPossible => recursive && m.read_only && m.propagation == MountPropagation::None,
        RecursiveReadOnly::Enabled if recursive => true,
        RecursiveReadOnly::Enabled => {
            return Err(config_error(format!(
                "mount {}: recursiveReadOnly is Enabled, which the kernel or the OCI runtime of this node cannot do",
                m.destination
            )));
        }
    };
    let sandbox = matches!(m.destination.as_str(), "/etc/resolv.conf" | "/etc/hostname" | "/dev/shm");
    let plain = if sandbox {
        MountSpec::sandbox(m.source, &m.destination)
    } else {
        MountSpec::pod(m.source, &m.destination)
    };
    Ok(MountSpec { read_only: m.read_only, recursive_read_only, propagation: m.propagation, ..plain })
}

impl NodeExecutor {
    pub(crate) async fn ensure_image(
        &self,
        pod: &Pod,
        container: &ContainerName,
    ) -> Result<ActionResult, Failure> {
        let spec = pod.container(container).ok_or_else(|| config_error("the pod has no such container"))?;
        self.claim(&pod.uid, None).await;
        let image = self.fresh_image(spec).await?;
        // The lease and the user files need no sandbox, so they are prepared before it is ready. A failure
        // here is only logged: the start tries again and reports the failure.
        let runtime = self.runtime()?;
        let (lease, users) = tokio::join!(runtime.ensure_lease(&pod.uid), self.users.of(&runtime, &image));
        if let (Err(e), _) | (Ok(()), Err(e)) =
            (lease.map_err(|e| Failure::new("FailedSync", Chain(&e))), users.map(drop))
        {
            tracing::debug!(pod = %pod.key, why = e.message, "nothing prepared for the start");
        }
        Ok(ActionResult::done(Vec::new()))
    }

    /// The image from the cache where it was resolved within [`FRESH`], else from containerd. The cache
    /// serves the start that follows `EnsureImage`, and other pods with the same image.
    async fn fresh_image(&self, spec: &Container) -> Result<Image, Failure> {
        let found = lock(&self.images)
            .get(&spec.image)
            .filter(|(at, _)| at.elapsed() < FRESH)
            .map(|(_, i)| i.clone());
        if let Some(image) = found {
            return Ok(image);
        }
        let image = self.image(spec).await?;
        let mut images = lock(&self.images);
        if images.len() >= MOST_IMAGES {
            images.clear();
        }
        images.insert(spec.image.clone(), (Instant::now(), image.clone()));
        Ok(image)
    }

    async fn image(&self, spec: &Container) -> Result<Image, Failure> {
        if let Some(fault) = berth_runtime::reference::fault(&spec.image) {
            return Err(Failure::new(
                "InvalidImageName",
                format!(
                    "Failed to apply default image tag {0:?}: couldn't parse image name {0:?}: {fault}",
                    spec.image
                ),
            ));
        }
        let found = self.runtime()?.resolve_image(&spec.image).await;
        match found.map_err(|e| Failure::new("ImageInspectError", Chain(&e)))? {
            Some(image) => Ok(image),
            None if spec.pull_policy == PullPolicy::Never => Err(Failure::new(
                "ErrImageNeverPull",
                format!("Container image {:?} is not present with pull policy of Never", spec.image),
            )),
            None => Err(Failure::new(
                "ErrImagePull",
                format!(
                    "image {:?} is not on this node, and this build does not pull from registries: import it with \
                     `berth image import FILE`",
                    spec.image
                ),
            )),
        }
    }

    pub(crate) async fn start(
        &self,
        context: Context,
        container: ContainerName,
        attempt: Attempt,
        sandbox_attempt: SandboxAttempt,
        id: ContainerId,
    ) -> Result<ActionResult, Failure> {
        self.claim(&context.pod.uid, Some(&id)).await;
        let waited = Instant::now();
        let _turn = self.starts.acquire().await;
        let waited = waited.elapsed();
        let begun = Instant::now();
        let pod = Arc::clone(&context.pod);
        let spec = pod.container(&container).ok_or_else(|| config_error("the pod has no such container"))?;
        let image = self.fresh_image(spec).await?;
        let runtime = self.runtime()?;
        let mut steps = vec![("turn", waited), ("image", begun.elapsed())];

        let stream = StreamSpec {
            id: id.clone(),
            uid: pod.uid.clone(),
            key: pod.key.clone(),
            container: container.clone(),
            attempt,
            tty: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
        };
        let clock = Instant::now();
        let (paths, prepared, users) = tokio::join!(
            self.logd.register(stream),
            self.prepare_files(context.clone(), container.clone(), attempt),
            self.users.of(&runtime, &image),
        );
        let (mut prepared, (passwd, group)) = (prepared?, users?);
        let paths =
            paths.map_err(|e| Failure::new("CreateContainerError", format!("output: {}", Chain(&e))))?;
        steps.push(("files+logd", clock.elapsed()));

        let clock = Instant::now();
        let volumes = spec::image_volumes(&image.config, &prepared.mounts);
        if !volumes.is_empty() {
            prepared.mounts.extend(self.image_volumes(&runtime, &pod, &id, &image, volumes).await?);
            steps.push(("image volumes", clock.elapsed()));
        }

        let clock = Instant::now();
        let files = UserFiles { passwd: passwd.as_deref(), group: group.as_deref() };
        let oci = self.spec(&pod, spec, &id, &image, &prepared, files)?;
        let user = user_of(&oci);
        let oci =
            serde_json::to_value(&oci).map_err(|e| Failure::new("CreateContainerError", e.to_string()))?;
        let extension = serde_json::to_value(pod.as_ref())
            .map_err(|e| Failure::new("CreateContainerError", e.to_string()))?;
        lock(&self.specs).insert(id.clone(), Arc::new(entry_of(&oci)));
        steps.push(("spec", clock.elapsed()));

        let image_id = image.image_id.clone();
        let wanted = image.config.stop_signal.as_deref();
        let stop = wanted.and_then(stop_signal::number);
        if let (Some(name), None) = (wanted, stop) {
            let text = format!(
                "image {:?} names the stop signal {name:?}, which is none: SIGTERM is sent",
                spec.image
            );
            prepared.events.push(Event::warning("InvalidStopSignal", text).of(&container));
        }
        let request = StartRequest {
            id: id.clone(),
            pod: pod.uid.clone(),
            key: pod.key.clone(),
            container: container.clone(),
            attempt,
            sandbox_attempt,
            image,
            spec: oci,
            extension: serde_json::json!({ "pod": extension, "stopSignal": stop, "user": user }),
            stdio: Stdio {
                stdout: paths.stdout,
                stderr: paths.stderr.unwrap_or_default(),
                stdin: paths.stdin,
                terminal: spec.tty,
            },
            shim_group: pod.uid.to_string(),
        };
        let seen = |state, task| {
            Box::new(ObservedContainer {
                container: container.clone(),
                attempt,
                sandbox_attempt,
                image_id: image_id.clone(),
                user: user.clone(),
                state,
                task,
            })
        };
        let started = match runtime.create_and_start(request).await {
            Ok(started) => started,
            Err(error) => {
                let message = error.message();
                return match error.failure {
                    StartFailure::Finished(exit) => {
                        let state = RunState::Recorded(exit_of(exit));
                        Ok(ActionResult::done(vec![Change::Container(id, seen(state, true), None)]))
                    }
                    StartFailure::CommandNotFound | StartFailure::NotExecutable | StartFailure::Refused
                        if matches!(error.stage, Stage::Create | Stage::Start) =>
                    {
                        // A command that cannot be run counts as a failed run, with back-off, and not as a
                        // failed action.
                        let exit = Exit {
                            code: START_ERROR_EXIT_CODE,
                            at: berth_sys::clock::wall(),
                            oom: false,
                            reason: Some("StartError".to_owned()),
                            message: Some(message),
                            started_at: None,
                        };
                        Ok(ActionResult::done(vec![Change::Container(
                            id,
                            seen(RunState::Ended(exit), false),
                            None,
                        )]))
                    }
                    StartFailure::Unknown => Err(Failure::new("RunContainerError", message)),
                    _ => Err(Failure::new("CreateContainerError", message)),
                };
            }
        };
        steps.extend(started.timings);
        let process = Process { pid: started.pid, start_time: started.start_time };
        let state = match started.exit {
            Some(exit) => RunState::Ended(exit_of(exit)),
            None => RunState::Running { started_at: started.started_at },
        };
        Ok(ActionResult {
            outcome: Ok(()),
            changes: vec![Change::Container(id, seen(state, true), Some(process))],
            steps,
            events: prepared.events,
        })
    }

    /// Prepares everything that touches files: the pod's own files, the mounts and the environment.
    async fn prepare_files(
        &self,
        context: Context,
        container: ContainerName,
        attempt: Attempt,
    ) -> Result<PreparedFiles, Failure> {
        let (volumes, facts) = (self.volumes.clone(), self.facts(&context));
        let (uid, recursive) = (context.pod.uid.clone(), self.config.recursive_read_only);
        let services = env::service_env(&context.pod, &self.config.services.get());
        self.pod_locks
            .blocking(&uid, Area::Files, move || {
                let pod = &context.pod;
                let spec =
                    pod.container(&container).ok_or_else(|| config_error("the pod has no such container"))?;
                let env = env::resolve(pod, spec, &facts, &context.objects, &services)
                    .map_err(|e| config_error(e.message()))?;
                let events = volumes.prepare_files(pod, &facts).map_err(|e| config_error(e.message()))?;
                let mut mounts =
                    volumes.container_mounts(pod, spec, &env).map_err(|e| config_error(e.message()))?;
                mounts.extend(
                    volumes.termination_mount(pod, spec, attempt).map_err(|e| config_error(e.message()))?,
                );
                let mounts =
                    mounts.into_iter().map(|m| mount_spec(m, recursive)).collect::<Result<_, _>>()?;
                Ok(PreparedFiles { env, mounts, events })
            })
            .await?
    }

    /// The mounts for the image's `VOLUME`s, whose directories are created and filled.
    async fn image_volumes(
        &self,
        runtime: &Runtime,
        pod: &Pod,
        id: &ContainerId,
        image: &Image,
        wanted: BTreeSet<String>,
    ) -> Result<Vec<MountSpec>, Failure> {
        let failed = |e: berth_runtime::Error| Failure::new("CreateContainerError", Chain(&e));
        let view = Arc::new(runtime.view_image(image).await.map_err(failed)?);
        let (volumes, uid, id) = (self.volumes.clone(), pod.uid.clone(), id.clone());
        let wanted: Vec<String> = wanted.into_iter().collect();
        let (root, destinations) = (Arc::clone(&view), wanted.clone());
        let made = self.pod_locks.blocking(&pod.uid, Area::Files, move || {
            volumes.image_volumes(&uid, &id, &destinations, || root.root().map_err(std::io::Error::other))
        });
        let made = made.await;
        runtime.release_view(&view).await.map_err(failed)?;
        let sources = made?.map_err(|e| Failure::new("CreateContainerError", e.message()))?;
        Ok(sources.into_iter().zip(wanted).map(|(source, at)| MountSpec::image_volume(source, &at)).collect())
    }

    pub(crate) fn spec(
        &self,
        pod: &Pod,
        container: &Container,
        id: &ContainerId,
        image: &Image,
        prepared: &PreparedFiles,
        files: UserFiles<'_>,
    ) -> Result<oci_spec::runtime::Spec, Failure> {
        let user = spec::resolve_user(pod, container, &image.config.user, files)
            .map_err(|e| config_error(user_error(pod, container, &e)))?;
        let dir = self.config.roots.sandbox_dir(&pod.uid);
        let pinned = |kind: NsKind| dir.join(kind.file_name());
        let n = &pod.namespaces;
        let namespaces = NamespacePaths {
            net: (!n.host_network).then(|| pinned(NsKind::Net)),
            ipc: (!n.host_ipc).then(|| pinned(NsKind::Ipc)),
            uts: (!n.host_network).then(|| pinned(NsKind::Uts)),
            pid: if n.host_pid {
                PidNamespace::Host
            } else if n.share_pid {
                PidNamespace::Shared(pinned(NsKind::Pid))
            } else {
                PidNamespace::Own
            },
        };
        let hostname = if n.host_network {
            // The host's own name, which may differ from the node's name.
            berth_volumes::host_name()
        } else {
            PodHostname::of(pod, self.config.cluster_domain.as_deref())
                .map_err(|e| config_error(e.message()))?
                .kernel
        };
        let expand =
            |words: &[String]| words.iter().map(|w| env::expand(w, &prepared.env)).collect::<Vec<_>>();
        let host = self.host_facts(container)?;
        let host = host.as_ref();
        let seccomp_file = self.seccomp_file(pod, container)?;
        let input = SpecInput {
            pod,
            container,
            id,
            image: &image.config,
            user: &user,
            env: &prepared.env,
            command: &expand(&container.command),
            args: &expand(&container.args),
            mounts: &prepared.mounts,
            namespaces: &namespaces,
            cgroups_path: &self.cgroups.container_cgroup(pod, id),
            resources: &ContainerResources::of(pod, container, host.cgroup_facts()),
            oom_score_adj: oom_score_adj(pod, container, host.memory_capacity),
            hostname: &hostname,
            seccomp_file: seccomp_file.as_deref(),
            host,
            shim_group: pod.uid.as_str(),
        };
        spec::build(&input).map_err(|e| Failure::new("CreateContainerError", Chain(&e)))
    }

    /// The host's facts. For a privileged container they hold the devices as they are now.
    fn host_facts(&self, container: &Container) -> Result<Cow<'_, HostFacts>, Failure> {
        let host = &self.config.host;
        if !container.security.privileged {
            return Ok(Cow::Borrowed(host));
        }
        let devices = HostFacts::devices("/dev".as_ref())
            .map_err(|e| Failure::new("CreateContainerError", Chain(&e)))?;
        Ok(Cow::Owned(HostFacts { devices, ..host.clone() }))
    }

    /// The text of the profile that `seccompProfile: Localhost` names. A missing profile fails the container.
    fn seccomp_file(&self, pod: &Pod, container: &Container) -> Result<Option<String>, Failure> {
        let wanted = container.security.seccomp.as_ref().or(pod.security.seccomp.as_ref());
        let Some(Seccomp::Localhost(name)) = wanted else { return Ok(None) };
        let path = self.config.roots.seccomp.join(name);
        berth_sys::fs::read_to_string_limited(&path, 4 << 20).map(Some).map_err(|e| {
            Failure::new("CreateContainerError", format!("seccomp profile {name:?}: {}", Chain(&e)))
        })
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
