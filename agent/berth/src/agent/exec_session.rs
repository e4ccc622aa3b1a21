//! A command in a container for a client of the local socket. The client opens the FIFOs itself, so
//! that no byte of its input and output passes through the agent.

use super::api_error::{from_runtime, unavailable};
use berth_api::message::{ErrorCode, ExecPaths, ExecSpec, Size};
use berth_core::roots::Roots;
use berth_executor::NodeExecutor;
use berth_runtime::{ExecHandle, ExecRequest, Runtime, Stdio};
use berth_server::{ApiError, ExecSession, WatchCache};
use nix::{sys::stat::Mode, unistd::mkfifo};
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// A command, before and while it runs. Dropping the session kills a running command and removes
/// its FIFOs.
pub(crate) struct LocalExec {
    runtime: Runtime,
    request: Option<ExecRequest>,
    handle: Option<ExecHandle>,
    size: Option<Size>,
    stdin: bool,
    dir: Fifos,
}

/// The FIFOs of a command in a directory of their own, which is removed when dropped.
struct Fifos {
    dir: PathBuf,
    stdio: Stdio,
    /// Both ends of each FIFO, held open until the shim and the client have opened theirs.
    held: Vec<File>,
}

impl Drop for Fifos {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove the FIFOs of a command");
        }
    }
}

/// Removes the FIFOs that a dead agent has left.
pub(crate) fn clear(roots: &Roots) {
    for dir in [roots.exec_sessions_dir(), roots.exec_fifos_dir()] {
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.display(), %error, "cannot remove the FIFOs of an earlier agent");
            }
            _ => {}
        }
    }
}

impl Fifos {
    fn make(dir: PathBuf, terminal: bool, stdin: bool) -> io::Result<Fifos> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut fifos = Fifos { dir, stdio: Stdio { terminal, ..Stdio::default() }, held: Vec::new() };
        fifos.stdio.stdout = fifos.add("stdout")?;
        if !terminal {
            fifos.stdio.stderr = fifos.add("stderr")?;
        }
        if stdin {
            fifos.stdio.stdin = Some(fifos.add("stdin")?);
        }
        Ok(fifos)
    }

    fn add(&mut self, name: &str) -> io::Result<PathBuf> {
        let path = self.dir.join(name);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        self.held.push(both_ends(&path)?);
        Ok(path)
    }
}

fn both_ends(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(path)
}

/// Finds the running container, builds the process from its specification and makes the FIFOs.
pub(crate) async fn prepare(
    roots: &Roots,
    cache: &WatchCache,
    executor: &NodeExecutor,
    spec: ExecSpec,
) -> Result<LocalExec, ApiError> {
    let missing = |what: String| ApiError::new(ErrorCode::NotFound, what);
    if spec.command.is_empty() {
        return Err(ApiError::new(ErrorCode::Invalid, "cannot run an empty command"));
    }
    let pod = cache.pod(&spec.uid).ok_or_else(|| missing(format!("no pod has the UID {}", spec.uid)))?;
    let view = pod.view.containers.iter().find(|c| c.name == spec.container);
    let id = match view {
        Some(running) => running.id.clone(),
        None => {
            let text = format!("container {} of pod {} does not run", spec.container, pod.view.key);
            return Err(missing(text));
        }
    };
    let runtime = executor.runtime().map_err(unavailable)?;
    let failed = |why| ApiError::new(ErrorCode::Unavailable, why);
    let mut request = executor.exec_request(&id, spec.command).await.map_err(failed)?;
    if spec.tty {
        terminal(&mut request.process, spec.size);
    }
    let dir = roots.exec_sessions_dir().join(format!("{}-{}", id.short(), request.exec_id));
    let fifos = Fifos::make(dir, spec.tty, spec.stdin)
        .map_err(|e| ApiError::new(ErrorCode::Failed, format!("cannot make the FIFOs: {e}")))?;
    request.stdio = Some(fifos.stdio.clone());
    request.terminal = spec.tty;
    request.stdin = spec.stdin;
    let size = spec.size.filter(|_| spec.tty);
    Ok(LocalExec { runtime, request: Some(request), handle: None, size, stdin: spec.stdin, dir: fifos })
}

/// Gives the OCI process a terminal with its size, and `TERM` where its environment has none.
pub(super) fn terminal(process: &mut serde_json::Value, size: Option<Size>) {
    let Some(fields) = process.as_object_mut() else { return };
    fields.insert("terminal".to_owned(), true.into());
    if let Some(size) = size {
        let size = serde_json::json!({ "height": size.height, "width": size.width });
        fields.insert("consoleSize".to_owned(), size);
    }
    let env = fields.entry("env").or_insert_with(|| serde_json::json!([]));
    if let Some(env) = env.as_array_mut()
        && !env.iter().any(|e| e.as_str().is_some_and(|e| e.starts_with("TERM=")))
    {
        env.push("TERM=xterm".into());
    }
}

impl ExecSession for LocalExec {
    fn paths(&self) -> ExecPaths {
        let stdio = &self.dir.stdio;
        ExecPaths {
            stdout: stdio.stdout.clone(),
            stderr: (!stdio.terminal).then(|| stdio.stderr.clone()),
            stdin: stdio.stdin.clone(),
        }
    }

    async fn start(&mut self) -> Result<u32, ApiError> {
        let Some(request) = self.request.take() else {
            return Err(ApiError::new(ErrorCode::Invalid, "cannot start the command twice"));
        };
        let handle = self.runtime.exec(request).await.map_err(|e| from_runtime(&e))?;
        // The shim and the client have their ends open.
        self.dir.held.clear();
        let pid = handle.pid;
        self.handle = Some(handle);
        if let Some(size) = self.size {
            // Fails where the command has already ended.
            self.resize(size).await.ok();
        }
        Ok(pid)
    }

    async fn wait(&mut self) -> Result<i32, ApiError> {
        self.running()?.wait().await.map_err(|e| from_runtime(&e))
    }

    async fn resize(&mut self, size: Size) -> Result<(), ApiError> {
        let (width, height) = (u32::from(size.width), u32::from(size.height));
        self.running()?.resize(width, height).await.map_err(|e| from_runtime(&e))
    }

    async fn close_stdin(&mut self) -> Result<(), ApiError> {
        if !self.stdin {
            return Ok(());
        }
        self.running()?.close_stdin().await.map_err(|e| from_runtime(&e))
    }
}

impl LocalExec {
    fn running(&mut self) -> Result<&mut ExecHandle, ApiError> {
        self.handle.as_mut().ok_or_else(|| ApiError::new(ErrorCode::Invalid, "the command is not started"))
    }
}
