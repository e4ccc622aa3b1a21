//! A pod's sandbox: cgroup, pinned namespaces, network, pause.
//!
//! Made in that order and taken down in the reverse one. A record on the tmpfs says how far it came: it is written
//! before the first step and completed after the last; what is found without being complete is finished backwards.

use super::{NodeHands, blocking, chain, lock};
use crate::{
    hands::{Change, Context, Performed, Process},
    manager::Incoming,
    worker::Letter,
};
use berth_core::{
    ids::{Attempt, BootId, ContainerId, ContainerName, Incarnation, PodUid},
    model::{Pod, PodNamespaces},
    plan::{Failure, SandboxSeen, SandboxState},
};
use berth_network::SandboxNetwork;
use berth_sys::{
    ns::{self, NsKind},
    pause::{self, PauseSpec},
    process::{self, PidFd},
};
use berth_volumes::PodHostname;
use serde::{Deserialize, Serialize};
use std::{
    io::ErrorKind,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::io::unix::AsyncFd;

/// `oom_score_adj` of pause, as the sandbox container has with containerd's CRI plugin.
const PAUSE_OOM_SCORE: i32 = -998;
/// How long a killed pause may take to be gone.
const PAUSE_DIES: Duration = Duration::from_secs(10);

/// What is on record of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) incarnation: Incarnation,
    boot: BootId,
    complete: bool,
    ips: Vec<IpAddr>,
    pause: Option<(u32, u64)>,
}

/// The sandbox's name towards the CNI.
fn sandbox_id(uid: &PodUid, incarnation: Incarnation) -> Result<String, Failure> {
    let name = ContainerName::new("sandbox").map_err(|e| Failure::new("InternalError", e.to_string()))?;
    // No container has this attempt.
    Ok(ContainerId::derive(uid, incarnation, &name, Attempt(u32::MAX)).to_string())
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

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new("FailedCreatePodSandBox", format!("{what}: {}", chain(error)))
}

impl NodeHands {
    fn record_path(&self, uid: &PodUid) -> PathBuf {
        self.config.roots.runtime_state.join("sandbox-records").join(format!("{uid}.json"))
    }

