//! Events as the API server takes them: `core/v1` Event, as client-go's recorder writes them
//! (`client-go/tools/record`). Pure.

use crate::status::time;
use berth_core::{
    event::{Event, EventKind, EventRecord, Involved},
    ids::NodeName,
    time::Wall,
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// The namespace of events about objects without a namespace.
const CLUSTER_WIDE: &str = "default";

/// Most bytes of an object's name in the API.
const MAX_NAME: usize = 253;

/// `involvedObject`: the object that an event is about. Its `apiVersion` is `v1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InvolvedObject {
    /// `kind`.
    pub kind: &'static str,
    /// `namespace`; empty for a Node.
    pub namespace: String,
    /// `name`.
    pub name: String,
    /// `uid`. A Node's is its name: by that `kubectl describe node` finds the events of a kubelet (1.36 leaves it out).
    pub uid: String,
    /// `source.component`: the Kubernetes component that emits such events.
    pub component: &'static str,
}

impl From<&Involved> for InvolvedObject {
    fn from(involved: &Involved) -> InvolvedObject {
        InvolvedObject {
            kind: involved.kind(),
            namespace: involved.key().namespace.to_string(),
            name: involved.key().name.to_string(),
            uid: involved.uid().to_owned(),
            component: involved.component(),
        }
    }
}

impl InvolvedObject {
    /// A PersistentVolumeClaim.
    pub fn claim(namespace: &str, name: &str, uid: &str) -> InvolvedObject {
        InvolvedObject {
            kind: "PersistentVolumeClaim",
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            component: "kubelet",
        }
    }

    /// This node's Node.
    pub fn node(name: &NodeName) -> InvolvedObject {
        InvolvedObject {
            kind: "Node",
            namespace: String::new(),
            name: name.to_string(),
            uid: name.to_string(),
            component: "kubelet",
        }
    }
}

/// An event of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiEvent {
    /// `metadata.name`.
    pub name: String,
    /// The object that the event is about.
    pub involved: InvolvedObject,
    /// `involvedObject.resourceVersion`: the object's version as this node knew it, if it did.
    pub version: Option<String>,
    /// Type, reason, message and container.
    pub event: Event,
    /// `firstTimestamp`.
    pub first: Wall,
    /// `lastTimestamp`.
    pub last: Wall,
    /// `count`.
    pub count: u32,
}

impl ApiEvent {
    /// An event that happened once.
    pub fn once(involved: InvolvedObject, event: Event, at: Wall) -> ApiEvent {
        let name = event_name(&involved.name, at);
        ApiEvent { name, involved, version: None, event, first: at, last: at, count: 1 }
    }

    /// The event of a record, under the name that it had when it first happened.
    pub fn of_record(record: &EventRecord) -> ApiEvent {
        let once = ApiEvent::once((&record.involved).into(), record.event.clone(), record.first);
        ApiEvent { last: record.last, count: record.count, ..once }
    }

    /// `metadata.namespace`.
    pub fn namespace(&self) -> &str {
        if self.involved.namespace.is_empty() { CLUSTER_WIDE } else { &self.involved.namespace }
    }

    /// The event as an object to create. `node` is the node that reports it.
    pub fn object(&self, node: &NodeName) -> Value {
        let component = self.involved.component;
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": self.name, "namespace": self.namespace() },
            "involvedObject": self.involved_object(),
            "reason": self.event.reason,
            "message": self.event.message,
            "type": match self.event.kind {
                EventKind::Normal => "Normal",
                EventKind::Warning => "Warning",
            },
            "firstTimestamp": time(self.first),
            "lastTimestamp": time(self.last),
            "count": self.count,
            "source": { "component": component, "host": node.as_str() },
            "reportingComponent": component,
            "reportingInstance": node.as_str(),
        })
    }

    /// The patch of an event that happened again. It has the message, because that of combined events changes.
    pub fn patch(&self) -> Value {
        json!({ "count": self.count, "lastTimestamp": time(self.last), "message": self.event.message })
    }

    fn involved_object(&self) -> Value {
        let mut object = Map::new();
        let mut put = |field: &str, value: &str| {
            if !value.is_empty() {
                object.insert(field.to_owned(), value.into());
            }
        };
        put("apiVersion", "v1");
        put("kind", self.involved.kind);
        put("namespace", &self.involved.namespace);
        put("name", &self.involved.name);
        put("uid", &self.involved.uid);
        put("resourceVersion", self.version.as_deref().unwrap_or_default());
        put("fieldPath", &self.event.field_path().unwrap_or_default());
        object.into()
    }
}

