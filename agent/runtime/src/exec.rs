//! Additional processes in a running container, through containerd: for people, terminals, hooks, and for
//! probes that the exec prober cannot run.
//!
//! A process belongs to its [`ExecHandle`]. Dropping the handle before the process's end kills the process
//! and all processes that it started. In both cases a separate task removes its record and FIFOs. Children of
//! a process that ended by itself stay: they are the container's.

use crate::{
    Runtime,
    client::{QUERY, RECORD, WORK, call},
    error::{Error, absent},
    process,
    start::Stdio,
    tree, wire,
};
use berth_core::{error::Chain, ids::ContainerId};
use containerd_client::{
    services::v1::{DeleteProcessRequest, ExecProcessRequest, GetRequest, StartRequest, WaitRequest},
    types::v1::Status,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::unix::pipe::{OpenOptions, Receiver, Sender},
};

/// Longest wait for output after the exit: a remaining child may keep the output open for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// Request to run a process in a container.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// The container.
    pub id: ContainerId,
    /// The process's id, unique within the container: letters, digits and `-`.
    pub exec_id: String,
    /// The OCI `process`.
    pub process: serde_json::Value,
    /// FIFOs of the caller, whose other ends the caller has open. With `None` this module creates FIFOs, and
    /// the handle holds the other ends.
    pub stdio: Option<Stdio>,
    /// With FIFOs of this module: whether the process gets a standard input.
    pub stdin: bool,
    /// With FIFOs of this module: whether the process gets a terminal.
    pub terminal: bool,
}

/// Result of a finished process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// The exit code; `None` where the process was killed at the deadline.
    pub code: Option<i32>,
    /// Standard output, cut at the limit.
    pub stdout: Vec<u8>,
    /// Standard error, cut at the limit.
    pub stderr: Vec<u8>,
}

/// Handle of a process started by exec.
pub struct ExecHandle {
    runtime: Runtime,
    id: ContainerId,
    exec_id: String,
    /// The process id, in the host's PID namespace.
    pub pid: u32,
    /// The start time in clock ticks since the boot; 0 where the process ended before it could be read.
    pub start_time: u64,
    /// The FIFOs.
    pub stdio: Stdio,
    /// Writer of the standard input, for FIFOs of this module.
    pub stdin: Option<Sender>,
    /// Reader of the standard output, for FIFOs of this module. Ends when the last writer is gone.
    pub stdout: Option<Receiver>,
    /// Reader of the standard error, for FIFOs of this module. Ends when the last writer is gone.
    pub stderr: Option<Receiver>,
    /// The FIFOs' directory, removed at the end.
    dir: Option<PathBuf>,
    /// Whether containerd has, or may have, a process of this handle under its id.
    made: bool,
    ended: bool,
}

impl std::fmt::Debug for ExecHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecHandle")
            .field("id", &self.id)
            .field("exec_id", &self.exec_id)
            .finish_non_exhaustive()
    }
}

/// FIFOs of this module, with the agent's ends.
#[derive(Default)]
struct Ends {
    dir: PathBuf,
    stdio: Stdio,
    /// Writer that keeps the input from ending before the real writer exists.
    held: Option<Sender>,
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
}

fn fifo(path: &Path) -> Result<(), Error> {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .map_err(|e| Error::file("make FIFO", path)(e.into()))
}

fn reader(path: &Path) -> Result<Receiver, Error> {
    fifo(path)?;
    OpenOptions::new().open_receiver(path).map_err(Error::file("open", path))
}

/// Creates the directory. An existing directory belongs to another exec and is an error.
fn make_dir(dir: &Path) -> Result<(), Error> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    if let Some(parent) = dir.parent() {
        builder.recursive(true).create(parent).map_err(Error::file("make directory", parent))?;
    }
    builder.recursive(false).create(dir).map_err(Error::file("make directory", dir))
}

fn make_fifos(dir: &Path, stdin: bool, terminal: bool) -> Result<Ends, Error> {
    let mut ends = Ends { dir: dir.to_path_buf(), ..Ends::default() };
    ends.stdio.terminal = terminal;
    ends.stdio.stdout = dir.join("stdout");
    ends.stdout = Some(reader(&ends.stdio.stdout)?);
    if !terminal {
        ends.stdio.stderr = dir.join("stderr");
        ends.stderr = Some(reader(&ends.stdio.stderr)?);
    }
    if stdin {
        let path = dir.join("stdin");
        fifo(&path)?;
        let held = OpenOptions::new().read_write(true).open_sender(&path);
        ends.held = Some(held.map_err(Error::file("open", &path))?);
        ends.stdio.stdin = Some(path);
    }
    Ok(ends)
}

