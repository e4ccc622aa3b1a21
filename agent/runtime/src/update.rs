//! Resources of a running container: set on its task, then on its record, so that the record says what holds.

use crate::{
    Runtime,
    client::{RECORD, WORK, call},
    error::{Error, absent},
    record, wire,
};
use berth_core::{ids::ContainerId, resources::ContainerResources};
use containerd_client::services::v1::{Container, UpdateContainerRequest, UpdateTaskRequest};
use prost_types::FieldMask;
use serde_json::{Value, json};

impl Runtime {
    /// Sets CPU and memory of a running container, and stores them in its specification. `extension` replaces members of
    /// the caller's data on the record. False where the container has no task any more.
    ///
    /// # Errors
    /// containerd or the OCI runtime refuses. What is set on the task may then not be on the record; the call can be
    /// repeated.
    pub async fn update_resources(
        &self,
        id: &ContainerId,
        wanted: &ContainerResources,
        extension: &[(&str, Value)],
    ) -> Result<bool, Error> {
        let encode = |what| move |source| Error::Encode { what, subject: id.to_string(), source };
        let limits = limits(wanted);
        let client = self.client();
        let resources = wire::json_any(wire::RESOURCES_TYPE, &limits).map_err(encode("resources"))?;
        let request = UpdateTaskRequest {
            container_id: id.to_string(),
            resources: Some(resources),
            ..UpdateTaskRequest::default()
        };
        let mut service = client.tasks();
        let updated = call("update task", id, WORK, service.update(client.request(request, WORK))).await;
        if absent(updated)?.is_none() {
            return Ok(false);
        }
        let Some(known) = self.get_container(id).await? else { return Ok(false) };
        let mut spec: Value = match &known.spec {
            Some(any) => serde_json::from_slice(&any.value).map_err(|e| Error::Decode {
                what: "spec",
                subject: format!("container {id}"),
                source: Box::new(e),
            })?,
            None => Value::Null,
        };
        if let Some(known) = spec.pointer_mut("/linux/resources") {
            merge(known, &limits);
        }
        let spec = wire::json_any(wire::SPEC_TYPE, &spec).map_err(encode("spec"))?;
        let extensions = record::with_extension(id, &known.extensions, extension)?;
        let container =
            Container { id: id.to_string(), spec: Some(spec), extensions, ..Container::default() };
        let request = UpdateContainerRequest {
            container: Some(container),
            update_mask: Some(FieldMask {
                paths: vec!["spec".to_owned(), record::PATH_CONTAINER.to_owned()],
            }),
        };
        let mut service = client.containers();
        call("store resources of container", id, RECORD, service.update(client.request(request, RECORD)))
            .await?;
        tracing::info!(container = id.short(), "resources updated");
        Ok(true)
    }
}

/// The members of `linux.resources` that a resize sets. A limit that is not wanted is left out: it stays as it is.
fn limits(wanted: &ContainerResources) -> Value {
    let mut cpu = json!({ "shares": wanted.cpu_shares, "period": wanted.cpu_period });
    if let Some(quota) = wanted.cpu_quota {
        cpu["quota"] = quota.into();
    }
    let mut all = json!({ "cpu": cpu });
    if let Some(limit) = wanted.memory_limit {
        all["memory"] = json!({ "limit": limit });
        if let Some(swap) = wanted.memory_swap {
            all["memory"]["swap"] = swap.into();
        }
    }
    all
}

/// Puts the members of `new` into `old`, and keeps what `new` does not name.
fn merge(old: &mut Value, new: &Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, value) in new {
                merge(old.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_sets_what_it_names_and_keeps_the_rest() {
        let wanted = ContainerResources {
            cpu_shares: 512,
            cpu_period: 100_000,
            memory_limit: Some(7),
            memory_swap: Some(7),
            ..ContainerResources::default()
        };
        let mut old = json!({
            "cpu": { "shares": 2, "quota": 5000, "period": 100_000 },
            "memory": { "limit": 3, "swap": 3 },
            "unified": { "memory.oom.group": "1" },
        });
        merge(&mut old, &limits(&wanted));
        assert_eq!(
            old,
            json!({
                "cpu": { "shares": 512, "quota": 5000, "period": 100_000 },
                "memory": { "limit": 7, "swap": 7 },
                "unified": { "memory.oom.group": "1" },
            })
        );
        let unlimited =
            ContainerResources { cpu_shares: 2, cpu_period: 100_000, ..ContainerResources::default() };
        assert_eq!(limits(&unlimited), json!({ "cpu": { "shares": 2, "period": 100_000 } }));
    }
}
