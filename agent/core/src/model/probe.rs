//! Probes as specified; how results become verdicts is in [`crate::probe`].

use super::{HttpTarget, PortRef};
use serde::{Deserialize, Serialize};

/// A liveness, readiness or startup probe, defaults applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// How the container is asked.
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
    /// `terminationGracePeriodSeconds`: used for kills by this probe, liveness and startup only.
    pub grace_seconds: Option<u32>,
}

/// How a probe asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeAction {
    /// Exit code 0 is success.
    Exec(Vec<String>),
    /// A status of 200 to 399 is success.
    Http(HttpTarget),
    /// An accepted connection is success.
    Tcp {
        /// Default: the pod's address.
        host: Option<String>,
        /// The port.
        port: PortRef,
    },
    /// `grpc.health.v1` answering SERVING is success.
    Grpc {
        /// The port.
        port: u16,
        /// The service's name in the request.
        service: String,
    },
}

/// Which of the three probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProbeKind {
    /// Failing kills the container.
    Liveness,
    /// Failing takes the pod out of Services.
    Readiness,
    /// Until it succeeds the other two wait; failing kills the container.
    Startup,
}
