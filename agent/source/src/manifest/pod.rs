//! Pods of manifests: their metadata completed as the API server, or for a static pod the kubelet, would.

use super::{ManifestContext, Mode, PodEntry, identity, static_pod, typed::typed};
use crate::convert::{
    self, IgnoredValues, PodSource, check,
    field::{FieldError, FieldPath, shorten},
    metadata,
};
use berth_core::{
    ids::{Namespace, NodeName, PodName, PodUid},
    model::Origin,
    time::Wall,
};
use k8s_openapi::{api::core::v1 as api, apimachinery::pkg::apis::meta::v1 as meta, jiff::Timestamp};
use serde_json::Value;
use std::path::Path;

/// A Pod object as the model has it, and the object itself with its metadata completed.
pub(super) fn entry(
    at: &FieldPath<'_>,
    value: &Value,
    ctx: &ManifestContext,
    file: &Path,
    document: usize,
    warnings: &mut Vec<FieldError>,
) -> Result<PodEntry, FieldError> {
    let (mut object, unknown) = typed::<api::Pod>(at, value)?;
    match (ctx.mode, unknown.into_iter().next()) {
        (Mode::Manifests, Some(error)) => return Err(error),
        (Mode::StaticPods, Some(error)) => warnings.push(error),
        (_, None) => {}
    }
    // A status in a manifest was observed elsewhere; it is not desired state.
    object.status = None;
    object.metadata.managed_fields = None;
    let mut spec = object.spec.take().ok_or_else(|| at.key("spec").error("is required"))?;
    let created_given = object.metadata.creation_timestamp.is_some();
    let created = complete(at, &mut object.metadata, &mut spec, ctx, file)?;
    object.spec = Some(spec);
    let (origin, ignored) = match ctx.mode {
        Mode::Manifests => (Origin::Manifest(file.to_owned()), IgnoredValues::refused()),
        Mode::StaticPods => (Origin::StaticFile(file.to_owned()), IgnoredValues::collected()),
    };
    let source = PodSource { origin, node: &ctx.node, created, ignored };
    let (pod, ignored) = convert::pod(at, &object, source)?;
    warnings.extend(ignored);
    let raw = serde_json::to_value(&object).map_err(|e| at.error(e.to_string()))?;
    Ok(PodEntry { pod, raw, document, created_given })
}

/// Checks the metadata, completes it in the object, and returns the creation time.
fn complete(
    at: &FieldPath<'_>,
    meta: &mut meta::ObjectMeta,
    spec: &mut api::PodSpec,
    ctx: &ManifestContext,
    file: &Path,
) -> Result<Wall, FieldError> {
    let meta_at = &at.key("metadata");
    let spec_at = &at.key("spec");
    if meta.deletion_timestamp.is_some() {
        let at = meta_at.key("deletionTimestamp");
        return Err(at.error("must not be set: take the manifest away instead"));
    }
    check::labels(&meta_at.key("labels"), meta.labels.get_or_insert_default())?;
    check::annotations(&meta_at.key("annotations"), meta.annotations.get_or_insert_default())?;
    let namespace = metadata::namespace(meta_at, meta)?;
    let name_at = &meta_at.key("name");
    // The name is checked before a static pod's gets its suffix, so that the error shows what was written.
    let mut name = check::id(name_at, PodName::new(meta.name.clone().unwrap_or_default()))?;
    let uid = uid(at, meta, spec, ctx, file, (&namespace, &name))?;
    match ctx.mode {
        Mode::Manifests => other_node(spec_at, spec, &ctx.node)?,
        Mode::StaticPods => {
            static_pod::no_references(spec_at, spec)?;
            name = check::id(name_at, PodName::new(static_pod::name(name.as_str(), &ctx.node)))?;
            static_pod::tolerate_no_execute(spec);
            static_pod::annotate(meta.annotations.get_or_insert_default(), &uid);
        }
    }
    check::output_name(name_at, &namespace, &name, &uid)?;
    if let Some(gate) = spec.scheduling_gates.as_ref().and_then(|g| g.first()) {
        let reason = format!("gate {:?} cannot hold a pod that is bound to a node", shorten(&gate.name));
        return Err(spec_at.key("schedulingGates").error(reason));
    }
    spec.node_name = Some(ctx.node.to_string());
    let created = match &meta.creation_timestamp {
        Some(time) => Wall(i64::try_from(time.0.as_nanosecond()).unwrap_or(i64::MAX)),
        None => ctx.now,
    };
    if meta.creation_timestamp.is_none() {
        meta.creation_timestamp = Timestamp::from_second(created.seconds()).ok().map(meta::Time);
    }
    meta.uid = Some(uid.to_string());
    meta.namespace = Some(namespace.to_string());
    meta.name = Some(name.to_string());
    Ok(created)
}

/// The UID that the manifest gives, or one that follows from its contents.
fn uid(
    at: &FieldPath<'_>,
    meta: &meta::ObjectMeta,
    spec: &api::PodSpec,
    ctx: &ManifestContext,
    file: &Path,
    (namespace, name): (&Namespace, &PodName),
) -> Result<PodUid, FieldError> {
    let json = |v: serde_json::Result<Value>| v.map_err(|e| at.error(e.to_string()));
    let uid = match (meta.uid.clone().filter(|u| !u.is_empty()), ctx.mode) {
        (Some(uid), _) => uid,
        (None, Mode::Manifests) => identity::of_manifest(namespace, name, &json(serde_json::to_value(spec))?),
        (None, Mode::StaticPods) => {
            let pod = api::Pod { metadata: meta.clone(), spec: Some(spec.clone()), status: None };
            identity::of_static(&json(serde_json::to_value(pod))?, ctx.node.as_str(), file)
        }
    };
    let at = &at.key("metadata");
    check::id(&at.key("uid"), PodUid::new(uid))
}

fn other_node(at: &FieldPath<'_>, spec: &api::PodSpec, node: &NodeName) -> Result<(), FieldError> {
    match spec.node_name.as_deref() {
        Some(name) if !name.is_empty() && name != node.as_str() => Err(at
            .key("nodeName")
            .error(format!("{:?} is another node than this one ({node})", shorten(name)))),
        _ => Ok(()),
    }
}
