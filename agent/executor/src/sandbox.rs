//! Sandbox creation and teardown: a pod's cgroup, pinned namespaces, network and pause process.
//!
//! Creation follows that order, and teardown the reverse one. A record on the tmpfs is written before the
//! first step and completed after the last. A sandbox whose record is not complete is torn down.

use crate::{NodeExecutor, pod_locks::Area};
use berth_core::{
    error::Chain,
    event::Event,
    ids::{Attempt, BootId, ContainerId, ContainerName, PodUid, SandboxAttempt},
    model::{Pod, PodNamespaces},
    plan::{Failure, ObservedSandbox, SandboxState},
    resources::OOM_SANDBOX,
    sync::lock,
};
use berth_network::{SandboxNetwork, Unserved};
use berth_pods::{ActionResult, Change, Context, NodeEvent, Process, WorkerMessage};
use berth_runtime::spec::sandbox_sysctls;
use berth_sys::{
    ns::{self, NsKind},
    pause::{self, PauseSpec},
    process::{self, PidFd},
};
use berth_volumes::PodHostname;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::io::unix::AsyncFd;

/// How long a killed pause process may take to end.
const PAUSE_DIES: Duration = Duration::from_secs(10);

/// The stored record of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(rename = "incarnation")]
    pub(crate) sandbox_attempt: SandboxAttempt,
    boot: BootId,
    complete: bool,
    ips: Vec<IpAddr>,
    pause: Option<(u32, u64)>,
    /// The file names of the namespaces that a complete sandbox has pinned. Empty where the pod uses the
    /// host's namespaces only.
    #[serde(default)]
    pins: Vec<String>,
}

impl Record {
    /// The record of a sandbox whose creation begins.
    fn begun(sandbox_attempt: SandboxAttempt, boot: &BootId, namespaces: &PodNamespaces) -> Record {
        let shared_pid = namespaces.share_pid.then_some(NsKind::Pid);
        let pins = kinds(namespaces).into_iter().chain(shared_pid);
        Record {
            sandbox_attempt,
            boot: boot.clone(),
            complete: false,
            ips: Vec::new(),
            pause: None,
            pins: pins.map(|k| k.file_name().to_owned()).collect(),
        }
    }

    fn parse(text: &[u8]) -> Result<Record, String> {
        serde_json::from_slice(text).map_err(|e| e.to_string())
    }