/// The name of an event about the object of that name which first happened at that time: `<name>.<nanoseconds in hex>`.
/// A name of an object that leaves no room for the time is replaced by its digest.
pub fn event_name(object: &str, at: Wall) -> String {
    let name = format!("{object}.{:x}", at.0);
    if name.len() <= MAX_NAME {
        return name;
    }
    let digest = Sha256::digest(object);
    let digest: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
    format!("{digest}.{:x}", at.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::{ContainerName, PodKey, PodUid};

    fn node() -> NodeName {
        NodeName::new("n1").unwrap()
    }

    fn key() -> PodKey {
        PodKey { namespace: "shop".parse().unwrap(), name: "web".parse().unwrap() }
    }

    #[test]
    fn a_pods_event_has_all_fields_of_the_kubelets() {
        let container = ContainerName::new("setup").unwrap();
        let mut event = Event::warning("Unhealthy", "Startup probe failed: 500").of(&container);
        event.init = true;
        let involved = Involved::Pod { key: key(), uid: PodUid::new("u-1").unwrap() };
        let at = |seconds: i64| Wall(seconds * 1_000_000_000);
        let record = EventRecord {
            last: at(1_700_000_060),
            count: 7,
            ..EventRecord::once(involved, event, at(1_700_000_000))
        };
        let event = ApiEvent { version: Some("42".into()), ..ApiEvent::of_record(&record) };
        let expected = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": "web.17979cfe362a0000", "namespace": "shop" },
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web", "uid": "u-1",
                "resourceVersion": "42", "fieldPath": "spec.initContainers{setup}",
            },
            "reason": "Unhealthy",
            "message": "Startup probe failed: 500",
            "type": "Warning",
            "firstTimestamp": "2023-11-14T22:13:20Z",
            "lastTimestamp": "2023-11-14T22:14:20Z",
            "count": 7,
            "source": { "component": "kubelet", "host": "n1" },
            "reportingComponent": "kubelet",
            "reportingInstance": "n1",
        });
        assert_eq!(event.object(&node()), expected);
        let typed: k8s_openapi::api::core::v1::Event = serde_json::from_value(expected).unwrap();
        assert_eq!(typed.involved_object.field_path.as_deref(), Some("spec.initContainers{setup}"));
        let patch = json!({
            "count": 7, "lastTimestamp": "2023-11-14T22:14:20Z", "message": "Startup probe failed: 500",
        });
        assert_eq!(event.patch(), patch);
    }

    #[test]
    fn events_of_the_node_are_in_default_and_those_of_services_are_kube_proxys() {
        let event = ApiEvent::once(InvolvedObject::node(&node()), Event::normal("Starting", "m"), Wall(255));
        let object = event.object(&node());
        assert_eq!(object["metadata"], json!({ "name": "n1.ff", "namespace": "default" }));
        assert_eq!(
            object["involvedObject"],
            json!({ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1" })
        );
        let service = Involved::Service { key: key(), uid: "u-2".into() };
        let event = ApiEvent::of_record(&EventRecord::once(service, Event::warning("NoRoom", "m"), Wall(1)));
        let object = event.object(&node());
        assert_eq!(object["source"], json!({ "component": "kube-proxy", "host": "n1" }));
        assert_eq!(object["involvedObject"]["kind"], "Service");
    }

    #[test]
    fn a_long_name_leaves_room_for_the_time() {
        let at = Wall(1_700_000_000_000_000_000);
        assert_eq!(event_name("web", at), "web.17979cfe362a0000");
        let (long, other) = (event_name(&"a".repeat(250), at), event_name(&"a".repeat(251), at));
        assert!(long.len() <= MAX_NAME && long.ends_with(".17979cfe362a0000") && long != other, "{long}");
    }
}
