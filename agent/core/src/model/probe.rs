//! Specification of probes. [`crate::probe`] turns results into verdicts.

use super::{HttpTarget, PortRef};
use serde::{Deserialize, Serialize};

/// A liveness, readiness or startup probe, defaults applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// How the probe tests the container.
    pub action: ProbeAction,
    /// `initialDelaySeconds`, default 0, counted from the container's start.
    pub initial_delay_seconds: u32,
    /// `timeoutSeconds`, default 1.
    pub timeout_seconds: u32,
    /// `periodSeconds`, default 10.
    pub period_seconds: u32,
    /// `successThreshold`, default 1 (and always 1 for liveness and startup).
    pub success_threshold: u32,
    /// `failureThreshold`, default 3.
    pub failure_threshold: u32,
    /// `terminationGracePeriodSeconds`, the grace period of a stop that this probe causes; liveness and
    /// startup only.
    pub grace_seconds: Option<u32>,
}

/// The action of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeAction {
    /// A command in the container; exit code 0 is success.
    Exec(Vec<String>),
    /// An HTTP GET; a status of 200 to 399 is success.
    Http(HttpTarget),
    /// A TCP connection; an accepted connection is success.
    Tcp {
        /// The host; `None` means the pod's address.
        host: Option<String>,
        /// The port.
        port: PortRef,
    },
    /// A `grpc.health.v1` check; the answer SERVING is success.
    Grpc {
        /// The port.
        port: u16,
        /// The service name in the request.
        service: String,
    },
}

/// The kind of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProbeKind {
    /// A failing liveness probe ends the container.
    Liveness,
    /// A failing readiness probe takes the pod out of Services.
    Readiness,
    /// The other two probes wait until the startup probe succeeds. A failing startup probe ends the
    /// container.
    Startup,
}
