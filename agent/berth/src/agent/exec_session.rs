//! A command in a container for a client of the local socket. The client opens the FIFOs itself, so
//! that no byte of its input and output passes through the agent.

use super::{
    api_error::{from_runtime, unavailable},
    client_command::{ClientCommand, no_input},
    local_api::LocalApi,
};
use berth_api::message::{ErrorCode, ExecPaths, ExecSpec, Size};
use berth_core::{error::Chain, roots::Roots};
use berth_executor::NodeExecutor;
use berth_pods::NodeProcess;
use berth_probe::{Session, SessionError};
use berth_runtime::{ExecRequest, Runtime, Stdio};
use berth_server::{ApiError, ExecSession};
use nix::{sys::stat::Mode, unistd::mkfifo};
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::sleep;

/// A command, before and while it runs. Dropping the session kills a running command and removes
/// its FIFOs.
pub(crate) struct LocalExec {
    runtime: Runtime,
    executor: Arc<NodeExecutor>,
    /// The container's first process.
    first: NodeProcess,
    command: Vec<String>,
    request: Option<ExecRequest>,
    running: Option<ClientCommand>,
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

/// Begin of the ids of commands that belong to a client. They end with the agent that served the client; a hook goes on.
const SESSION: char = 's';

/// Pause between two looks for containerd.
const RETRY: Duration = Duration::from_secs(1);

/// Names a command as one of a client.
pub(super) fn of_client(request: &mut ExecRequest) {
    request.exec_id.insert(0, SESSION);
}

/// Removes the FIFOs that a dead agent has left, and returns its clients' commands: the short id of the container, and
/// the id of the command.
pub(crate) fn clear(roots: &Roots) -> Vec<(String, String)> {
    let mut left = Vec::new();
    for dir in [roots.exec_sessions_dir(), roots.exec_fifos_dir()] {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let parts = name.to_str().and_then(|name| name.split_once('-'));
            if let Some((container, command)) = parts.filter(|(_, command)| command.starts_with(SESSION)) {
                left.push((container.to_owned(), command.to_owned()));
            }
        }
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.display(), %error, "cannot remove the FIFOs of an earlier agent");
            }
            _ => {}
        }
    }
    left
}

/// Ends the commands that a dead agent has left, as soon as containerd is there.
pub(crate) async fn end_left(executor: Arc<NodeExecutor>, left: Vec<(String, String)>) {
    if left.is_empty() {
        return;
    }
    let runtime = loop {
        match executor.runtime() {
            Ok(runtime) => break runtime,
            Err(_away) => sleep(RETRY).await,
        }
    };
    match runtime.end_left_execs(&left).await {
        Ok(count) => tracing::info!(count, "commands of an earlier agent's clients have ended"),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "cannot end the commands of an earlier agent's clients");
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
pub(crate) async fn prepare(api: &LocalApi, spec: ExecSpec) -> Result<LocalExec, ApiError> {
    let (roots, executor) = (&api.roots, &api.executor);
    let missing = |what: String| ApiError::new(ErrorCode::NotFound, what);
    if spec.command.is_empty() {
        return Err(ApiError::new(ErrorCode::Invalid, "cannot run an empty command"));
    }
    let pod = api.cache.pod(&spec.uid).ok_or_else(|| missing(format!("no pod has the UID {}", spec.uid)))?;
    let view = pod.view.containers.iter().find(|c| c.name == spec.container);
    let (id, first) = match view {
        Some(running) => {
            let first = NodeProcess { pid: running.pid, start_time: running.start_time };
            (running.id.clone(), first)
        }
        None => {
            let text = format!("container {} of pod {} does not run", spec.container, pod.view.key);
            return Err(missing(text));
        }
    };
    let runtime = executor.runtime().map_err(unavailable)?;
    let failed = |why| ApiError::new(ErrorCode::Unavailable, why);
    let mut request = executor.exec_request(&id, spec.command.clone()).await.map_err(failed)?;
    of_client(&mut request);
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
    Ok(LocalExec {
        runtime,
        executor: Arc::clone(executor),
        first,
        command: spec.command,
        request: Some(request),
        running: None,
        size,
        stdin: spec.stdin,
        dir: fifos,
    })
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
        let (running, pid) = match self.by_helper(&request).await {
            Ok(session) => {
                let pid = session.pid;
                (ClientCommand::Helper(session), pid)
            }
            Err(SessionError::Failed(why)) => return Err(ApiError::new(ErrorCode::Failed, why)),
            Err(SessionError::Unsupported(why)) => {
                tracing::debug!(container = request.id.short(), why, "command goes through containerd");
                let handle = self.runtime.exec(request).await.map_err(|e| from_runtime(&e))?;
                let pid = handle.pid;
                (ClientCommand::Containerd(Box::new(handle)), pid)
            }
        };
        // The command or its shim, and the client, have their ends open.
        self.dir.held.clear();
        self.running = Some(running);
        if let Some(size) = self.size {
            // Fails where the command has already ended.
            self.resize(size).await.ok();
        }
        Ok(pid)
    }

    async fn wait(&mut self) -> Result<i32, ApiError> {
        self.running()?.wait().await
    }

    async fn resize(&mut self, size: Size) -> Result<(), ApiError> {
        self.running()?.resize(size.width, size.height).await
    }

    async fn close_stdin(&mut self) -> Result<(), ApiError> {
        if !self.stdin {
            return Ok(());
        }
        self.running()?.close_stdin().await
    }
}

impl LocalExec {
    fn running(&mut self) -> Result<&mut ClientCommand, ApiError> {
        self.running.as_mut().ok_or_else(|| ApiError::new(ErrorCode::Invalid, "the command is not started"))
    }

    /// Starts the command by the exec helper, which gets the command's ends of the FIFOs. A terminal takes containerd,
    /// whose shim copies between it and the FIFOs.
    async fn by_helper(&self, request: &ExecRequest) -> Result<Session, SessionError> {
        let stdio = &self.dir.stdio;
        if stdio.terminal {
            return Err(SessionError::Unsupported("a terminal has no FIFOs".to_owned()));
        }
        // None of these waits for another side: the agent holds both.
        let write = |path: &Path| OpenOptions::new().write(true).open(path).map(OwnedFd::from);
        let ends = || -> io::Result<_> {
            let input = match &stdio.stdin {
                Some(path) => File::open(path)?.into(),
                None => no_input()?,
            };
            Ok((input, write(&stdio.stdout)?, write(&stdio.stderr)?))
        };
        let (input, output, errors) =
            ends().map_err(|e| SessionError::Failed(format!("cannot open the FIFOs: {e}")))?;
        let stdio = berth_probe::Stdio::Given { input, output, errors };
        self.executor.start_session(&request.id, self.first, self.command.clone(), stdio).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::NodeName;

    #[test]
    fn the_commands_of_clients_are_found_by_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), "t");
        for (parent, name) in [
            (roots.exec_fifos_dir(), "0123456789ab-sx17-0"),
            (roots.exec_fifos_dir(), "0123456789ab-x18-1"),
            (roots.exec_sessions_dir(), "ba9876543210-sx19-2"),
            (roots.exec_sessions_dir(), "else"),
        ] {
            std::fs::create_dir_all(parent.join(name)).unwrap();
        }
        let of = |container: &str, command: &str| (container.to_owned(), command.to_owned());
        let mut left = clear(&roots);
        left.sort();
        assert_eq!(left, [of("0123456789ab", "sx17-0"), of("ba9876543210", "sx19-2")]);
        assert!(clear(&roots).is_empty());
    }
}
