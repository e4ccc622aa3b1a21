//! Starting a container: lease, shim, record and snapshot side by side, task, start.
//!
//! The order makes every crash harmless: the container's record comes before its task, so whatever is half made is
//! found by listing records; and each step met again is adopted. A container whose exit is stored never runs again.

use crate::{
    NODE_SANDBOX, Runtime,
    client::{RECORD, WORK, call},
    error::{Error, Kind, absent, present},
    image::Image,
    lease, process,
    record::{self, ExitRecord, Mark},
    shims::Home,
    wire::{self, RuncOptions},
};
use berth_core::{
    ids::{Attempt, ContainerId, ContainerName, Incarnation, PodKey, PodUid},
    time::Wall,
};
use berth_sys::clock;
use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, GetContainerRequest,
        GetRequest, StartRequest as StartTaskRequest, container,
        snapshots::{MountsRequest, PrepareSnapshotRequest},
    },
    types::{
        Mount,
        v1::{Process, Status},
    },
};
use std::{
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

/// The exit code of a container that never started, as Kubernetes shows it (reason `StartError`).
pub const START_ERROR_EXIT_CODE: i32 = 128;

/// Where a container's output goes and its input comes from: FIFOs whose other ends are held before it is started.
/// Without a terminal, `stdout` and `stderr` are both set or both empty; with one there is no `stderr`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stdio {
    /// Standard output, and everything of a terminal.
    pub stdout: PathBuf,
    /// Standard error; unused with a terminal.
    pub stderr: PathBuf,
    /// Standard input; `None` is an empty one.
    pub stdin: Option<PathBuf>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

/// One attempt of one container, ready to be started.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// Its id, a function of what it is.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodUid,
    /// Its pod's names.
    pub key: PodKey,
    /// Its name in the pod.
    pub container: ContainerName,
    /// Which run of it.
    pub attempt: Attempt,
    /// In which sandbox of the pod.
    pub incarnation: Incarnation,
    /// Its image.
    pub image: Image,
    /// Its OCI spec.
    pub spec: serde_json::Value,
    /// What the agent wants back at adoption.
    pub extension: serde_json::Value,
    /// Its output and input.
    pub stdio: Stdio,
    /// Containers of one group share a shim; also the spec's annotation `io.containerd.runc.v2.group`.
    pub shim_group: String,
}

/// A started container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Its first process, in the host's PID namespace.
    pub pid: u32,
    /// That process's start time in clock ticks since the boot; 0 where it was gone before it could be read.
    pub start_time: u64,
    /// When it started.
    pub started_at: Wall,
    /// How long each step took. Steps that ran side by side are timed each on its own.
    pub timings: Vec<(&'static str, Duration)>,
    /// It was found started, by an earlier call.
    pub adopted: bool,
    /// It was found started and has ended meanwhile: no event may come for it any more.
    pub exit: Option<ExitRecord>,
}

/// A step of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The pod's lease.
    Lease,
    /// The container's record.
    Record,
    /// The container's file system.
    Snapshot,
    /// The task: everything up to the container's first instruction. A command that cannot be run fails here.
    Create,
    /// Letting it run.
    Start,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Lease => "lease",
            Stage::Record => "record",
            Stage::Snapshot => "snapshot",
            Stage::Create => "create",
            Stage::Start => "start",
        })
    }
}

/// How a failed start is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFailure {
    /// Nothing is known: try the same request again.
    Unknown,
    /// The command is not in the image.
    CommandNotFound,
    /// The command may not be executed.
    NotExecutable,
    /// This attempt has run already and ended so.
    Finished(ExitRecord),
    /// Anything else that containerd or runc refused.
    Refused,
}

/// A container that could not be started. What was made of it stays on record until it is removed; the same request
/// may be made again.
#[derive(Debug, thiserror::Error)]
#[error("cannot start container {id} at step {stage}")]
pub struct StartError {
    /// The container.
    pub id: ContainerId,
    /// The step that failed.
    pub stage: Stage,
    /// How to take it.
    pub failure: StartFailure,
    /// The call that failed; absent where none did.
    #[source]
    pub source: Option<Box<Error>>,
}

