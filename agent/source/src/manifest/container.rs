//! Containers of a pod.

use super::{
    Mode, check,
    field::{FieldError, FieldPath, shorten},
    probe,
    resources::{self, ResourceOwner},
    security::{self, choice},
    volume::{self, FieldPlace},
};
use berth_core::{
    ids::{ContainerName, VolumeName},
    model::{
        Container, ContainerPort, ContainerSecurity, EnvFrom, EnvFromSource, EnvValue, EnvVar, KeyRef,
        ProbeKind, Protocol, PullPolicy, TerminationMessagePolicy,
    },
};
use k8s_openapi::api::core::v1 as api;
use std::{cell::RefCell, collections::BTreeSet, net::IpAddr};

/// What a container's fields are checked against.
pub(super) struct PodContext {
    pub(super) mode: Mode,
    /// What was left aside in a static pod.
    pub(super) warnings: RefCell<Vec<FieldError>>,
    pub(super) volumes: BTreeSet<VolumeName>,
    pub(super) host_network: bool,
    pub(super) grace_seconds: u32,
}

impl PodContext {
    /// What the kubelet passes over is an error in a manifest and a warning in a static pod.
    pub(super) fn passed_over(&self, fault: FieldError) -> Result<(), FieldError> {
        match self.mode {
            Mode::Manifests => Err(fault),
            Mode::StaticPods => {
                self.warnings.borrow_mut().push(fault);
                Ok(())
            }
        }
    }
}

/// Which of the pod's lists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerKind {
    Init,
    Main,
}

/// One container with its defaults.
pub(super) fn container(
    at: &FieldPath<'_>,
    c: &api::Container,
    role: ContainerKind,
    pod: &PodContext,
) -> Result<Container, FieldError> {
    let sidecar = restart(at, c, role)?;
    let name = check::id(&at.key("name"), ContainerName::new(c.name.as_str()))?;
    let image = image(&at.key("image"), c.image.as_deref().unwrap_or_default())?;
    let security = match &c.security_context {
        Some(s) => security::container(&at.key("securityContext"), s, pod)?,
        None => ContainerSecurity::default(),
    };
    if c.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return Err(at.key("volumeDevices").error("block devices are not supported yet"));
    }
    let lifecycle = c.lifecycle.clone().unwrap_or_default();
    if role == ContainerKind::Init && !sidecar {
        let given = [
            ("livenessProbe", c.liveness_probe.is_some()),
            ("readinessProbe", c.readiness_probe.is_some()),
            ("startupProbe", c.startup_probe.is_some()),
            ("lifecycle", lifecycle.post_start.is_some() || lifecycle.pre_stop.is_some()),
        ];
        if let Some((field, _)) = given.iter().find(|(_, given)| *given) {
            return Err(at.key(field).error("is only for init containers with restartPolicy: Always"));
        }
    }
    let lifecycle_at = &at.key("lifecycle");
    if lifecycle.stop_signal.as_deref().is_some_and(|s| !s.is_empty()) {
        return Err(lifecycle_at.key("stopSignal").error("is not supported yet"));
    }
    let hook = |name: &str, h: &Option<api::LifecycleHandler>| {
        h.as_ref().map(|h| probe::hook(&lifecycle_at.key(name), h, pod.grace_seconds)).transpose()
    };
    let probe = |name: &str, p: &Option<api::Probe>, kind| {
        p.as_ref().map(|p| probe::probe(&at.key(name), p, kind)).transpose()
    };
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
        mounts: volume::mounts(
            &at.key("volumeMounts"),
            c.volume_mounts.as_deref().unwrap_or_default(),
            &pod.volumes,
            security.privileged,
        )?,
        liveness: probe("livenessProbe", &c.liveness_probe, ProbeKind::Liveness)?,
        readiness: probe("readinessProbe", &c.readiness_probe, ProbeKind::Readiness)?,
        startup: probe("startupProbe", &c.startup_probe, ProbeKind::Startup)?,
        post_start: hook("postStart", &lifecycle.post_start)?,
        pre_stop: hook("preStop", &lifecycle.pre_stop)?,
        termination_message_path: message_path.unwrap_or_else(|| "/dev/termination-log".to_owned()),
        termination_message_policy: choice(
            &at.key("terminationMessagePolicy"),
            c.termination_message_policy.as_deref(),
            &[
                ("File", TerminationMessagePolicy::File),
                ("FallbackToLogsOnError", TerminationMessagePolicy::FallbackToLogsOnError),
            ],
        )?,
        security,
        stdin: c.stdin.unwrap_or(false),
        stdin_once: c.stdin_once.unwrap_or(false),
        tty: c.tty.unwrap_or(false),
        sidecar,
    })
}

