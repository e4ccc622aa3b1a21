//! The end of container runs: signals, exit records, reaping and removal.

use crate::{NodeExecutor, pod_locks::Area, stop_signal, stopwatch::Stopwatch};
use berth_core::{
    error::Chain,
    ids::{ContainerId, ContainerName},
    model::{Pod, TerminationMessagePolicy},
    plan::{Exit, Failure},
    sync::lock,
};
use berth_logd::{StreamSpec, reader};
use berth_pods::{ActionResult, Context, ObservedChange};
use berth_runtime::{ExitRecord, Runtime};
use nix::sys::signal::Signal;

/// The last lines and bytes of the output that `FallbackToLogsOnError` takes
/// (`pkg/kubelet/container/runtime.go`).
const TAIL_LINES: u64 = 80;
const TAIL_BYTES: usize = 2048;
/// The most bytes of output held while its end is searched.
const LARGEST_TAIL: usize = 64 << 10;

/// The limit in bytes for all termination messages of a pod together (`MaxPodTerminationMessageLogLength`).
const POD_MESSAGES: usize = 12 << 10;

/// The share of [`POD_MESSAGES`] for one container's message. Every container has the same share, whether the
/// others write a message or not (`pkg/kubelet/status/status_manager.go`, `normalizeStatus`).
fn message_budget(pod: &Pod) -> usize {
    POD_MESSAGES.checked_div(pod.all_containers().count()).unwrap_or(POD_MESSAGES)
}