impl StartError {
    /// Whether the same request may succeed when made again, with nothing changed.
    pub fn is_unknown(&self) -> bool {
        self.failure == StartFailure::Unknown
    }

    /// What people are to read: the runtime's own words, introduced as containerd's CRI plugin does, since tools and
    /// people look for that.
    pub fn message(&self) -> String {
        match (self.stage, self.source.as_deref()) {
            (Stage::Create, Some(Error::Call { source, .. })) => {
                format!("failed to create containerd task: {}", source.message())
            }
            (Stage::Start, Some(Error::Call { source, .. })) => {
                format!("failed to start containerd task {:?}: {}", self.id.as_str(), source.message())
            }
            (_, Some(error)) => error.chain(),
            (_, None) => self.to_string(),
        }
    }

    fn new(id: &ContainerId, stage: Stage, error: Error) -> StartError {
        let failure = if error.is_unknown() { StartFailure::Unknown } else { refusal(&error.chain()) };
        StartError { id: id.clone(), stage, failure, source: Some(Box::new(error)) }
    }
}

/// What runc's words say of the command. It has no codes for it.
fn refusal(text: &str) -> StartFailure {
    let of_command = text.contains("exec: ") || text.contains("exec /");
    if text.contains("executable file not found") {
        return StartFailure::CommandNotFound;
    }
    if of_command && text.contains("no such file or directory") {
        return StartFailure::CommandNotFound;
    }
    if of_command && (text.contains("permission denied") || text.contains("is a directory")) {
        return StartFailure::NotExecutable;
    }
    if of_command && text.contains("exec format error") {
        return StartFailure::NotExecutable;
    }
    StartFailure::Refused
}

/// The container is there already.
enum Met {
    /// Its task too.
    Task(Box<Process>),
    /// It ended.
    Finished(Box<ExitRecord>),
    /// Nothing more of it: begin anew.
    Nothing,
}

/// Times steps.
#[derive(Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    async fn time<T>(&mut self, name: &'static str, step: impl Future<Output = T>) -> T {
        let (value, took) = timed(step).await;
        self.0.push((name, took));
        value
    }
}

async fn timed<T>(step: impl Future<Output = T>) -> (T, Duration) {
    let from = Instant::now();
    let value = step.await;
    (value, from.elapsed())
}

impl Runtime {
    /// Starts a container, or adopts what an earlier call made of it.
    pub async fn create_and_start(&self, request: StartRequest) -> Result<Started, StartError> {
        let mut steps = Steps::default();
        let outcome = Box::pin(self.start_with(&request, &mut steps)).await;
        if let Some(shims) = self.own_shims() {
            shims.refill();
        }
        match &outcome {
            Ok(started) => {
                tracing::info!(pod = %request.key, container = %request.container, id = request.id.short(),
                attempt = %request.attempt, pid = started.pid, adopted = started.adopted, "container started")
            }
            Err(e) => {
                tracing::warn!(pod = %request.key, container = %request.container, id = request.id.short(),
                attempt = %request.attempt, stage = %e.stage, error = e.message(), "container not started")
            }
        }
        outcome
    }

    async fn start_with(&self, request: &StartRequest, steps: &mut Steps) -> Result<Started, StartError> {
        let failed = |stage| move |e| StartError::new(&request.id, stage, e);
        steps.time("lease", self.ensure_lease(&request.pod)).await.map_err(failed(Stage::Lease))?;
        let home = steps.time("shim", self.home(request)).await;
        match self.start_at(request, home.as_ref(), steps).await {
            Ok(started) => Ok(started),
            Err(error) => {
                let Some(home) = home else { return Err(error) };
                let Some(shims) = self.known_shims() else { return Err(error) };
                if matches!(error.failure, StartFailure::Finished(_)) {
                    shims.release(&request.id);
                    return Err(error);
                }
                if !matches!(error.stage, Stage::Create | Stage::Start) {
                    return Err(error);
                }
                let dead = shims.distrust(&home.address).await;
                if !dead {
                    // After an unknown outcome the task may be there, on this shim.
                    if !error.is_unknown() {
                        shims.release(&request.id);
                    }
                    return Err(error);
                }
                tracing::warn!(pod = %request.key, container = %request.container, "shim is gone, taking another");
                let home = steps.time("second shim", self.home(request)).await;
                self.start_at(request, home.as_ref(), steps).await
            }
        }
    }

