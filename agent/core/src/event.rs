//! Events about pods and Services, in Kubernetes' terms (`core/v1` Event; for pods with the reasons of
//! `pkg/kubelet/events/event.go`).

use crate::{
    ids::{ContainerName, PodKey, PodUid},
    time::Wall,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// `type` of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EventKind {
    /// Something happened as intended.
    Normal,
    /// Something needs the user's attention.
    Warning,
}

/// One event about a pod, one of its containers or a Service. The worker adds the time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Event {
    /// Normal or Warning.
    pub kind: EventKind,
    /// The machine-readable reason, for example `Killing` or `Unhealthy`.
    pub reason: String,
    /// The message for the user; ends with the cause.
    pub message: String,
    /// The container that the event is about, if any.
    pub container: Option<ContainerName>,
    /// Whether that container is an init container or a sidecar.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
    /// Whether that container is an ephemeral one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
}

impl Event {
    /// A `Normal` event.
    pub fn normal(reason: &str, message: impl Into<String>) -> Event {
        Event {
            kind: EventKind::Normal,
            reason: reason.into(),
            message: message.into(),
            container: None,
            init: false,
            ephemeral: false,
        }
    }

    /// A `Warning` event.
    pub fn warning(reason: &str, message: impl Into<String>) -> Event {
        Event {
            kind: EventKind::Warning,
            reason: reason.into(),
            message: message.into(),
            container: None,
            init: false,
            ephemeral: false,
        }
    }

    /// Sets the container that the event is about.
    pub fn of(mut self, container: &ContainerName) -> Event {
        self.container = Some(container.clone());
        self
    }

    /// `involvedObject.fieldPath`: the container's place in the pod's specification.
    pub fn field_path(&self) -> Option<String> {
        let list = match (self.init, self.ephemeral) {
            (true, _) => "initContainers",
            (false, true) => "ephemeralContainers",
            (false, false) => "containers",
        };
        self.container.as_ref().map(|c| format!("spec.{list}{{{c}}}"))
    }
}

/// `involvedObject`: the object that an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredInvolved", into = "StoredInvolved")]
pub enum Involved {
    /// A pod.
    Pod {
        /// The pod's namespace and name.
        key: PodKey,
        /// The pod's UID.
        uid: PodUid,
    },
    /// A Service.
    Service {
        /// The Service's namespace and name.
        key: PodKey,
        /// The Service's `metadata.uid`.
        uid: Arc<str>,
    },
}

impl Involved {
    /// Namespace and name of the object.
    pub fn key(&self) -> &PodKey {
        match self {
            Involved::Pod { key, .. } | Involved::Service { key, .. } => key,
        }
    }

    /// `metadata.uid` of the object.
    pub fn uid(&self) -> &str {
        match self {
            Involved::Pod { uid, .. } => uid.as_str(),
            Involved::Service { uid, .. } => uid,
        }
    }

    /// `kind` of the object; its `apiVersion` is `v1`.
    pub fn kind(&self) -> &'static str {
        match self {
            Involved::Pod { .. } => "Pod",
            Involved::Service { .. } => "Service",
        }
    }

    /// `source.component`: the Kubernetes component that emits such events.
    pub fn component(&self) -> &'static str {
        match self {
            Involved::Pod { .. } => "kubelet",
            Involved::Service { .. } => "kube-proxy",
        }
    }

    /// Whether the object is this pod.
    pub fn is_pod(&self, pod: &PodUid) -> bool {
        matches!(self, Involved::Pod { uid, .. } if uid == pod)
    }
}

/// The stored form of the object's kind. The record of a pod has no kind, and a reader that does not know the
/// field takes every object for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum InvolvedKind {
    #[default]
    Pod,
    Service,
}

impl InvolvedKind {
    fn is_pod(&self) -> bool {
        *self == InvolvedKind::Pod
    }
}

#[derive(Serialize, Deserialize)]
struct StoredInvolved {
    #[serde(default, skip_serializing_if = "InvolvedKind::is_pod")]
    kind: InvolvedKind,
    pod: PodKey,
    uid: Arc<str>,
}

impl From<Involved> for StoredInvolved {
    fn from(involved: Involved) -> StoredInvolved {
        match involved {
            Involved::Pod { key, uid } => {
                StoredInvolved { kind: InvolvedKind::Pod, pod: key, uid: uid.as_str().into() }
            }
            Involved::Service { key, uid } => StoredInvolved { kind: InvolvedKind::Service, pod: key, uid },
        }
    }
}

impl TryFrom<StoredInvolved> for Involved {
    type Error = crate::ids::IdError;
    fn try_from(StoredInvolved { kind, pod: key, uid }: StoredInvolved) -> Result<Involved, Self::Error> {
        Ok(match kind {
            InvolvedKind::Pod => Involved::Pod { key, uid: PodUid::new(&*uid)? },
            InvolvedKind::Service => Involved::Service { key, uid },
        })
    }
}

/// A stored event: its object, its times and its count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// The object that the event is about.
    #[serde(flatten)]
    pub involved: Involved,
    /// The event itself.
    pub event: Event,
    /// When the event first happened.
    pub first: Wall,
    /// When the event last happened.
    pub last: Wall,
    /// How often the event happened.
    pub count: u32,
}

impl EventRecord {
    /// The record of an event that happened once.
    pub fn once(involved: Involved, event: Event, at: Wall) -> EventRecord {
        EventRecord { involved, event, first: at, last: at, count: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Namespace, PodName};

    #[test]
    fn a_pods_record_is_written_as_ever_and_a_services_says_its_kind() {
        let key = PodKey { namespace: Namespace::new("n").unwrap(), name: PodName::new("web").unwrap() };
        let event = || Event::warning("R", "m");
        let pod = Involved::Pod { key: key.clone(), uid: PodUid::new("u-1").unwrap() };
        let service = Involved::Service { key, uid: "u-2".into() };
        for (involved, kind, component, front) in [
            (pod, "Pod", "kubelet", r#"{"pod":{"namespace":"n","name":"web"},"uid":"u-1","event":"#),
            (
                service,
                "Service",
                "kube-proxy",
                r#"{"kind":"Service","pod":{"namespace":"n","name":"web"},"uid":"u-2","event":"#,
            ),
        ] {
            assert_eq!((involved.kind(), involved.component()), (kind, component));
            let record = EventRecord::once(involved, event(), Wall(3));
            let text = serde_json::to_string(&record).unwrap();
            assert!(text.starts_with(front), "{text}");
            assert_eq!(serde_json::from_str::<EventRecord>(&text).unwrap(), record);
        }
        let torn = r#"{"pod":{"namespace":"n","name":"web"},"uid":"../u"}"#;
        assert!(serde_json::from_str::<Involved>(torn).is_err());
    }
}