/// The beginning of the text, at most `most` bytes, cut at a character boundary.
fn head(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}

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
                match self.reap(&context.pod, id.clone()).await {
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

    /// The message that the run wrote to its termination message file.
    async fn termination_file_message(
        &self,
        context: &Context,
        container: &ContainerName,
    ) -> Result<Option<String>, Failure> {
        let (volumes, context, container) = (self.volumes.clone(), context.clone(), container.clone());
        let uid = context.pod.uid.clone();
        self.pod_locks
            .blocking(&uid, Area::Files, move || {
                let pod = &context.pod;
                let (spec, attempt) =
                    pod.container(&container).zip(context.run.as_ref().map(|r| r.attempt))?;
                // An unreadable message counts as none, because the exit itself must be stored.
                volumes.termination_message(pod, spec, attempt).ok().flatten()
            })
            .await
    }

    /// The end of the run's output.
    async fn end_of_output(
        &self,
        context: &Context,
        container: &ContainerName,
    ) -> Result<Option<String>, Failure> {
        let Some(run) = &context.run else { return Ok(None) };
        let (attempt, roots) = (run.attempt, self.config.roots.clone());
        let (pod, container) = (context.pod.clone(), container.clone());
        let uid = pod.uid.clone();
        self.pod_locks
            .blocking(&uid, Area::Files, move || {
                let set = reader::LogSet::open(&roots, &pod.key, &pod.uid, &container, attempt).ok()?;
                tail(&set)
            })
            .await
    }

    pub(crate) async fn reap(&self, pod: &Pod, id: ContainerId) -> Result<ActionResult, Failure> {
        let mut steps = Stopwatch::start();
        self.runtime()?.delete_task(&id).await.map_err(|e| Failure::new("FailedSync", Chain(&e)))?;
        steps.lap("delete task");
        self.logd.finish(&id).await.map_err(|e| Failure::new("FailedSync", Chain(&e)))?;
        steps.lap("finish output");
        lock(&self.specs).remove(&id);
        self.drop_cgroup(&pod.uid).await;
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

fn falls_back_to_logs(context: &Context, container: &ContainerName) -> bool {
    context
        .pod
        .container(container)
        .is_some_and(|c| c.termination_message_policy == TerminationMessagePolicy::FallbackToLogsOnError)
}

/// The end of an output that arrives in pieces. Older bytes are dropped while reading, because eighty lines
/// may be the whole output.
#[derive(Default)]
struct OutputTail(Vec<u8>);

impl OutputTail {
    /// Appends the next piece.
    fn push(&mut self, piece: &[u8]) {
        // Only the end of a piece longer than the limit can matter.
        let piece = piece.get(piece.len().saturating_sub(LARGEST_TAIL)..).unwrap_or_default();
        if self.0.len().saturating_add(piece.len()) > LARGEST_TAIL {
            self.0.drain(..self.0.len().saturating_sub(TAIL_BYTES));
        }
        self.0.extend_from_slice(piece);
    }

    /// The last [`TAIL_BYTES`] bytes, cut at a character boundary. `None` where the output is empty.
    fn text(&self) -> Option<String> {
        let from = self.0.len().saturating_sub(TAIL_BYTES);
        // A cut character has lost its first byte. Its continuation bytes are skipped, because they would
        // show as replacement characters.
        let cut = self.0.get(from..)?.iter().skip_while(|b| from > 0 && **b & 0xc0 == 0x80).copied();
        let text = String::from_utf8_lossy(&cut.collect::<Vec<_>>()).into_owned();
        (!text.is_empty()).then_some(text)
    }
}

/// The end of a run's output, from its log files.
fn tail(set: &reader::LogSet) -> Option<String> {
    let mut end = OutputTail::default();
    let mut emit = |record: berth_logd::format::Record<'_>| {
        end.push(record.text);
        if !record.partial {
            end.push(b"\n");
        }
    };
    set.read(reader::ReadFrom::Tail(TAIL_LINES), &mut emit).ok()?;
    end.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::{
        ids::{Attempt, NodeName, PodKey},
        model::Container,
        roots::Roots,
    };

    fn empty_pod() -> Pod {
        let key = PodKey { namespace: "default".parse().unwrap(), name: "p".parse().unwrap() };
        Pod::new("u".parse().unwrap(), key, "n".parse().unwrap())
    }

    #[test]
    fn containers_share_a_pods_budget_for_messages() {
        let mut pod = empty_pod();
        pod.containers = (0..8).map(|n| Container::new(format!("c{n}").parse().unwrap(), "i")).collect();
        assert_eq!(message_budget(&pod), 1536);
        assert_eq!(head(&"x".repeat(4096), 1536).len(), 1536);
        assert_eq!((head("short", 1536), head("aä", 2), head("", 0)), ("short", "a", ""));
    }

    #[test]
    fn the_end_of_the_output_is_whole_without_a_last_newline_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), "none");
        let (pod, name) = (empty_pod(), "c".parse().unwrap());
        let logs = roots.pod_log_dir(&pod.key, &pod.uid).join("c");
        std::fs::create_dir_all(&logs).unwrap();
        let message = |records: &str| {
            std::fs::write(logs.join("0.log"), records).unwrap();
            let set = reader::LogSet::open(&roots, &pod.key, &pod.uid, &name, Attempt(0)).unwrap();
            tail(&set)
        };
        let at = "2026-01-01T00:00:00.000000000Z";
        assert_eq!(message(""), None);
        assert_eq!(
            message(&format!("{at} stdout F x\n{at} stderr P panic: y\n")).as_deref(),
            Some("x\npanic: y")
        );
        let long = format!("{at} stdout F {}\n", "ä".repeat(8000)).repeat(100);
        let end = message(&long).unwrap();
        assert!(
            end.len() <= TAIL_BYTES && end.len() > TAIL_BYTES - 4 && end.ends_with("ä\n"),
            "{}",
            end.len()
        );
        assert!(!end.contains('\u{fffd}'));
    }

    #[test]
    fn of_any_output_no_more_than_its_end_is_held() {
        let mut end = OutputTail::default();
        for n in 0..2000 {
            end.push(format!("{n} ").repeat(1000).as_bytes());
            end.push(b"\n");
            assert!(end.0.capacity() <= 4 * LARGEST_TAIL, "{} bytes are held", end.0.capacity());
        }
        let text = end.text().unwrap();
        assert!(text.len() == TAIL_BYTES && text.ends_with("1999 1999 \n"), "{} bytes", text.len());
        end.push(&vec![b'x'; 10 * LARGEST_TAIL]);
        assert!(end.0.capacity() <= 4 * LARGEST_TAIL);
        assert_eq!(end.text().unwrap(), "x".repeat(TAIL_BYTES));
    }
}
