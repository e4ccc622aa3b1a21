//! The one door through which questions are asked.

use crate::{
    Error,
    action::{HttpAction, ResolvedAction},
    exec::{ExecOutcome, ExecTarget, Unsupported, client::Client},
    grpc, http, net, tls,
};
use berth_core::{error::Chain, probe::ProbeResult};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio_rustls::TlsConnector;

/// A question that could not be put is put again this often in all, as the kubelet does.
pub const TRIES: u32 = 3;

/// What a [`Prober`] needs to know.
#[derive(Debug, Clone)]
pub struct ProberConfig {
    /// The program that runs as the exec helper: the agent's own. `/proc/self/exe` stays the same program also after
    /// its file was replaced by an upgrade.
    pub helper_exe: PathBuf,
    /// Its arguments, by which it knows its role; standard input is its socket.
    pub helper_args: Vec<String>,
    /// The directory of all pods in each cgroup hierarchy: a new helper removes what one that was killed left behind
    /// below them.
    pub cgroup_roots: Vec<PathBuf>,
    /// The cgroup that the helper is put into, so that it is not the service's that started it; `None` leaves it.
    pub helper_group: Option<PathBuf>,
}

impl ProberConfig {
    /// The helper as role `probe-exec` of `exe`.
    pub fn new(exe: impl Into<PathBuf>, cgroup_roots: Vec<PathBuf>) -> ProberConfig {
        ProberConfig {
            helper_exe: exe.into(),
            helper_args: vec!["probe-exec".to_owned()],
            cgroup_roots,
            helper_group: None,
        }
    }
}

/// Asks containers. Clones share the exec helper, which is started by the first exec.
#[derive(Clone)]
pub struct Prober {
    tls: TlsConnector,
    exec: Arc<Client>,
}

impl Prober {
    /// Sets up; nothing is started yet.
    pub fn new(config: ProberConfig) -> Result<Prober, Error> {
        Ok(Prober { tls: tls::connector().map_err(Error::Tls)?, exec: Arc::new(Client::new(config)) })
    }

    /// Asks once and gives the answer within `timeout`; where it could not be asked, up to three times.
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
                let scheme = if http.https { "https" } else { "http" };
                net::within(
                    timeout,
                    format!("GET {scheme}://{}", http.endpoint),
                    http::probe(http, &self.tls),
                )
                .await
            }
            ResolvedAction::Tcp(endpoint) => {
                net::within(timeout, format!("connect to {endpoint}"), net::tcp(endpoint)).await
            }
            ResolvedAction::Grpc { endpoint, service } => {
                let question = grpc::probe(endpoint, service, timeout);
                net::within(timeout, format!("gRPC health check of {endpoint}"), question).await
            }
        }
    }

    /// Runs a command in a container and gives its end, for callers that have another way (containerd) where this
    /// one is unsupported. Dropping the future kills the command and all that it started.
    pub async fn exec(&self, target: &ExecTarget, timeout: Duration) -> Result<ExecOutcome, Unsupported> {
        target.supported()?;
        match self.exec.run(target, timeout).await {
            ExecOutcome::Unsupported(why) => Err(Unsupported(why)),
            outcome => Ok(outcome),
        }
    }
}

/// Sends the GET of a lifecycle hook: any answer within `deadline` will do, whatever its status.
pub async fn http_hook(
    prober: &Prober,
    action: &HttpAction,
    deadline: Duration,
) -> Result<http::HookReply, Error> {
    match tokio::time::timeout(deadline, http::hook(action, &prober.tls)).await {
        Ok(answer) => answer.map_err(|e| Error::Hook(Chain(&e).to_string())),
        Err(_) => Err(Error::Hook(format!("GET {}: no answer within {deadline:?}", action.endpoint))),
    }
}
