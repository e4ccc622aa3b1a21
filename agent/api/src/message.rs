//! What is said. Both sides first send a [`Hello`]. Then the client asks, one [`Request`] at a time, and the agent
//! answers with one or more [`Reply`]s:
//!
//! | Request | Answers |
//! | --- | --- |
//! | `status` | `status` |
//! | `pods` | `pod` for each, then `synced` |
//! | `pods` with `watch` | the same, then `pod` and `removed` as things change; `resync` means that what follows, up to the next `synced`, is all there is |
//! | `pod` | `pod` |
//! | `events` | `events` |
//! | `exec` | `exec-ready`; after `exec-go`: `exec-started`, `exec-exited`; meanwhile `resize` and `close-stdin` are heard |
//! | `import-image` | `imported` |
//! | `images` | `images` |
//! | `shutdown` | `shutting-down` |
//!
//! Any of them may be answered by `error` instead. A watch ends with its connection, and so does an exec: its process
//! is killed when the client goes.

use crate::view::{ImageView, NodeView, PodView};
use berth_core::{
    event::EventRecord,
    ids::{ContainerName, PodKey, PodUid},
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The number of this protocol. Raised when a meaning changes; added fields and requests do not count.
pub const PROTOCOL: u32 = 1;

/// The oldest protocol that is still understood.
pub const OLDEST: u32 = 1;

/// The greeting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender's protocol.
    pub protocol: u32,
    /// The oldest that it understands.
    pub oldest: u32,
    /// The sender's version, for people.
    #[serde(default)]
    pub version: String,
}

impl Hello {
    /// This build's.
    pub fn ours() -> Hello {
        Hello { protocol: PROTOCOL, oldest: OLDEST, version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// The protocol that both speak, the newest they share.
    pub fn common(&self, other: &Hello) -> Option<u32> {
        let newest = self.protocol.min(other.protocol);
        (newest >= self.oldest && newest >= other.oldest).then_some(newest)
    }
}

/// What the client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// How the node is.
    Status,
    /// All pods.
    Pods {
        /// Whether to go on telling changes.
        #[serde(default)]
        watch: bool,
    },
    /// One pod.
    Pod {
        /// Which.
        uid: PodUid,
    },
    /// What happened, oldest first.
    Events {
        /// To this pod only.
        #[serde(default)]
        pod: Option<PodUid>,
    },
    /// Run a command in a container.
    Exec(ExecSpec),
    /// The client has its ends of the FIFOs open: begin.
    ExecGo,
    /// The terminal's size changed.
    Resize(Size),
    /// The client's standard input ended.
    CloseStdin,
    /// Take an OCI archive in.
    ImportImage {
        /// The archive; absolute, readable by the agent.
        path: PathBuf,
    },
    /// All images.
    Images,
    /// The machine is shut down: end every pod and start none.
    Shutdown {
        /// The longest grace of a pod, in seconds.
        grace: u32,
    },
    /// Something a newer client asks.
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
    /// Whether it gets a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether it gets a standard input.
    #[serde(default)]
    pub stdin: bool,
    /// The terminal's size.
    #[serde(default)]
    pub size: Option<Size>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Where a command's output goes and its input comes from: FIFOs, made and removed by the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPaths {
    /// Standard output, and everything of a terminal.
    pub stdout: PathBuf,
    /// Standard error; none with a terminal.
    #[serde(default)]
    pub stderr: Option<PathBuf>,
    /// Standard input, where one was asked for.
    #[serde(default)]
    pub stdin: Option<PathBuf>,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reply {
    /// The node.
    Status(Box<NodeView>),
    /// A pod as it is now.
    Pod {
        /// It.
        pod: Box<PodView>,
    },
    /// Nothing of that pod is left.
    Removed {
        /// Which.
        uid: PodUid,
        /// Its names.
        key: PodKey,
    },
    /// The client fell behind: forget everything, all of it follows.
    Resync,
    /// That was all there is now.
    Synced,
    /// What happened.
    Events {
        /// Oldest first.
        events: Vec<EventRecord>,
    },
    /// The FIFOs are there.
    ExecReady(ExecPaths),
    /// The command runs.
    ExecStarted {
        /// Its process, in the host's PID namespace.
        pid: u32,
    },
    /// The command ended; nothing more is written to the FIFOs by it.
    ExecExited {
        /// Its exit code.
        code: i32,
    },
    /// The archive is in.
    Imported {
        /// The names of its images.
        names: Vec<String>,
    },
    /// The images.
    Images {
        /// By name.
        images: Vec<ImageView>,
    },
    /// The pods are being ended.
    ShuttingDown,
    /// It cannot be done.
    Error {
        /// What kind.
        code: ErrorCode,
        /// Why, for people.
        message: String,
    },
    /// Something a newer agent says.
    #[serde(other)]
    Unknown,
}

impl Reply {
    /// A refusal.
    pub fn error(code: ErrorCode, message: impl Into<String>) -> Reply {
        Reply::Error { code, message: message.into() }
    }
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// There is no such thing.
    NotFound,
    /// The request makes no sense.
    Invalid,
    /// This agent does not know the request.
    Unsupported,
    /// What it takes is not there now, containerd for example.
    Unavailable,
    /// It failed; a newer agent's codes are read as this.
    #[serde(other)]
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_understand_each_other_and_strangers_do_not() {
        let hello = |protocol, oldest| Hello { protocol, oldest, version: String::new() };
        assert_eq!(hello(2, 1).common(&hello(1, 1)), Some(1));
        assert_eq!(hello(2, 1).common(&hello(3, 2)), Some(2));
        assert_eq!(hello(1, 1).common(&hello(3, 2)), None);
        assert_eq!(hello(3, 2).common(&hello(1, 1)), None);
    }

    #[test]
    fn what_is_not_known_is_no_error() {
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
    fn an_older_agent_may_tell_less_of_a_pod() {
        let least = r#"{"kind":"pod","pod":{"uid":"u","key":{"namespace":"d","name":"p"},"object":{}}}"#;
        let Reply::Pod { pod } = serde_json::from_str(least).unwrap() else { panic!("no pod") };
        assert_eq!(pod.key.to_string(), "d/p");
        assert!(pod.timeline.is_empty() && !pod.gone);
    }
}
