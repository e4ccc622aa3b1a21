//! Berth's data on a containerd container, written at creation and read back at adoption.
//!
//! Labels (at most 4096 bytes each) are for selection and for other tools. The documents are extensions,
//! which have no such limit: `berth.dev/container` (written once), `berth.dev/shim` (the shim of the
//! container's task), `berth.dev/exit` (written when the exit was observed, before the task is deleted).
//! Labels of an image are never copied here.

use crate::{error::Error, shims::ShimAssignment, wire};
use berth_core::{
    ids::{Attempt, BootId, ContainerId, ContainerName, PodKey, PodUid, SandboxAttempt},
    time::Wall,
};
use prost_types::Any;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::HashMap;

/// Label that marks a container as Berth's and names its pod.
pub(crate) const LABEL_POD_UID: &str = "berth.dev/pod-uid";
const LABEL_ATTEMPT: &str = "berth.dev/attempt";
const EXT_CONTAINER: &str = "berth.dev/container";
const EXT_SHIM: &str = "berth.dev/shim";
const EXT_EXIT: &str = "berth.dev/exit";
/// The update path of the exit record.
pub(crate) const PATH_EXIT: &str = "extensions.berth.dev/exit";

/// The update path of the container's document.
pub(crate) const PATH_CONTAINER: &str = "extensions.berth.dev/container";

const TYPE_CONTAINER: &str = "berth.dev/v1/Container";
const TYPE_SHIM: &str = "berth.dev/v1/Shim";
const TYPE_EXIT: &str = "berth.dev/v1/Exit";

/// A container's exit, as stored on its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit code: 128 plus the number for a signal, 128 for a container that never started, 255 for an
    /// unknown end.
    pub code: i32,
    /// The time of the end.
    pub at: Wall,
    /// Whether the kernel killed the container because of its memory limit.
    #[serde(default)]
    pub oom: bool,
    /// Kubernetes' reason, where it differs from the usual one of the code.
    #[serde(default)]
    pub reason: Option<String>,
    /// The termination message.
    #[serde(default)]
    pub message: Option<String>,
    /// The time of the start.
    #[serde(default)]
    pub started_at: Option<Wall>,
}

/// The document `berth.dev/container`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) pod: PodUid,
    pub(crate) key: PodKey,
    pub(crate) container: ContainerName,
    pub(crate) attempt: Attempt,
    #[serde(rename = "incarnation")]
    pub(crate) sandbox_attempt: SandboxAttempt,
    pub(crate) boot: BootId,
    pub(crate) image_id: String,
    pub(crate) extension: serde_json::Value,
}

/// The data read back from one record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    pub(crate) mark: Mark,
    pub(crate) shim: Option<ShimAssignment>,
    pub(crate) exit: Option<ExitRecord>,
}

/// The labels of a container: Berth's own, and the labels by which other tools recognise a pod's container.
pub(crate) fn labels(mark: &Mark) -> HashMap<String, String> {
    [
        (LABEL_POD_UID, mark.pod.as_str().to_owned()),
        (LABEL_ATTEMPT, mark.attempt.to_string()),
        ("io.kubernetes.pod.name", mark.key.name.as_str().to_owned()),
        ("io.kubernetes.pod.namespace", mark.key.namespace.as_str().to_owned()),
        ("io.kubernetes.pod.uid", mark.pod.as_str().to_owned()),
        ("io.kubernetes.container.name", mark.container.as_str().to_owned()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v))
    .collect()
}

fn encode(
    what: &'static str,
    id: &ContainerId,
    type_url: &str,
    value: &impl Serialize,
) -> Result<Any, Error> {
    wire::json_any(type_url, value).map_err(|source| Error::Encode { what, subject: id.to_string(), source })
}

/// The extensions of a new container.
pub(crate) fn extensions(
    id: &ContainerId,
    mark: &Mark,
    shim: Option<&ShimAssignment>,
) -> Result<HashMap<String, Any>, Error> {
    let mut all = HashMap::new();
    all.insert(EXT_CONTAINER.to_owned(), encode("mark", id, TYPE_CONTAINER, mark)?);
    if let Some(shim) = shim {
        all.insert(EXT_SHIM.to_owned(), encode("shim mark", id, TYPE_SHIM, shim)?);
    }
    Ok(all)
}

