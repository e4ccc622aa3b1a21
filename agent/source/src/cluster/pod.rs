//! A pod of the API server.

use super::{
    ObjectError, ObjectId, created, decode_error, drop_managed_fields,
    mirror::{MIRROR, mirrored},
};
use crate::{
    DesiredPod, RawPod,
    convert::{
        self, IgnoredValues, PodSource, check,
        field::{FieldError, FieldPath},
        metadata,
    },
};
use berth_core::{
    ids::{ContainerName, NodeName, PodKey, PodName, PodUid},
    model::{Container, Origin, Pod},
};
use k8s_openapi::{
    api::core::v1 as api, apimachinery::pkg::apis::meta::v1::ObjectMeta, serde::de::DeserializeOwned,
};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A pod as the API server has it.
#[derive(Debug, Clone, PartialEq)]
pub enum ApiPod {
    /// A pod to run.
    Pod(DesiredPod),
    /// The mirror of a static pod, which runs from its file.
    Mirror {
        /// The static pod's UID.
        of: PodUid,
        /// The object with its status.
        raw: Arc<RawPod>,
    },
}

/// A v1.Pod. Beside it come the errors about values that the node ignores, such as SELinux labels.
///
/// # Errors
/// The JSON has no name, namespace or UID of a pod. Anything else that is wrong becomes
/// [`Pod::unsupported`].
pub fn pod(json: &[u8], node: &NodeName) -> Result<(ObjectId, ApiPod, Vec<ObjectError>), ObjectError> {
    let mut raw: Value = serde_json::from_slice(json)
        .map_err(|e| ObjectError { field: None, reason: format!("is no JSON: {:?} error", e.classify()) })?;
    let object = raw.as_object_mut().ok_or_else(|| FieldPath::ROOT.error("is no object"))?;
    // The items of a list have neither.
    object.insert("apiVersion".to_owned(), "v1".into());
    object.insert("kind".to_owned(), "Pod".into());
    drop_managed_fields(&mut raw);
    let metadata: ObjectMeta = part(&raw, "metadata")?;
    let id = ObjectId::of(&metadata);
    let (uid, key) = identity(&metadata)?;
    if metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR)) {
        let bad =
            || FieldPath::ROOT.error(format!("metadata.annotations[{MIRROR}] is no hash of a static pod"));
        let of = mirrored(&raw).ok_or_else(bad)?;
        return Ok((id, ApiPod::Mirror { of, raw: Arc::new(RawPod::new(&raw)) }, Vec::new()));
    }
    let (pod, ignored) = match supported(&raw, &metadata, node, (&uid, &key)) {
        Ok((pod, ignored)) => (pod, ignored.into_iter().map(ObjectError::from).collect()),
        Err(error) => (unsupported(&raw, metadata, node, (uid, key), &error), Vec::new()),
    };
    Ok((id, ApiPod::Pod(DesiredPod::of_api(Arc::new(pod), &raw)), ignored))
}

fn identity(metadata: &ObjectMeta) -> Result<(PodUid, PodKey), FieldError> {
    let at = &FieldPath::ROOT.key("metadata");
    let namespace = metadata::namespace(at, metadata)?;
    let name = metadata.name.as_deref().unwrap_or_default();
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let name = check::id(&at.key("name"), PodName::new(name))?;
    Ok((check::id(&at.key("uid"), PodUid::new(uid))?, PodKey { namespace, name }))
}

/// The pod with all that its spec says.
fn supported(
    raw: &Value,
    metadata: &ObjectMeta,
    node: &NodeName,
    (uid, key): (&PodUid, &PodKey),
) -> Result<(Pod, Vec<FieldError>), ObjectError> {
    let at = &FieldPath::ROOT;
    let meta_at = &at.key("metadata");
    check::output_name(&meta_at.key("name"), &key.namespace, &key.name, uid)?;
    let spec: api::PodSpec = part(raw, "spec")?;
    // The status is large, changes often, and says nothing about what to run.
    let object = api::Pod { metadata: metadata.clone(), spec: Some(spec), status: None };
    let source = PodSource {
        origin: Origin::Cluster,
        node,
        created: created(metadata),
        ignored: IgnoredValues::collected(),
    };
    Ok(convert::pod(at, &object, source)?)
}

/// The pod with the names and images of its containers alone, for its status.
fn unsupported(
    raw: &Value,
    metadata: ObjectMeta,
    node: &NodeName,
    (uid, key): (PodUid, PodKey),
    error: &ObjectError,
) -> Pod {
    let containers = |field: &str| -> Vec<Container> {
        let list = raw.get("spec").and_then(|spec| spec.get(field)).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|c| container(c.as_object()?)).collect()
    };
    Pod {
        created: created(&metadata),
        generation: metadata.generation,
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        init_containers: containers("initContainers"),
        containers: containers("containers"),
        ephemeral_containers: containers("ephemeralContainers"),
        unsupported: Some(error.to_string()),
        ..Pod::new(uid, key, node.clone())
    }
}

fn container(object: &Map<String, Value>) -> Option<Container> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    Some(Container::new(ContainerName::new(text("name")).ok()?, text("image")))
}

/// A part of the object as a type of the API.
fn part<T: DeserializeOwned>(raw: &Value, name: &str) -> Result<T, ObjectError> {
    let at = &FieldPath::ROOT.key(name);
    let value = raw.get(name).ok_or_else(|| at.error("is required"))?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let ObjectError { field, reason } = decode_error(&error, error.inner().to_string());
        ObjectError { field: Some(field.map_or(name.to_owned(), |field| format!("{name}.{field}"))), reason }
    })
}
