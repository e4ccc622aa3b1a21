//! Events about a resize, with the kubelet's texts (`pkg/kubelet/events/resize.go`): a prefix, and the resources of the
//! pod's containers as JSON.

use super::PendingResize;
use crate::{
    event::Event,
    model::{Container, Pod, ResourceList},
};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodSummary<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<ContainerSummary<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<ContainerSummary<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct ContainerSummary<'a> {
    name: &'a str,
    resources: Amounts<'a>,
}

#[derive(Serialize)]
struct Amounts<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    limits: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    requests: BTreeMap<&'a str, String>,
}

fn amounts(list: &ResourceList) -> BTreeMap<&str, String> {
    list.iter().map(|(name, amount)| (name.as_str(), amount.canonical())).collect()
}

fn summary(c: &Container) -> ContainerSummary<'_> {
    let resources =
        Amounts { limits: amounts(&c.resources.limits), requests: amounts(&c.resources.requests) };
    ContainerSummary { name: c.name.as_str(), resources }
}

fn message(prefix: &str, pod: &Pod, generation: Option<i64>, error: &str) -> String {
    let summary = PodSummary {
        init_containers: pod.init_containers.iter().map(summary).collect(),
        containers: pod.containers.iter().map(summary).collect(),
        generation: generation.unwrap_or(0),
        error,
    };
    match serde_json::to_string(&summary) {
        Ok(json) => format!("{prefix}: {}", as_go_writes(&json)),
        Err(_) => prefix.to_owned(),
    }
}

/// Go's encoder escapes three characters that others leave.
fn as_go_writes(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// The node has allocated a resize.
pub fn started(pod: &Pod) -> Event {
    Event::normal("ResizeStarted", message("Pod resize started", pod, pod.generation, ""))
}

/// The allocated resources are set on all that runs.
pub fn completed(pod: &Pod, generation: Option<i64>) -> Event {
    Event::normal("ResizeCompleted", message("Pod resize completed", pod, generation, ""))
}

/// The allocated resources could not be set.
pub fn failed(pod: &Pod, generation: Option<i64>, error: &str) -> Event {
    Event::warning("ResizeError", message("Pod resize error", pod, generation, error))
}

/// A resize is not allocated. `wanted` is the pod with the resources that it asks for.
pub fn pending(wanted: &Pod, resize: &PendingResize) -> Event {
    let reason = resize.reason.name();
    let text = message(&format!("Pod resize {reason}"), wanted, resize.generation, &resize.message);
    Event::warning(&format!("Resize{reason}"), text)
}
