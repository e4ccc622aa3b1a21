//! Specification of a container of a pod.

use super::{ContainerSecurity, Probe, ResizePolicy, Resources, VolumeDevice, VolumeMount};
use crate::ids::ContainerName;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A container of a pod, as specified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// `name`, unique within the pod over containers of every kind.
    pub name: ContainerName,
    /// `image`, as written.
    pub image: String,
    /// `imagePullPolicy`, with the default already applied (`Always` for `:latest` or no tag, else
    /// `IfNotPresent`).
    pub pull_policy: PullPolicy,
    /// `command`, which replaces the image's entry point where not empty; `$(VAR)` not yet expanded.
    pub command: Vec<String>,
    /// `args`; `$(VAR)` not yet expanded.
    pub args: Vec<String>,
    /// `workingDir`.
    pub working_dir: Option<String>,
    /// `envFrom`, in order; `env` overrides it.
    pub env_from: Vec<EnvFrom>,
    /// `env`, in order.
    pub env: Vec<EnvVar>,
    /// `ports`.
    pub ports: Vec<ContainerPort>,
    /// `resources`.
    pub resources: Resources,
    /// `resizePolicy`.
    #[serde(default)]
    pub resize_policy: ResizePolicy,
    /// `volumeMounts`, in order.
    pub mounts: Vec<VolumeMount>,
    /// `volumeDevices`, in order.
    #[serde(default)]
    pub devices: Vec<VolumeDevice>,
    /// `livenessProbe`.
    pub liveness: Option<Probe>,
    /// `readinessProbe`.
    pub readiness: Option<Probe>,
    /// `startupProbe`.
    pub startup: Option<Probe>,
    /// `lifecycle.postStart`.
    pub post_start: Option<Hook>,
    /// `lifecycle.preStop`.
    pub pre_stop: Option<Hook>,
    /// `terminationMessagePath`, default `/dev/termination-log`.
    pub termination_message_path: String,
    /// `terminationMessagePolicy`.
    pub termination_message_policy: TerminationMessagePolicy,
    /// `securityContext`.
    pub security: ContainerSecurity,
    /// `stdin`.
    pub stdin: bool,
    /// `stdinOnce`.
    pub stdin_once: bool,
    /// `tty`.
    pub tty: bool,
    /// Whether the container is a sidecar: an init container with `restartPolicy: Always`, which runs beside
    /// the main containers.
    pub sidecar: bool,
    /// `targetContainerName` of an ephemeral container: the container whose PID namespace it joins.
    #[serde(default)]
    pub target: Option<ContainerName>,
    /// The part of an ephemeral container that this node does not support, and the reason, for people. Its start fails
    /// with that reason, and the pod goes on.
    #[serde(default)]
    pub unsupported: Option<String>,
}

impl Container {
    /// A main container of this image, with `imagePullPolicy: IfNotPresent` and Kubernetes' defaults for the
    /// rest.
    pub fn new(name: ContainerName, image: impl Into<String>) -> Container {
        Container {
            name,
            image: image.into(),
            pull_policy: PullPolicy::IfNotPresent,
            command: Vec::new(),
            args: Vec::new(),
            working_dir: None,
            env_from: Vec::new(),
            env: Vec::new(),
            ports: Vec::new(),
            resources: Resources::default(),
            resize_policy: ResizePolicy::default(),
            mounts: Vec::new(),
            devices: Vec::new(),
            liveness: None,
            readiness: None,
            startup: None,
            post_start: None,
            pre_stop: None,
            termination_message_path: "/dev/termination-log".to_owned(),
            termination_message_policy: TerminationMessagePolicy::default(),
            security: ContainerSecurity::default(),
            stdin: false,
            stdin_once: false,
            tty: false,
            sidecar: false,
            target: None,
            unsupported: None,
        }
    }

    /// The number of a port given by name or number, for probes and hooks; `None` where no port has that
    /// name.
    pub fn port(&self, port: &PortRef) -> Option<u16> {
        match port {
            PortRef::Number(n) => Some(*n),
            PortRef::Name(name) => {
                self.ports.iter().find(|p| p.name.as_deref() == Some(name)).map(|p| p.port)
            }
        }
    }
}

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Pull the image at every start.
    Always,
    /// Pull the image only if it is missing.
    IfNotPresent,
    /// Never pull; use only an image that is present.
    Never,
}

/// One `env` entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// The variable's name.
    pub name: String,
    /// The source of the value.
    pub value: EnvValue,
}

/// The source of an environment variable's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvValue {
    /// A text in which `$(VAR)` of earlier variables is expanded.
    Text(String),
    /// `configMapKeyRef`.
    ConfigMapKey(KeyRef),
    /// `secretKeyRef`.
    SecretKey(KeyRef),
    /// `fieldRef.fieldPath`.
    Field(String),
    /// `resourceFieldRef`.
    Resource(super::ResourceFieldRef),
}

/// A key of a ConfigMap or Secret of the pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRef {
    /// The object's name.
    pub name: String,
    /// The key in the object.
    pub key: String,
    /// Whether the pod may start without the key.
    pub optional: bool,
}

/// One `envFrom` entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFrom {
    /// The prefix of each variable's name.
    pub prefix: String,
    /// The object whose keys become variables.
    pub source: EnvFromSource,
    /// Whether the pod may start without the object.
    pub optional: bool,
}

/// The object of an `envFrom` entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvFromSource {
    /// A ConfigMap by name.
    ConfigMap(String),
    /// A Secret by name.
    Secret(String),
}

/// One `ports` entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// The port's name, unique in the container.
    pub name: Option<String>,
    /// The port number, 1 to 65535.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// `hostPort`.
    pub host_port: Option<u16>,
    /// `hostIP`.
    pub host_ip: Option<IpAddr>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port, by number or by its name in `ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortRef {
    /// A port number, 1 to 65535.
    Number(u16),
    /// The name of one of the container's ports.
    Name(String),
}

/// The action of a lifecycle hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    /// Runs a command in the container.
    Exec(Vec<String>),
    /// Sends a GET request; the status of the answer does not matter.
    Http(HttpTarget),
    /// Waits this many seconds.
    Sleep(u32),
}

/// The target of an HTTP probe or hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpTarget {
    /// The host; `None` means the pod's address.
    pub host: Option<String>,
    /// The port.
    pub port: PortRef,
    /// Path and query.
    pub path: String,
    /// Whether to use TLS. The certificate is not checked.
    pub https: bool,
    /// Extra headers; `Host` sets the authority.
    pub headers: Vec<(String, String)>,
}

/// `terminationMessagePolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum TerminationMessagePolicy {
    /// Only the termination message file.
    #[default]
    File,
    /// The end of the container's output, if the file is empty and the container failed.
    FallbackToLogsOnError,
}
