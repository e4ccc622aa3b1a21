//! Asking one probe once.

use super::{NodeHands, chain, hooks::Ran};
use crate::hands::Context;
use berth_core::{
    ids::{ContainerId, ContainerName},
    model::{Probe, ProbeAction},
    probe::ProbeResult,
};
use berth_probe::resolve;
use std::time::Duration;

impl NodeHands {
    pub(super) async fn ask_probe(
        &self,
        context: Context,
        id: ContainerId,
        probe: Probe,
        of: ContainerName,
    ) -> ProbeResult {
        let Some(container) = context.pod.container(&of) else {
            return ProbeResult::Unknown("the pod has no such container".to_owned());
        };
        let timeout = Duration::from_secs(u64::from(probe.timeout_seconds.max(1)));
        let node_local = context.pod.namespaces.host_network;
        let exec = match (&probe.action, context.process) {
            (ProbeAction::Exec(_), Some(process)) => match self.target(&id, process, Vec::new()).await {
                Ok(target) => Some(target),
                Err(why) => {
                    tracing::debug!(container = id.short(), why, "exec probe goes through containerd");
                    None
                }
            },
            _ => None,
        };
        if let (ProbeAction::Exec(command), None) = (&probe.action, &exec) {
            return self.ask_through_containerd(&id, command.clone(), timeout).await;
        }
        match resolve(&probe, container, self.pod_ip(&context), node_local, exec.as_ref()) {
            Ok(action) => self.prober.ask(&action, timeout).await,
            Err(e) => ProbeResult::Failure(chain(&e)),
        }
    }

    async fn ask_through_containerd(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Duration,
    ) -> ProbeResult {
        match self.run(id, None, command, timeout).await {
            Ran::Code(0, _) => ProbeResult::Success,
            Ran::Code(_, output) => ProbeResult::Failure(output),
            Ran::TimedOut => ProbeResult::Failure(format!("command timed out after {timeout:?}")),
            Ran::NotRun(why) => ProbeResult::Unknown(why),
        }
    }
}
