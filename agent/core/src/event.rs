//! What happened to a pod, in Kubernetes' words (`core/v1` Event reasons of `pkg/kubelet/events/event.go`).

use crate::ids::{ContainerName, PodKey, PodUid};
use serde::{Deserialize, Serialize};

/// `type` of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EventKind {
    /// Something went its way.
    Normal,
    /// Somebody should look.
    Warning,
}

/// One event about a pod or one of its containers; the shell adds the time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Event {
    /// Normal or Warning.
    pub kind: EventKind,
    /// The machine-readable reason, for example `Killing` or `Unhealthy`.
    pub reason: String,
    /// For people; ends with the cause.
    pub message: String,
    /// The container concerned, where there is one.
    pub container: Option<ContainerName>,
}

impl Event {
    /// A `Normal` event.
    pub fn normal(reason: &str, message: impl Into<String>) -> Event {
        Event { kind: EventKind::Normal, reason: reason.into(), message: message.into(), container: None }
    }

    /// A `Warning` event.
    pub fn warning(reason: &str, message: impl Into<String>) -> Event {
        Event { kind: EventKind::Warning, reason: reason.into(), message: message.into(), container: None }
    }

    /// The same event about one container.
    pub fn of(mut self, container: &ContainerName) -> Event {
        self.container = Some(container.clone());
        self
    }
}

/// An event as it is kept and shown: whom it is about, when, how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// The pod's names.
    pub pod: PodKey,
    /// The pod's UID.
    pub uid: PodUid,
    /// What happened.
    pub event: Event,
    /// First time it happened.
    pub first: crate::time::Wall,
    /// Last time it happened.
    pub last: crate::time::Wall,
    /// How often.
    pub count: u32,
}
