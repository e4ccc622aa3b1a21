//! Lifecycle hooks, and commands in containers.

use super::{NodeHands, chain};
use crate::hands::{Context, Performed, Process};
use berth_core::{
    ids::{ContainerId, ContainerName},
    model::{Container, Hook, Pod},
    plan::Failure,
};
use berth_probe::{ExecOutcome, ExecProcess, ExecTarget, action::hook_command, http_hook, resolve_http};
use berth_runtime::ExecRequest;
use berth_sys::clock;
use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A hook without an end of its own is given this much.
const LONGEST: Duration = Duration::from_secs(12 * 3600);
/// Output of a hook that is kept for its failure's message.
const OUTPUT: usize = 10 * 1024;

static EXECS: AtomicU64 = AtomicU64::new(0);

/// The part of a spec that entering the container needs: the rest, most of it the seccomp filter, is not kept.
pub(super) fn entry_of(spec: &serde_json::Value) -> serde_json::Value {
    let at = |pointer: &str| spec.pointer(pointer).cloned().unwrap_or_default();
    let filtered = at("/linux/seccomp");
    let seccomp = if filtered.is_null() { filtered } else { serde_json::json!({ "present": true }) };
    serde_json::json!({
        "process": at("/process"),
        "linux": { "cgroupsPath": at("/linux/cgroupsPath"), "seccomp": seccomp },
    })
}

/// How a command in a container ended.
pub(super) enum Ran {
    Code(i32, String),
    TimedOut,
    /// It could not be begun.
    NotRun(String),
}

impl NodeHands {
    pub(super) async fn post_start(
        &self,
        context: Context,
        container: &ContainerName,
        id: &ContainerId,
    ) -> Result<Performed, Failure> {
        let pod = context.pod.clone();
        let Some((spec, hook)) = pod.container(container).and_then(|c| Some((c, c.post_start.as_ref()?)))
        else {
            return Ok(Performed::done(Vec::new()));
        };
        self.hook(&pod, spec, hook, id, &context, LONGEST).await
    }

    pub(super) async fn pre_stop(
        &self,
        context: Context,
        container: &ContainerName,
        id: &ContainerId,
    ) -> Result<Performed, Failure> {
        let pod = context.pod.clone();
        let Some((spec, hook)) = pod.container(container).and_then(|c| Some((c, c.pre_stop.as_ref()?)))
        else {
            return Ok(Performed::done(Vec::new()));
        };
        let left = context.deadline.map_or(LONGEST, |d| d.since(clock::boottime()));
        self.hook(&pod, spec, hook, id, &context, left).await
    }

    async fn hook(
        &self,
        pod: &Pod,
        spec: &Container,
        hook: &Hook,
        id: &ContainerId,
        context: &Context,
        within: Duration,
    ) -> Result<Performed, Failure> {
        let failed = |message: String| Failure::new("FailedHook", message);
        match hook {
            Hook::Sleep(seconds) => {
                tokio::time::sleep(Duration::from_secs(u64::from(*seconds)).min(within)).await
            }
            Hook::Http(target) => {
                let action = resolve_http(target, spec, self.pod_ip(context), pod.namespaces.host_network)
                    .map_err(|e| failed(chain(&e)))?;
                let reply = http_hook(&self.prober, &action, within).await.map_err(|e| failed(chain(&e)))?;
                if reply.fell_back_to_http {
                    tracing::warn!(pod = %pod.key, container = %spec.name, "the hook's server speaks HTTP where HTTPS is specified");
                }
            }
            Hook::Exec(_) => {
                let command = hook_command(hook, spec).unwrap_or_default();
                match self.run(id, context.process, command, within).await {
                    Ran::Code(0, _) => {}
                    Ran::Code(code, output) => {
                        tracing::info!(pod = %pod.key, container = %spec.name, code, output, "hook failed");
                        return Err(failed(format!("command exited with {code}")));
                    }
                    Ran::TimedOut => return Err(failed(format!("command did not end within {within:?}"))),
                    Ran::NotRun(why) => return Err(failed(format!("command could not be run: {why}"))),
                }
            }
        }
        Ok(Performed::done(Vec::new()))
    }

