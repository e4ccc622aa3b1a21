//! The control plane that the node works for: its desired state in, and what the node reports to it.
//!
//! [`ControlPlane`] owns the connections and the source. [`Publishing`] owns the tasks that report: the lease, the Node
//! and the statuses of pods. They end with these values; the pods keep running.

use super::{local_api::LocalApi, node::NodeWatch, status_manager::StatusManager};
use anyhow::Context as _;
use berth_api::view::Health;
use berth_cluster::{
    ApiPods, ClusterSource,
    publish::{
        RateLimit,
        lease::{self, LeaseTask},
        node::{self, NodeTasks},
        pods::{self, PodPublisher},
    },
};
use berth_core::{
    ids::BootId,
    model::{NodeInfo, ResourceList},
    quantity::Quantity,
    roots::Roots,
    status::Truth,
};
use berth_kube::{identity::Source, pool::Pool};
use berth_server::Backend as _;
use berth_source::{
    Snapshot, Source as _,
    node::{NodeCondition, NodeConditionType, NodeReport, NodeSystemInfo, Registration, RuntimeHandler},
};
use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

/// The most pods of a node, the kubelet's default (`maxPods`).
const MAX_PODS: &str = "110";

/// Interval of the node's report on itself.
const EVERY: Duration = Duration::from_secs(10);

/// The version of the kubelet whose behaviour this agent has. An API server refuses a node that is newer than itself.
const KUBELET_VERSION: &str = concat!("v1.36.3+berth-", env!("CARGO_PKG_VERSION"));

/// A control plane, with the node's desired state.
pub(crate) struct ControlPlane {
    pool: Pool,
    api: ApiPods,
    source: ClusterSource,
}

/// The parts of the agent on which the node's reports are made.
pub(crate) struct Facts {
    pub(crate) roots: Roots,
    pub(crate) boot: BootId,
    pub(crate) node: NodeWatch,
    pub(crate) api: LocalApi,
    pub(crate) status: Arc<StatusManager>,
}

/// The running reports.
pub(crate) struct Publishing {
    _source: ClusterSource,
    _node: NodeTasks,
    _lease: LeaseTask,
    _pods: PodPublisher,
    observing: JoinHandle<()>,
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.observing.abort();
    }
}

impl ControlPlane {
    /// Reads the kubeconfig and starts the source. An API server that does not answer is no error: the source waits.
    pub(crate) async fn open(kubeconfig: PathBuf, roots: &Roots) -> anyhow::Result<ControlPlane> {
        let source = Source { kubeconfig, context: None };
        let pool = Pool::new(source).await.context("open the connection to the control plane")?;
        let api = ApiPods::default();
        let source = ClusterSource::start(&pool, &roots.node_name, api.clone());
        Ok(ControlPlane { pool, api, source })
    }

    /// The desired state.
    pub(crate) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.source.snapshots()
    }

    /// Starts to report.
    pub(crate) fn publish(self, facts: Facts) -> Publishing {
        let info = facts.node.borrow().clone();
        let registration = Registration {
            name: info.name.clone(),
            hostname: info.name.to_string(),
            architecture: super::node::architecture(std::env::consts::ARCH).to_owned(),
            labels: info.labels.clone().into_iter().collect::<BTreeMap<_, _>>(),
            taints: Vec::new(),
            provider_id: None,
        };
        let (reports, newest) = watch::channel(None);
        let node = node::start(self.pool.clone(), registration, newest);
        let lease = lease::start(self.pool.clone(), info.name.clone(), node.newest());
        let pods = pods::start(self.pool, RateLimit::default(), self.api, Arc::clone(&facts.status));
        let observing = tokio::spawn(observe(facts, reports));
        Publishing { _source: self.source, _node: node, _lease: lease, _pods: pods, observing }
    }
}

