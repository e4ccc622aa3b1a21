//! Containers of a pod.

use super::{
    check::{self, choice},
    context::PodContext,
    env::{env, env_from},
    field::{FieldError, FieldPath, shorten},
    mounts,
    ports::ports,
    probe,
    resources::{self, ResourceOwner},
    security,
};
use berth_core::{
    ids::ContainerName,
    model::{
        Container, ContainerSecurity, Hook, Probe, ProbeKind, PullPolicy, ResizePolicy,
        TerminationMessagePolicy,
    },
};
use k8s_openapi::api::core::v1 as api;

/// The list of the pod in which a container stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerKind {
    /// `initContainers`.
    Init,
    /// `containers`.
    Main,
    /// `ephemeralContainers`.
    Ephemeral,
}

/// A container with the API server's defaults.
pub(super) fn container(
    at: &FieldPath<'_>,
    c: &api::Container,
    kind: ContainerKind,
    pod: &PodContext,
) -> Result<Container, FieldError> {
    let sidecar = restart(at, c, kind)?;
    let name = check::id(&at.key("name"), ContainerName::new(c.name.as_str()))?;
    let image = image(&at.key("image"), c.image.as_deref().unwrap_or_default())?;
    let security = match &c.security_context {
        Some(s) => security::container(&at.key("securityContext"), s, pod)?,
        None => ContainerSecurity::default(),
    };
    refuse_unsupported(at, c)?;
    if kind == ContainerKind::Init && !sidecar {
        refuse_in_init_container(at, c)?;
    }
    let mounts = mounts::mounts(
        &at.key("volumeMounts"),
        c.volume_mounts.as_deref().unwrap_or_default(),
        &pod.volumes,
        security.privileged,
    )?;
    let devices = c.volume_devices.as_deref().unwrap_or_default();
    let devices = mounts::devices(&at.key("volumeDevices"), devices, &pod.volumes, &mounts)?;
    let message_path = c.termination_message_path.clone().filter(|p| !p.is_empty());
    Ok(Container {
        name,
        pull_policy: pull_policy(&at.key("imagePullPolicy"), c.image_pull_policy.as_deref(), &image)?,
        image,
        command: c.command.clone().unwrap_or_default(),
        args: c.args.clone().unwrap_or_default(),
        working_dir: c.working_dir.clone().filter(|d| !d.is_empty()),
        env_from: env_from(&at.key("envFrom"), c.env_from.as_deref().unwrap_or_default())?,
        env: env(&at.key("env"), c.env.as_deref().unwrap_or_default())?,
        ports: ports(&at.key("ports"), c.ports.as_deref().unwrap_or_default(), pod.host_network)?,
        resources: resources::resources(
            &at.key("resources"),
            c.resources.as_ref(),
            ResourceOwner::Container,
        )?,
        resize_policy: resize_policy(at, c)?,
        mounts,
        devices,
        liveness: probe(&at.key("livenessProbe"), c.liveness_probe.as_ref(), ProbeKind::Liveness)?,
        readiness: probe(&at.key("readinessProbe"), c.readiness_probe.as_ref(), ProbeKind::Readiness)?,
        startup: probe(&at.key("startupProbe"), c.startup_probe.as_ref(), ProbeKind::Startup)?,
        post_start: hook(at, "postStart", c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()), pod)?,
        pre_stop: hook(at, "preStop", c.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()), pod)?,
        termination_message_path: message_path.unwrap_or_else(|| "/dev/termination-log".to_owned()),
        termination_message_policy: termination_message_policy(at, c)?,
        security,
        stdin: c.stdin.unwrap_or(false),
        stdin_once: c.stdin_once.unwrap_or(false),
        tty: c.tty.unwrap_or(false),
        sidecar,
        target: None,
        unsupported: None,
    })
}

/// Refuses fields that the node cannot honour yet.
fn refuse_unsupported(at: &FieldPath<'_>, c: &api::Container) -> Result<(), FieldError> {
    let stop_signal = c.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    if stop_signal.is_some_and(|s| !s.is_empty()) {
        let at = at.key("lifecycle");
        return Err(at.key("stopSignal").error("is not supported yet"));
    }
    Ok(())
}

/// Refuses what only containers that keep running may have.
fn refuse_in_init_container(at: &FieldPath<'_>, c: &api::Container) -> Result<(), FieldError> {
    let hooks = c.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some() || l.pre_stop.is_some());
    let given = [
        ("livenessProbe", c.liveness_probe.is_some()),
        ("readinessProbe", c.readiness_probe.is_some()),
        ("startupProbe", c.startup_probe.is_some()),
        ("lifecycle", hooks),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => {
            Err(at.key(field).error("is only for init containers with restartPolicy: Always"))
        }
        None => Ok(()),
    }
}

