//! A command in a container for a client: started by the exec helper, or by containerd where the helper does not
//! support what confines the container.

use super::{api_error::from_runtime, local_api::LocalApi};
use berth_api::message::ErrorCode;
use berth_core::ids::ContainerId;
use berth_pods::NodeProcess;
use berth_probe::{Session, SessionError, Stdio};
use berth_runtime::ExecHandle;
use berth_server::ApiError;
use std::{fs::File, io, os::fd::OwnedFd};
use tokio::net::unix::pipe::{self, Receiver, Sender};

/// A command. Dropped before its end, it ends with all processes that it started.
pub(crate) enum ClientCommand {
    /// The exec helper's.
    Helper(Session),
    /// Containerd's.
    Containerd(Box<ExecHandle>),
}

/// A command of the exec helper with the agent's ends of its streams.
pub(crate) struct Streamed {
    pub(crate) session: Session,
    pub(crate) stdin: Option<Sender>,
    pub(crate) stdout: Option<Receiver>,
    pub(crate) stderr: Option<Receiver>,
}

impl ClientCommand {
    /// Waits for the end and returns the exit code. A dropped wait can be repeated.
    pub(crate) async fn wait(&mut self) -> Result<i32, ApiError> {
        match self {
            ClientCommand::Helper(session) => session.wait().await.map_err(failed),
            ClientCommand::Containerd(handle) => handle.wait().await.map_err(|e| from_runtime(&e)),
        }
    }

    /// Sets the size of the terminal in columns and rows.
    pub(crate) async fn resize(&mut self, width: u16, height: u16) -> Result<(), ApiError> {
        match self {
            ClientCommand::Helper(session) => session
                .resize(width, height)
                .map_err(|e| failed(format!("cannot set the size of the terminal: {e}"))),
            ClientCommand::Containerd(handle) => {
                handle.resize(u32::from(width), u32::from(height)).await.map_err(|e| from_runtime(&e))
            }
        }
    }

    /// Ends the standard input, after its writer was dropped: the exec helper's command has no other.
    pub(crate) async fn close_stdin(&mut self) -> Result<(), ApiError> {
        match self {
            ClientCommand::Helper(_) => Ok(()),
            ClientCommand::Containerd(handle) => handle.close_stdin().await.map_err(|e| from_runtime(&e)),
        }
    }
}

fn failed(why: String) -> ApiError {
    ApiError::new(ErrorCode::Failed, why)
}

fn not_started(what: &str, error: &io::Error) -> SessionError {
    SessionError::Failed(format!("cannot {what}: {error}"))
}

/// Starts a command by the exec helper, with pipes or a terminal.
///
/// # Errors
/// As [`berth_executor::NodeExecutor::start_session`].
pub(crate) async fn by_helper(
    api: &LocalApi,
    id: &ContainerId,
    process: NodeProcess,
    command: Vec<String>,
    (stdin, terminal): (bool, bool),
) -> Result<Streamed, SessionError> {
    let start = |stdio| api.executor.start_session(id, process, command, stdio);
    if terminal {
        let session = start(Stdio::Terminal).await?;
        return sides(session, stdin).map_err(|e| not_started("use the command's terminal", &e));
    }
    let pipes = || -> io::Result<_> {
        let (out, stdout) = pipe::pipe()?;
        let (err, stderr) = pipe::pipe()?;
        let (input, stdin) = if stdin {
            let (stdin, input) = pipe::pipe()?;
            (input.into_blocking_fd()?, Some(stdin))
        } else {
            (no_input()?, None)
        };
        let stdio = Stdio::Given { input, output: out.into_blocking_fd()?, errors: err.into_blocking_fd()? };
        Ok((stdio, stdin, stdout, stderr))
    };
    let (stdio, stdin, stdout, stderr) = pipes().map_err(|e| not_started("make pipes for a command", &e))?;
    let session = start(stdio).await?;
    Ok(Streamed { session, stdin, stdout: Some(stdout), stderr: Some(stderr) })
}

/// Both directions of a terminal.
fn sides(session: Session, stdin: bool) -> io::Result<Streamed> {
    let terminal = session.terminal.as_ref().ok_or_else(|| io::Error::other("there is none"))?;
    // A terminal is read and written as a pipe is; it is no FIFO, which a check would ask for.
    let stdin = stdin.then(|| terminal.try_clone()).transpose()?;
    let stdin = stdin.map(Sender::from_owned_fd_unchecked).transpose()?;
    let stdout = Receiver::from_owned_fd_unchecked(terminal.try_clone()?)?;
    Ok(Streamed { session, stdin, stdout: Some(stdout), stderr: None })
}

/// The input of a command without one.
pub(crate) fn no_input() -> io::Result<OwnedFd> {
    Ok(File::open("/dev/null")?.into())
}
