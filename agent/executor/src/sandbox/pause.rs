//! The pause process of a sandbox: start, watch and end. Pause holds the sandbox's namespaces, and is process
//! 1 of a shared PID namespace.

use super::kinds;
use crate::{NodeExecutor, pod_locks::Area};
use berth_core::{
    error::Chain,
    ids::{PodUid, SandboxAttempt},
    model::Pod,
    plan::{Failure, ObservedSandbox, SandboxState},
    resources::OOM_SANDBOX,
    sync::lock,
};
use berth_pods::{ActionResult, Context, NodeEvent, NodeProcess, ObservedChange, WorkerMessage};
use berth_sys::{
    pause::{self, PauseSpec},
    process::{self, PidFd},
};
use std::{sync::Arc, time::Duration};
use tokio::io::unix::AsyncFd;

/// How long a killed pause process may take to end.
const PAUSE_DIES: Duration = Duration::from_secs(10);

/// Kills these processes and waits until they have ended.
pub(super) fn end_pauses(pauses: &[NodeProcess]) -> berth_sys::Result<()> {
    for pause in pauses {
        if process::alive(pause.pid, pause.start_time)?
            && let Some(fd) = PidFd::open(pause.pid)?
        {
            fd.signal_number(9)?;
            fd.poll_exited(PAUSE_DIES)?;
        }
    }
    Ok(())
}

/// Returns when the process has ended. The error says why the process cannot be watched.
async fn wait_for_end(pause: NodeProcess) -> Result<(), String> {
    let Some(fd) = PidFd::open(pause.pid).map_err(|e| Chain(&e).to_string())? else { return Ok(()) };
    if process::start_time(pause.pid).map_err(|e| Chain(&e).to_string())? != Some(pause.start_time) {
        return Ok(());
    }
    #[expect(
        deprecated,
        reason = "its successor is unsafe; PidFd keeps its descriptor open as long as it lives"
    )]
    let fd = AsyncFd::new(fd).map_err(|e| e.to_string())?;
    // A pidfd becomes readable once its process has ended.
    fd.readable().await.map(drop).map_err(|e| e.to_string())
}

impl NodeExecutor {
    /// The processes in the place of the pod's pause process in the cgroup tree.
    pub(crate) fn stray_pauses(&self, uid: &PodUid) -> Result<Vec<NodeProcess>, Failure> {
        let internal = |e: &dyn std::error::Error| Failure::new("InternalError", Chain(e));
        let mut found = Vec::new();
        for pid in self.cgroups.pause_pids(uid).map_err(|e| internal(&e))? {
            if let Some(start_time) = process::start_time(pid).map_err(|e| internal(&e))? {
                found.push(NodeProcess { pid, start_time });
            }
        }
        Ok(found)
    }

    pub(crate) async fn start_pause(&self, pod: &Arc<Pod>) -> Result<NodeProcess, Failure> {
        let spec = PauseSpec {
            rootfs: self.config.roots.pause_rootfs(),
            sandbox_dir: self.config.roots.sandbox_dir(&pod.uid),
            kinds: kinds(&pod.namespaces),
            share_pid: pod.namespaces.share_pid,
            cgroup_dirs: self.cgroups.pod_procs_dirs(pod),
            oom_score_adj: OOM_SANDBOX,
            label: format!("berth-pause {}", pod.key),
        };
        // An earlier try may have started a pause process without recording it.
        let strays = self.stray_pauses(&pod.uid)?;
        let started = self
            .pod_locks
            .blocking(&pod.uid, Area::Sandbox, move || {
                end_pauses(&strays)?;
                pause::prepare_rootfs(&spec.rootfs, berth_pause::PAUSE)?;
                pause::start(&spec)
            })
            .await?
            .map_err(|e| Failure::new("FailedCreatePodSandBox", Chain(&e)))?;
        Ok(NodeProcess { pid: started.pid, start_time: started.start_time })
    }

    pub(crate) async fn ensure_pause(
        &self,
        context: Context,
        sandbox_attempt: SandboxAttempt,
    ) -> Result<ActionResult, Failure> {
        let uid = &context.pod.uid;
        let Some(mut record) = self.sandbox_record(uid)? else {
            return Ok(ActionResult::done(vec![ObservedChange::Sandbox(None)]));
        };
        if record.pause_alive()? {
            // The report of a death concerned an earlier pause process.
            if let Some(pause) = record.process() {
                self.watch_pause(uid, pause);
            }
            return Ok(ActionResult::done(vec![ObservedChange::Sandbox(Some(
                record.seen(SandboxState::Ready),
            ))]));
        }
        if context.pod.namespaces.share_pid {
            // Pause was process 1 of the shared PID namespace, so its end killed every process in there.
            record.complete = false;
            self.write_record(uid, &record)?;
            let seen = ObservedSandbox { sandbox_attempt, state: SandboxState::Broken, ips: record.ips };
            return Ok(ActionResult::done(vec![ObservedChange::Sandbox(Some(seen))]));
        }
        let pause = self.start_pause(&context.pod).await?;
        record.pause = Some((pause.pid, pause.start_time));
        self.write_record(uid, &record)?;
        self.watch_pause(uid, pause);
        let seen = ObservedSandbox { sandbox_attempt, state: SandboxState::Ready, ips: record.ips };
        Ok(ActionResult::done(vec![ObservedChange::Sandbox(Some(seen))]))
    }

    /// Watches the pause process and sends the pod's worker a message when it ends.
    pub(super) fn watch_pause(&self, uid: &PodUid, pause: NodeProcess) {
        let mut watched = lock(&self.pauses);
        if let Some((process, task)) = watched.get(uid) {
            if *process == pause && !task.is_finished() {
                return;
            }
            task.abort();
        }
        let (incoming, name) = (self.incoming.clone(), uid.clone());
        let task = tokio::spawn(async move {
            match wait_for_end(pause).await {
                // The send fails only where the manager has ended, and then the agent ends too.
                Ok(()) => drop(incoming.send(NodeEvent::One(name, WorkerMessage::PauseDied)).await),
                // The next observation shows the end of an unwatched pause process.
                Err(why) => tracing::warn!(uid = %name, why, "cannot watch the pause process"),
            }
        });
        watched.insert(uid.clone(), (pause, task.abort_handle()));
    }
}