/// The container's document of these extensions, with other members of the caller's data.
pub(crate) fn with_extension(
    id: &ContainerId,
    extensions: &HashMap<String, Any>,
    members: &[(&str, serde_json::Value)],
) -> Result<HashMap<String, Any>, Error> {
    let Some(mut mark) = decode::<Mark>("mark", id.as_str(), extensions, EXT_CONTAINER)? else {
        return Ok(HashMap::new());
    };
    if let Some(data) = mark.extension.as_object_mut() {
        data.extend(members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    }
    Ok(HashMap::from([(EXT_CONTAINER.to_owned(), encode("mark", id, TYPE_CONTAINER, &mark)?)]))
}

/// The extension that stores an exit.
pub(crate) fn exit_extension(id: &ContainerId, exit: &ExitRecord) -> Result<HashMap<String, Any>, Error> {
    Ok(HashMap::from([(EXT_EXIT.to_owned(), encode("exit record", id, TYPE_EXIT, exit)?)]))
}

fn decode<T: DeserializeOwned>(
    what: &'static str,
    id: &str,
    extensions: &HashMap<String, Any>,
    key: &str,
) -> Result<Option<T>, Error> {
    let Some(any) = extensions.get(key) else { return Ok(None) };
    serde_json::from_slice(&any.value).map(Some).map_err(|e| Error::Decode {
        what,
        subject: format!("container {id}"),
        source: Box::new(e),
    })
}

/// Reads a record back. `Ok(None)` means that the record is not Berth's. An unreadable shim document is
/// ignored, because it is only a hint.
pub(crate) fn read(id: &str, extensions: &HashMap<String, Any>) -> Result<Option<Found>, Error> {
    let Some(mark) = decode::<Mark>("mark", id, extensions, EXT_CONTAINER)? else { return Ok(None) };
    let exit = decode("exit record", id, extensions, EXT_EXIT)?;
    let shim = decode("shim mark", id, extensions, EXT_SHIM).unwrap_or_default();
    Ok(Some(Found { mark, shim, exit }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::ids::{Namespace, PodName};

    fn mark() -> Mark {
        Mark {
            pod: PodUid::new("u-1").unwrap(),
            key: PodKey {
                namespace: Namespace::new("default").unwrap(),
                name: PodName::new("x".repeat(253)).unwrap(),
            },
            container: ContainerName::new("app").unwrap(),
            attempt: Attempt(3),
            sandbox_attempt: SandboxAttempt(1),
            boot: BootId::new("b").unwrap(),
            image_id: "sha256:0".into(),
            extension: serde_json::json!({"grace": 30}),
        }
    }

    fn id() -> ContainerId {
        ContainerId::new("a".repeat(64)).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let shim = ShimAssignment { address: "ttrpc+unix:///x".into(), group: "u-1".into() };
        let exit = ExitRecord {
            code: 7,
            at: Wall(5),
            oom: true,
            reason: Some("OOMKilled".into()),
            message: None,
            started_at: Some(Wall(1)),
        };
        let mut all = extensions(&id(), &mark(), Some(&shim)).unwrap();
        all.extend(exit_extension(&id(), &exit).unwrap());
        let found = read("c", &all).unwrap().unwrap();
        assert_eq!(found, Found { mark: mark(), shim: Some(shim), exit: Some(exit) });
    }

    #[test]
    fn foreign_and_torn_records_are_told_apart() {
        assert_eq!(read("c", &HashMap::new()).unwrap(), None);
        let mut all = extensions(&id(), &mark(), None).unwrap();
        for key in [EXT_CONTAINER, EXT_EXIT] {
            let torn = Any {
                type_url: all.get(EXT_CONTAINER).unwrap().type_url.clone(),
                value: b"{\"pod\":".to_vec(),
            };
            all.insert(key.into(), torn);
            assert!(read("c", &all).is_err(), "{key}");
            all = extensions(&id(), &mark(), None).unwrap();
        }
        all.insert(EXT_SHIM.into(), Any { type_url: String::new(), value: b"x".to_vec() });
        assert_eq!(read("c", &all).unwrap().unwrap().shim, None);
    }

    #[test]
    fn labels_stay_below_the_limit_and_never_claim_to_be_cri() {
        for (key, value) in labels(&mark()) {
            assert!(key.len() + value.len() < 4096);
            assert_ne!(key, "io.cri-containerd.kind");
        }
    }
}
