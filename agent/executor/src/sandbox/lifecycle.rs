//! The life of a sandbox: creation in the order record, cgroup, namespaces, network, pause; teardown in the
//! reverse order.

use super::{failed, kinds, pause::end_pauses, record::SandboxRecord, sandbox_id};
use crate::{NodeExecutor, pod_locks::Area, stopwatch::Stopwatch};
use berth_core::{
    error::Chain,
    event::Event,
    ids::{PodUid, SandboxAttempt},
    model::Pod,
    plan::{Failure, ObservedSandbox, SandboxState},
    sync::lock,
};
use berth_network::{SandboxNetwork, Unserved};
use berth_pods::{ActionResult, Context, ObservedChange};
use berth_runtime::spec::sandbox_sysctls;
use berth_sys::ns::{self, NsKind};
use berth_volumes::PodHostname;
use std::{net::IpAddr, path::PathBuf, sync::Arc};

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

impl NodeExecutor {
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
        let _slot = self.sandboxes.acquire().await;
        let mut steps = Stopwatch::start();
        let mut record = SandboxRecord::begun(sandbox_attempt, &self.config.boot, &pod.namespaces);
        self.write_record(uid, &record)?;

        self.make_namespaces(pod).await?;
        steps.lap("cgroup+namespaces");

        let netns = self.config.roots.sandbox_dir(uid).join(NsKind::Net.file_name());
        let (ips, events) = self.attach(pod, sandbox_attempt, netns).await?;
        record.ips = ips;
        steps.lap("network");
        // Moving a process between cgroups waits for every fork and exit on the machine. Containers must not
        // wait for that, so pause starts here only where it is their process 1. Otherwise `EnsurePause`
        // starts it.
        let mut state = SandboxState::NoPause;
        if pod.namespaces.share_pid {
            let pause = self.start_pause(pod).await?;
            record.pause = Some((pause.pid, pause.start_time));
            self.watch_pause(uid, pause);
            state = SandboxState::Ready;
            steps.lap("pause");
        }
        record.complete = true;
        self.write_record(uid, &record)?;
        let seen = ObservedSandbox { sandbox_attempt, state, ips: record.ips };
        Ok(ActionResult {
            changes: vec![ObservedChange::Sandbox(Some(seen))],
            steps: steps.into_parts(),
            events,
            ..ActionResult::default()
        })
    }

    /// Makes the pod's cgroup and its pinned namespaces.
    async fn make_namespaces(&self, pod: &Arc<Pod>) -> Result<(), Failure> {
        let (cgroups, dir) = (self.cgroups.clone(), self.config.roots.sandbox_dir(&pod.uid));
        let pids_limit = self.config.pids_limit;
        let hostname = match pod.namespaces.host_network {
            true => None,
            false => Some(
                PodHostname::of(pod, self.node().cluster_domain.as_deref())
                    .map_err(|e| Failure::new("FailedCreatePodSandBox", e.message()))?
                    .kernel,
            ),
        };
        let sysctls: Vec<(String, String)> =
            sandbox_sysctls(pod).map_err(|e| failed("set the pod's sysctls", &e))?.into_iter().collect();
        let (kinds, for_blocking) = (kinds(&pod.namespaces), Arc::clone(pod));
        self.pod_locks
            .blocking(&pod.uid, Area::Sandbox, move || {
                cgroups
                    .create_pod(&for_blocking, pids_limit)
                    .map_err(|e| failed("make the pod's cgroup", &e))?;
                ns::create_pinned(&dir, &kinds, hostname.as_deref(), &sysctls)
                    .map_err(|e| failed("make the pod's namespaces", &e))
            })
            .await?
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
            return Ok((self.node().ips.clone(), Vec::new()));
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

    pub(crate) async fn teardown_sandbox(
        &self,
        context: &Context,
        sandbox_attempt: SandboxAttempt,
    ) -> Result<ActionResult, Failure> {
        let mut steps = Stopwatch::start();
        self.take_down(&context.pod.uid, sandbox_attempt, &mut steps).await?;
        self.drop_cgroup(context).await;
        steps.lap("cgroup");
        Ok(ActionResult {
            changes: vec![ObservedChange::Sandbox(None)],
            steps: steps.into_parts(),
            ..ActionResult::default()
        })
    }

    /// Tears down the sandbox in the order pause, network, namespaces, record. Each step succeeds where it is
    /// already done.
    pub(crate) async fn take_down(
        &self,
        uid: &PodUid,
        sandbox_attempt: SandboxAttempt,
        steps: &mut Stopwatch,
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
        pauses.extend(of_this_boot.and_then(SandboxRecord::process).filter(|p| !pauses.contains(p)));
        self.pod_locks.blocking(uid, Area::Sandbox, move || end_pauses(&pauses)).await?.map_err(kill)?;
        steps.lap("pause");
        let dir = self.config.roots.sandbox_dir(uid);
        let netns = dir.join(NsKind::Net.file_name());
        for i in sandbox_attempts {
            let id = sandbox_id(uid, i)?;
            self.network
                .del(&id, netns.exists().then_some(netns.as_path()))
                .await
                .map_err(|e| Failure::new("FailedKillPodSandbox", Chain(&e)))?;
        }
        steps.lap("network");
        self.pod_locks.blocking(uid, Area::Sandbox, move || ns::unpin(&dir)).await?.map_err(kill)?;
        let record = self.record_path(uid);
        for path in [record.with_extension("bad"), record] {
            berth_sys::fs::remove_if_there(&path).map_err(|e| {
                Failure::new("FailedKillPodSandbox", format!("cannot remove {}: {e}", path.display()))
            })?;
        }
        steps.lap("namespaces");
        Ok(())
    }

    /// Removes the cgroup of a pod that stays known, where the cgroup is empty and the pod has no sandbox: as with the
    /// kubelet, a pod that has ended needs none. The executor calls this after the teardown of the sandbox and after
    /// each deleted task, because either can come last. The cgroup of a pod that goes is removed with the pod.
    pub(crate) async fn drop_cgroup(&self, context: &Context) {
        let uid = &context.pod.uid;
        let (cgroups, record, name) = (self.cgroups.clone(), self.record_path(uid), uid.clone());
        if context.ending || record.exists() {
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
            Ok(Err(e)) => {
                tracing::debug!(%uid, why = %Chain(&e), "cannot remove the cgroup of a pod without a sandbox")
            }
            Err(failure) => tracing::debug!(%uid, why = failure.message, "cannot look at the pod's cgroup"),
        }
    }
}