/// `resizePolicy`: an entry a resource.
fn resize_policy(at: &FieldPath<'_>, c: &api::Container) -> Result<ResizePolicy, FieldError> {
    let at = &at.key("resizePolicy");
    let mut found = ResizePolicy::default();
    for (index, policy) in c.resize_policy.iter().flatten().enumerate() {
        let at = &at.index(index);
        let words = [("NotRequired", false), ("RestartContainer", true)];
        let restarts = choice(&at.key("restartPolicy"), Some(policy.restart_policy.as_str()), &words)?;
        match policy.resource_name.as_str() {
            "cpu" => found.cpu_restarts = restarts,
            "memory" => found.memory_restarts = restarts,
            other => {
                let text = format!("{:?} must be one of cpu, memory", shorten(other));
                return Err(at.key("resourceName").error(text));
            }
        }
    }
    Ok(found)
}

fn probe(
    at: &FieldPath<'_>,
    probe: Option<&api::Probe>,
    kind: ProbeKind,
) -> Result<Option<Probe>, FieldError> {
    probe.map(|p| probe::probe(at, p, kind)).transpose()
}

fn hook(
    at: &FieldPath<'_>,
    name: &str,
    handler: Option<&api::LifecycleHandler>,
    pod: &PodContext,
) -> Result<Option<Hook>, FieldError> {
    let at = &at.key("lifecycle");
    handler.map(|h| probe::hook(&at.key(name), h, pod.grace_seconds)).transpose()
}

fn termination_message_policy(
    at: &FieldPath<'_>,
    c: &api::Container,
) -> Result<TerminationMessagePolicy, FieldError> {
    choice(
        &at.key("terminationMessagePolicy"),
        c.termination_message_policy.as_deref(),
        &[
            ("File", TerminationMessagePolicy::File),
            ("FallbackToLogsOnError", TerminationMessagePolicy::FallbackToLogsOnError),
        ],
    )
}

/// Whether the container is a sidecar. Any other restart policy of a single container is refused for now.
fn restart(at: &FieldPath<'_>, c: &api::Container, kind: ContainerKind) -> Result<bool, FieldError> {
    if c.restart_policy_rules.as_ref().is_some_and(|r| !r.is_empty()) {
        return Err(at.key("restartPolicyRules").error("restart rules of a container are not supported yet"));
    }
    match (c.restart_policy.as_deref(), kind) {
        (None | Some(""), _) => Ok(false),
        (Some("Always"), ContainerKind::Init) => Ok(true),
        (Some("Always" | "OnFailure" | "Never"), _) => Err(at
            .key("restartPolicy")
            .error("is not supported yet for a container, but for Always on an init container (a sidecar)")),
        (Some(other), _) => Err(at
            .key("restartPolicy")
            .error(format!("{:?} must be one of Always, OnFailure, Never", shorten(other)))),
    }
}

fn image(at: &FieldPath<'_>, image: &str) -> Result<String, FieldError> {
    if image.is_empty() {
        return Err(at.error("is required"));
    }
    if image.trim() != image || image.chars().any(char::is_control) {
        return Err(at.error("must not have blanks around it nor control characters"));
    }
    Ok(image.to_owned())
}

fn pull_policy(at: &FieldPath<'_>, policy: Option<&str>, image: &str) -> Result<PullPolicy, FieldError> {
    Ok(match policy {
        Some("Always") => PullPolicy::Always,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        Some("Never") => PullPolicy::Never,
        None | Some("") => default_pull_policy(image),
        Some(other) => {
            return Err(at.error(format!("{:?} must be one of Always, IfNotPresent, Never", shorten(other))));
        }
    })
}

/// `Always` for the tag `latest` and for an image without tag and digest, else `IfNotPresent`. A bare id of 64
/// hexadecimal digits is no name, so it has no tag that would default to `latest` (`SetDefaults_Container`,
/// `pkg/apis/core/v1/defaults.go`).
fn default_pull_policy(image: &str) -> PullPolicy {
    if image.len() == 64 && image.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return PullPolicy::IfNotPresent;
    }
    let (name, digest) = match image.split_once('@') {
        Some((name, _)) => (name, true),
        None => (image, false),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':').map(|(_, tag)| tag) {
        Some("latest") => PullPolicy::Always,
        None if !digest => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    }
}
