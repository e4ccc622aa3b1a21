//! Commands in containers, for probes, hooks and `exec`. Every command enters its container through this
//! module.
//!
//! A command runs through the exec helper where the helper supports all that confines the container.
//! Otherwise the command runs through containerd, which always can. On both paths a command that exceeds its
//! time, or whose client is gone, is ended together with the processes that it started.

use crate::NodeExecutor;
use berth_core::{error::Chain, ids::ContainerId, sync::lock};
use berth_pods::NodeProcess;
use berth_probe::{
    ExecOutcome, ExecTarget, Session, SessionError, Stdio, Unsupported, exec::MAX_OUTPUT, process_of_spec,
};
use berth_runtime::ExecRequest;
use berth_sys::clock;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

static EXECS: AtomicU64 = AtomicU64::new(0);

/// The part of a spec that entering the container needs. The rest, most of it the seccomp filter, is not kept
/// in memory.
pub(crate) fn entry_of(spec: &serde_json::Value) -> serde_json::Value {
    let at = |pointer: &str| spec.pointer(pointer).cloned().unwrap_or_default();
    let filtered = at("/linux/seccomp");
    let seccomp = if filtered.is_null() { filtered } else { serde_json::json!({ "present": true }) };
    serde_json::json!({
        "process": at("/process"),
        "linux": { "cgroupsPath": at("/linux/cgroupsPath"), "seccomp": seccomp },
    })
}

impl NodeExecutor {
    /// The exec helper's description of a container and of the command to run in it.
    async fn target(
        &self,
        id: &ContainerId,
        process: NodeProcess,
        command: Vec<String>,
    ) -> Result<ExecTarget, String> {
        let spec = self.stored_spec(id).await?;
        let exec = process_of_spec(&spec).map_err(|e| e.0)?;
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
        if let Some(spec) = lock(&self.specs).get(id) {
            return Ok(std::sync::Arc::clone(spec));
        }
        let runtime = self.runtime().map_err(|f| f.message)?;
        let spec =
            runtime.spec(id).await.map_err(|e| Chain(&e).to_string())?.ok_or("the container is gone")?;
        let spec = std::sync::Arc::new(entry_of(&spec));
        lock(&self.specs).insert(id.clone(), std::sync::Arc::clone(&spec));
        Ok(spec)
    }

    /// Runs a command to its end. `within` limits the time from the command's start.
    pub(crate) async fn run_command(
        &self,
        id: &ContainerId,
        process: Option<NodeProcess>,
        command: Vec<String>,
        within: Duration,
    ) -> ExecOutcome {
        let why = match process {
            Some(process) => match self.target(id, process, command.clone()).await {
                Ok(target) => match self.prober.exec(&target, within).await {
                    Ok(outcome) => return outcome,
                    Err(Unsupported(why)) => why,
                },
                Err(why) => why,
            },
            None => "its process is not known".to_owned(),
        };
        tracing::debug!(container = id.short(), why, "command goes through containerd");
        self.run_through_containerd(id, command, within).await.unwrap_or_else(ExecOutcome::NotRun)
    }

    /// Starts a client's command through the exec helper and returns when it runs.
    ///
    /// # Errors
    /// The command does not run, or the helper does not support what confines the container: then the caller goes
    /// through containerd.
    pub async fn start_session(
        &self,
        id: &ContainerId,
        process: NodeProcess,
        command: Vec<String>,
        stdio: Stdio,
    ) -> Result<Session, SessionError> {
        let target = self.target(id, process, command).await;
        let mut target = target.map_err(SessionError::Unsupported)?;
        if matches!(stdio, Stdio::Terminal) && !target.process.env.iter().any(|e| e.starts_with("TERM=")) {
            target.process.env.push("TERM=xterm".to_owned());
        }
        self.prober.session(&target, stdio).await
    }

    async fn run_through_containerd(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        within: Duration,
    ) -> Result<ExecOutcome, String> {
        let request = self.exec_request(id, command).await?;
        let runtime = self.runtime().map_err(|failure| failure.message)?;
        let ended =
            runtime.exec_output(request, MAX_OUTPUT, within).await.map_err(|e| Chain(&e).to_string())?;
        let mut bytes = ended.stdout;
        bytes.extend(ended.stderr);
        bytes.truncate(MAX_OUTPUT);
        let output = String::from_utf8_lossy(&bytes).into_owned();
        Ok(match ended.code {
            Some(code) => ExecOutcome::Exited { code, output },
            None => ExecOutcome::TimedOut { output },
        })
    }

    /// A request for containerd's exec with the process settings of the container.
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
