//! Lifecycle hooks: `postStart` and `preStop`.

use crate::NodeExecutor;
use berth_core::{
    error::Chain,
    ids::{ContainerId, ContainerName},
    model::{Container, Hook},
    plan::Failure,
};
use berth_pods::{ActionResult, Context};
use berth_probe::{ExecOutcome, http_hook, resolve_http};
use berth_sys::clock;
use std::{net::IpAddr, time::Duration};

/// Time limit of a hook that has no limit of its own.
const MAX_HOOK_TIME: Duration = Duration::from_secs(12 * 3600);

/// The reason why a hook's command failed, and the command's output. `None` where the command succeeded.
fn failure_of(outcome: ExecOutcome, within: Duration) -> Option<(String, String)> {
    Some(match outcome {
        ExecOutcome::Exited { code: 0, .. } => return None,
        ExecOutcome::Exited { code, output } => (format!("command exited with {code}"), output),
        ExecOutcome::Killed { signal, output } => (format!("command was ended by signal {signal}"), output),
        ExecOutcome::TimedOut { output } => (format!("command did not end within {within:.0?}"), output),
        ExecOutcome::NotRun(why) | ExecOutcome::Unsupported(why) => {
            (format!("command could not be run: {why}"), String::new())
        }
    })
}

impl NodeExecutor {
    pub(crate) async fn post_start(
        &self,
        context: Context,
        container: &ContainerName,
        id: &ContainerId,
    ) -> Result<ActionResult, Failure> {
        self.hook(|c| c.post_start.as_ref(), container, id, &context, MAX_HOOK_TIME).await
    }

    pub(crate) async fn pre_stop(
        &self,
        context: Context,
        container: &ContainerName,
        id: &ContainerId,
    ) -> Result<ActionResult, Failure> {
        let left = context.deadline.map_or(MAX_HOOK_TIME, |d| d.since(clock::boottime()));
        self.hook(|c| c.pre_stop.as_ref(), container, id, &context, left).await
    }

    /// Runs the hook that `of` finds in the container's spec; done where there is none.
    async fn hook(
        &self,
        of: fn(&Container) -> Option<&Hook>,
        container: &ContainerName,
        id: &ContainerId,
        context: &Context,
        within: Duration,
    ) -> Result<ActionResult, Failure> {
        let pod = &context.pod;
        let Some((spec, hook)) = pod.container(container).and_then(|c| Some((c, of(c)?))) else {
            return Ok(ActionResult::done(Vec::new()));
        };
        let failed = |message: String| Failure::new("FailedHook", message);
        match hook {
            Hook::Sleep(seconds) => {
                tokio::time::sleep(Duration::from_secs(u64::from(*seconds)).min(within)).await
            }
            Hook::Http(target) => {
                let action = resolve_http(target, spec, self.pod_ip(context), pod.namespaces.host_network)
                    .map_err(|e| failed(Chain(&e).to_string()))?;
                let reply = http_hook(&self.prober, &action, within)
                    .await
                    .map_err(|e| failed(Chain(&e).to_string()))?;
                if reply.fell_back_to_http {
                    tracing::warn!(pod = %pod.key, container = %spec.name, "the hook's server speaks HTTP where HTTPS is specified");
                }
            }
            // A hook's command is taken literally: `$(VAR)` is expanded in probes only.
            Hook::Exec(command) => {
                let outcome = self.run_command(id, context.process, command.clone(), within).await;
                let Some((why, output)) = failure_of(outcome, within) else {
                    return Ok(ActionResult::done(Vec::new()));
                };
                tracing::info!(pod = %pod.key, container = %spec.name, why, output, "hook failed");
                return Err(failed(why));
            }
        }
        Ok(ActionResult::done(Vec::new()))
    }

    pub(crate) fn pod_ip(&self, context: &Context) -> Option<IpAddr> {
        self.pod_ips(context).first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_ran_is_never_reported_as_one_that_could_not_be_run() {
        let output = || "out".to_owned();
        let reason = |outcome| failure_of(outcome, Duration::from_secs(3)).map(|(why, _)| why);
        assert_eq!(reason(ExecOutcome::Exited { code: 0, output: output() }), None);
        for (outcome, why) in [
            (ExecOutcome::Exited { code: 7, output: output() }, "command exited with 7"),
            (ExecOutcome::Killed { signal: 9, output: output() }, "command was ended by signal 9"),
            (ExecOutcome::TimedOut { output: output() }, "command did not end within 3s"),
            (ExecOutcome::NotRun("no such file".into()), "command could not be run: no such file"),
        ] {
            assert_eq!(reason(outcome).as_deref(), Some(why));
        }
    }
}