    /// The shim of ours that the container goes to; `None` where containerd shall see to it.
    async fn home(&self, request: &StartRequest) -> Option<Home> {
        let shims = self.own_shims()?;
        match shims.take(&request.shim_group, &request.id).await {
            Ok(home) => Some(home),
            Err(e) => {
                tracing::warn!(pod = %request.key, error = e.chain(), "no shim of our own, containerd starts one");
                None
            }
        }
    }

    async fn start_at(
        &self,
        request: &StartRequest,
        home: Option<&Home>,
        steps: &mut Steps,
    ) -> Result<Started, StartError> {
        let failed = |stage| move |e| StartError::new(&request.id, stage, e);
        let ((recorded, record_took), (prepared, snapshot_took)) =
            tokio::join!(timed(self.make_record(request, home)), timed(self.prepare(request)));
        steps.0.push(("record", record_took));
        steps.0.push(("snapshot", snapshot_took));
        match recorded.map_err(failed(Stage::Record))? {
            None | Some(Met::Nothing) => {}
            Some(Met::Finished(exit)) => {
                let failure = StartFailure::Finished(*exit);
                return Err(StartError {
                    id: request.id.clone(),
                    stage: Stage::Record,
                    failure,
                    source: None,
                });
            }
            Some(Met::Task(process)) => return self.adopt_task(request, &process, steps).await,
        }
        let mounts = prepared.map_err(failed(Stage::Snapshot))?;
        let created = steps.time("create", self.create_task(request, home, mounts)).await;
        if present(created).map_err(failed(Stage::Create))?.is_none() {
            let task = self.task(&request.id).await.map_err(failed(Stage::Create))?;
            if let Some(process) = task {
                return self.adopt_task(request, &process, steps).await;
            }
        }
        self.start_task(request, steps, false).await
    }

    /// Goes on from a task that is there.
    async fn adopt_task(
        &self,
        request: &StartRequest,
        process: &Process,
        steps: &mut Steps,
    ) -> Result<Started, StartError> {
        let status = Status::try_from(process.status).unwrap_or(Status::Unknown);
        if status == Status::Created && !self.runs_unnoticed(process.pid) {
            return self.start_task(request, steps, true).await;
        }
        let exit = (status == Status::Stopped).then(|| ExitRecord {
            code: wire::exit_code(process.exit_status),
            at: wire::wall(process.exited_at.as_ref()).unwrap_or_else(clock::wall),
            oom: false,
            reason: None,
            message: None,
            started_at: None,
        });
        Ok(started(process.pid, steps, true, exit))
    }

    async fn start_task(
        &self,
        request: &StartRequest,
        steps: &mut Steps,
        adopted: bool,
    ) -> Result<Started, StartError> {
        let client = self.client();
        let message = StartTaskRequest { container_id: request.id.to_string(), exec_id: String::new() };
        let mut service = client.tasks();
        let reply = steps
            .time(
                "start",
                call("start task", &request.id, WORK, service.start(client.request(message, WORK))),
            )
            .await;
        match reply {
            Ok(reply) => Ok(started(reply.pid, steps, adopted, None)),
            Err(e) => {
                let error = StartError::new(&request.id, Stage::Start, e);
                if !error.is_unknown()
                    && let Err(left) = self.delete_task(&request.id).await
                {
                    // The remover of the record meets it again.
                    tracing::warn!(
                        container = request.id.short(),
                        error = left.chain(),
                        "task of failed start left"
                    );
                }
                Err(error)
            }
        }
    }

