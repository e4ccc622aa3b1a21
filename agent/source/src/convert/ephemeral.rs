//! Ephemeral containers of a pod: containers that were added to it while it ran.
//!
//! One that this node cannot run says so by [`Container::unsupported`]: the pod goes on without it.

use super::{
    check,
    container::{self, ContainerKind},
    context::PodContext,
    field::{FieldError, FieldPath},
};
use berth_core::{
    ids::ContainerName,
    model::{Container, Origin},
};
use k8s_openapi::api::core::v1 as api;

/// `ephemeralContainers`. Only the API server adds such a container, so a pod of a file has none. `others` are the other
/// containers of the pod.
pub(super) fn containers(
    at: &FieldPath<'_>,
    spec: &api::PodSpec,
    origin: &Origin,
    others: &[&Container],
    context: &PodContext,
) -> Result<Vec<Container>, FieldError> {
    let at = &at.key("ephemeralContainers");
    let list = spec.ephemeral_containers.as_deref().unwrap_or_default();
    if !list.is_empty() && *origin != Origin::Cluster {
        return Err(at.error("cannot be part of a new pod"));
    }
    let mut found: Vec<Container> = Vec::with_capacity(list.len());
    for (index, given) in list.iter().enumerate() {
        let at = &at.index(index);
        match name(at, given, others, &found) {
            Ok(name) => {
                let of_error = |error: FieldError| {
                    let image = given.image.as_deref().unwrap_or_default();
                    let field = error.field.map(|field| format!("{field}: ")).unwrap_or_default();
                    let why = format!("{field}{}", error.reason);
                    Container { unsupported: Some(why), ..Container::new(name, image) }
                };
                found.push(one(at, given, others, context).unwrap_or_else(of_error));
            }
            Err(error) => context.ignored.ignore(error)?,
        }
    }
    Ok(found)
}

/// The name, which no other container of the pod has.
fn name(
    at: &FieldPath<'_>,
    given: &api::EphemeralContainer,
    others: &[&Container],
    before: &[Container],
) -> Result<ContainerName, FieldError> {
    let at = &at.key("name");
    let name = check::id(at, ContainerName::new(given.name.as_str()))?;
    if others.iter().copied().chain(before).any(|c| c.name == name) {
        return Err(at.error(format!("{name} is there twice")));
    }
    Ok(name)
}

fn one(
    at: &FieldPath<'_>,
    given: &api::EphemeralContainer,
    others: &[&Container],
    context: &PodContext,
) -> Result<Container, FieldError> {
    refuse_lasting(at, given)?;
    let mut found = container::container(at, &common(given), ContainerKind::Ephemeral, context)?;
    let mounts = at.key("volumeMounts");
    if let Some(index) = found.mounts.iter().position(|m| m.sub_path.is_some()) {
        return Err(mounts.index(index).error("cannot have a subPath in an ephemeral container"));
    }
    if let Some(name) = given.target_container_name.as_deref().filter(|name| !name.is_empty()) {
        let at = &at.key("targetContainerName");
        let target = check::id(at, ContainerName::new(name))?;
        if !others.iter().any(|c| c.name == target) {
            return Err(at.error(format!("the pod has no container {target}")));
        }
        found.target = Some(target);
    }
    Ok(found)
}

/// Refuses what a container that runs once cannot have.
fn refuse_lasting(at: &FieldPath<'_>, c: &api::EphemeralContainer) -> Result<(), FieldError> {
    let amounts = |r: &api::ResourceRequirements| {
        r.requests.as_ref().is_some_and(|r| !r.is_empty()) || r.limits.as_ref().is_some_and(|l| !l.is_empty())
    };
    let given = [
        ("ports", c.ports.as_ref().is_some_and(|p| !p.is_empty())),
        ("livenessProbe", c.liveness_probe.is_some()),
        ("readinessProbe", c.readiness_probe.is_some()),
        ("startupProbe", c.startup_probe.is_some()),
        ("lifecycle", c.lifecycle.is_some()),
        ("resources", c.resources.as_ref().is_some_and(amounts)),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(at.key(field).error("cannot be set for an ephemeral container")),
        None => Ok(()),
    }
}

/// The fields that an ephemeral container has in common with other containers.
fn common(c: &api::EphemeralContainer) -> api::Container {
    api::Container {
        name: c.name.clone(),
        image: c.image.clone(),
        image_pull_policy: c.image_pull_policy.clone(),
        command: c.command.clone(),
        args: c.args.clone(),
        working_dir: c.working_dir.clone(),
        env_from: c.env_from.clone(),
        env: c.env.clone(),
        volume_mounts: c.volume_mounts.clone(),
        volume_devices: c.volume_devices.clone(),
        termination_message_path: c.termination_message_path.clone(),
        termination_message_policy: c.termination_message_policy.clone(),
        security_context: c.security_context.clone(),
        restart_policy: c.restart_policy.clone(),
        restart_policy_rules: c.restart_policy_rules.clone(),
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        tty: c.tty,
        ..api::Container::default()
    }
}