    pub(super) fn pod_ip(&self, context: &Context) -> Option<IpAddr> {
        self.pod_ips(context).first().copied()
    }

    /// How to enter a container.
    pub(super) async fn target(
        &self,
        id: &ContainerId,
        process: Process,
        command: Vec<String>,
    ) -> Result<ExecTarget, String> {
        let spec = self.stored_spec(id).await?;
        let exec = ExecProcess::from_spec(&spec).map_err(|e| e.0)?;
        let path = spec
            .pointer("/linux/cgroupsPath")
            .and_then(|p| p.as_str())
            .ok_or("the spec has no cgroup path")?;
        Ok(ExecTarget {
            command,
            pid: process.pid,
            start_time: process.start_time,
            process: exec,
            cgroup_dirs: self.cgroups.dirs_of(path),
        })
    }

    async fn stored_spec(&self, id: &ContainerId) -> Result<std::sync::Arc<serde_json::Value>, String> {
        if let Some(spec) = super::lock(&self.specs).get(id) {
            return Ok(std::sync::Arc::clone(spec));
        }
        let runtime = self.runtime().map_err(|f| f.message)?;
        let spec = runtime.spec(id).await.map_err(|e| e.chain())?.ok_or("the container is gone")?;
        let spec = std::sync::Arc::new(entry_of(&spec));
        super::lock(&self.specs).insert(id.clone(), std::sync::Arc::clone(&spec));
        Ok(spec)
    }

    /// Runs a command in a container: by the helper, or through containerd where the helper cannot take the
    /// container's confinement on.
    pub(super) async fn run(
        &self,
        id: &ContainerId,
        process: Option<Process>,
        command: Vec<String>,
        within: Duration,
    ) -> Ran {
        let why = match process {
            Some(process) => match self.target(id, process, command.clone()).await {
                Ok(target) => match self.prober.exec(&target, within).await {
                    Ok(ExecOutcome::Exited { code, output, .. }) => {
                        return Ran::Code(code, output);
                    }
                    Ok(ExecOutcome::TimedOut { .. }) => return Ran::TimedOut,
                    Ok(other) => return Ran::NotRun(format!("{other:?}")),
                    Err(unsupported) => unsupported.0,
                },
                Err(why) => why,
            },
            None => "its process is not known".to_owned(),
        };
        tracing::debug!(container = id.short(), why, "command goes through containerd");
        self.run_through_containerd(id, command, within).await
    }

    async fn run_through_containerd(&self, id: &ContainerId, command: Vec<String>, within: Duration) -> Ran {
        let request = match self.exec_request(id, command).await {
            Ok(request) => request,
            Err(why) => return Ran::NotRun(why),
        };
        let runtime = match self.runtime() {
            Ok(runtime) => runtime,
            Err(failure) => return Ran::NotRun(failure.message),
        };
        match runtime.exec_output(request, OUTPUT, within).await {
            Ok(output) => match output.code {
                Some(code) => {
                    let mut text = output.stdout;
                    text.extend(output.stderr);
                    Ran::Code(code, String::from_utf8_lossy(&text).into_owned())
                }
                None => Ran::TimedOut,
            },
            Err(e) => Ran::NotRun(e.chain()),
        }
    }

    /// A request for containerd's exec with the container's own process settings.
    pub async fn exec_request(&self, id: &ContainerId, command: Vec<String>) -> Result<ExecRequest, String> {
        let spec = self.stored_spec(id).await?;
        let mut process = spec.get("process").cloned().ok_or("the spec has no process")?;
        if let Some(fields) = process.as_object_mut() {
            fields.insert("args".to_owned(), serde_json::json!(command));
            fields.insert("terminal".to_owned(), serde_json::json!(false));
        }
        let n = EXECS.fetch_add(1, Ordering::Relaxed);
        Ok(ExecRequest {
            id: id.clone(),
            exec_id: format!("x{}-{n}", clock::boottime().0.as_nanos()),
            process,
            stdio: None,
            stdin: false,
            terminal: false,
        })
    }
}