fn remove_fifos(dir: &Path) {
    for name in ["stdin", "stdout", "stderr"] {
        // A missing file is fine. A file that cannot be removed keeps the directory, which is logged below.
        drop(fs::remove_file(dir.join(name)));
    }
    if let Err(e) = fs::remove_dir(dir) {
        tracing::warn!(dir = %dir.display(), error = %e, "cannot remove an exec's directory");
    }
}

impl Runtime {
    /// Runs a process in a running container.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecHandle, Error> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if request.exec_id.is_empty() || request.exec_id.len() > 76 || !request.exec_id.bytes().all(plain) {
            return Err(Error::Config { what: "exec id", value: request.exec_id });
        }
        let ends = match &request.stdio {
            Some(stdio) => Ends { stdio: stdio.clone(), ..Ends::default() },
            None => {
                let short = request.id.short();
                let dir = self.roots().exec_fifos_dir().join(format!("{short}-{}", request.exec_id));
                make_dir(&dir)?;
                make_fifos(&dir, request.stdin, request.terminal).inspect_err(|_| remove_fifos(&dir))?
            }
        };
        let dir = request.stdio.is_none().then(|| ends.dir.clone());
        let mut handle = ExecHandle {
            runtime: self.clone(),
            id: request.id,
            exec_id: request.exec_id,
            pid: 0,
            start_time: 0,
            stdio: ends.stdio,
            stdin: None,
            stdout: ends.stdout,
            stderr: ends.stderr,
            dir,
            made: false,
            ended: false,
        };
        // From here on a failure drops the handle, which removes all created parts.
        handle.start(&request.process).await?;
        if let Some(path) = &handle.stdio.stdin
            && ends.held.is_some()
        {
            // This writer, unlike the held one, ends the input when it is dropped.
            let writer = OpenOptions::new().open_sender(path).map_err(Error::file("open", path))?;
            handle.stdin = Some(writer);
        }
        Ok(handle)
    }

    /// Runs a process to its end and returns its output, at most `limit` bytes of each stream; the rest is
    /// read and discarded. The process may run for `deadline` from its start; then it is killed with all
    /// processes that it started.
    pub async fn exec_output(
        &self,
        request: ExecRequest,
        limit: usize,
        deadline: Duration,
    ) -> Result<ExecOutput, Error> {
        let request = ExecRequest { stdio: None, stdin: false, ..request };
        let mut handle = self.exec(request).await?;
        let longest = Duration::from_secs(u64::from(u32::MAX));
        let end = tokio::time::Instant::now() + deadline.min(longest);
        let (out, err) = (handle.stdout.take(), handle.stderr.take());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let outcome = {
            let drain = async {
                tokio::join!(collect(out, &mut stdout, limit), collect(err, &mut stderr, limit));
            };
            tokio::pin!(drain);
            let mut drained = false;
            let outcome = {
                let wait = tokio::time::timeout_at(end, handle.wait());
                tokio::pin!(wait);
                loop {
                    tokio::select! {
                        outcome = &mut wait => break outcome,
                        () = &mut drain, if !drained => drained = true,
                    }
                }
            };
            if outcome.is_err() {
                end_tree(handle.pid, handle.start_time).await;
                // Where this kill fails, dropping the handle kills again.
                drop(handle.kill(9).await);
            }
            if !drained {
                // After the timeout, the output is complete up to now.
                drop(tokio::time::timeout(DRAIN, &mut drain).await);
            }
            outcome
        };
        let code = match outcome {
            Ok(code) => Some(code?),
            Err(_elapsed) => None,
        };
        Ok(ExecOutput { code, stdout, stderr })
    }
}

impl Runtime {
    /// Ends processes that an earlier agent has left, with all processes that they started. Each is named by the short id
    /// of its container and its own id. What is gone already is passed over. Returns how many were there.
    pub async fn end_left_execs(&self, left: &[(String, String)]) -> Result<usize, Error> {
        let mut ended = 0;
        for container in self.list().await? {
            let id = container.id;
            for (_, exec_id) in left.iter().filter(|(short, _)| short == id.short()) {
                let client = self.client();
                let request = GetRequest { container_id: id.to_string(), exec_id: exec_id.clone() };
                let mut service = client.tasks();
                let reply =
                    call("find exec of", &id, QUERY, service.get(client.request(request, QUERY))).await;
                let Some(found) = absent(reply)?.and_then(|reply| reply.process) else { continue };
                if found.status() == Status::Running {
                    end_tree(found.pid, process::started(found.pid)).await;
                }
                finish(self, &id, exec_id, false).await?;
                ended += 1;
            }
        }
        Ok(ended)
    }
}

