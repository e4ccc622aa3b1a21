//! The kubelet's rules for static pods (`pkg/kubelet/config/common.go`).

use crate::convert::field::{FieldError, FieldPath};
use berth_core::ids::{NodeName, PodUid};
use k8s_openapi::api::core::v1 as api;
use serde_json::Value;
use std::collections::BTreeMap;

/// Refuses references to API objects: a static pod must run without the API server
/// (`PreventStaticPodAPIReferences`).
pub(super) fn no_references(at: &FieldPath<'_>, spec: &api::PodSpec) -> Result<(), FieldError> {
    let refuse =
        |at: &FieldPath<'_>, what: &str| Err(at.error(format!("a static pod may not refer to {what}")));
    let given = |s: &Option<String>| s.as_deref().is_some_and(|s| !s.is_empty());
    for (field, name) in
        [("serviceAccountName", &spec.service_account_name), ("serviceAccount", &spec.service_account)]
    {
        if given(name) {
            return refuse(&at.key(field), "service accounts");
        }
    }
    if spec.image_pull_secrets.as_ref().is_some_and(|s| !s.is_empty()) {
        return refuse(&at.key("imagePullSecrets"), "secrets");
    }
    if spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return refuse(&at.key("resourceClaims"), "resource claims");
    }
    let containers = [
        ("initContainers", spec.init_containers.as_deref().unwrap_or_default()),
        ("containers", spec.containers.as_slice()),
    ];
    for (field, list) in containers {
        let at = &at.key(field);
        for (index, container) in list.iter().enumerate() {
            let at = &at.index(index);
            environment(at, container, &refuse)?;
        }
    }
    let at = &at.key("volumes");
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let at = &at.index(index);
        let json = serde_json::to_value(volume).map_err(|e| at.error(e.to_string()))?;
        match what_volume_needs(&json) {
            Some((kind, what)) => return refuse(&at.key(kind), what),
            None => {
                let at = &at.key("projected");
                let at = &at.key("sources");
                for (index, source) in json
                    .pointer("/projected/sources")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .enumerate()
                {
                    if let Some(kind) =
                        source.as_object().into_iter().flatten().map(|(k, _)| k).find(|k| *k != "downwardAPI")
                    {
                        return refuse(&at.index(index).key(kind), "API objects");
                    }
                }
            }
        }
    }
    Ok(())
}

fn environment(
    at: &FieldPath<'_>,
    container: &api::Container,
    refuse: &impl Fn(&FieldPath<'_>, &str) -> Result<(), FieldError>,
) -> Result<(), FieldError> {
    for (index, e) in container.env.iter().flatten().enumerate() {
        let at = &at.key("env");
        let at = &at.index(index);
        let at = &at.key("valueFrom");
        if let Some(source) = &e.value_from {
            if source.secret_key_ref.is_some() {
                return refuse(&at.key("secretKeyRef"), "secrets");
            }
            if source.config_map_key_ref.is_some() {
                return refuse(&at.key("configMapKeyRef"), "config maps");
            }
        }
    }
    for (index, e) in container.env_from.iter().flatten().enumerate() {
        let at = &at.key("envFrom");
        let at = &at.index(index);
        if e.secret_ref.is_some() {
            return refuse(&at.key("secretRef"), "secrets");
        }
        if e.config_map_ref.is_some() {
            return refuse(&at.key("configMapRef"), "config maps");
        }
    }
    Ok(())
}

/// The kind of a volume that cannot be mounted without the API server, and the objects that it needs.
fn what_volume_needs(volume: &Value) -> Option<(&'static str, &'static str)> {
    const KINDS: [(&str, &str); 7] = [
        ("configMap", "config maps"),
        ("secret", "secrets"),
        ("csi", "CSI drivers"),
        ("glusterfs", "endpoints"),
        ("persistentVolumeClaim", "persistent volume claims"),
        ("ephemeral", "persistent volume claims"),
        ("azureFile", "secrets"),
    ];
    KINDS.into_iter().find(|(kind, _)| volume.get(kind).is_some())
}

/// The name of a static pod: `<name>-<node>`, the node's name in lower case.
pub(super) fn name(given: &str, node: &NodeName) -> String {
    format!("{given}-{}", node.as_str().to_ascii_lowercase())
}

/// Adds the toleration of every NoExecute taint, so that a static pod stays when its node is in trouble.
pub(super) fn tolerate_no_execute(spec: &mut api::PodSpec) {
    let toleration = api::Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..api::Toleration::default()
    };
    let list = spec.tolerations.get_or_insert_default();
    if !list.contains(&toleration) {
        list.push(toleration);
    }
}

/// Adds the kubelet's annotations of a pod that comes from a file.
pub(super) fn annotate(annotations: &mut BTreeMap<String, String>, uid: &PodUid) {
    annotations.insert("kubernetes.io/config.hash".to_owned(), uid.to_string());
    annotations.insert("kubernetes.io/config.source".to_owned(), "file".to_owned());
}
