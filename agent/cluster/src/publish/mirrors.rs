//! Mirror pods: the objects by which the API server shows the static pods of this node.
//!
//! A static pod runs from its file, whatever becomes of its mirror. Its mirror is an object of the same name with the
//! hash of the file (the pod's UID here) in the annotation `kubernetes.io/config.mirror`, owned by the Node
//! (`pkg/kubelet/pod/mirror_client.go`). Its status is published as that of every other pod ([`super::pods`]).
//!
//! Owns one task, which sends one request after the other. In: the static pods of the sources, and the mirrors that the
//! API server has ([`ApiPods`]). [`next`] says what to send. On failure: all mirrors are looked at again after 10 s.

use super::{PodReports, RateLimit, node::NewestNode};
use crate::{ApiPods, Task};
use berth_core::{error::Chain, ids::PodUid, model::OriginKind};
use berth_kube::{
    pool::Pool,
    request::{Preconditions, Request},
};
use berth_source::{
    DesiredPod, RawPod, Sources,
    cluster::{mirror_object, mirrored},
};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};

/// Interval at which all mirrors are looked at: a request may have failed, and a name may have been taken.
const EVERY: Duration = Duration::from_secs(10);

/// Starts to keep the mirrors of the static pods in `sources`. Nothing is sent before the Node is known.
pub fn start<R: PodReports>(
    pool: Pool,
    limit: RateLimit,
    (api, node): (ApiPods, NewestNode),
    sources: watch::Receiver<Sources>,
    reports: Arc<R>,
) -> Task {
    Task::spawn(Mirrors { pool, limit, api, node, sources, reports }.run())
}

/// Namespace and name.
type Key = (String, String);

/// The next request for one name.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// The creation of the mirror of the pod of the file.
    Create,
    /// The deletion of the mirror with this UID, at once.
    Delete(String),
    /// No request: file and mirror agree.
    Nothing,
}

/// What to send for a name: `wanted` is the UID of its static pod, `mirror` the API server's mirror. A mirror goes with
/// its pod, not with its file: `alive` says that the pod of the mirror still ends.
fn next(wanted: Option<&PodUid>, mirror: Option<&Value>, alive: bool) -> Step {
    let Some(mirror) = mirror else { return if wanted.is_some() { Step::Create } else { Step::Nothing } };
    let deleting = mirror["metadata"]["deletionTimestamp"].is_string();
    let of = mirrored(mirror);
    let fits = match wanted {
        Some(wanted) => of.as_ref() == Some(wanted) && !deleting,
        None => alive,
    };
    let uid = mirror["metadata"]["uid"].as_str().unwrap_or_default();
    if fits { Step::Nothing } else { Step::Delete(uid.to_owned()) }
}

struct Mirrors<R> {
    pool: Pool,
    limit: RateLimit,
    api: ApiPods,
    node: NewestNode,
    sources: watch::Receiver<Sources>,
    reports: Arc<R>,
}

impl<R: PodReports> Mirrors<R> {
    async fn run(mut self) {
        let (mut changes, mut node) = (self.api.changes(), self.node.changes());
        loop {
            changes.mark_unchanged();
            node.mark_unchanged();
            self.sync().await;
            let woken = async {
                tokio::select! {
                    changed = self.sources.changed() => changed,
                    changed = changes.changed() => changed,
                    changed = node.changed() => changed,
                }
            };
            // Without sources the agent ends.
            if let Ok(Err(_ended)) = timeout(EVERY, woken).await {
                return;
            }
        }
    }

    /// Sends what is due for each name.
    async fn sync(&mut self) {
        let (Some(node), true) = (self.node.get(), self.is_listed()) else { return };
        let wanted = self.wanted();
        let mirrors = self.mirrors();
        let names: Vec<&Key> =
            wanted.keys().chain(mirrors.keys().filter(|k| !wanted.contains_key(*k))).collect();
        for key in names {
            let (pod, mirror) = (wanted.get(key), mirrors.get(key));
            let alive = mirror.and_then(mirrored).is_some_and(|uid| self.reports.report(&uid).is_some());
            let path = format!("/api/v1/namespaces/{}/pods", key.0);
            let request = match next(pod.map(|(uid, _)| uid), mirror, alive) {
                Step::Nothing => continue,
                Step::Create => {
                    let Some((uid, raw)) = pod else { continue };
                    Request::create(path, mirror_object(&raw.value(), uid, &node).to_string())
                }
                Step::Delete(uid) => {
                    let only = Preconditions { uid: Some(uid), resource_version: None };
                    Request::delete(format!("{path}/{}", key.1), Some(0), &only)
                }
            };
            self.limit.wait().await;
            if let Err(error) = self.pool.send(&request).await {
                let gone = error.refusal().is_some_and(|r| matches!(r.code, 404 | 409));
                let (namespace, name, error) = (&key.0, &key.1, Chain(&error));
                // A conflict is an object that the watch brings, or a pod of another origin with the name.
                if gone {
                    tracing::debug!(namespace, name, %error, "a mirror pod has changed meanwhile");
                } else {
                    tracing::warn!(namespace, name, %error, "cannot keep the mirror of a static pod");
                }
            }
        }
    }

    /// Whether the static pods of this node are known: a mirror without a file would be deleted.
    fn is_listed(&self) -> bool {
        self.sources.borrow().iter().all(|source| source.snapshot.listed)
    }

    /// The static pods by their names.
    fn wanted(&mut self) -> BTreeMap<Key, (PodUid, Arc<RawPod>)> {
        let sources = self.sources.borrow_and_update();
        let files = sources.iter().filter(|source| source.kind.origin() == OriginKind::StaticFile);
        let of = |pod: &Arc<DesiredPod>| {
            let key = &pod.pod.key;
            let key = (key.namespace.to_string(), key.name.to_string());
            (key, (pod.pod.uid.clone(), Arc::clone(&pod.raw)))
        };
        files.flat_map(|source| source.snapshot.pods.values().map(of)).collect()
    }

    /// The mirrors that the API server has, by their names.
    fn mirrors(&self) -> BTreeMap<Key, Value> {
        let mut mirrors = Vec::new();
        self.api.for_each(|_, object| {
            if object.is_mirror() {
                mirrors.push(Arc::clone(object));
            }
        });
        let text =
            |object: &Value, field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let values = mirrors.into_iter().map(|object| object.value());
        values.map(|object| ((text(&object, "namespace"), text(&object, "name")), object)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mirror(of: &str, deleting: bool) -> Value {
        let mut mirror = json!({ "metadata": {
            "uid": "m1", "annotations": { "kubernetes.io/config.mirror": of },
        } });
        if deleting {
            mirror["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        mirror
    }

    #[test]
    fn a_mirror_follows_its_file_and_goes_with_its_pod() {
        let (one, delete) = ("u1".parse().unwrap(), || Step::Delete("m1".to_owned()));
        assert_eq!(next(Some(&one), None, false), Step::Create);
        assert_eq!(next(Some(&one), Some(&mirror("u1", false)), true), Step::Nothing);
        assert_eq!(next(Some(&one), Some(&mirror("u0", false)), true), delete(), "the file has changed");
        assert_eq!(next(Some(&one), Some(&mirror("u1", true)), true), delete(), "somebody deleted it");
        assert_eq!(next(None, Some(&mirror("u1", false)), true), Step::Nothing, "the pod still ends");
        assert_eq!(next(None, Some(&mirror("u1", false)), false), delete());
        assert_eq!(next(None, None, false), Step::Nothing);
    }
}