    /// Writes the container's record and, where allowed, the sandbox record that keeps its exit. `Some`: there was
    /// one already.
    async fn make_record(&self, request: &StartRequest, home: Option<&Home>) -> Result<Option<Met>, Error> {
        let container = self.container(request, home)?;
        let met = match present(self.create_container(container.clone()).await)? {
            Some(()) => None,
            None => Some(self.meet(&request.id).await?),
        };
        if let Some(Met::Nothing) = met {
            // Its shim and spec may be of another day; nothing runs by it yet.
            self.delete_container(&request.id).await?;
            self.create_container(container).await?;
        }
        if self.records_allowed() && !matches!(met, Some(Met::Finished(_))) {
            self.sandbox_record(request.id.as_str()).await?;
        }
        Ok(met)
    }

    async fn create_container(&self, container: Container) -> Result<(), Error> {
        let client = self.client();
        let id = container.id.clone();
        let message = CreateContainerRequest { container: Some(container) };
        let mut service = client.containers();
        call("make container", id, RECORD, service.create(client.request(message, RECORD))).await?;
        Ok(())
    }

    /// Deletes a container's record; done where there is none.
    pub(crate) async fn delete_container(&self, id: &ContainerId) -> Result<(), Error> {
        let client = self.client();
        let message = DeleteContainerRequest { id: id.to_string() };
        let mut service = client.containers();
        absent(call("delete container", id, RECORD, service.delete(client.request(message, RECORD))).await)?;
        Ok(())
    }

    /// The container's record.
    pub(crate) async fn get_container(&self, id: &ContainerId) -> Result<Option<Container>, Error> {
        let client = self.client();
        let message = GetContainerRequest { id: id.to_string() };
        let mut service = client.containers();
        let found = absent(
            call("look up container", id, RECORD, service.get(client.request(message, RECORD))).await,
        )?;
        Ok(found.and_then(|r| r.container))
    }

    /// The state of the container's task; `None` where it has none.
    pub(crate) async fn task(&self, id: &ContainerId) -> Result<Option<Box<Process>>, Error> {
        let client = self.client();
        let message = GetRequest { container_id: id.to_string(), exec_id: String::new() };
        let mut service = client.tasks();
        let deadline = crate::client::QUERY;
        let found =
            absent(call("look up task", id, deadline, service.get(client.request(message, deadline))).await)?;
        Ok(found.and_then(|r| r.process).map(Box::new))
    }

    async fn meet(&self, id: &ContainerId) -> Result<Met, Error> {
        let Some(container) = self.get_container(id).await? else { return Ok(Met::Nothing) };
        let exit = record::read(&container.id, &container.extensions)?.and_then(|found| found.exit);
        if let Some(exit) = exit {
            return Ok(Met::Finished(Box::new(exit)));
        }
        Ok(self.task(id).await?.map_or(Met::Nothing, Met::Task))
    }

    fn container(&self, request: &StartRequest, home: Option<&Home>) -> Result<Container, Error> {
        let mark = Mark {
            pod: request.pod.clone(),
            key: request.key.clone(),
            container: request.container.clone(),
            attempt: request.attempt,
            incarnation: request.incarnation,
            boot: self.config().boot.clone(),
            image_id: request.image.image_id.clone(),
            extension: request.extension.clone(),
        };
        let spec = wire::json_any(wire::SPEC_TYPE, &request.spec).map_err(|source| Error::Encode {
            what: "spec",
            subject: request.id.to_string(),
            source,
        })?;
        Ok(Container {
            id: request.id.to_string(),
            labels: record::labels(&mark),
            image: request.image.name.clone(),
            runtime: Some(container::Runtime {
                name: self.roots().containerd_runtime.clone(),
                options: Some(self.runc_options(None).to_any()),
            }),
            spec: Some(spec),
            snapshotter: self.roots().snapshotter.clone(),
            snapshot_key: request.id.to_string(),
            extensions: record::extensions(&request.id, &mark, home)?,
            sandbox: home.map(|_| NODE_SANDBOX.to_owned()).unwrap_or_default(),
            ..Container::default()
        })
    }

