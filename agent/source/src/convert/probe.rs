//! Probes and lifecycle hooks.

use super::{
    check,
    field::{FieldError, FieldPath, shorten},
};
use berth_core::model::{Hook, HttpTarget, PortRef, Probe, ProbeAction, ProbeKind};
use k8s_openapi::{api::core::v1 as api, apimachinery::pkg::util::intstr::IntOrString};

/// A probe with its defaults: a zero or missing timeout is 1 s, period 10 s, success threshold 1, failure
/// threshold 3.
pub(super) fn probe(at: &FieldPath<'_>, p: &api::Probe, kind: ProbeKind) -> Result<Probe, FieldError> {
    let number = |name: &str, value: Option<i32>, default: u32| match value {
        None | Some(0) => Ok(default),
        Some(v) => {
            u32::try_from(v).ok().ok_or_else(|| at.key(name).error(format!("{v} must not be negative")))
        }
    };
    let success_threshold = number("successThreshold", p.success_threshold, 1)?;
    if kind != ProbeKind::Readiness && success_threshold != 1 {
        return Err(at.key("successThreshold").error("must be 1 for liveness and startup probes"));
    }
    let grace_seconds = match p.termination_grace_period_seconds {
        None => None,
        Some(_) if kind == ProbeKind::Readiness => {
            return Err(at
                .key("terminationGracePeriodSeconds")
                .error("must not be set for readiness probes"));
        }
        Some(v) => match check::amount(&at.key("terminationGracePeriodSeconds"), v)? {
            0 => return Err(at.key("terminationGracePeriodSeconds").error("must be greater than 0")),
            v => Some(v),
        },
    };
    Ok(Probe {
        action: action(at, p)?,
        initial_delay_seconds: number("initialDelaySeconds", p.initial_delay_seconds, 0)?,
        timeout_seconds: number("timeoutSeconds", p.timeout_seconds, 1)?,
        period_seconds: number("periodSeconds", p.period_seconds, 10)?,
        success_threshold,
        failure_threshold: number("failureThreshold", p.failure_threshold, 3)?,
        grace_seconds,
    })
}

fn action(at: &FieldPath<'_>, p: &api::Probe) -> Result<ProbeAction, FieldError> {
    let mut found = Vec::new();
    if let Some(e) = &p.exec {
        found.push(ProbeAction::Exec(command(&at.key("exec"), e)?));
    }
    if let Some(h) = &p.http_get {
        found.push(ProbeAction::Http(http(&at.key("httpGet"), h)?));
    }
    if let Some(t) = &p.tcp_socket {
        let at = &at.key("tcpSocket");
        found.push(ProbeAction::Tcp {
            host: host(t.host.as_deref()),
            port: port_ref(&at.key("port"), &t.port)?,
        });
    }
    if let Some(g) = &p.grpc {
        let at = &at.key("grpc");
        found.push(ProbeAction::Grpc {
            port: check::port(&at.key("port"), g.port)?,
            service: g.service.clone().unwrap_or_default(),
        });
    }
    one(at, found, "exec, httpGet, tcpSocket or grpc")
}

/// A `postStart` or `preStop` hook; a sleep may not outlast the pod's grace.
pub(super) fn hook(
    at: &FieldPath<'_>,
    h: &api::LifecycleHandler,
    grace_seconds: u32,
) -> Result<Hook, FieldError> {
    let mut found = Vec::new();
    if let Some(e) = &h.exec {
        found.push(Hook::Exec(command(&at.key("exec"), e)?));
    }
    if let Some(g) = &h.http_get {
        found.push(Hook::Http(http(&at.key("httpGet"), g)?));
    }
    if let Some(s) = &h.sleep {
        let at = &at.key("sleep");
        let at = &at.key("seconds");
        let seconds = check::amount(at, s.seconds)?;
        if seconds > grace_seconds {
            return Err(at.error(format!(
                "{seconds} must not exceed terminationGracePeriodSeconds ({grace_seconds})"
            )));
        }
        found.push(Hook::Sleep(seconds));
    }
    if h.tcp_socket.is_some() {
        return Err(at.key("tcpSocket").error("is not supported as a lifecycle hook"));
    }
    one(at, found, "exec, httpGet or sleep")
}

fn one<T>(at: &FieldPath<'_>, mut found: Vec<T>, of: &str) -> Result<T, FieldError> {
    match (found.pop(), found.is_empty()) {
        (Some(action), true) => Ok(action),
        (None, _) => Err(at.error(format!("must say one of {of}"))),
        (Some(_), false) => Err(at.error(format!("must say only one of {of}"))),
    }
}

fn command(at: &FieldPath<'_>, e: &api::ExecAction) -> Result<Vec<String>, FieldError> {
    match &e.command {
        Some(command) if !command.is_empty() => Ok(command.clone()),
        _ => Err(at.key("command").error("is required")),
    }
}

fn host(host: Option<&str>) -> Option<String> {
    host.filter(|h| !h.is_empty()).map(str::to_owned)
}

pub(super) fn port_ref(at: &FieldPath<'_>, port: &IntOrString) -> Result<PortRef, FieldError> {
    match port {
        IntOrString::Int(n) => check::port(at, *n).map(PortRef::Number),
        IntOrString::String(name) => check::port_name(at, name).map(|()| PortRef::Name(name.clone())),
    }
}

fn http(at: &FieldPath<'_>, h: &api::HTTPGetAction) -> Result<HttpTarget, FieldError> {
    let https = match h.scheme.as_deref() {
        None | Some("" | "HTTP") => false,
        Some("HTTPS") => true,
        Some(other) => {
            return Err(at.key("scheme").error(format!("{:?} must be HTTP or HTTPS", shorten(other))));
        }
    };
    let mut headers = Vec::new();
    for (index, header) in h.http_headers.iter().flatten().enumerate() {
        let at = &at.key("httpHeaders");
        let at = &at.index(index);
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if header.name.is_empty() || !header.name.bytes().all(token) {
            return Err(at.key("name").error(format!("{:?} is no header name", shorten(&header.name))));
        }
        if header.value.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
            return Err(at.key("value").error("must not contain line ends or NUL"));
        }
        headers.push((header.name.clone(), header.value.clone()));
    }
    Ok(HttpTarget {
        host: host(h.host.as_deref()),
        port: port_ref(&at.key("port"), &h.port)?,
        path: h.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".to_owned()),
        https,
        headers,
    })
}
