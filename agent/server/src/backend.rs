//! What the socket needs of the agent beside the published pods.

use berth_api::{
    message::{ErrorCode, ExecPaths, ExecSpec, Size},
    view::{ImageView, NodeView},
};
use std::{future::Future, path::PathBuf};

/// That something cannot be done, for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind.
    pub code: ErrorCode,
    /// Why, for people.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

/// The agent, as the socket sees it. Every call has a deadline of its own making; a call that is dropped leaves
/// nothing behind.
pub trait Backend: Send + Sync + 'static {
    /// A command running in a container.
    type Exec: ExecSession;

    /// How the node is.
    fn status(&self) -> impl Future<Output = NodeView> + Send;

    /// The images of the runtime, by name.
    fn images(&self) -> impl Future<Output = Result<Vec<ImageView>, Refusal>> + Send;

    /// Takes an OCI archive in and gives the names of its images.
    fn import(&self, path: PathBuf) -> impl Future<Output = Result<Vec<String>, Refusal>> + Send;

    /// Begins to end every pod, because the machine is shut down.
    fn shutdown(&self, grace: u32) -> impl Future<Output = Result<(), Refusal>> + Send {
        let refusal = format!("pods are not ended here within {grace} s");
        async { Err(Refusal::new(ErrorCode::Unsupported, refusal)) }
    }

    /// Makes the FIFOs of a command and holds them open.
    fn prepare_exec(&self, spec: ExecSpec) -> impl Future<Output = Result<Self::Exec, Refusal>> + Send;
}

/// A command in a container. Dropped before its end, it is killed; either way its FIFOs are removed.
pub trait ExecSession: Send + Sync + 'static {
    /// Its FIFOs.
    fn paths(&self) -> ExecPaths;

    /// Starts it, now that the client holds its ends, and gives its process id.
    fn start(&mut self) -> impl Future<Output = Result<u32, Refusal>> + Send;

    /// Waits for its end and gives its exit code. May be dropped and called again.
    fn wait(&mut self) -> impl Future<Output = Result<i32, Refusal>> + Send;

    /// Sets the size of its terminal.
    fn resize(&mut self, size: Size) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Ends its standard input.
    fn close_stdin(&mut self) -> impl Future<Output = Result<(), Refusal>> + Send;
}