    fn runc_options(&self, home: Option<&Home>) -> RuncOptions {
        let text =
            |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        RuncOptions {
            binary_name: text(&self.config().runc_binary),
            root: text(&self.config().runc_root),
            systemd_cgroup: false,
            task_api_address: home.map(|h| h.address.clone()).unwrap_or_default(),
            task_api_version: home.map(|_| wire::TASK_API_VERSION).unwrap_or_default(),
        }
    }

    /// Makes the container's file system on its image, or finds it.
    async fn prepare(&self, request: &StartRequest) -> Result<Vec<Mount>, Error> {
        let lease = lease::name(&request.pod);
        match self.prepare_once(request, &lease).await {
            Err(e) if e.kind() == Kind::NotFound => {
                self.unpack(&request.image, &lease).await?;
                self.prepare_once(request, &lease).await
            }
            other => other,
        }
    }

    async fn prepare_once(&self, request: &StartRequest, lease: &str) -> Result<Vec<Mount>, Error> {
        let client = self.client();
        let message = PrepareSnapshotRequest {
            snapshotter: self.roots().snapshotter.clone(),
            key: request.id.to_string(),
            parent: request.image.chain_id.clone(),
            ..PrepareSnapshotRequest::default()
        };
        let mut service = client.snapshots();
        let prepared = call(
            "prepare snapshot",
            &request.id,
            RECORD,
            service.prepare(client.leased(message, RECORD, lease)),
        )
        .await;
        if let Some(reply) = present(prepared)? {
            return Ok(reply.mounts);
        }
        let message =
            MountsRequest { snapshotter: self.roots().snapshotter.clone(), key: request.id.to_string() };
        let mut service = client.snapshots();
        let reply =
            call("look up snapshot", &request.id, RECORD, service.mounts(client.request(message, RECORD)))
                .await?;
        Ok(reply.mounts)
    }

    async fn create_task(
        &self,
        request: &StartRequest,
        home: Option<&Home>,
        rootfs: Vec<Mount>,
    ) -> Result<(), Error> {
        let client = self.client();
        let stdio = &request.stdio;
        let message = CreateTaskRequest {
            container_id: request.id.to_string(),
            rootfs,
            stdin: stdio.stdin.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
            stdout: stdio.stdout.display().to_string(),
            stderr: if stdio.terminal { String::new() } else { stdio.stderr.display().to_string() },
            terminal: stdio.terminal,
            options: Some(self.runc_options(home).to_any()),
            ..CreateTaskRequest::default()
        };
        let mut service = client.tasks();
        call("create task", &request.id, WORK, service.create(client.request(message, WORK))).await?;
        Ok(())
    }
}

fn started(pid: u32, steps: &mut Steps, adopted: bool, exit: Option<ExitRecord>) -> Started {
    let start_time = if exit.is_some() { 0 } else { process::started(pid) };
    let started_at = if start_time == 0 { clock::wall() } else { process::wall_of(start_time) };
    Started { pid, start_time, started_at, timings: std::mem::take(&mut steps.0), adopted, exit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runcs_words_about_the_command_are_understood() {
        for (text, failure) in [
            (
                "runc create failed: unable to start container process: error during container init: exec: \
                 \"nope\": executable file not found in $PATH",
                StartFailure::CommandNotFound,
            ),
            (
                "error during container init: exec: \"/bin/nope\": stat /bin/nope: no such file or directory",
                StartFailure::CommandNotFound,
            ),
            (
                "error during container init: exec: \"/etc/passwd\": permission denied",
                StartFailure::NotExecutable,
            ),
            ("exec /x: exec format error", StartFailure::NotExecutable),
            ("mount /x: no such file or directory", StartFailure::Refused),
            ("", StartFailure::Refused),
        ] {
            assert_eq!(refusal(text), failure, "{text}");
        }
    }
}