/// Whether it is a sidecar; other restart policies of a container's own are refused for now.
fn restart(at: &FieldPath<'_>, c: &api::Container, role: ContainerKind) -> Result<bool, FieldError> {
    if c.restart_policy_rules.as_ref().is_some_and(|r| !r.is_empty()) {
        return Err(at.key("restartPolicyRules").error("restart rules of a container are not supported yet"));
    }
    match (c.restart_policy.as_deref(), role) {
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

/// `Always` for `:latest` and for neither tag nor digest.
fn default_pull_policy(image: &str) -> PullPolicy {
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

fn env(at: &FieldPath<'_>, list: &[api::EnvVar]) -> Result<Vec<EnvVar>, FieldError> {
    let mut found = Vec::new();
    for (index, e) in list.iter().enumerate() {
        let at = &at.index(index);
        check::env_name(&at.key("name"), &e.name)?;
        let text = e.value.clone().unwrap_or_default();
        if text.contains('\0') {
            return Err(at.key("value").error("must not contain a NUL character"));
        }
        let value = match &e.value_from {
            None => EnvValue::Text(text),
            Some(_) if !text.is_empty() => {
                return Err(at.key("valueFrom").error("cannot be set together with value"));
            }
            Some(source) => env_source(&at.key("valueFrom"), source)?,
        };
        found.push(EnvVar { name: e.name.clone(), value });
    }
    Ok(found)
}

fn env_source(at: &FieldPath<'_>, s: &api::EnvVarSource) -> Result<EnvValue, FieldError> {
    let mut found = Vec::new();
    if let Some(f) = &s.field_ref {
        found.push(EnvValue::Field(volume::field_path(&at.key("fieldRef"), f, FieldPlace::Env)?));
    }
    if let Some(r) = &s.resource_field_ref {
        found.push(EnvValue::Resource(resources::field_ref(&at.key("resourceFieldRef"), r, false)?));
    }
    if let Some(c) = &s.config_map_key_ref {
        found.push(EnvValue::ConfigMapKey(key_ref(&at.key("configMapKeyRef"), &c.name, &c.key, c.optional)?));
    }
    if let Some(c) = &s.secret_key_ref {
        found.push(EnvValue::SecretKey(key_ref(&at.key("secretKeyRef"), &c.name, &c.key, c.optional)?));
    }
    if s.file_key_ref.is_some() {
        return Err(at.key("fileKeyRef").error("variables from files are not supported yet"));
    }
    let of = "fieldRef, resourceFieldRef, configMapKeyRef or secretKeyRef";
    match (found.pop(), found.is_empty()) {
        (Some(value), true) => Ok(value),
        (None, _) => Err(at.error(format!("must say one of {of}"))),
        (Some(_), false) => Err(at.error(format!("must say only one of {of}"))),
    }
}

fn key_ref(at: &FieldPath<'_>, name: &str, key: &str, optional: Option<bool>) -> Result<KeyRef, FieldError> {
    check::object_name(&at.key("name"), name)?;
    check::data_key(&at.key("key"), key)?;
    Ok(KeyRef { name: name.to_owned(), key: key.to_owned(), optional: optional.unwrap_or(false) })
}

fn env_from(at: &FieldPath<'_>, list: &[api::EnvFromSource]) -> Result<Vec<EnvFrom>, FieldError> {
    let mut found = Vec::new();
    for (index, e) in list.iter().enumerate() {
        let at = &at.index(index);
        let prefix = e.prefix.clone().unwrap_or_default();
        if !prefix.is_empty() {
            check::env_name(&at.key("prefix"), &prefix)?;
        }
        let (source, optional) = match (&e.config_map_ref, &e.secret_ref) {
            (Some(c), None) => {
                let at = &at.key("configMapRef");
                check::object_name(&at.key("name"), &c.name)?;
                (EnvFromSource::ConfigMap(c.name.clone()), c.optional)
            }
            (None, Some(s)) => {
                let at = &at.key("secretRef");
                check::object_name(&at.key("name"), &s.name)?;
                (EnvFromSource::Secret(s.name.clone()), s.optional)
            }
            (None, None) => return Err(at.error("must say one of configMapRef or secretRef")),
            (Some(_), Some(_)) => return Err(at.error("must say only one of configMapRef or secretRef")),
        };
        found.push(EnvFrom { prefix, source, optional: optional.unwrap_or(false) });
    }
    Ok(found)
}

fn ports(
    at: &FieldPath<'_>,
    list: &[api::ContainerPort],
    host_network: bool,
) -> Result<Vec<ContainerPort>, FieldError> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for (index, p) in list.iter().enumerate() {
        let at = &at.index(index);
        let name = p.name.clone().filter(|n| !n.is_empty());
        if let Some(name) = &name {
            check::port_name(&at.key("name"), name)?;
            if !names.insert(name.clone()) {
                return Err(at.key("name").error(format!("{name:?} is there twice")));
            }
        }
        let port = check::port(&at.key("containerPort"), p.container_port)?;
        let host_at = &at.key("hostPort");
        let host_port = match p.host_port {
            None | Some(0) => host_network.then_some(port),
            Some(h) => Some(check::port(host_at, h)?),
        };
        if host_network && host_port != Some(port) {
            return Err(host_at.error("must equal containerPort with hostNetwork"));
        }
        found.push(ContainerPort {
            name,
            port,
            protocol: protocol(&at.key("protocol"), p.protocol.as_deref())?,
            host_port,
            host_ip: match p.host_ip.as_deref() {
                None | Some("") => None,
                Some(ip) => Some(check::address(&at.key("hostIP"), ip)?),
            },
        });
    }
    Ok(found)
}

/// A transport protocol, TCP by default.
pub(super) fn protocol(at: &FieldPath<'_>, word: Option<&str>) -> Result<Protocol, FieldError> {
    choice(at, word, &[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)])
}

/// No port of the host twice over the pod's main containers, as the API server looks at it.
pub(super) fn host_ports(at: &FieldPath<'_>, list: &[Container]) -> Result<(), FieldError> {
    let mut taken: BTreeSet<(Protocol, Option<IpAddr>, u16)> = BTreeSet::new();
    for (index, c) in list.iter().enumerate() {
        for (number, port) in c.ports.iter().enumerate() {
            let Some(host_port) = port.host_port else { continue };
            if !taken.insert((port.protocol, port.host_ip, host_port)) {
                let at = &at.index(index);
                let at = &at.key("ports");
                return Err(at
                    .index(number)
                    .key("hostPort")
                    .error(format!("{host_port} is taken by another port of this pod")));
            }
        }
    }
    Ok(())
}
