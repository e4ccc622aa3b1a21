//! Reading the log of a run for the node's API, by logd's reader.

use berth_core::{
    error::Chain,
    ids::{Attempt, ContainerId, SandboxAttempt},
    roots::Roots,
};
use berth_logd::reader::{DirChanges, Follow, LogChanges, LogSet, ReadFrom, attempts};
use berth_nodeapi::{Boxed, LogReader, LogRecord, LogRun, LogStart, Unavailable};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// The most sandboxes of a pod that are looked through for the attempt of a run.
const SANDBOXES: u32 = 4096;

/// Interval of reads where the changes of the directory cannot be waited for.
const WITHOUT_EVENTS: Duration = Duration::from_secs(1);

/// Opens the log of a run. Blocks on the disk.
pub(super) fn open(roots: &Roots, run: &LogRun, from: LogStart) -> Result<Follow, Unavailable> {
    let failed = |e: &berth_logd::Error| Unavailable(Chain(e).to_string());
    let on_disk = attempts(roots, &run.key, &run.pod, &run.container).map_err(|e| failed(&e))?;
    let attempt = attempt(run, &on_disk).unwrap_or(Attempt(run.attempt_by_status));
    let set = LogSet::open(roots, &run.key, &run.pod, &run.container, attempt).map_err(|e| failed(&e))?;
    let from = match from {
        LogStart::Beginning => ReadFrom::Start,
        LogStart::Tail(lines) => ReadFrom::Tail(lines),
        LogStart::Since(time) => ReadFrom::Since(time),
    };
    set.follow_by(from).map_err(|e| failed(&e))
}

/// The attempt of a run: the one from which its id is derived.
fn attempt(run: &LogRun, on_disk: &[Attempt]) -> Option<Attempt> {
    let is = |sandbox, attempt| {
        ContainerId::derive(&run.pod, SandboxAttempt(sandbox), &run.container, attempt) == run.id
    };
    (0..SANDBOXES).find_map(|sandbox| on_disk.iter().rev().copied().find(|attempt| is(sandbox, *attempt)))
}

/// Reader of an open log.
pub(super) struct FollowReader {
    follow: Follow,
    /// `None` where the node has no inotify instance.
    all: Option<Arc<LogChanges>>,
    /// The changes of this log, from the first wait on.
    changes: Option<DirChanges>,
}

impl FollowReader {
    pub(super) fn new(follow: Follow, all: Option<Arc<LogChanges>>) -> FollowReader {
        FollowReader { follow, all, changes: None }
    }

    fn watch(&mut self) -> Option<()> {
        let changes = self.all.as_ref()?.of(&self.follow);
        let told = |error: &std::io::Error| tracing::debug!(%error, "cannot wait for output; it is looked for each second");
        self.changes = Some(changes.inspect_err(told).ok()?);
        Some(())
    }
}

impl LogReader for FollowReader {
    fn read(&mut self, emit: &mut dyn FnMut(LogRecord<'_>)) -> Result<bool, Unavailable> {
        let mut pass = |record: berth_logd::format::Record<'_>| {
            emit(LogRecord { time: record.time, partial: record.partial, text: record.text });
        };
        // Before the files are read: a change after this is a change again.
        if let Some(changes) = &mut self.changes {
            changes.forget();
        }
        self.follow.read(&mut pass).map_err(|e| Unavailable(Chain(&e).to_string()))
    }

    fn changed(&mut self) -> Boxed<'_, ()> {
        Box::pin(async {
            if let Some(changes) = &mut self.changes {
                return changes.changed().await;
            }
            // What was written before the watch is found by the next read.
            if self.watch().is_none() {
                sleep(WITHOUT_EVENTS).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::PodKey;

    #[test]
    fn the_attempt_of_a_run_is_found_by_its_id() {
        let id = |sandbox, attempt| {
            let (pod, container) = ("u".parse().unwrap(), "c".parse().unwrap());
            ContainerId::derive(&pod, SandboxAttempt(sandbox), &container, Attempt(attempt))
        };
        let run = |id| LogRun {
            key: PodKey { namespace: "ns".parse().unwrap(), name: "p".parse().unwrap() },
            pod: "u".parse().unwrap(),
            container: "c".parse().unwrap(),
            id,
            attempt_by_status: 9,
        };
        let on_disk = [Attempt(3), Attempt(4)];
        assert_eq!(attempt(&run(id(0, 4)), &on_disk), Some(Attempt(4)));
        assert_eq!(attempt(&run(id(17, 3)), &on_disk), Some(Attempt(3)));
        assert_eq!(attempt(&run(id(0, 5)), &on_disk), None);
        assert_eq!(attempt(&run("ab".repeat(32).parse().unwrap()), &on_disk), None);
    }
}
