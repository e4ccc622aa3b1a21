//! What the streams ask of the rest of the agent. The wiring implements these traits. Every implementation gives its
//! calls a deadline.

use crate::{Boxed, PodState};
use berth_core::ids::ContainerId;
use std::fmt;
use tokio::net::{TcpStream, unix::pipe};

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Width of the terminal in columns.
    pub width: u16,
    /// Height of the terminal in rows.
    pub height: u16,
}

/// The streams of a process that a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WantedStreams {
    /// The client sends standard input.
    pub stdin: bool,
    /// The client receives standard output.
    pub stdout: bool,
    /// The client receives standard error; never together with a terminal.
    pub stderr: bool,
    /// The process has a terminal.
    pub tty: bool,
}

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningContainer {
    /// Its id.
    pub id: ContainerId,
    /// Process id of its first process, in the host's PID namespace.
    pub pid: u32,
    /// Start time of that process (field 22 of `/proc/<pid>/stat`).
    pub start_time: u64,
    /// It has a terminal.
    pub tty: bool,
    /// It reads standard input.
    pub stdin: bool,
    /// Its standard input ends with the first client.
    pub stdin_once: bool,
}

/// Why a stream cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamRefusal {
    /// The pod or the container does not exist: 404.
    #[error("{0}")]
    NotFound(String),
    /// Anything else: 500.
    #[error("{0}")]
    Failed(String),
}

/// The node behind the streams.
pub trait StreamBackend: Send + Sync + 'static {
    /// The running container of this name.
    fn container(&self, pod: &PodState, name: &str) -> Result<RunningContainer, StreamRefusal>;

    /// Starts a command in a container. The text of an error is for people.
    fn exec(
        &self,
        container: RunningContainer,
        command: Vec<String>,
        wanted: WantedStreams,
    ) -> Boxed<'_, Result<Process, String>>;

    /// Attaches to the process of a container.
    fn attach(
        &self,
        container: RunningContainer,
        wanted: WantedStreams,
    ) -> Boxed<'_, Result<Process, String>>;

    /// Connects to a port of the pod's loopback device, by IPv4 and else by IPv6.
    fn connect<'a>(&'a self, pod: &'a PodState, port: u16) -> Boxed<'a, Result<TcpStream, String>>;
}

/// A process with its ends of the pipes. Dropping it ends a command with all processes that it started, and detaches
/// from a container's own process.
pub struct Process {
    /// Writer of the standard input.
    pub stdin: Option<pipe::Sender>,
    /// Reader of the standard output.
    pub stdout: Option<pipe::Receiver>,
    /// Reader of the standard error.
    pub stderr: Option<pipe::Receiver>,
    /// Whether the end of the output is the end of the session: so for an attachment, whose output also ends when the
    /// client is too slow for it.
    pub ends_with_output: bool,
    /// The process itself.
    pub control: Box<dyn ProcessControl>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

/// What can be done with a process.
pub trait ProcessControl: Send + 'static {
    /// Waits for the end and returns the exit code. A dropped wait can be repeated. An attached process that has ended
    /// has the code 0, as its client asked for no more than its output.
    fn wait(&mut self) -> Boxed<'_, Result<i32, String>>;

    /// Sets the size of the terminal.
    fn resize(&mut self, size: TerminalSize) -> Boxed<'_, Result<(), String>>;

    /// Ends the standard input, after its writer was dropped.
    fn close_stdin(&mut self) -> Boxed<'_, Result<(), String>>;
}
