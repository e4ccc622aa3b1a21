//! A command in a container for a client of the node's API.

use super::super::super::{
    client_command::{self, ClientCommand, Streamed},
    exec_session::{of_client, terminal},
    local_api::LocalApi,
};
use berth_core::error::Chain;
use berth_nodeapi::{Boxed, Process, ProcessControl, RunningContainer, TerminalSize, WantedStreams};
use berth_pods::NodeProcess;
use berth_probe::SessionError;

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
    let first = NodeProcess { pid: container.pid, start_time: container.start_time };
    let streams = (wanted.stdin, wanted.tty);
    match client_command::by_helper(api, &container.id, first, command.clone(), streams).await {
        Ok(streamed) => Ok(of_helper(streamed)),
        // The words of containerd's CRI plugin before the runtime's.
        Err(SessionError::Failed(why)) => Err(format!("failed to exec in container: {why}")),
        Err(SessionError::Unsupported(why)) => {
            tracing::debug!(container = container.id.short(), why, "command goes through containerd");
            by_containerd(api, container, command, wanted).await
        }
    }
}

fn of_helper(streamed: Streamed) -> Process {
    let Streamed { session, stdin, stdout, stderr } = streamed;
    let control = Box::new(Command(ClientCommand::Helper(session)));
    Process { stdin, stdout, stderr, ends_with_output: false, control }
}

async fn by_containerd(
    api: &LocalApi,
    container: RunningContainer,
    command: Vec<String>,
    wanted: WantedStreams,
) -> Result<Process, String> {
    let runtime = api.executor.runtime().map_err(|failure| failure.message)?;
    let mut request = api.executor.exec_request(&container.id, command).await?;
    of_client(&mut request);
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
        control: Box::new(Command(ClientCommand::Containerd(Box::new(handle)))),
    })
}

/// The running command. Dropped, it ends with all processes that it started.
struct Command(ClientCommand);

impl ProcessControl for Command {
    fn wait(&mut self) -> Boxed<'_, Result<i32, String>> {
        Box::pin(async { self.0.wait().await.map_err(|e| e.message) })
    }

    fn resize(&mut self, size: TerminalSize) -> Boxed<'_, Result<(), String>> {
        Box::pin(async move { self.0.resize(size.width, size.height).await.map_err(|e| e.message) })
    }

    fn close_stdin(&mut self) -> Boxed<'_, Result<(), String>> {
        Box::pin(async { self.0.close_stdin().await.map_err(|e| e.message) })
    }
}
