//! One run of one probe.

use crate::{NodeExecutor, metrics};
use berth_core::{
    error::Chain,
    ids::{ContainerId, ContainerName},
    model::{Probe, ProbeAction},
    probe::ProbeResult,
};
use berth_pods::{Context, NodeProcess};
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
        process: Option<NodeProcess>,
        command: Vec<String>,
        timeout: Duration,
    ) -> ProbeResult {
        let begun = Instant::now();
        let mut tries = 1;
        loop {
            let run = Instant::now();
            let outcome = self.run_command(id, process, command.clone(), timeout).await;
            let result = outcome.into_result(&command, timeout);
            metrics::count("exec_sync", run.elapsed(), matches!(result, ProbeResult::Unknown(_)));
            if !matches!(result, ProbeResult::Unknown(_)) || tries >= TRIES || begun.elapsed() >= timeout {
                return result;
            }
            tries += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Node;
    use berth_core::{
        ids::{Attempt, SandboxAttempt},
        model::{PodNamespaces, PortRef},
        plan::{ObservedSandbox, SandboxState},
    };
    use berth_pods::Executor as _;

    #[tokio::test]
    async fn a_question_that_cannot_be_put_is_unknown_and_no_failure() {
        let node = Node::new(PodNamespaces::default());
        let ask = |port: PortRef, ips: &[&str]| {
            let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            let seen =
                ObservedSandbox { sandbox_attempt: SandboxAttempt(0), state: SandboxState::Ready, ips };
            let context = Context { sandbox: Some(seen), ..node.context() };
            let probe = Probe {
                action: ProbeAction::Tcp { host: None, port },
                initial_delay_seconds: 0,
                timeout_seconds: 1,
                period_seconds: 1,
                success_threshold: 1,
                failure_threshold: 1,
                grace_seconds: None,
            };
            let of = node.pod.containers[0].name.clone();
            let id = ContainerId::derive(&node.pod.uid, SandboxAttempt(0), &of, Attempt(0));
            node.executor.probe(context, id, probe, of)
        };
        for (port, ips) in [
            (PortRef::Name("nosuch".into()), &["127.0.0.2"][..]),
            (PortRef::Number(80), &[]),
            (PortRef::Name("nosuch".into()), &[]),
        ] {
            let answer = ask(port, ips).await;
            assert!(matches!(answer, ProbeResult::Unknown(_)), "{answer:?}");
        }
    }
}