/// Reads to the end and keeps the first `limit` bytes.
async fn collect(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>, limit: usize) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0_u8; 8192];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        let room = limit.saturating_sub(into.len()).min(n);
        into.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
}

impl ExecHandle {
    async fn start(&mut self, spec: &serde_json::Value) -> Result<(), Error> {
        let spec = wire::json_any(wire::PROCESS_TYPE, spec).map_err(|source| Error::Encode {
            what: "process",
            subject: self.id.to_string(),
            source,
        })?;
        let client = self.runtime.client().clone();
        let request = ExecProcessRequest {
            container_id: self.id.to_string(),
            stdin: self.stdio.stdin.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
            stdout: self.stdio.stdout.display().to_string(),
            stderr: if self.stdio.terminal { String::new() } else { self.stdio.stderr.display().to_string() },
            terminal: self.stdio.terminal,
            spec: Some(spec),
            exec_id: self.exec_id.clone(),
        };
        let mut service = client.tasks();
        let made =
            call("make exec in", &self.id, RECORD, service.exec(client.request(request, RECORD))).await;
        // An id in use belongs to another handle, whose process must not be touched.
        self.made = match &made {
            Ok(_) => true,
            Err(e) => e.is_unknown(),
        };
        made?;
        let request = StartRequest { container_id: self.id.to_string(), exec_id: self.exec_id.clone() };
        let mut service = client.tasks();
        let reply =
            call("start exec in", &self.id, WORK, service.start(client.request(request, WORK))).await?;
        self.pid = reply.pid;
        self.start_time = process::started(reply.pid);
        Ok(())
    }

    /// Waits for the process's end and returns its exit code, 255 where it was lost with its container. The
    /// wait survives a restart of containerd. A dropped wait can be repeated.
    pub async fn wait(&mut self) -> Result<i32, Error> {
        let code = self.runtime.wait_process(&self.id, &self.exec_id).await?;
        self.ended = true;
        Ok(code)
    }

    /// Sends a signal to the process.
    pub async fn kill(&self, signal: i32) -> Result<(), Error> {
        let number = u32::try_from(signal).unwrap_or_default();
        self.runtime.task_kill(&self.id, &self.exec_id, number, false).await
    }

    /// Sets the size of the process's terminal.
    pub async fn resize(&self, width: u32, height: u32) -> Result<(), Error> {
        self.runtime.resize_pty(&self.id, &self.exec_id, width, height).await
    }

    /// Ends the process's standard input.
    pub async fn close_stdin(&mut self) -> Result<(), Error> {
        self.stdin = None;
        self.runtime.close_input(&self.id, &self.exec_id).await
    }
}

impl Drop for ExecHandle {
    fn drop(&mut self) {
        let dir = self.dir.take();
        let Ok(tokio) = tokio::runtime::Handle::try_current() else {
            if let Some(dir) = dir {
                remove_fifos(&dir);
            }
            return;
        };
        let (runtime, id, exec_id) =
            (self.runtime.clone(), self.id.clone(), std::mem::take(&mut self.exec_id));
        let (made, ended) = (self.made, self.ended);
        let (pid, start_time) = (self.pid, self.start_time);
        // The deadlines of its three calls bound this task.
        tokio.spawn(async move {
            if !ended {
                end_tree(pid, start_time).await;
            }
            if made && let Err(e) = finish(&runtime, &id, &exec_id, ended).await {
                tracing::warn!(
                    container = id.short(),
                    exec = exec_id,
                    error = %Chain(&e),
                    "exec not cleaned up"
                );
            }
            if let Some(dir) = dir {
                remove_fifos(&dir);
            }
        });
    }
}

/// Kills a process and all processes that it started.
async fn end_tree(pid: u32, start_time: u64) {
    // Only a panic could end it early, and containerd kills the process in any case.
    drop(tokio::task::spawn_blocking(move || tree::end(pid, start_time)).await);
}

/// Kills the process if it runs, and deletes its record.
async fn finish(runtime: &Runtime, id: &ContainerId, exec_id: &str, ended: bool) -> Result<(), Error> {
    let client = runtime.client();
    if !ended {
        // The process may not be started or may have ended; the delete below reports it.
        drop(runtime.task_kill(id, exec_id, 9, false).await);
        let request = WaitRequest { container_id: id.to_string(), exec_id: exec_id.to_owned() };
        let mut service = client.tasks();
        drop(call("wait for exec in", id, QUERY, service.wait(client.request(request, QUERY))).await);
    }
    let request = DeleteProcessRequest { container_id: id.to_string(), exec_id: exec_id.to_owned() };
    let mut service = client.tasks();
    absent(call("delete exec of", id, WORK, service.delete_process(client.request(request, WORK))).await)?;
    Ok(())
}
