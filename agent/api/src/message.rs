//! The messages. Both sides first send a [`Hello`]. Then the client sends one [`Request`] at a
//! time, and the agent answers with one or more [`Reply`]s:
//!
//! | Request | Replies |
//! | --- | --- |
//! | `status` | `status` |
//! | `pods` | `pod` for each, then `synced` |
//! | `pods` with `watch` | the same, then `pod` and `removed` at each change; `resync` starts a new list of all pods, up to the next `synced` |
//! | `pod` | `pod` |
//! | `events` | `events` |
//! | `exec` | `exec-ready`; after `exec-go`: `exec-started`, `exec-exited`; `resize` and `close-stdin` are accepted meanwhile |
//! | `import-image` | `imported` |
//! | `images` | `images` |
//! | `pull-image` | `pulling` at each step, then `pulled` |
//! | `pulls` | `pulls` |
//! | `remove-image` | `removed-images` |
//! | `tag-image` | `tagged` |
//! | `inspect-image` | `image` |
//! | `prune-images` | `pruned-images` |
//! | `verify-image` | `verified-image` |
//! | `shutdown` | `shutting-down` |
//!
//! The reply to any request may be `error` instead. A watch ends with its connection. So does an
//! exec: its process is killed when the client disconnects. A pull goes on without its client.

use crate::view::{ImageDetails, ImageView, NodeView, PodView, PruneView, PullView, VerifiedImage};
use berth_core::{
    event::EventRecord,
    ids::{ContainerName, PodKey, PodUid},
    image::PullProgress,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of this protocol. A changed meaning raises it; added fields and requests do not.
pub const PROTOCOL: u32 = 1;

/// The oldest version that this build accepts.
pub const OLDEST: u32 = 1;

/// The greeting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender's protocol version.
    pub protocol: u32,
    /// The oldest version that the sender accepts.
    pub oldest: u32,
    /// The version of the sender's program, for people.
    #[serde(default)]
    pub version: String,
}

impl Hello {
    /// The greeting of this build.
    pub fn ours() -> Hello {
        Hello { protocol: PROTOCOL, oldest: OLDEST, version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// The newest version that both sides accept; `None` where there is none.
    pub fn common(&self, other: &Hello) -> Option<u32> {
        let newest = self.protocol.min(other.protocol);
        (newest >= self.oldest && newest >= other.oldest).then_some(newest)
    }
}

/// A request of the client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// The state of the node.
    Status,
    /// All pods.
    Pods {
        /// Whether to send changes after the list.
        #[serde(default)]
        watch: bool,
    },
    /// One pod.
    Pod {
        /// The pod's UID.
        uid: PodUid,
    },
    /// The events, oldest first.
    Events {
        /// Only the events of this pod.
        #[serde(default)]
        pod: Option<PodUid>,
    },
    /// Run a command in a container.
    Exec(ExecSpec),
    /// Starts the command: the client has its ends of the FIFOs open.
    ExecGo,
    /// The terminal of the client has this size now.
    Resize(Size),
    /// The client's standard input has ended.
    CloseStdin,
    /// Import an OCI archive.
    ImportImage {
        /// The archive: an absolute path that the agent can read.
        path: PathBuf,
    },
    /// All images.
    Images,
    /// Pull an image from its registry, with the credentials of the node.
    PullImage {
        /// The image's name.
        image: String,
    },
    /// The pulls that are under way.
    Pulls,
    /// Remove an image's name.
    RemoveImage {
        /// The image's name.
        image: String,
        /// Whether an image that a container uses is removed too.
        #[serde(default)]
        force: bool,
    },
    /// Give an image another name.
    TagImage {
        /// The image's name.
        image: String,
        /// The new name.
        name: String,
    },
    /// Details of an image.
    InspectImage {
        /// The image's name.
        image: String,
    },
    /// Remove the images that no pod uses.
    PruneImages {
        /// Whether images below the minimum age are removed too.
        #[serde(default)]
        all: bool,
    },
    /// Check every blob of an image, and its snapshots.
    VerifyImage {
        /// The image's name.
        image: String,
    },
    /// Terminate every pod and start none, because the machine shuts down.
    Shutdown {
        /// The longest grace period of a pod, in seconds.
        grace: u32,
    },
    /// A request of a newer client.
    #[serde(other)]
    Unknown,
}

/// A command to be run in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The pod.
    pub uid: PodUid,
    /// The container.
    pub container: ContainerName,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Whether the command gets a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether the command gets a standard input.
    #[serde(default)]
    pub stdin: bool,
    /// The terminal's size.
    #[serde(default)]
    pub size: Option<Size>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Width of the terminal in columns.
    pub width: u16,
    /// Height of the terminal in rows.
    pub height: u16,
}

