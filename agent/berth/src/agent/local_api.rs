//! The [`Backend`] of the local socket: node status, images, commands in containers, shutdown.

use super::{
    api_error::{from_runtime, unavailable},
    cluster_dns::DnsHealth,
    control_plane::ControlPlaneHealth,
    csi,
    exec_session::{self, LocalExec},
    host_network::Host,
    image_collection::ImageCollection,
    image_requests::{self, LocalPull},
    services_health::ServicesHealth,
    sources::Latest,
};
use berth_api::{
    message::{ErrorCode, ExecSpec},
    view::{
        AddressesView, ControlPlaneView, Health, ImageDetails, ImageView, ManifestProblem, NodeView,
        PruneView, PullView, SourceView, VerifiedImage,
    },
};
use berth_core::{error::Chain, roots::Roots, time::Wall};
use berth_executor::NodeExecutor;
use berth_network::Network;
use berth_pods::NodeEvent;
use berth_runtime::Runtime;
use berth_server::{ApiError, Backend, WatchCache};
use berth_services::{HostNetwork, NetworkProblem};
use berth_source::{SourceKind, SourceState};
use berth_sys::{clock, process};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};

/// Deadline for each part of the status page.
const DEADLINE: Duration = Duration::from_secs(2);

/// The parts of the agent that requests on the local socket need.
#[derive(Clone)]
pub(crate) struct LocalApi {
    pub(crate) roots: Roots,
    pub(crate) cache: WatchCache,
    pub(crate) executor: Arc<NodeExecutor>,
    pub(crate) images: ImageCollection,
    pub(crate) network: Network,
    pub(crate) logd: Arc<berth_logd::client::Client>,
    pub(crate) latest: Latest,
    pub(crate) host: Host,
    /// `None` where the node runs without Services.
    pub(crate) services: Option<ServicesHealth>,
    /// `None` where this node does not serve cluster DNS.
    pub(crate) dns: Option<DnsHealth>,
    /// The CSI drivers.
    pub(crate) csi: csi::PluginWatch,
    /// `None` where the node works for no control plane.
    pub(crate) control_plane: Option<ControlPlaneHealth>,
    pub(crate) since: Wall,
    /// Channel to the manager of pods, for shutdowns.
    pub(crate) pods: mpsc::Sender<NodeEvent>,
}

impl LocalApi {
    fn runtime(&self) -> Result<Runtime, ApiError> {
        self.executor.runtime().map_err(unavailable)
    }

    pub(super) async fn containerd(&self) -> Health {
        let runtime = match self.executor.runtime() {
            Ok(runtime) => runtime,
            Err(failure) => return Health::bad(failure.message),
        };
        match timeout(DEADLINE, runtime.version()).await {
            Ok(Ok(version)) => Health::good(version),
            Ok(Err(e)) => Health::bad(Chain(&e)),
            Err(_elapsed) => Health::bad("does not answer in time"),
        }
    }

    pub(super) async fn network(&self) -> Health {
        match timeout(DEADLINE, self.network.ready()).await {
            Ok(Ok(status)) if status.ready => Health::good(status.network.unwrap_or_default()),
            Ok(Ok(status)) => Health::bad(status.reason.unwrap_or_else(|| "not ready".to_owned())),
            Ok(Err(e)) => Health::bad(e.to_string()),
            Err(_elapsed) => Health::bad("its plugins do not answer in time"),
        }
    }

    async fn logd(&self) -> Health {
        match self.logd.ping_within(DEADLINE).await {
            Ok(hello) => {
                Health::good(format!("{}, process {}, {} streams", hello.version, hello.pid, hello.streams))
            }
            Err(e) => Health::bad(e.to_string()),
        }
    }

    async fn dns(&self) -> Option<Health> {
        let dns = self.dns.as_ref()?;
        let health = timeout(DEADLINE, dns.check()).await;
        Some(health.unwrap_or_else(|_elapsed| Health::bad("does not answer in time")))
    }

    async fn services(&self) -> Option<Health> {
        Some(self.services.as_ref()?.tested_now().await)
    }

    fn addresses(&self) -> AddressesView {
        let host = self.host.borrow();
        // Problems of uplinks only matter to Services.
        let matters = |p: &&NetworkProblem| self.services.is_some() || matches!(p, NetworkProblem::NoNodeIp);
        addresses_view(&host, host.problems.iter().filter(matters).map(ToString::to_string))
    }

    fn control_plane(&self) -> Option<ControlPlaneView> {
        let listed = self.latest.borrow().cluster().is_some_and(|snapshot| snapshot.listed);
        Some(self.control_plane.as_ref()?.view(listed))
    }

