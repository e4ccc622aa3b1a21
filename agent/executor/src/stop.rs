//! The end of container runs: signals, exit records, reaping and removal.

mod message;

use crate::{NodeExecutor, pod_locks::Area, stop_signal, stopwatch::Stopwatch};
use berth_core::{
    error::Chain,
    ids::{ContainerId, ContainerName},
    model::Pod,
    plan::{Exit, Failure},
    sync::lock,
};
use berth_logd::StreamSpec;
use berth_pods::{ActionResult, Context, ObservedChange};
use berth_runtime::{ExitRecord, Runtime};
use message::{falls_back_to_logs, head, message_budget};
use nix::sys::signal::Signal;

impl NodeExecutor {
    /// Sends a signal: `number`, or the container's stop signal where `number` is `None`.
    pub(crate) async fn signal(
        &self,
        context: &Context,
        container: &ContainerName,
        id: &ContainerId,
        number: Option<i32>,
    ) -> Result<ActionResult, Failure> {
        let runtime = self.runtime()?;
        let number = match number {
            Some(n) => n,
            None => self.stop_signal(&runtime, context, container, id).await,
        };
        let (pid, start_time) = context.process.map_or((0, 0), |p| (p.pid, p.start_time));
        runtime
            .signal(id, pid, start_time, number)
            .await
            .map_err(|e| Failure::new("FailedKillPod", Chain(&e)))?;
        Ok(ActionResult::done(Vec::new()))
    }

    /// The stop signal that the start stored on the container's record. Records of an earlier version hold
    /// none; then the image's stop signal applies, with the image resolved by name.
    async fn stop_signal(
        &self,
        runtime: &Runtime,
        context: &Context,
        container: &ContainerName,
        id: &ContainerId,
    ) -> i32 {
        // An unreadable record is no reason to send nothing: the code below then falls back to the image and
        // to SIGTERM.
        let stored = runtime.extension(id).await.ok().flatten();
        if let Some(kept) = stored.as_ref().and_then(|e| e.get("stopSignal")) {
            let number = kept.as_i64().and_then(|n| i32::try_from(n).ok());
            return number.unwrap_or(Signal::SIGTERM as i32);
        }
        let image = match context.pod.container(container) {
            Some(spec) => runtime.resolve_image(&spec.image).await.ok().flatten(),
            None => None,
        };
        let named = image.and_then(|i| i.config.stop_signal.as_deref().and_then(stop_signal::number));
        named.unwrap_or(Signal::SIGTERM as i32)
    }

    pub(crate) async fn record_exit(
        &self,
        context: Context,
        container: &ContainerName,
        id: ContainerId,
        mut exit: Exit,
    ) -> Result<ActionResult, Failure> {
        let mut changes = Vec::new();
        if exit.message.is_none() {
            let file = self.termination_file_message(&context, container).await?;
            if file.is_none() && exit.code != 0 && falls_back_to_logs(&context, container) {
                // Only deleting the task guarantees that all output is written, including a last line without
                // a newline. The exit is stored first, so that an interruption loses only the message.
                if !self.store_exit(&id, &exit).await? {
                    return Ok(ActionResult::done(vec![ObservedChange::Removed(id)]));
                }
                match self.reap(&context, id.clone()).await {
                    Ok(reaped) => changes.extend(reaped.changes),
                    Err(failure) => {
                        tracing::warn!(
                            container = id.short(),
                            why = failure.message,
                            "cannot delete the task: the termination message may lack the output's end"
                        );
                    }
                }
                exit.message = self.end_of_output(&context, container).await?;
            } else {
                exit.message = file;
            }
            let most = message_budget(&context.pod);
            exit.message = exit.message.map(|text| head(&text, most).to_owned());
        }
        if !self.store_exit(&id, &exit).await? {
            return Ok(ActionResult::done(vec![ObservedChange::Removed(id)]));
        }
        changes.insert(0, ObservedChange::Recorded(id, exit));
        Ok(ActionResult::done(changes))
    }

    /// Stores an exit on the container's record. Returns false where the record no longer exists.
    async fn store_exit(&self, id: &ContainerId, exit: &Exit) -> Result<bool, Failure> {
        let record = ExitRecord {
            code: exit.code,
            at: exit.at,
            oom: exit.oom,
            reason: exit.reason.clone(),
            message: exit.message.clone(),
            started_at: exit.started_at,
        };
        match self.runtime()?.record_exit(id, &record).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == berth_runtime::Kind::NotFound => Ok(false),
            Err(e) => Err(Failure::new("FailedSync", Chain(&e))),
        }
    }

    pub(crate) async fn reap(&self, context: &Context, id: ContainerId) -> Result<ActionResult, Failure> {
        let mut steps = Stopwatch::start();
        self.runtime()?.delete_task(&id).await.map_err(|e| Failure::new("FailedSync", Chain(&e)))?;
        steps.lap("delete task");
        self.logd.finish(&id).await.map_err(|e| Failure::new("FailedSync", Chain(&e)))?;
        steps.lap("finish output");
        lock(&self.specs).remove(&id);
        self.drop_cgroup(context).await;
        Ok(ActionResult {
            changes: vec![ObservedChange::Reaped(id)],
            steps: steps.into_parts(),
            ..ActionResult::default()
        })
    }

    pub(crate) async fn remove(
        &self,
        context: &Context,
        container: &ContainerName,
        id: ContainerId,
    ) -> Result<ActionResult, Failure> {
        let runtime = self.runtime()?;
        // The image volumes go before the container's record, because an interrupted removal is found again
        // by the record.
        let (volumes, uid, run) = (self.volumes.clone(), context.pod.uid.clone(), id.clone());
        self.pod_locks
            .blocking(&context.pod.uid, Area::Files, move || volumes.remove_image_volumes(&uid, &run))
            .await?
            .map_err(|e| Failure::new("FailedSync", e.message()))?;
        runtime.remove(&id).await.map_err(|e| Failure::new("FailedSync", Chain(&e)))?;
        let finished = self.logd.finish(&id).await;
        if let Some(run) = &context.run {
            let stream = stream_of(&context.pod, container, &id, run.attempt);
            self.logd.remove_attempt(&stream).await.map_err(|e| Failure::new("FailedSync", Chain(&e)))?;
        }
        if let Err(error) = finished {
            tracing::debug!(container = id.short(), error = %Chain(&error), "cannot finish the output: it was closed before");
        }
        lock(&self.specs).remove(&id);
        self.claims.forget_run(&id);
        Ok(ActionResult::done(vec![ObservedChange::Removed(id)]))
    }
}

/// A run's output stream, without a terminal and without input.
pub(crate) fn stream_of(
    pod: &Pod,
    container: &ContainerName,
    id: &ContainerId,
    attempt: berth_core::ids::Attempt,
) -> StreamSpec {
    StreamSpec {
        id: id.clone(),
        uid: pod.uid.clone(),
        key: pod.key.clone(),
        container: container.clone(),
        attempt,
        tty: false,
        stdin: false,
        stdin_once: false,
    }
}