    /// Whether every namespace that the record names is pinned.
    fn is_pinned(&self, dir: &Path) -> Result<bool, Failure> {
        for kind in NsKind::ALL.into_iter().filter(|k| self.pins.iter().any(|p| p == k.file_name())) {
            if !ns::is_pinned(dir, kind).map_err(|e| Failure::new("InternalError", Chain(&e)))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn pause_alive(&self) -> Result<bool, Failure> {
        let Some((pid, start)) = self.pause else { return Ok(false) };
        process::alive(pid, start).map_err(|e| Failure::new("InternalError", Chain(&e)))
    }

    fn process(&self) -> Option<Process> {
        self.pause.map(|(pid, start_time)| Process { pid, start_time })
    }

    fn seen(self, state: SandboxState) -> ObservedSandbox {
        ObservedSandbox { sandbox_attempt: self.sandbox_attempt, state, ips: self.ips }
    }
}

/// The largest record in bytes that is read.
const MOST: usize = 64 << 10;

/// The sandbox's container id for the CNI.
fn sandbox_id(uid: &PodUid, sandbox_attempt: SandboxAttempt) -> Result<String, Failure> {
    let name = ContainerName::new("sandbox").map_err(|e| Failure::new("InternalError", e.to_string()))?;
    // No container has the attempt `u32::MAX`, so the id is never a container's.
    Ok(ContainerId::derive(uid, sandbox_attempt, &name, Attempt(u32::MAX)).to_string())
}

fn kinds(namespaces: &PodNamespaces) -> Vec<NsKind> {
    let mut kinds = Vec::new();
    if !namespaces.host_network {
        kinds.extend([NsKind::Net, NsKind::Uts]);
    }
    if !namespaces.host_ipc {
        kinds.push(NsKind::Ipc);
    }
    kinds
}

/// Events about a pod's network requests that no plugin serves. `UndefinedShaper` is the kubelet's reason.
/// The kubelet has no event for host ports without a plugin.
fn events_of_unserved(request: &SandboxNetwork, unserved: &Unserved) -> Vec<Event> {
    let network = &unserved.network;
    let mut events = Vec::new();
    if unserved.host_ports {
        let ports: Vec<String> =
            request.ports.iter().filter_map(|p| p.host_port).map(|port| port.to_string()).collect();
        events.push(Event::warning(
            "HostPortNotServed",
            format!(
                "cannot serve host port {}: no plugin of network {network} takes portMappings; add the plugin portmap to \
                 its configuration list",
                ports.join(", ")
            ),
        ));
    }
    if unserved.bandwidth {
        events.push(Event::warning(
            "UndefinedShaper",
            format!(
                "cannot limit the pod's bandwidth: no plugin of network {network} takes bandwidth; add the plugin \
                 bandwidth to its configuration list"
            ),
        ));
    }
    events
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new("FailedCreatePodSandBox", format!("{what}: {}", Chain(error)))
}

/// Kills these processes and waits until they have ended.
fn end_pauses(pauses: &[Process]) -> berth_sys::Result<()> {
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
async fn wait_for_end(pause: Process) -> Result<(), String> {
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
    pub(crate) fn record_path(&self, uid: &PodUid) -> PathBuf {
        self.config.roots.runtime_state.join("sandbox-records").join(format!("{uid}.json"))
    }

    /// The record of the pod's sandbox. An unreadable record is set aside under `.bad` and counts as none.
    pub(crate) fn sandbox_record(&self, uid: &PodUid) -> Result<Option<Record>, Failure> {
        let path = self.record_path(uid);
        let internal = |what: &str, e: &dyn std::error::Error| {
            Failure::new("InternalError", format!("{what} {}: {}", path.display(), Chain(e)))
        };
        if !path.try_exists().map_err(|e| internal("look for", &e))? {
            return Ok(None);
        }
        let text = berth_sys::fs::read_limited(&path, MOST).map_err(|e| internal("read", &e))?;
        match Record::parse(&text) {
            Ok(record) => Ok(Some(record)),
            Err(why) => {
                tracing::warn!(file = %path.display(), why, "sandbox record set aside");
                std::fs::rename(&path, path.with_extension("bad")).map_err(|e| internal("set aside", &e))?;
                Ok(None)
            }
        }
    }

    fn write_record(&self, uid: &PodUid, record: &Record) -> Result<(), Failure> {
        let path = self.record_path(uid);
        let parent = self.config.roots.runtime_state.join("sandbox-records");
        std::fs::create_dir_all(&parent).map_err(|e| failed("create the records' directory", &e))?;
        let text = serde_json::to_vec(record).map_err(|e| failed("encode the sandbox's record", &e))?;
        berth_sys::fs::write_atomic(&path, &text, 0o600).map_err(|e| failed("write the sandbox's record", &e))
    }

    /// The state of the pod's sandbox, checked against the kernel. `lives` is the pod and the sandbox attempt
    /// in which its containers run. Where no record can be read, the record is rebuilt from the pins, the
    /// network and the pause process.
    pub(crate) fn see_sandbox(
        &self,
        uid: &PodUid,
        lives: Option<(&Pod, SandboxAttempt)>,
    ) -> Result<Option<ObservedSandbox>, Failure> {
        let dir = self.config.roots.sandbox_dir(uid);
        let record = match self.sandbox_record(uid)? {
            Some(record) => record,
            None => {
                match lives
                    .map(|(pod, sandbox_attempt)| self.rebuild(pod, sandbox_attempt))
                    .transpose()?
                    .flatten()
                {
                    Some(record) => {
                        tracing::warn!(%uid, "sandbox without a readable record: told by what is there of it");
                        self.write_record(uid, &record)?;
                        record
                    }
                    None if dir.exists() => {
                        // A part of a sandbox is left. `Broken` makes the plan tear down that part.
                        let sandbox_attempt = lives.map(|(_, i)| i).unwrap_or_default();
                        let own = PodNamespaces::default();
                        return Ok(Some(
                            Record::begun(sandbox_attempt, &self.config.boot, &own)
                                .seen(SandboxState::Broken),
                        ));
                    }
                    None => return Ok(None),
                }
            }
        };
        let whole = record.complete && record.boot == self.config.boot && record.is_pinned(&dir)?;
        let state = match (whole, record.pause_alive()?) {
            (false, _) => SandboxState::Broken,
            (true, true) => SandboxState::Ready,
            (true, false) => SandboxState::NoPause,
        };
        if let Some(pause) = record.process().filter(|_| state == SandboxState::Ready) {
            self.watch_pause(uid, pause);
        }
        Ok(Some(record.seen(state)))
    }

    /// Rebuilds the record of a complete sandbox from its pins, its network attachment and its pause process.
    /// `None` where the pins or the attachment are missing.
    fn rebuild(&self, pod: &Pod, sandbox_attempt: SandboxAttempt) -> Result<Option<Record>, Failure> {
        let mut record = Record::begun(sandbox_attempt, &self.config.boot, &pod.namespaces);
        record.ips = if pod.namespaces.host_network {
            self.config.host_ips.get()
        } else {
            match self.network.attachment(&sandbox_id(&pod.uid, sandbox_attempt)?) {
                Some(attachment) => attachment.ips,
                None => return Ok(None),
            }
        };
        if !record.is_pinned(&self.config.roots.sandbox_dir(&pod.uid))? {
            return Ok(None);
        }
        record.pause = self.stray_pauses(&pod.uid)?.first().map(|p| (p.pid, p.start_time));
        record.complete = true;
        Ok(Some(record))
    }

    /// The processes in the place of the pod's pause process in the cgroup tree.
    pub(crate) fn stray_pauses(&self, uid: &PodUid) -> Result<Vec<Process>, Failure> {
        let internal = |e: &dyn std::error::Error| Failure::new("InternalError", Chain(e));
        let mut found = Vec::new();
        for pid in self.cgroups.pause_pids(uid).map_err(|e| internal(&e))? {
            if let Some(start_time) = process::start_time(pid).map_err(|e| internal(&e))? {
                found.push(Process { pid, start_time });
            }
        }
        Ok(found)
    }

    pub(crate) async fn make_sandbox(
        &self,
        context: Context,
        sandbox_attempt: SandboxAttempt,
    ) -> Result<ActionResult, Failure> {
        let pod = &context.pod;
        let uid = &pod.uid;
        if let Some(class) = &pod.runtime_class {
            return Err(Failure::new(
                "FailedCreatePodSandBox",
                format!("runtimeClassName {class:?}: this build runs the node's default runtime only"),
            ));
        }
        let _turn = self.sandboxes.acquire().await;
        let mut steps = Vec::new();
        let mut clock = Instant::now();
        let mut step = |name, steps: &mut Vec<(&'static str, Duration)>| {
            steps.push((name, clock.elapsed()));
            clock = Instant::now();
        };
        let mut record = Record::begun(sandbox_attempt, &self.config.boot, &pod.namespaces);
        self.write_record(uid, &record)?;

        let (cgroups, dir) = (self.cgroups.clone(), self.config.roots.sandbox_dir(uid));
        let pids_limit = self.config.pids_limit;
        let (for_blocking, netns) = (std::sync::Arc::clone(pod), dir.join(NsKind::Net.file_name()));
        let hostname = match pod.namespaces.host_network {
            true => None,
            false => Some(
                PodHostname::of(pod, self.config.cluster_domain.as_deref())
                    .map_err(|e| Failure::new("FailedCreatePodSandBox", e.message()))?
                    .kernel,
            ),
        };
        let sysctls: Vec<(String, String)> =
            sandbox_sysctls(pod).map_err(|e| failed("set the pod's sysctls", &e))?.into_iter().collect();
        let kinds = kinds(&pod.namespaces);
        self.pod_locks
            .blocking(uid, Area::Sandbox, move || {
                cgroups
                    .create_pod(&for_blocking, pids_limit)
                    .map_err(|e| failed("make the pod's cgroup", &e))?;
                ns::create_pinned(&dir, &kinds, hostname.as_deref(), &sysctls)
                    .map_err(|e| failed("make the pod's namespaces", &e))
            })
            .await??;
        step("cgroup+namespaces", &mut steps);

        let (ips, events) = self.attach(pod, sandbox_attempt, netns).await?;
        record.ips = ips;
        step("network", &mut steps);
        // Moving a process between cgroups waits for every fork and exit on the machine. Containers must not
        // wait for that, so pause starts here only where it is their process 1. Otherwise `EnsurePause`
        // starts it.
        let mut state = SandboxState::NoPause;
        if pod.namespaces.share_pid {
            let pause = self.start_pause(pod).await?;
            record.pause = Some((pause.pid, pause.start_time));
            self.watch_pause(uid, pause);
            state = SandboxState::Ready;
            step("pause", &mut steps);
        }
        record.complete = true;
        self.write_record(uid, &record)?;
        let seen = ObservedSandbox { sandbox_attempt, state, ips: record.ips };
        Ok(ActionResult {
            changes: vec![Change::Sandbox(Some(seen))],
            steps,
            events,
            ..ActionResult::default()
        })
    }

    /// Attaches the pod to its network. Returns the pod's addresses, and events about requests that the
    /// network does not serve.
    async fn attach(
        &self,
        pod: &Pod,
        sandbox_attempt: SandboxAttempt,
        netns: PathBuf,
    ) -> Result<(Vec<IpAddr>, Vec<Event>), Failure> {
        if pod.namespaces.host_network {
            return Ok((self.config.host_ips.get(), Vec::new()));
        }
        let request = SandboxNetwork {
            uid: pod.uid.clone(),
            key: pod.key.clone(),
            sandbox_id: sandbox_id(&pod.uid, sandbox_attempt)?,
            netns,
            ports: pod
                .all_containers()
                .flat_map(|c| c.ports.iter().cloned())
                .filter(|p| p.host_port.is_some())
                .collect(),
            labels: pod.labels.clone(),
            annotations: pod.annotations.clone(),
        };
        let attachment =
            self.network.add(&request).await.map_err(|e| failed("attach the pod's network", &e))?;
        let unserved = self.network.unserved(&request).await;
        let unserved = unserved.map_err(|e| failed("read the pod's network attachment", &e))?;
        Ok((attachment.ips, events_of_unserved(&request, &unserved)))
    }

    pub(crate) async fn start_pause(&self, pod: &std::sync::Arc<Pod>) -> Result<Process, Failure> {
        let spec = PauseSpec {
            rootfs: self.config.roots.runtime_state.join("pause"),
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
            .map_err(|e| failed("start pause", &e))?;
        Ok(Process { pid: started.pid, start_time: started.start_time })
    }

    pub(crate) async fn ensure_pause(
        &self,
        context: Context,
        sandbox_attempt: SandboxAttempt,
    ) -> Result<ActionResult, Failure> {
        let uid = &context.pod.uid;
        let Some(mut record) = self.sandbox_record(uid)? else {
            return Ok(ActionResult::done(vec![Change::Sandbox(None)]));
        };
        if record.pause_alive()? {
            // The report of a death concerned an earlier pause process.
            if let Some(pause) = record.process() {
                self.watch_pause(uid, pause);
            }
            return Ok(ActionResult::done(vec![Change::Sandbox(Some(record.seen(SandboxState::Ready)))]));
        }
        if context.pod.namespaces.share_pid {
            // Pause was process 1 of the shared PID namespace, so its end killed every process in there.
            record.complete = false;
            self.write_record(uid, &record)?;
            let seen = ObservedSandbox { sandbox_attempt, state: SandboxState::Broken, ips: record.ips };
            return Ok(ActionResult::done(vec![Change::Sandbox(Some(seen))]));
        }
        let pause = self.start_pause(&context.pod).await?;
        record.pause = Some((pause.pid, pause.start_time));
        self.write_record(uid, &record)?;
        self.watch_pause(uid, pause);
        let seen = ObservedSandbox { sandbox_attempt, state: SandboxState::Ready, ips: record.ips };
        Ok(ActionResult::done(vec![Change::Sandbox(Some(seen))]))
    }

    pub(crate) async fn teardown_sandbox(
        &self,
        pod: &Pod,
        sandbox_attempt: SandboxAttempt,
    ) -> Result<ActionResult, Failure> {
        let mut steps = Vec::new();
        let begun = Instant::now();
        self.take_down(&pod.uid, sandbox_attempt).await?;
        self.drop_cgroup(&pod.uid).await;
        steps.push(("take down", begun.elapsed()));
        Ok(ActionResult { changes: vec![Change::Sandbox(None)], steps, ..ActionResult::default() })
    }

    /// Tears down the sandbox in the order pause, network, namespaces, record. Each step succeeds where it is
    /// already done.
    pub(crate) async fn take_down(
        &self,
        uid: &PodUid,
        sandbox_attempt: SandboxAttempt,
    ) -> Result<(), Failure> {
        let kill = |e: berth_sys::Error| Failure::new("FailedKillPodSandbox", Chain(&e));
        let record = self.sandbox_record(uid)?;
        if let Some((_, watch)) = lock(&self.pauses).remove(uid) {
            watch.abort();
        }
        let mut sandbox_attempts = vec![sandbox_attempt];
        sandbox_attempts.extend(record.as_ref().map(|r| r.sandbox_attempt).filter(|i| *i != sandbox_attempt));
        let mut pauses = self.stray_pauses(uid)?;
        let of_this_boot = record.as_ref().filter(|r| r.boot == self.config.boot);
        pauses.extend(of_this_boot.and_then(Record::process).filter(|p| !pauses.contains(p)));
        self.pod_locks.blocking(uid, Area::Sandbox, move || end_pauses(&pauses)).await?.map_err(kill)?;
        let dir = self.config.roots.sandbox_dir(uid);
        let netns = dir.join(NsKind::Net.file_name());
        for i in sandbox_attempts {
            let id = sandbox_id(uid, i)?;
            self.network
                .del(&id, netns.exists().then_some(netns.as_path()))
                .await
                .map_err(|e| Failure::new("FailedKillPodSandbox", Chain(&e)))?;
        }
        self.pod_locks.blocking(uid, Area::Sandbox, move || ns::unpin(&dir)).await?.map_err(kill)?;
        let record = self.record_path(uid);
        for path in [record.with_extension("bad"), record] {
            berth_sys::fs::remove_if_there(&path).map_err(|e| {
                Failure::new("FailedKillPodSandbox", format!("remove {}: {e}", path.display()))
            })?;
        }
        Ok(())
    }

    /// Removes the pod's cgroup where the cgroup is empty and the pod has no sandbox: as with the kubelet, a
    /// pod that has ended needs none. The executor calls this after the teardown of the sandbox and after
    /// each deleted task, because either can come last.
    pub(crate) async fn drop_cgroup(&self, uid: &PodUid) {
        let (cgroups, record, name) = (self.cgroups.clone(), self.record_path(uid), uid.clone());
        if record.exists() {
            return;
        }
        // Creation writes the record first and makes the cgroup under this same pod lock. A missing record
        // under the lock thus means that no new sandbox needs the cgroup.
        let dropped = self.pod_locks.blocking(uid, Area::Sandbox, move || match record.exists() {
            true => Ok(()),
            false => cgroups.remove_pod_if_unused(&name),
        });
        match dropped.await {
            Ok(Ok(())) => {}
            // A cgroup that stays is harmless: `RemovePod` removes it.
            Ok(Err(e)) => tracing::debug!(%uid, why = %Chain(&e), "cgroup of a pod without a sandbox stays"),
            Err(failure) => tracing::debug!(%uid, why = failure.message, "cgroup not looked at"),
        }
    }

    /// Watches the pause process and sends the pod's worker a message when it ends.
    fn watch_pause(&self, uid: &PodUid, pause: Process) {
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
                Err(why) => tracing::warn!(uid = %name, why, "pause is not watched"),
            }
        });
        watched.insert(uid.clone(), (pause, task.abort_handle()));
    }

    /// The pods that have a sandbox or a part of one.
    pub(crate) fn sandboxes(&self) -> BTreeSet<PodUid> {
        let state = &self.config.roots.runtime_state;
        let mut found = BTreeSet::new();
        for (dir, extension) in [("sandbox-records", Some("json")), ("sandboxes", None)] {
            let Ok(entries) = std::fs::read_dir(state.join(dir)) else { continue };
            found.extend(entries.filter_map(|e| {
                let path = e.ok()?.path();
                let ours = path.extension().and_then(|e| e.to_str()) == extension;
                PodUid::new(path.file_stem()?.to_str()?).ok().filter(|_| ours)
            }));
        }
        found
    }

    /// The CNI container ids of these pods' sandboxes.
    pub(crate) fn sandbox_ids(&self, uids: impl Iterator<Item = PodUid>) -> BTreeSet<String> {
        uids.filter_map(|u| {
            let record = self.sandbox_record(&u).ok()??;
            sandbox_id(&u, record.sandbox_attempt).ok()
        })
        .collect()
    }
}
