//! The node's API on :10250 and its health on :10248: options, certificates, and the tasks.
//!
//! The ports are taken before anything else begins, so that a port that is taken ends this start of the agent with one
//! line. The pods keep running, as with any end of the agent.

mod backend;
mod configuration;
mod log_reader;
mod pages;
mod reviewer;
mod streams;

use super::{args::AgentArgs, certificates::ServingTls, local_api::LocalApi, status_manager::StatusManager};
use anyhow::Context as _;
use backend::Backend;
use berth_core::roots::Roots;
use berth_kube::pool::Pool;
use berth_logd::reader::LogChanges;
use berth_nodeapi::{
    Authenticator, Authorizer, Limits, NodeApi, NodeBackend, Reviewer, Routes, Statistics, health, listen,
    tls::{self, ClientCa, ServingFiles, self_made},
};
use reviewer::ApiReviewer;
use rustls::server::ResolvesServerCert;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// The directory of the node's logs.
const NODE_LOGS: &str = "/var/log";

/// Options of the node's API, named as the kubelet's.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NodeApiArgs {
    /// Port of the node's API; 0: none. Only with --kubeconfig.
    #[arg(long = "port", value_name = "PORT", default_value_t = 10250)]
    port: u16,
    /// Address of the node's API.
    #[arg(long = "address", value_name = "IP", default_value = "0.0.0.0")]
    address: IpAddr,
    /// Port of the node's health; 0: none. Only with --kubeconfig.
    #[arg(long, value_name = "PORT", default_value_t = 10248)]
    healthz_port: u16,
    /// Address of the node's health.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    healthz_bind_address: IpAddr,
    /// The CAs of client certificates that the node's API accepts, in PEM.
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    /// The serving certificate of the node's API, in PEM; by default one that the node makes for itself.
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub(super) tls_cert_file: Option<PathBuf>,
    /// The key of --tls-cert-file, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// Let requests without credentials ask as `system:anonymous`.
    #[arg(long)]
    anonymous_auth: bool,
}

/// The sockets, taken before the agent starts its parts.
pub(crate) struct Sockets {
    api: Option<TcpListener>,
    health: Option<TcpListener>,
}

impl NodeApiArgs {
    /// The port on which the API server finds the node's API.
    pub(crate) fn port(&self) -> Option<u16> {
        (self.port != 0).then_some(self.port)
    }

    /// Takes the ports.
    pub(crate) fn listen(&self) -> Result<Sockets, berth_nodeapi::Error> {
        let on = |address, port| (port != 0).then(|| listen(SocketAddr::new(address, port))).transpose();
        Ok(Sockets {
            api: on(self.address, self.port)?,
            health: on(self.healthz_bind_address, self.healthz_port)?,
        })
    }

    fn certificate(
        &self,
        names: Vec<String>,
        serving: &ServingTls,
    ) -> Result<Arc<dyn ResolvesServerCert>, berth_nodeapi::Error> {
        if let ServingTls::Signed(presented, _) = serving {
            return Ok(Arc::new(presented.clone()));
        }
        match (&self.tls_cert_file, &self.tls_private_key_file) {
            (Some(certificate), Some(key)) => {
                Ok(Arc::new(ServingFiles::open(certificate.clone(), key.clone())?))
            }
            _ => self_made(names),
        }
    }
}

/// The parts of the agent from which the node's API answers.
pub(crate) struct Parts {
    pub(crate) roots: Roots,
    pub(crate) api: LocalApi,
    pub(crate) status: Arc<StatusManager>,
    pub(crate) pool: Pool,
    pub(crate) serving: ServingTls,
    pub(crate) statistics: Arc<dyn Statistics>,
}

/// The running servers.
pub(crate) struct Serving {
    stop: watch::Sender<()>,
    tasks: Vec<JoinHandle<()>>,
}

/// Starts the servers.
pub(crate) fn start(all: &AgentArgs, sockets: Sockets, parts: Parts) -> anyhow::Result<Serving> {
    let args = &all.node_api;
    let (stop, stopped) = watch::channel(());
    let name = parts.roots.node_name.clone();
    let mut names = vec![name.to_string()];
    names.extend(parts.api.host.borrow().node_ips.iter().map(IpAddr::to_string));
    let configuration = configuration::configuration(all, &parts.roots);
    let streams = Arc::new(streams::Streams { roots: parts.roots.clone(), api: parts.api.clone() });
    let log_changes = LogChanges::start()
        .inspect_err(|error| tracing::warn!(%error, "cannot wait for output of containers; it is looked for each second"))
        .ok()
        .map(Arc::new);
    let node: Arc<dyn NodeBackend> = Arc::new(Backend {
        name: name.to_string(),
        roots: parts.roots,
        api: parts.api,
        status: parts.status,
        configuration: configuration.to_string().into(),
        log_changes,
        flags: pages::flags(),
        started: pages::Started::now(),
    });
    let mut tasks = Vec::new();
    if let Some(listener) = sockets.health {
        tasks.push(tokio::spawn(health::run(Arc::clone(&node), listener, stopped.clone())));
    }
    if let Some(listener) = sockets.api {
        let reviewer: Arc<dyn Reviewer> = Arc::new(ApiReviewer { pool: parts.pool, node: name });
        let client_ca = args.client_ca_file.clone().map(ClientCa::open).transpose()?;
        if args.anonymous_auth {
            tracing::warn!("requests to the node's API without credentials are of system:anonymous");
        }
        let tls =
            tls::config(args.certificate(names, &parts.serving)?).context("prepare TLS of the node's API")?;
        let server = NodeApi {
            tls: Arc::new(tls),
            authenticator: Authenticator::new(client_ca, Some(Arc::clone(&reviewer)), args.anonymous_auth),
            authorizer: Authorizer::new(reviewer),
            routes: Routes {
                node,
                statistics: parts.statistics,
                streams: berth_nodeapi::Streams::new(streams),
                node_logs: NODE_LOGS.into(),
            },
            limits: Limits::default(),
        };
        tasks.push(tokio::spawn(server.run(listener, stopped)));
    }
    Ok(Serving { stop, tasks })
}

impl Serving {
    /// Ends the servers; requests in progress have some time.
    pub(crate) async fn shutdown(self) {
        drop(self.stop);
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::warn!(%error, "a server of the node's API has failed");
            }
        }
    }
}