/// The FIFOs of a command's input and output, made and removed by the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPaths {
    /// Standard output; all output of a terminal.
    pub stdout: PathBuf,
    /// Standard error; `None` with a terminal.
    #[serde(default)]
    pub stderr: Option<PathBuf>,
    /// Standard input, where the request has one.
    #[serde(default)]
    pub stdin: Option<PathBuf>,
}

/// A reply of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reply {
    /// The state of the node.
    Status(Box<NodeView>),
    /// The latest state of a pod.
    Pod {
        /// The pod.
        pod: Box<PodView>,
    },
    /// A pod was removed.
    Removed {
        /// The pod's UID.
        uid: PodUid,
        /// The pod's namespace and name.
        key: PodKey,
    },
    /// The client has missed changes: a list of all pods follows and replaces what it knows.
    Resync,
    /// The list of pods is complete.
    Synced,
    /// New events of the node and its pods.
    Events {
        /// The events, oldest first.
        events: Vec<EventRecord>,
    },
    /// The FIFOs are made.
    ExecReady(ExecPaths),
    /// The command runs.
    ExecStarted {
        /// The command's process in the host's PID namespace.
        pid: u32,
    },
    /// The command has ended and writes nothing more to the FIFOs.
    ExecExited {
        /// The command's exit code.
        code: i32,
    },
    /// The archive is imported.
    Imported {
        /// The names of its images.
        names: Vec<String>,
    },
    /// All images.
    Images {
        /// The images, sorted by name.
        images: Vec<ImageView>,
    },
    /// How far a pull is.
    Pulling {
        /// Its layers.
        progress: PullProgress,
    },
    /// The image is pulled.
    Pulled {
        /// The image.
        image: ImageView,
    },
    /// The pulls that are under way.
    Pulls {
        /// The pulls, sorted by image.
        pulls: Vec<PullView>,
    },
    /// Names of images are removed.
    RemovedImages {
        /// The names.
        names: Vec<String>,
    },
    /// The image has the name.
    Tagged {
        /// The name in full.
        name: String,
    },
    /// Details of an image.
    Image {
        /// The image.
        image: Box<ImageDetails>,
    },
    /// Images that no pod uses are removed.
    PrunedImages(Box<PruneView>),
    /// An image is checked.
    VerifiedImage {
        /// What the check has shown.
        image: Box<VerifiedImage>,
    },
    /// The pods are being terminated.
    ShuttingDown,
    /// The request failed.
    Error {
        /// The kind of error, for programs.
        code: ErrorCode,
        /// The message, for people.
        message: String,
    },
    /// A reply of a newer agent.
    #[serde(other)]
    Unknown,
}

impl Reply {
    /// An error with this code and message.
    pub fn error(code: ErrorCode, message: impl Into<String>) -> Reply {
        Reply::Error { code, message: message.into() }
    }
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The named object does not exist.
    NotFound,
    /// The request is malformed, or not possible in this state of the connection.
    Invalid,
    /// This agent does not support the request.
    Unsupported,
    /// A part that the request needs does not answer now, containerd for example.
    Unavailable,
    /// Any other failure; a newer agent's codes are read as this.
    #[serde(other)]
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_protocol_versions_are_compatible_and_distant_ones_are_not() {
        let hello = |protocol, oldest| Hello { protocol, oldest, version: String::new() };
        assert_eq!(hello(2, 1).common(&hello(1, 1)), Some(1));
        assert_eq!(hello(2, 1).common(&hello(3, 2)), Some(2));
        assert_eq!(hello(1, 1).common(&hello(3, 2)), None);
        assert_eq!(hello(3, 2).common(&hello(1, 1)), None);
    }

    #[test]
    fn unknown_requests_replies_and_fields_are_no_errors() {
        let later = r#"{"op":"services","vip":"10.0.0.1"}"#;
        assert_eq!(serde_json::from_str::<Request>(later).unwrap(), Request::Unknown);
        let more = r#"{"op":"pods","watch":true,"since":5}"#;
        assert_eq!(serde_json::from_str::<Request>(more).unwrap(), Request::Pods { watch: true });
        let less = r#"{"op":"pods"}"#;
        assert_eq!(serde_json::from_str::<Request>(less).unwrap(), Request::Pods { watch: false });
        let reply = r#"{"kind":"drops","n":1}"#;
        assert_eq!(serde_json::from_str::<Reply>(reply).unwrap(), Reply::Unknown);
        let code = r#"{"kind":"error","code":"too-hot","message":"m"}"#;
        assert_eq!(serde_json::from_str::<Reply>(code).unwrap(), Reply::error(ErrorCode::Failed, "m"));
    }

    #[test]
    fn a_pod_of_an_older_agent_may_lack_fields() {
        let least = r#"{"kind":"pod","pod":{"uid":"u","key":{"namespace":"d","name":"p"},"object":{}}}"#;
        let Reply::Pod { pod } = serde_json::from_str(least).unwrap() else { panic!("no pod") };
        assert_eq!(pod.key.to_string(), "d/p");
        assert!(pod.timeline.is_empty() && !pod.gone);
    }
}
