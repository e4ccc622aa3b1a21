//! The control plane that the node works for: its desired state in, and what the node reports to it.
//!
//! [`ControlPlane`] owns the connections and the source. [`Publishing`] owns the tasks that report: the lease, the Node,
//! the statuses of pods and events. They end with these values; the pods keep running.

mod attach_limits;
mod claims;
mod images;
mod node_report;
mod pace;
mod runtime_state;
mod volumes_in_use;

use super::{
    args::AgentArgs,
    certificates::{self, CertificatesHealth, ServingTls},
    control_plane::ControlPlaneHealth,
    csi,
    local_api::LocalApi,
    node::{ApiNode, LabelsAndTaints, NodeWatch},
    sources::Latest,
    status_manager::StatusManager,
};
use anyhow::Context as _;
use berth_cluster::{
    ApiPods, ClusterSource, Task,
    certificates::{ClientCertificate, Serving},
    foreign_certificate,
    publish::{
        RateLimit, csi_node,
        events::{self, Events},
        lease, mirrors,
        node::{self, NewestNode, NodeTasks},
        pods::{self, Unpublished},
    },
};
use berth_core::{ids::BootId, model::NoExecuteTaint, roots::Roots};
use berth_kube::{certs::Store, pool::Pool};
use berth_source::{
    Snapshot, Source as _,
    node::{NodeReport, Registration},
};
use berth_volumes::Volumes;
use claims::ClaimsOfVolumes;
use images::Images;
pub(super) use node_report::KUBELET_VERSION;
use node_report::{is_ready, machine, node_report};
use pace::pace;
use runtime_state::RuntimeState;
use std::{collections::BTreeSet, path::PathBuf, sync::Arc};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// A control plane, with the node's desired state.
pub(crate) struct ControlPlane {
    pool: Pool,
    api: ApiPods,
    source: ClusterSource,
    unpublished: Unpublished,
    node: NewestNode,
    events: Events,
    client: ClientCertificate,
    serving: ServingTls,
    serving_store: Store,
    /// The volumes that the node and the API server's Node list as in use.
    listed_volumes: watch::Sender<Arc<BTreeSet<String>>>,
}

/// The parts of the agent on which the node's reports are made.
pub(crate) struct Facts {
    pub(crate) boot: BootId,
    pub(crate) node: NodeWatch,
    pub(crate) api: LocalApi,
    pub(crate) status: Arc<StatusManager>,
    pub(crate) sources: Latest,
    pub(crate) node_object: ApiNode,
    pub(crate) csi: csi::PluginWatch,
    pub(crate) csi_refresher: berth_csi_client::registration::Refresher,
    pub(crate) volumes: Volumes,
    /// Port of the node's API.
    pub(crate) port: Option<u16>,
}

/// The running reports.
pub(crate) struct Publishing {
    _source: ClusterSource,
    _node: NodeTasks,
    _tasks: [Task; 11],
    _serving: Option<Task>,
}

impl ControlPlane {
    /// Reads the kubeconfig and starts the source. An API server that does not answer is no error: the source waits,
    /// also for a node that has to bootstrap.
    pub(crate) async fn open(
        kubeconfig: PathBuf,
        roots: &Roots,
        args: &AgentArgs,
        serving: ServingTls,
    ) -> anyhow::Result<ControlPlane> {
        let pool =
            berth_cluster::certificates::open(kubeconfig.clone(), args.bootstrap_kubeconfig.as_deref());
        let pool = pool.await.context("open the connection to the control plane")?;
        let client = certificates::client(kubeconfig, args, roots);
        let api = ApiPods::default();
        let source = ClusterSource::start(&pool, &roots.node_name, api.clone(), roots.cluster_inputs_dir());
        let events = Events::new(roots.node_name.clone(), api.clone());
        if let Some(problem) = foreign_certificate(pool.view().common_name.as_deref(), &roots.node_name) {
            tracing::warn!("{problem}");
        }
        let (unpublished, node) = (Unpublished::default(), NewestNode::default());
        let serving_store = Store::server(&roots.pki_dir());
        let listed_volumes = watch::channel(Arc::default()).0;
        Ok(ControlPlane {
            pool,
            api,
            source,
            unpublished,
            node,
            events,
            client,
            serving,
            serving_store,
            listed_volumes,
        })
    }

    /// The connections.
    pub(crate) fn pool(&self) -> Pool {
        self.pool.clone()
    }

    /// Where events are reported.
    pub(crate) fn events(&self) -> Events {
        self.events.clone()
    }

    /// What volumes of CSI drivers need of the control plane.
    pub(crate) fn volumes(&self) -> berth_volumes::ControlPlane {
        let claims = ClaimsOfVolumes::new(self.pool.clone(), self.events.clone());
        berth_volumes::ControlPlane { listed: self.listed_volumes.subscribe(), claims: Box::new(claims) }
    }

    /// The node's own object.
    pub(crate) fn node(&self) -> NewestNode {
        self.node.clone()
    }

