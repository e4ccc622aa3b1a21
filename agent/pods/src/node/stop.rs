//! Ending runs: signals, exit records, reaping, removal.

use super::{NodeHands, chain, gates::Area, lock};
use crate::hands::{Change, Context, Performed};
use berth_core::{
    ids::{ContainerId, ContainerName},
    model::{Pod, TerminationMessagePolicy},
    plan::{Exit, Failure},
};
use berth_logd::{StreamSpec, reader};
use berth_runtime::ExitRecord;
use nix::sys::signal::Signal;

/// What `FallbackToLogsOnError` takes of the output (`pkg/kubelet/container/runtime.go`).
const TAIL_LINES: u64 = 80;
const TAIL_BYTES: usize = 2048;
/// So much of the output is held at a time while its end is looked for.
const LARGEST_TAIL: usize = 64 << 10;

/// All termination messages of a pod together, in bytes (`MaxPodTerminationMessageLogLength`).
const POD_MESSAGES: usize = 12 << 10;

/// What one container's message may take of [`POD_MESSAGES`]: its share, whether the others write any or not
/// (`pkg/kubelet/status/status_manager.go`, `normalizeStatus`).
fn message_budget(pod: &Pod) -> usize {
    POD_MESSAGES.checked_div(pod.all_containers().count()).unwrap_or(POD_MESSAGES)
}

/// At most so many bytes of the beginning, in whole characters.
fn head(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}

