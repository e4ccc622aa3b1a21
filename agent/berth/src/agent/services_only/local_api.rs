//! The local socket and the node's status file of an agent that serves Services alone. What concerns pods and images is
//! refused.

use super::super::{
    control_plane::ControlPlaneHealth,
    exec_session::LocalExec,
    host_network::Host,
    image_requests::LocalPull,
    local_api::{addresses_view, view_of_process},
    local_server::{Published, write_node},
    services_health::ServicesHealth,
    sources::Latest,
};
use anyhow::Context as _;
use berth_api::{
    files,
    message::{ErrorCode, ExecSpec},
    view::{Health, ImageDetails, ImageView, NodeView},
};
use berth_core::{roots::Roots, time::Wall};
use berth_pods::DesiredSet;
use berth_server::{ApiError, Backend, WatchCache, status_files};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle};

/// Time for which a burst of changes is gathered into one write.
const SETTLE: Duration = Duration::from_millis(200);

/// What stands for a part of the agent that this node does not need.
const NOT_USED: &str = "not used: a kubelet runs the pods";

/// The parts of the agent that requests on the local socket need.
#[derive(Clone)]
pub(super) struct ServicesApi {
    pub(super) roots: Roots,
    pub(super) latest: Latest,
    pub(super) host: Host,
    pub(super) services: ServicesHealth,
    pub(super) control_plane: ControlPlaneHealth,
    /// What is to be said of kube-proxy.
    pub(super) kube_proxies: watch::Receiver<Option<String>>,
    pub(super) since: Wall,
}

fn refused<T>(what: &str) -> Result<T, ApiError> {
    let message =
        format!("cannot {what}: this agent serves Services alone; ask the kubelet's container runtime");
    Err(ApiError::new(ErrorCode::Unsupported, message))
}

impl Backend for ServicesApi {
    type Exec = LocalExec;
    type Pull = LocalPull;

    async fn status(&self) -> NodeView {
        let host = self.host.borrow().clone();
        let said_of_kube_proxy = self.kube_proxies.borrow().clone();
        let problems = host.problems.iter().map(ToString::to_string).chain(said_of_kube_proxy);
        let addresses = addresses_view(&host, problems);
        let listed = self.latest.borrow().cluster().is_some_and(|snapshot| snapshot.listed);
        NodeView {
            containerd: Health::good(NOT_USED),
            network: Health::good(NOT_USED),
            logd: Health::good(NOT_USED),
            services: Some(self.services.tested_now().await),
            addresses: Some(addresses),
            control_plane: Some(self.control_plane.view(listed)),
            ..view_of_process(&self.roots, self.since)
        }
    }

    async fn images(&self) -> Result<Vec<ImageView>, ApiError> {
        refused("list images")
    }

    async fn import(&self, _path: PathBuf) -> Result<Vec<String>, ApiError> {
        refused("import an archive")
    }

    async fn pull(&self, _image: String) -> Result<LocalPull, ApiError> {
        refused("pull an image")
    }

    async fn remove_image(&self, _image: String, _force: bool) -> Result<Vec<String>, ApiError> {
        refused("remove an image")
    }

    async fn tag_image(&self, _image: String, _name: String) -> Result<String, ApiError> {
        refused("give an image another name")
    }

    async fn inspect_image(&self, _image: String) -> Result<ImageDetails, ApiError> {
        refused("look at an image")
    }

    async fn prepare_exec(&self, _spec: ExecSpec) -> Result<LocalExec, ApiError> {
        refused("run a command in a container")
    }
}

/// The running tasks.
pub(super) struct Serving {
    api: ServicesApi,
    published: Published,
    node_file: JoinHandle<()>,
}

/// Opens the socket and starts the tasks.
pub(super) async fn start(
    api: ServicesApi,
    cache: WatchCache,
    desired: watch::Receiver<Arc<DesiredSet>>,
) -> anyhow::Result<Serving> {
    status_files::prepare(&api.roots).context("make the directory of status files")?;
    let published = Published::start(&api.roots, cache, api.clone())?;
    let node_file = tokio::spawn(keep_node_file(api.clone(), desired));
    Ok(Serving { api, published, node_file })
}

impl Serving {
    /// Ends the tasks; the last state is written to the status file.
    pub(super) async fn shutdown(self) {
        self.node_file.abort();
        write_node(&self.api.roots, &self.api).await;
        self.published.end().await;
    }
}

/// Keeps the node's status file: written with changes, and touched every [`files::ALIVE`], so that its time tells when the
/// agent died.
async fn keep_node_file(api: ServicesApi, mut desired: watch::Receiver<Arc<DesiredSet>>) {
    let mut proxies = api.kube_proxies.clone();
    loop {
        write_node(&api.roots, &api).await;
        loop {
            tokio::select! {
                changed = desired.changed() => match changed {
                    Ok(()) => break,
                    Err(_ended) => return,
                },
                changed = proxies.changed() => match changed {
                    Ok(()) => break,
                    Err(_ended) => return,
                },
                () = tokio::time::sleep(files::ALIVE) => if files::touch(&api.roots).is_err() {
                    break;
                },
            }
        }
        tokio::time::sleep(SETTLE).await;
        desired.mark_unchanged();
    }
}
