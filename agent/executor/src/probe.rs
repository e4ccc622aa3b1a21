//! One run of one probe.

use crate::NodeExecutor;
use berth_core::{
    error::Chain,
    ids::{ContainerId, ContainerName},
    model::{Probe, ProbeAction},
    probe::ProbeResult,
};
use berth_pods::{Context, Process};
use berth_probe::{TRIES, action::probe_command, resolve};
use std::time::{Duration, Instant};

impl NodeExecutor {
    /// Runs a probe once. The result is [`ProbeResult::Unknown`] where the probe cannot be put: the container
    /// does not name the port, the pod has no address, or the command cannot be started. The kubelet calls
    /// that an errored probe, publishes an event and drops the result.
    pub(crate) async fn probe_container(
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

    /// Runs a command probe. A command that could not be run is tried again within the probe's timeout,
    /// [`TRIES`] times in all, as for every probe.
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
            let result = outcome.into_result(&command, timeout);
            if !matches!(result, ProbeResult::Unknown(_)) || tries >= TRIES || begun.elapsed() >= timeout {
                return result;
            }
            tries += 1;
        }
    }
}
