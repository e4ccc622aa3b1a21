//! Asking one probe once.

use super::NodeExecutor;
use crate::executor::{Context, Process};
use berth_core::{
    error::Chain,
    ids::{ContainerId, ContainerName},
    model::{Probe, ProbeAction},
    probe::ProbeResult,
};
use berth_probe::{TRIES, action::probe_command, resolve};
use std::time::{Duration, Instant};

impl NodeExecutor {
    /// Asks one probe. What keeps the question from being put (a port that the container does not name, a pod without
    /// an address, a command that cannot be started) is [`ProbeResult::Unknown`]: the kubelet calls it an errored
    /// probe, tells it by an event and throws the result away.
    pub(super) async fn probe_container(
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
        if let ProbeAction::Exec(command) = &probe.action {
            let command = probe_command(command, &container.env);
            return self.ask_command(&id, context.process, command, timeout).await;
        }
        let node_local = context.pod.namespaces.host_network;
        match resolve(&probe, container, self.pod_ip(&context), node_local) {
            Ok(action) => self.prober.ask(&action, timeout).await,
            Err(e) => ProbeResult::Unknown(Chain(&e).to_string()),
        }
    }

    /// As for every probe: what could not be asked is asked again, within the probe's own time.
    async fn ask_command(
        &self,
        id: &ContainerId,
        process: Option<Process>,
        command: Vec<String>,
        timeout: Duration,
    ) -> ProbeResult {
        let begun = Instant::now();
        let mut tries = 1;
        loop {
            let outcome = self.run_command(id, process, command.clone(), timeout).await;
            let result = outcome.into_result(timeout);
            if !matches!(result, ProbeResult::Unknown(_)) || tries >= TRIES || begun.elapsed() >= timeout {
                return result;
            }
            tries += 1;
        }
    }
}
