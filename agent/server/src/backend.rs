//! The trait through which the servers reach the rest of the agent.

use berth_api::{
    message::{ErrorCode, ExecPaths, ExecSpec, Size},
    view::{ImageDetails, ImageView, NodeView, PruneView, PullView, VerifiedImage},
};
use berth_core::image::PullProgress;
use std::{future::Future, path::PathBuf};

/// The error that answers a client's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The kind of error, for programs.
    pub code: ErrorCode,
    /// The message, for people.
    pub message: String,
}

impl ApiError {
    /// An error with this code and message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into() }
    }
}

/// The agent behind its servers. Implementations give every call a deadline; a dropped call leaves
/// nothing behind.
pub trait Backend: Send + Sync + 'static {
    /// A command in a container.
    type Exec: ExecSession;
    /// A pull of an image.
    type Pull: PullSession;

    /// The state of the node and of its parts.
    fn status(&self) -> impl Future<Output = NodeView> + Send;

    /// The images in the runtime, sorted by name.
    fn images(&self) -> impl Future<Output = Result<Vec<ImageView>, ApiError>> + Send;

    /// Imports an OCI archive and returns the names of its images.
    fn import(&self, path: PathBuf) -> impl Future<Output = Result<Vec<String>, ApiError>> + Send;

    /// Pulls an image, or joins the same pull that is under way.
    fn pull(&self, image: String) -> impl Future<Output = Result<Self::Pull, ApiError>> + Send;

    /// The pulls that are under way, sorted by image.
    fn pulls(&self) -> Vec<PullView> {
        Vec::new()
    }

    /// Removes a name of an image, and returns what was removed. With `force` also that of an image in use.
    fn remove_image(
        &self,
        image: String,
        force: bool,
    ) -> impl Future<Output = Result<Vec<String>, ApiError>> + Send;

    /// Gives an image another name, and returns that name in full.
    fn tag_image(&self, image: String, name: String)
    -> impl Future<Output = Result<String, ApiError>> + Send;

    /// Details of an image.
    fn inspect_image(&self, image: String) -> impl Future<Output = Result<ImageDetails, ApiError>> + Send;

    /// Removes the images that no pod uses; with `all` also those below the minimum age.
    fn prune_images(&self, _all: bool) -> impl Future<Output = Result<PruneView, ApiError>> + Send {
        let message = "cannot prune images: this agent does not support it";
        async move { Err(ApiError::new(ErrorCode::Unsupported, message)) }
    }

    /// Checks every blob of an image, and its snapshots.
    fn verify_image(&self, image: String) -> impl Future<Output = Result<VerifiedImage, ApiError>> + Send {
        let message = format!("cannot verify image {image:?}: this agent does not support it");
        async { Err(ApiError::new(ErrorCode::Unsupported, message)) }
    }

    /// Starts to terminate every pod, with at most `grace` seconds each, because the machine shuts
    /// down.
    fn shutdown(&self, grace: u32) -> impl Future<Output = Result<(), ApiError>> + Send {
        let message = format!("cannot terminate pods within {grace} s: this agent does not support it");
        async { Err(ApiError::new(ErrorCode::Unsupported, message)) }
    }

    /// Makes the FIFOs of a command and holds both ends open.
    fn prepare_exec(&self, spec: ExecSpec) -> impl Future<Output = Result<Self::Exec, ApiError>> + Send;
}

/// A pull of an image. Dropping the session does not end the pull.
pub trait PullSession: Send + Sync + 'static {
    /// The next progress; `None` once the pull has ended. May be dropped and called again.
    fn progress(&mut self) -> impl Future<Output = Option<PullProgress>> + Send;

    /// Waits for the end and returns the image.
    fn end(self) -> impl Future<Output = Result<ImageView, ApiError>> + Send;
}

/// A command in a container. Dropping the session kills a running command and removes its FIFOs.
pub trait ExecSession: Send + Sync + 'static {
    /// The paths of its FIFOs.
    fn paths(&self) -> ExecPaths;

    /// Starts the command and returns its process id. Called once the client has its ends of the
    /// FIFOs open.
    fn start(&mut self) -> impl Future<Output = Result<u32, ApiError>> + Send;

    /// Waits for the command's end and returns its exit code. May be dropped and called again.
    fn wait(&mut self) -> impl Future<Output = Result<i32, ApiError>> + Send;

    /// Sets the size of its terminal.
    fn resize(&mut self, size: Size) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Ends its standard input.
    fn close_stdin(&mut self) -> impl Future<Output = Result<(), ApiError>> + Send;
}