/// Reports on the node each ten seconds and when its addresses change.
async fn observe(facts: Facts, reports: watch::Sender<Option<Arc<NodeReport>>>) {
    let mut node = facts.node.clone();
    loop {
        let info = node.borrow_and_update().clone();
        let report = report(&facts, &info).await;
        reports.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&report);
            if changed {
                *known = Some(Arc::new(report));
            }
            changed
        });
        tokio::select! {
            changed = node.changed() => if changed.is_err() {
                return;
            },
            () = sleep(EVERY) => {}
        }
    }
}

async fn report(facts: &Facts, info: &NodeInfo) -> NodeReport {
    let view = facts.api.status().await;
    let mut amounts: ResourceList = info.allocatable.clone();
    if let Ok(most) = MAX_PODS.parse::<Quantity>() {
        amounts.insert("pods".to_owned(), most);
    }
    let containerd = if view.containerd.ok { view.containerd.message.clone() } else { String::new() };
    NodeReport {
        addresses: info.ips.clone(),
        hostname: info.name.to_string(),
        capacity: amounts.clone(),
        allocatable: amounts,
        conditions: conditions(&view.containerd, &view.network),
        info: system_info(&facts.roots, &facts.boot, containerd),
        port: None,
        images: Vec::new(),
        handlers: vec![RuntimeHandler {
            name: String::new(),
            recursive_read_only_mounts: info.recursive_read_only,
            user_namespaces: false,
        }],
        supplemental_groups_policy: true,
    }
}

/// The node's conditions in the kubelet's words (`pkg/kubelet/nodestatus/setters.go`). This node evicts no pods, so it
/// knows no pressure.
fn conditions(containerd: &Health, network: &Health) -> Vec<NodeCondition> {
    let no_pressure = |kind, reason: &str, message: &str| NodeCondition {
        kind,
        status: Truth::False,
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    let runtime = (!containerd.ok).then(|| format!("container runtime is down: {}", containerd.message));
    let network = (!network.ok).then(|| {
        format!(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{}",
            network.message
        )
    });
    let problems: Vec<String> = [runtime, network].into_iter().flatten().collect();
    let ready = match problems.is_empty() {
        true => (Truth::True, "KubeletReady", "kubelet is posting ready status".to_owned()),
        false => (Truth::False, "KubeletNotReady", problems.join(", ")),
    };
    vec![
        no_pressure(
            NodeConditionType::MemoryPressure,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        no_pressure(
            NodeConditionType::DiskPressure,
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        no_pressure(
            NodeConditionType::PidPressure,
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        NodeCondition {
            kind: NodeConditionType::Ready,
            status: ready.0,
            reason: ready.1.to_owned(),
            message: ready.2,
        },
    ]
}

fn system_info(roots: &Roots, boot: &BootId, containerd_version: String) -> NodeSystemInfo {
    // A machine without such a file has no such id.
    let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let release = line("/etc/os-release");
    let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    NodeSystemInfo {
        machine_id: line("/etc/machine-id"),
        system_uuid: line("/sys/class/dmi/id/product_uuid"),
        boot_id: boot.to_string(),
        kernel_version: line("/proc/sys/kernel/osrelease"),
        os_image: pretty.unwrap_or(roots.node_name.as_str()).trim_matches('"').to_owned(),
        containerd_version: containerd_version.trim_start_matches('v').to_owned(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        architecture: super::node::architecture(std::env::consts::ARCH).to_owned(),
        swap_bytes: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_while_containerd_and_the_network_are() {
        let ready = |containerd: &Health, network: &Health| {
            let last = conditions(containerd, network).pop().unwrap();
            (last.kind, last.status, last.message)
        };
        let (good, bad) = (Health::good("2.4.2"), Health::bad("no conflist"));
        assert_eq!(
            ready(&good, &good),
            (NodeConditionType::Ready, Truth::True, "kubelet is posting ready status".to_owned())
        );
        let message = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:no conflist";
        assert_eq!(ready(&good, &bad), (NodeConditionType::Ready, Truth::False, message.to_owned()));
        assert!(ready(&bad, &good).2.starts_with("container runtime is down: no conflist"));
    }
}