/// A stop signal as images name it: `SIGQUIT`, `QUIT` or a number.
fn signal_number(name: &str) -> Option<i32> {
    if let Ok(n) = name.parse::<i32>() {
        return (1..=64).contains(&n).then_some(n);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse::<Signal>().ok().map(|s| s as i32)
}

impl NodeHands {
    /// Sends a signal: the one given, or the container's stop signal.
    pub(super) async fn signal(
        &self,
        context: &Context,
        container: &ContainerName,
        id: &ContainerId,
        number: Option<i32>,
    ) -> Result<Performed, Failure> {
        let runtime = self.runtime()?;
        let number = match number {
            Some(n) => n,
            None => {
                let spec = context.pod.container(container);
                // An image's stop signal does not change under its name while a run of it goes on.
                let known = spec.and_then(|c| lock(&self.images).get(&c.image).map(|(_, i)| i.clone()));
                let image = match spec {
                    Some(_) if known.is_some() => known,
                    Some(c) => runtime.resolve_image(&c.image).await.ok().flatten(),
                    None => None,
                };
                image
                    .and_then(|i| i.config.stop_signal.as_deref().and_then(signal_number))
                    .unwrap_or(Signal::SIGTERM as i32)
            }
        };
        let (pid, start_time) = context.process.map_or((0, 0), |p| (p.pid, p.start_time));
        runtime
            .signal(id, pid, start_time, number)
            .await
            .map_err(|e| Failure::new("FailedKillPod", e.chain()))?;
        Ok(Performed::done(Vec::new()))
    }

    pub(super) async fn record_exit(
        &self,
        context: Context,
        container: &ContainerName,
        id: ContainerId,
        mut exit: Exit,
    ) -> Result<Performed, Failure> {
        if exit.message.is_none() {
            let most = message_budget(&context.pod);
            let message = self.termination_message(context, container.clone(), exit.code).await?;
            exit.message = message.map(|text| head(&text, most).to_owned());
        }
        let record = ExitRecord {
            code: exit.code,
            at: exit.at,
            oom: exit.oom,
            reason: exit.reason.clone(),
            message: exit.message.clone(),
            started_at: exit.started_at,
        };
        match self.runtime()?.record_exit(&id, &record).await {
            Ok(()) => {}
            // There is nothing left to write on, nor to be read from later.
            Err(e) if e.kind() == berth_runtime::Kind::NotFound => {
                return Ok(Performed::done(vec![Change::Removed(id)]));
            }
            Err(e) => return Err(Failure::new("FailedSync", e.chain())),
        }
        Ok(Performed::done(vec![Change::Recorded(id, exit)]))
    }

    async fn termination_message(
        &self,
        context: Context,
        container: ContainerName,
        code: i32,
    ) -> Result<Option<String>, Failure> {
        let (volumes, roots) = (self.volumes.clone(), self.config.roots.clone());
        let uid = context.pod.uid.clone();
        self.gates
            .blocking(&uid, Area::Files, move || {
                let pod = &context.pod;
                let (spec, attempt) = pod.container(&container).zip(context.run.map(|r| r.attempt))?;
                // A message that cannot be read is no message: the exit itself must be stored.
                let message = volumes.termination_message(pod, spec, attempt).ok().flatten();
                let fallback =
                    spec.termination_message_policy == TerminationMessagePolicy::FallbackToLogsOnError;
                if message.is_none() && fallback && code != 0 {
                    let set = reader::LogSet::open(&roots, &pod.key, &pod.uid, &container, attempt).ok()?;
                    return tail(&set);
                }
                message
            })
            .await
    }

    pub(super) async fn reap(&self, id: ContainerId) -> Result<Performed, Failure> {
        let begun = std::time::Instant::now();
        self.runtime()?.delete_task(&id).await.map_err(|e| Failure::new("FailedSync", e.chain()))?;
        let mut steps = vec![("delete task", begun.elapsed())];
        let begun = std::time::Instant::now();
        self.logd.finish(&id).await.map_err(|e| Failure::new("FailedSync", chain(&e)))?;
        steps.push(("finish output", begun.elapsed()));
        lock(&self.specs).remove(&id);
        Ok(Performed { changes: vec![Change::Reaped(id)], steps, ..Performed::default() })
    }

    pub(super) async fn remove(
        &self,
        context: &Context,
        container: &ContainerName,
        id: ContainerId,
    ) -> Result<Performed, Failure> {
        self.runtime()?.remove(&id).await.map_err(|e| Failure::new("FailedSync", e.chain()))?;
        let finished = self.logd.finish(&id).await;
        if let Some(run) = &context.run {
            let stream = stream_of(&context.pod, container, &id, run.attempt);
            self.logd.remove_attempt(&stream).await.map_err(|e| Failure::new("FailedSync", chain(&e)))?;
        }
        if let Err(error) = finished {
            tracing::debug!(container = id.short(), error = chain(&error), "output was closed before");
        }
        lock(&self.specs).remove(&id);
        lock(&self.owners).remove(&id);
        Ok(Performed::done(vec![Change::Removed(id)]))
    }
}

fn stream_of(
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

/// The end of the output, cut to whole characters.
fn tail(set: &reader::LogSet) -> Option<String> {
    let mut text = Vec::new();
    let mut emit = |record: berth_logd::format::Record<'_>| {
        text.extend_from_slice(record.text);
        if !record.partial {
            text.push(b'\n');
        }
        // Eighty lines may be the whole output.
        if text.len() > LARGEST_TAIL {
            text.drain(..text.len().saturating_sub(TAIL_BYTES));
        }
    };
    set.read(reader::From::Tail(TAIL_LINES), &mut emit).ok()?;
    let from = text.len().saturating_sub(TAIL_BYTES);
    let cut = text.get(from..)?;
    let text = String::from_utf8_lossy(cut).into_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::{head, message_budget, signal_number};
    use berth_core::{
        ids::PodKey,
        model::{Container, Pod},
    };

    #[test]
    fn containers_share_a_pods_budget_for_messages() {
        let key = PodKey { namespace: "default".parse().unwrap(), name: "p".parse().unwrap() };
        let mut pod = Pod::new("u".parse().unwrap(), key, "n".parse().unwrap());
        pod.containers = (0..8).map(|n| Container::new(format!("c{n}").parse().unwrap(), "i")).collect();
        assert_eq!(message_budget(&pod), 1536);
        assert_eq!(head(&"x".repeat(4096), 1536).len(), 1536);
        assert_eq!((head("short", 1536), head("aä", 2), head("", 0)), ("short", "a", ""));
    }

    #[test]
    fn stop_signals_in_every_spelling() {
        assert_eq!(signal_number("SIGQUIT"), Some(3));
        assert_eq!(signal_number("quit"), Some(3));
        assert_eq!(signal_number("37"), Some(37));
        assert_eq!(signal_number("SIGNOPE"), None);
        assert_eq!(signal_number("0"), None);
    }
}
