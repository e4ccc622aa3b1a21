//! The entry point for probes.

use crate::{
    Error,
    action::{HttpAction, ResolvedAction},
    exec::{
        self, ExecOutcome, ExecTarget, Session, SessionError, Stdio, Unsupported, client::Client,
        session::Sides,
    },
    grpc, http, net, tls,
};
use berth_core::probe::ProbeResult;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio_rustls::TlsConnector;

/// The most tries of a probe whose result is unknown, as in the kubelet.
pub const TRIES: u32 = 3;

/// Configuration of a [`Prober`].
#[derive(Debug, Clone)]
pub struct ProberConfig {
    /// The program that runs as the exec helper: the agent's own. `/proc/self/exe` stays the same
    /// program even after an upgrade replaced its file.
    pub helper_exe: PathBuf,
    /// Arguments that select the helper's role. Its standard input is its socket.
    pub helper_args: Vec<String>,
    /// The directory of all pods in each cgroup hierarchy. A new helper removes the cgroups that a
    /// killed one left below them.
    pub cgroup_roots: Vec<PathBuf>,
    /// The cgroup that the helper is moved into, so that it is not in its starter's service. None
    /// leaves it there.
    pub helper_group: Option<PathBuf>,
}

impl ProberConfig {
    /// Configuration with the helper as role `probe-exec` of `exe`.
    pub fn new(exe: impl Into<PathBuf>, cgroup_roots: Vec<PathBuf>) -> ProberConfig {
        ProberConfig {
            helper_exe: exe.into(),
            helper_args: vec!["probe-exec".to_owned()],
            cgroup_roots,
            helper_group: None,
        }
    }
}

/// Runner of probes. Clones share the exec helper, which is started by the first exec.
#[derive(Clone)]
pub struct Prober {
    tls: TlsConnector,
    exec: Arc<Client>,
}

impl Prober {
    /// Sets up the TLS client; no process is started yet.
    pub fn new(config: ProberConfig) -> Result<Prober, Error> {
        Ok(Prober { tls: tls::connector().map_err(Error::Tls)?, exec: Arc::new(Client::new(config)) })
    }

    /// Runs a probe within `timeout`. If the result is unknown, the probe is tried up to three
    /// times.
    pub async fn ask(&self, action: &ResolvedAction, timeout: Duration) -> ProbeResult {
        let mut answer = self.ask_once(action, timeout).await;
        for _ in 1..TRIES {
            if !matches!(answer, ProbeResult::Unknown(_)) {
                break;
            }
            answer = self.ask_once(action, timeout).await;
        }
        answer
    }

    async fn ask_once(&self, action: &ResolvedAction, timeout: Duration) -> ProbeResult {
        match action {
            ResolvedAction::Http(http) => {
                let late = format!("Get {:?}: no answer within {timeout:?}", http::url(http));
                net::within(timeout, late, http::probe(http, &self.tls)).await
            }
            ResolvedAction::Tcp(endpoint) => {
                let late = format!("dial tcp {endpoint}: no answer within {timeout:?}");
                net::within(timeout, late, net::tcp(endpoint)).await
            }
            ResolvedAction::Grpc { endpoint, service } => {
                let late = format!("health rpc of {endpoint}: no answer within {timeout:?}");
                net::within(timeout, late, grpc::probe(endpoint, service, timeout)).await
            }
        }
    }

    /// Starts the command of a client in a container and returns when it runs.
    ///
    /// # Errors
    /// The command does not run, or this way is unsupported: then callers go through containerd.
    pub async fn session(&self, target: &ExecTarget, stdio: Stdio) -> Result<Session, SessionError> {
        exec::supported(target).map_err(|Unsupported(why)| SessionError::Unsupported(why))?;
        let sides = Sides::of(stdio)
            .map_err(|e| SessionError::Failed(format!("cannot make a socket for the terminal: {e}")))?;
        self.exec.session(target, sides).await
    }

    /// Runs a command in a container. If this way is unsupported, callers go through containerd.
    /// Dropping the future kills the command and all its children.
    pub async fn exec(&self, target: &ExecTarget, timeout: Duration) -> Result<ExecOutcome, Unsupported> {
        exec::supported(target)?;
        match self.exec.run(target, timeout).await {
            ExecOutcome::Unsupported(why) => Err(Unsupported(why)),
            outcome => Ok(outcome),
        }
    }
}

/// Sends the GET of a lifecycle hook. Any answer within `deadline` is success, whatever its status.
pub async fn http_hook(
    prober: &Prober,
    action: &HttpAction,
    deadline: Duration,
) -> Result<http::HookReply, Error> {
    match tokio::time::timeout(deadline, http::hook(action, &prober.tls)).await {
        Ok(answer) => {
            answer.map_err(|e| Error::Hook(format!("Get {:?}: {}", http::url(action), e.message())))
        }
        Err(_) => Err(Error::Hook(format!("Get {:?}: no answer within {deadline:.0?}", http::url(action)))),
    }
}
