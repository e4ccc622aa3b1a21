//! A command in a container for a client of the node's API.

use super::super::super::{exec_session::terminal, local_api::LocalApi};
use berth_core::error::Chain;
use berth_nodeapi::{Boxed, Process, ProcessControl, RunningContainer, TerminalSize, WantedStreams};
use berth_runtime::ExecHandle;

/// Starts the command.
pub(super) async fn start(
    api: &LocalApi,
    container: RunningContainer,
    command: Vec<String>,
    wanted: WantedStreams,
) -> Result<Process, String> {
    if command.is_empty() {
        return Err("cannot run an empty command".to_owned());
    }
    let runtime = api.executor.runtime().map_err(|failure| failure.message)?;
    let mut request = api.executor.exec_request(&container.id, command).await?;
    if wanted.tty {
        terminal(&mut request.process, None);
    }
    request.terminal = wanted.tty;
    request.stdin = wanted.stdin;
    let mut handle = runtime.exec(request).await.map_err(|e| Chain(&e).to_string())?;
    Ok(Process {
        stdin: handle.stdin.take(),
        stdout: handle.stdout.take(),
        stderr: handle.stderr.take(),
        ends_with_output: false,
        control: Box::new(Command(handle)),
    })
}

/// The running command. Dropped, it ends with all processes that it started.
struct Command(ExecHandle);

impl ProcessControl for Command {
    fn wait(&mut self) -> Boxed<'_, Result<i32, String>> {
        Box::pin(async { self.0.wait().await.map_err(|e| Chain(&e).to_string()) })
    }

    fn resize(&mut self, size: TerminalSize) -> Boxed<'_, Result<(), String>> {
        let (width, height) = (u32::from(size.width), u32::from(size.height));
        Box::pin(async move { self.0.resize(width, height).await.map_err(|e| Chain(&e).to_string()) })
    }

    fn close_stdin(&mut self) -> Boxed<'_, Result<(), String>> {
        Box::pin(async { self.0.close_stdin().await.map_err(|e| Chain(&e).to_string()) })
    }
}
