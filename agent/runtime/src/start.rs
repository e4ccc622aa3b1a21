//! Start of a container: lease, shim, record and snapshot in parallel, then the task, then its start.
//!
//! The order makes every crash harmless. The container's record exists before its task, so a list of records
//! finds every partial container, and a repeated start adopts each step that was already done. A container
//! with a stored exit never runs again.

mod failure;
mod record;
mod request;
mod task;

pub use failure::{START_ERROR_EXIT_CODE, Stage, StartError, StartFailure};
pub use request::{StartRequest, Started, Stdio};

use crate::{
    Runtime,
    client::{WORK, call},
    error::{Error, present},
    process,
    record::ExitRecord,
    shims::ShimAssignment,
    wire,
};
use berth_core::error::Chain;
use berth_sys::clock;
use containerd_client::{
    services::v1::StartRequest as StartTaskRequest,
    types::{
        Mount,
        v1::{Process, Status},
    },
};
use record::ExistingContainer;
use std::time::{Duration, Instant};

/// Maximum number of further shims that a start takes when shims end under it.
const SHIMS_TRIED: u32 = 8;
/// Longest wait for the end of a closing shim.
const SHIM_ENDS: Duration = Duration::from_secs(2);

/// Stopwatch of the start's steps.
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
    /// Starts a container, or adopts the partial result of an earlier call.
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
        let mut again = 0;
        loop {
            let assignment =
                steps.time(if again == 0 { "shim" } else { "next shim" }, self.assignment(request)).await;
            let error = match self.start_at(request, assignment.as_ref(), steps).await {
                Ok(started) => return Ok(started),
                Err(error) => error,
            };
            let (Some(assignment), Some(shims)) = (assignment, self.known_shims()) else { return Err(error) };
            if matches!(error.failure, StartFailure::Finished(_)) {
                shims.release(&request.id);
                return Err(error);
            }
            if !matches!(error.stage, Stage::Create | Stage::Start) {
                return Err(error);
            }
            if error.is_of_shim() {
                // The shim is about to end, and accepts connections until then.
                shims.await_end(&assignment.address, SHIM_ENDS).await;
            }
            let dead = shims.forget_if_dead(&assignment.address).await;
            if !dead || again >= SHIMS_TRIED {
                // After an unknown outcome the task may exist, on this shim.
                if !error.is_unknown() {
                    shims.release(&request.id);
                }
                return Err(error);
            }
            if !error.is_unknown() {
                // The container itself failed, and its failure ended the shim.
                return Err(error);
            }
            tracing::debug!(pod = %request.key, container = %request.container, "shim has ended, taking another");
            again += 1;
        }
    }

    /// This agent's shim for the container; `None` where containerd starts one.
    async fn assignment(&self, request: &StartRequest) -> Option<ShimAssignment> {
        let shims = self.own_shims()?;
        match shims.take(&request.shim_group, &request.id).await {
            Ok(assignment) => Some(assignment),
            Err(e) => {
                tracing::warn!(pod = %request.key, error = %Chain(&e), "no shim of our own, containerd starts one");
                None
            }
        }
    }

    async fn start_at(
        &self,
        request: &StartRequest,
        assignment: Option<&ShimAssignment>,
        steps: &mut Steps,
    ) -> Result<Started, StartError> {
        let failed = |stage| move |e| StartError::new(&request.id, stage, e);
        let ((recorded, record_took), (prepared, snapshot_took)) =
            tokio::join!(timed(self.make_record(request, assignment)), timed(self.prepare(request)));
        steps.0.push(("record", record_took));
        steps.0.push(("snapshot", snapshot_took));
        match recorded.map_err(failed(Stage::Record))? {
            None | Some(ExistingContainer::Nothing) => {}
            Some(ExistingContainer::Finished(exit)) => {
                let failure = StartFailure::Finished(*exit);
                return Err(StartError {
                    id: request.id.clone(),
                    stage: Stage::Record,
                    failure,
                    source: None,
                });
            }
            Some(ExistingContainer::Task(process)) => return self.adopt_task(request, &process, steps).await,
        }
        let mounts = prepared.map_err(failed(Stage::Snapshot))?;
        let created = steps.time("create", self.create_alone(request, assignment, mounts)).await;
        if present(created).map_err(failed(Stage::Create))?.is_none() {
            let task = self.task(&request.id).await.map_err(failed(Stage::Create))?;
            if let Some(process) = task {
                return self.adopt_task(request, &process, steps).await;
            }
        }
        self.start_task(request, steps, false).await
    }

    /// Creates the task, with the shim's exclusive use as long as no task lives on it. containerd ends a shim
    /// after a failed create while no other task is in it, which would cut off parallel creates on the same
    /// shim.
    async fn create_alone(
        &self,
        request: &StartRequest,
        assignment: Option<&ShimAssignment>,
        rootfs: Vec<Mount>,
    ) -> Result<(), Error> {
        let Some((assignment, shims)) = assignment.zip(self.known_shims()) else {
            return self.create_task(request, assignment, rootfs).await;
        };
        let alone = shims.alone_until_a_task_lives(&assignment.address).await;
        let created = self.create_task(request, Some(assignment), rootfs).await;
        match &created {
            Ok(()) => shims.lives(&request.id, &assignment.address),
            Err(_) if alone.is_some() => shims.await_end(&assignment.address, SHIM_ENDS).await,
            Err(_) => {}
        }
        created
    }

    /// Continues from an existing task.
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
                    // The removal of the record deletes the remains later.
                    tracing::warn!(
                        container = request.id.short(),
                        error = %Chain(&left),
                        "task of failed start left"
                    );
                }
                Err(error)
            }
        }
    }
}

fn started(pid: u32, steps: &mut Steps, adopted: bool, exit: Option<ExitRecord>) -> Started {
    let start_time = if exit.is_some() { 0 } else { process::started(pid) };
    let started_at = if start_time == 0 { clock::wall() } else { process::wall_of(start_time) };
    Started { pid, start_time, started_at, timings: std::mem::take(&mut steps.0), adopted, exit }
}