    /// The desired state.
    pub(crate) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.source.snapshots()
    }

    /// The control plane on the status page.
    pub(crate) fn health(&self) -> ControlPlaneHealth {
        ControlPlaneHealth {
            pool: self.pool.clone(),
            source: self.source.health(),
            api: self.api.clone(),
            unpublished: self.unpublished.clone(),
            node: self.node.clone(),
            certificates: CertificatesHealth::new(self.client.health.clone(), self.serving.clone()),
        }
    }

    /// Starts to report.
    pub(crate) fn publish(self, facts: Facts) -> Publishing {
        let info = facts.node.borrow().clone();
        let registration = Registration {
            name: info.name.clone(),
            hostname: info.name.to_string(),
            architecture: super::node::architecture(std::env::consts::ARCH).to_owned(),
            labels: info.labels.clone(),
            taints: Vec::new(),
            provider_id: None,
        };
        // First, because a node that has to bootstrap can do nothing else before.
        let client = Task::spawn(self.client.run(self.pool.clone()));
        let serving = match self.serving {
            ServingTls::Signed(presented, health) => {
                let node = facts.node.clone();
                let serving = Serving { store: self.serving_store, node, presented, health };
                Some(Task::spawn(serving.run(self.pool.clone())))
            }
            ServingTls::File(_) | ServingTls::Own => None,
        };
        let (reports, newest) = watch::channel(None);
        let node = node::start(self.pool.clone(), registration, self.node, newest, self.events.clone());
        let lease = lease::start(self.pool.clone(), info.name.clone(), node.newest());
        // Statuses and events have a rate each, so that no status waits for an event.
        let sending = events::start(self.pool.clone(), RateLimit::default(), self.events);
        let limit = RateLimit::default();
        let mirrors = mirrors::start(
            self.pool.clone(),
            limit.clone(),
            (self.api.clone(), node.newest()),
            facts.sources.clone(),
            Arc::clone(&facts.status),
        );
        let csi_node = csi_node::start(
            self.pool.clone(),
            info.name.clone(),
            node.newest(),
            facts.csi.clone(),
            csi::drivers,
        );
        let limits =
            attach_limits::start(facts.sources.clone(), facts.csi.clone(), facts.csi_refresher.clone());
        let pods = pods::start(self.pool, limit, self.api, Arc::clone(&facts.status), self.unpublished);
        let following = Task::spawn(follow_node_object(node.newest(), facts.node_object.clone()));
        let (sources, volumes) = (facts.sources.clone(), facts.volumes.clone());
        let (in_use, [using, listing]) =
            volumes_in_use::start(sources, volumes, node.newest(), self.listed_volumes);
        let observing = Task::spawn(observe(facts, in_use, reports));
        let tasks =
            [client, lease, pods, sending, mirrors, following, observing, csi_node, using, listing, limits];
        Publishing { _source: self.source, _node: node, _tasks: tasks, _serving: serving }
    }
}

/// Reports on the node at the times of [`pace`] and when its addresses change.
async fn observe(
    facts: Facts,
    mut in_use: volumes_in_use::InUse,
    reports: watch::Sender<Option<Arc<NodeReport>>>,
) {
    let Facts { boot, mut node, api, port, .. } = facts;
    let machine = machine(&boot);
    let (begun, mut images, mut runtime) = (Instant::now(), Images::default(), RuntimeState::default());
    loop {
        let info = node.borrow_and_update().clone();
        let (containerd, network) = tokio::join!(api.containerd(), api.network());
        let containerd = runtime.shown(Instant::now(), containerd);
        let report = node_report(&machine, &info, &containerd, &network);
        let volumes_in_use = in_use.borrow_and_update().clone();
        let report = NodeReport { images: images.get(&api).await, volumes_in_use, port, ..report };
        let (publishes, wait) = pace(is_ready(&report), begun.elapsed());
        reports.send_if_modified(|known| {
            let changed = publishes && known.as_deref() != Some(&report);
            if changed {
                *known = Some(Arc::new(report));
            }
            changed
        });
        tokio::select! {
            changed = node.changed() => if changed.is_err() {
                return;
            },
            changed = in_use.changed() => if changed.is_err() {
                return;
            },
            () = sleep(wait) => {}
        }
    }
}

/// Takes the labels and taints of the Node object, also those that others set there.
pub(super) async fn follow_node_object(node: NewestNode, known: ApiNode) {
    let mut changes = node.changes();
    loop {
        if let Some(object) = changes.borrow_and_update().clone() {
            let found = labels_and_taints(&object);
            known.send_if_modified(|known| {
                // A Node without labels is one that is not registered fully yet.
                let changed = found.is_some() && *known != found;
                if changed {
                    known.clone_from(&found);
                }
                changed
            });
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn labels_and_taints(object: &serde_json::Value) -> Option<LabelsAndTaints> {
    let label = |(key, value): (&String, &serde_json::Value)| Some((key.clone(), value.as_str()?.to_owned()));
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let taints = object["spec"]["taints"].as_array().into_iter().flatten();
    Some(LabelsAndTaints {
        labels: object["metadata"]["labels"].as_object()?.iter().filter_map(label).collect(),
        taints: taints
            .filter(|taint| taint["effect"] == "NoExecute")
            .map(|taint| NoExecuteTaint { key: text(&taint["key"]), value: text(&taint["value"]) })
            .collect(),
    })
}
