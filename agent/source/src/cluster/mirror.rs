//! Mirror pods: the API server's view of static pods.

use berth_core::ids::PodUid;
use serde_json::{Value, json};

/// Annotation of a mirror pod. Its value is the hash of the static pod's file, here the static pod's UID.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

/// The UID of the static pod whose mirror this object is; `None` for every other pod.
pub fn mirrored(object: &Value) -> Option<PodUid> {
    let hash = object["metadata"]["annotations"][MIRROR].as_str()?;
    PodUid::new(hash).ok()
}

/// The mirror of a static pod: the object `raw` of its file under the ownership of the Node object `node`. The
/// API server gives it a UID of its own (`CreateMirrorPod`, `pkg/kubelet/pod/mirror_client.go`).
pub fn mirror_object(raw: &Value, uid: &PodUid, node: &Value) -> Value {
    let mut mirror = raw.clone();
    if let Some(object) = mirror.as_object_mut() {
        object.remove("status");
    }
    let Some(metadata) = mirror["metadata"].as_object_mut() else { return mirror };
    for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "selfLink"] {
        metadata.remove(field);
    }
    let owner = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "name": node["metadata"]["name"],
        "uid": node["metadata"]["uid"],
        "controller": true,
    });
    metadata.insert("ownerReferences".to_owned(), json!([owner]));
    mirror["metadata"]["annotations"][MIRROR] = uid.as_str().into();
    mirror
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_has_the_files_hash_and_belongs_to_the_node() {
        let raw = json!({
            "metadata": {
                "name": "web-n1", "namespace": "default", "uid": "u1", "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": { "kubernetes.io/config.hash": "u1" },
            },
            "spec": { "nodeName": "n1" },
            "status": { "phase": "Running" },
        });
        let uid = "u1".parse().unwrap();
        let node = json!({ "metadata": { "name": "n1", "uid": "n-uid" } });
        let mirror = mirror_object(&raw, &uid, &node);
        assert_eq!(mirrored(&mirror), Some(uid));
        assert_eq!(mirrored(&raw), None);
        let wanted = json!({
            "metadata": {
                "name": "web-n1", "namespace": "default",
                "annotations": { "kubernetes.io/config.hash": "u1", "kubernetes.io/config.mirror": "u1" },
                "ownerReferences": [
                    { "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n-uid", "controller": true },
                ],
            },
            "spec": { "nodeName": "n1" },
        });
        assert_eq!(mirror, wanted);
    }
}