    fn sources(&self) -> Vec<SourceView> {
        let view = |SourceState { kind, snapshot, .. }: &SourceState| {
            let SourceKind::Directory { dir, .. } = kind else { return None };
            Some(SourceView {
                dir: dir.clone(),
                listed: snapshot.listed,
                pods: u32::try_from(snapshot.pods.len()).unwrap_or(u32::MAX),
                errors: snapshot
                    .errors
                    .iter()
                    .map(|e| ManifestProblem {
                        file: e.file.clone(),
                        document: e.document,
                        field: e.field.clone(),
                        reason: e.reason.clone(),
                    })
                    .collect(),
                held: snapshot
                    .pods
                    .values()
                    .filter_map(|d| Some((d.pod.key.clone(), d.held.clone()?)))
                    .collect(),
            })
        };
        self.latest.borrow().iter().filter_map(view).collect()
    }
}

/// The node as this process shows it, without any of its parts.
pub(super) fn view_of_process(roots: &Roots, since: Wall) -> NodeView {
    let pid = std::process::id();
    NodeView {
        node: roots.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid,
        // A running process always has a start time.
        start_time: process::start_time(pid).ok().flatten().unwrap_or_default(),
        since,
        containerd: Health::default(),
        network: Health::default(),
        logd: Health::default(),
        services: None,
        dns: None,
        image_disk: None,
        csi: None,
        addresses: None,
        sources: Vec::new(),
        control_plane: None,
        as_of: clock::wall(),
    }
}

/// The node's addresses and uplinks with these problems.
pub(super) fn addresses_view(host: &HostNetwork, problems: impl Iterator<Item = String>) -> AddressesView {
    AddressesView {
        node_ips: host.node_ips.clone(),
        uplinks: host.uplinks.values().map(|u| u.name.to_string()).collect(),
        problems: problems.collect(),
    }
}

impl Backend for LocalApi {
    type Exec = LocalExec;
    type Pull = LocalPull;

    async fn status(&self) -> NodeView {
        let (containerd, network, logd, dns, services) =
            tokio::join!(self.containerd(), self.network(), self.logd(), self.dns(), self.services());
        NodeView {
            containerd,
            network,
            logd,
            services,
            dns,
            image_disk: self.images.health(),
            csi: csi::health(&self.csi.borrow()),
            addresses: Some(self.addresses()),
            sources: self.sources(),
            control_plane: self.control_plane(),
            ..view_of_process(&self.roots, self.since)
        }
    }

    async fn images(&self) -> Result<Vec<ImageView>, ApiError> {
        let images = self.runtime()?.images().await.map_err(|e| from_runtime(&e))?;
        let view = |i: berth_runtime::ImageSummary| ImageView {
            name: i.name,
            digest: i.target_digest,
            size: i.size,
            created: i.created_at,
        };
        Ok(images.into_iter().map(view).collect())
    }

    async fn import(&self, path: PathBuf) -> Result<Vec<String>, ApiError> {
        if !path.is_absolute() {
            return Err(ApiError::new(
                ErrorCode::Invalid,
                "cannot import the archive: its path must be absolute",
            ));
        }
        let names = self.runtime()?.import(&path).await.map_err(|e| from_runtime(&e))?;
        tracing::info!(archive = %path.display(), images = ?names, "imported");
        Ok(names)
    }

    async fn pull(&self, image: String) -> Result<LocalPull, ApiError> {
        image_requests::pull(&self.executor, &image).await
    }

    fn pulls(&self) -> Vec<PullView> {
        image_requests::pulls(&self.executor)
    }

    async fn remove_image(&self, image: String, force: bool) -> Result<Vec<String>, ApiError> {
        image_requests::remove(&self.runtime()?, &image, force).await
    }

    async fn tag_image(&self, image: String, name: String) -> Result<String, ApiError> {
        image_requests::tag(&self.runtime()?, &image, &name).await
    }

    async fn inspect_image(&self, image: String) -> Result<ImageDetails, ApiError> {
        image_requests::inspect(&self.runtime()?, &image).await
    }

    async fn prune_images(&self, all: bool) -> Result<PruneView, ApiError> {
        self.images.prune(all).await.map_err(unavailable)
    }

    async fn verify_image(&self, image: String) -> Result<VerifiedImage, ApiError> {
        image_requests::verify(&self.runtime()?, &image).await
    }

    async fn shutdown(&self, grace: u32) -> Result<(), ApiError> {
        let sent = self.pods.send(NodeEvent::Shutdown(grace)).await;
        sent.map_err(|_ended| {
            ApiError::new(ErrorCode::Unavailable, "cannot shut down the pods: the agent is ending")
        })
    }

    async fn prepare_exec(&self, spec: ExecSpec) -> Result<LocalExec, ApiError> {
        exec_session::prepare(self, spec).await
    }
}