    /// The record of that pod's sandbox. A torn one counts as incomplete.
    pub(super) fn sandbox_record(&self, uid: &PodUid) -> Result<Option<Record>, Failure> {
        let path = self.record_path(uid);
        match std::fs::read(&path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).unwrap_or_else(|_torn| Record {
                incarnation: Incarnation(0),
                boot: self.config.boot.clone(),
                complete: false,
                ips: Vec::new(),
                pause: None,
            }))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Failure::new("InternalError", format!("read {}: {e}", path.display()))),
        }
    }

    fn write_record(&self, uid: &PodUid, record: &Record) -> Result<(), Failure> {
        let path = self.record_path(uid);
        let parent = self.config.roots.runtime_state.join("sandbox-records");
        std::fs::create_dir_all(&parent).map_err(|e| failed("create the records' directory", &e))?;
        let text = serde_json::to_vec(record).map_err(|e| failed("encode the sandbox's record", &e))?;
        berth_sys::fs::write_atomic(&path, &text, 0o600).map_err(|e| failed("write the sandbox's record", &e))
    }

    /// What is there of a sandbox, checked against the kernel.
    pub(super) fn see_sandbox(&self, uid: &PodUid) -> Result<Option<SandboxSeen>, Failure> {
        let Some(record) = self.sandbox_record(uid)? else { return Ok(None) };
        let pinned = berth_sys::mount::mounts_below(&self.config.roots.sandbox_dir(uid))
            .map_err(|e| Failure::new("InternalError", chain(&e)))?;
        let whole = record.complete
            && record.boot == self.config.boot
            && !(pinned.is_empty() && record.pause.is_none());
        let pause_alive = match record.pause {
            Some((pid, start)) => {
                process::alive(pid, start).map_err(|e| Failure::new("InternalError", chain(&e)))?
            }
            None => false,
        };
        let state = match (whole, pause_alive) {
            (false, _) => SandboxState::Broken,
            (true, true) => SandboxState::Ready,
            (true, false) => SandboxState::NoPause,
        };
        if state == SandboxState::Ready
            && let Some((pid, start_time)) = record.pause
        {
            self.watch_pause(uid, Process { pid, start_time });
        }
        Ok(Some(SandboxSeen { incarnation: record.incarnation, state, ips: record.ips }))
    }

    pub(super) async fn make_sandbox(
        &self,
        context: Context,
        incarnation: Incarnation,
    ) -> Result<Performed, Failure> {
        let pod = &context.pod;
        let uid = &pod.uid;
        if let Some(class) = &pod.runtime_class {
            return Err(Failure::new(
                "FailedCreatePodSandBox",
                format!("runtimeClassName {class:?}: this build runs the node's default runtime only"),
            ));
        }
        let _turn = self.turns.take().await;
        let mut steps = Vec::new();
        let mut clock = Instant::now();
        let mut step = |name, steps: &mut Vec<(&'static str, Duration)>| {
            steps.push((name, clock.elapsed()));
            clock = Instant::now();
        };
        let mut record = Record {
            incarnation,
            boot: self.config.boot.clone(),
            complete: false,
            ips: Vec::new(),
            pause: None,
        };
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
        let mut sysctls = pod.security.sysctls.clone();
        if !pod.namespaces.host_network {
            let defaults =
                [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];
            for (name, value) in defaults {
                if !sysctls.iter().any(|(n, _)| n == name) {
                    sysctls.push((name.to_owned(), value.to_owned()));
                }
            }
        }
        let kinds = kinds(&pod.namespaces);
        blocking(move || {
            cgroups.create_pod(&for_blocking, pids_limit).map_err(|e| failed("make the pod's cgroup", &e))?;
            ns::create_pinned(&dir, &kinds, hostname.as_deref(), &sysctls)
                .map_err(|e| failed("make the pod's namespaces", &e))
        })
        .await??;
        step("cgroup+namespaces", &mut steps);

        let (attached, pause) = tokio::join!(self.attach(pod, incarnation, netns), self.start_pause(pod));
        record.ips = attached?;
        let pause = pause?;
        record.pause = Some((pause.pid, pause.start_time));
        step("network+pause", &mut steps);
        record.complete = true;
        self.write_record(uid, &record)?;
        self.watch_pause(uid, pause);
        let seen = SandboxSeen { incarnation, state: SandboxState::Ready, ips: record.ips };
        Ok(Performed { outcome: Ok(()), changes: vec![Change::Sandbox(Some(seen))], steps })
    }

    async fn attach(
        &self,
        pod: &Pod,
        incarnation: Incarnation,
        netns: PathBuf,
    ) -> Result<Vec<IpAddr>, Failure> {
        if pod.namespaces.host_network {
            return Ok(self.config.node_ips.clone());
        }
        let request = SandboxNetwork {
            uid: pod.uid.clone(),
            key: pod.key.clone(),
            sandbox_id: sandbox_id(&pod.uid, incarnation)?,
            netns,
            ports: pod
                .all_containers()
                .flat_map(|c| c.ports.iter().cloned())
                .filter(|p| p.host_port.is_some())
                .collect(),
            labels: pod.labels.clone(),
        };
        let attachment =
            self.network.add(&request).await.map_err(|e| failed("attach the pod's network", &e))?;
        Ok(attachment.ips)
    }

    async fn start_pause(&self, pod: &std::sync::Arc<Pod>) -> Result<Process, Failure> {
        let spec = PauseSpec {
            rootfs: self.config.roots.runtime_state.join("pause"),
            sandbox_dir: self.config.roots.sandbox_dir(&pod.uid),
            kinds: kinds(&pod.namespaces),
            share_pid: pod.namespaces.share_pid,
            cgroup_dirs: self.cgroups.pod_procs_dirs(pod),
            oom_score_adj: PAUSE_OOM_SCORE,
            label: format!("berth-pause {}", pod.key),
        };
        let started = blocking(move || {
            pause::prepare_rootfs(&spec.rootfs, berth_pause::PAUSE)?;
            pause::start(&spec)
        })
        .await?
        .map_err(|e| failed("start pause", &e))?;
        Ok(Process { pid: started.pid, start_time: started.start_time })
    }

    pub(super) async fn restart_pause(
        &self,
        context: Context,
        incarnation: Incarnation,
    ) -> Result<Performed, Failure> {
        let uid = &context.pod.uid;
        let Some(mut record) = self.sandbox_record(uid)? else {
            return Ok(Performed::done(vec![Change::Sandbox(None)]));
        };
        if context.pod.namespaces.share_pid {
            // Process 1 of the shared namespace took every other with it.
            record.complete = false;
            self.write_record(uid, &record)?;
            let seen = SandboxSeen { incarnation, state: SandboxState::Broken, ips: record.ips };
            return Ok(Performed::done(vec![Change::Sandbox(Some(seen))]));
        }
        let pause = self.start_pause(&context.pod).await?;
        record.pause = Some((pause.pid, pause.start_time));
        self.write_record(uid, &record)?;
        self.watch_pause(uid, pause);
        let seen = SandboxSeen { incarnation, state: SandboxState::Ready, ips: record.ips };
        Ok(Performed::done(vec![Change::Sandbox(Some(seen))]))
    }

    pub(super) async fn teardown_sandbox(
        &self,
        pod: &Pod,
        incarnation: Incarnation,
    ) -> Result<Performed, Failure> {
        let mut steps = Vec::new();
        let begun = Instant::now();
        self.take_down(&pod.uid, incarnation).await?;
        steps.push(("take down", begun.elapsed()));
        Ok(Performed { outcome: Ok(()), changes: vec![Change::Sandbox(None)], steps })
    }

    /// Backwards: pause, network, namespaces, record. Each may be done already.
    pub(super) async fn take_down(&self, uid: &PodUid, incarnation: Incarnation) -> Result<(), Failure> {
        let kill = |e: berth_sys::Error| Failure::new("FailedKillPodSandbox", chain(&e));
        let record = self.sandbox_record(uid)?;
        if let Some(watch) = lock(&self.pauses).remove(uid) {
            watch.abort();
        }
        let mut incarnations = vec![incarnation];
        incarnations.extend(record.as_ref().map(|r| r.incarnation).filter(|i| *i != incarnation));
        if let Some((pid, start)) =
            record.as_ref().filter(|r| r.boot == self.config.boot).and_then(|r| r.pause)
            && process::alive(pid, start).map_err(kill)?
            && let Some(fd) = PidFd::open(pid).map_err(kill)?
        {
            fd.signal_number(9).map_err(kill)?;
            blocking(move || fd.poll_exited(PAUSE_DIES)).await?.map_err(kill)?;
        }
        let dir = self.config.roots.sandbox_dir(uid);
        let netns = dir.join(NsKind::Net.file_name());
        for i in incarnations {
            let id = sandbox_id(uid, i)?;
            self.network
                .del(&id, netns.exists().then_some(netns.as_path()))
                .await
                .map_err(|e| Failure::new("FailedKillPodSandbox", chain(&e)))?;
        }
        blocking(move || ns::unpin(&dir)).await?.map_err(kill)?;
        match std::fs::remove_file(self.record_path(uid)) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Failure::new("FailedKillPodSandbox", format!("remove the sandbox's record: {e}")))
            }
            _ => Ok(()),
        }
    }

    /// Tells the pod's worker when pause dies.
    fn watch_pause(&self, uid: &PodUid, pause: Process) {
        let (incoming, name) = (self.incoming.clone(), uid.clone());
        let mut watched = lock(&self.pauses);
        if watched.get(uid).is_some_and(|w| !w.is_finished()) {
            return;
        }
        let task = tokio::spawn(async move {
            if let Ok(Some(fd)) = PidFd::open(pause.pid)
                && process::start_time(pause.pid).ok().flatten() == Some(pause.start_time)
            {
                #[expect(
                    deprecated,
                    reason = "its successor is unsafe; PidFd keeps its descriptor open as long as it lives"
                )]
                let registered = AsyncFd::new(fd);
                match registered {
                    // Readable once the process has ended.
                    Ok(fd) => drop(fd.readable().await),
                    Err(error) => {
                        tracing::warn!(uid = %name, %error, "pause is not watched");
                        return;
                    }
                }
            }
            // Where the manager is gone, so is the agent.
            incoming.send(Incoming::One(name, Letter::PauseDied)).await.ok();
        });
        watched.insert(uid.clone(), task.abort_handle());
    }

    /// The sandboxes on record.
    pub(super) fn sandboxes(&self) -> Vec<PodUid> {
        let dir = self.config.roots.runtime_state.join("sandbox-records");
        let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
        entries.filter_map(|e| PodUid::new(e.ok()?.path().file_stem()?.to_str()?).ok()).collect()
    }

    /// The CNI names of the sandboxes of these pods.
    pub(super) fn sandbox_ids(
        &self,
        uids: impl Iterator<Item = PodUid>,
    ) -> std::collections::BTreeSet<String> {
        uids.filter_map(|u| {
            let record = self.sandbox_record(&u).ok()??;
            sandbox_id(&u, record.incarnation).ok()
        })
        .collect()
    }
}
