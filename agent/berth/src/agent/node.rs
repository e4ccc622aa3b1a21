//! The node's facts: this module owns the [`NodeInfo`] that pods, Services and statuses read from a watch.
//!
//! The name, the labels and the allocatable resources come from the machine and the options. A task follows
//! the addresses, which the kernel may change at any time.

use super::host_network::Host;
use berth_core::{
    model::{NoExecuteTaint, NodeInfo, NodeLabels, ResourceList},
    quantity::Quantity,
    roots::Roots,
};
use procfs::{Current as _, Meminfo};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{sync::watch, task::JoinHandle};

/// Watch of the node's facts. A new value comes with each change.
pub(crate) type NodeWatch = watch::Receiver<Arc<NodeInfo>>;

/// The labels and taints of the node's object in the API, once they are known. They are then the node's: a label
/// that somebody set there counts for admission and for the node's zone.
pub(crate) type ApiNode = watch::Sender<Option<LabelsAndTaints>>;

/// What the node takes from its object in the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelsAndTaints {
    /// `metadata.labels`.
    pub(crate) labels: NodeLabels,
    /// `spec.taints` of effect NoExecute.
    pub(crate) taints: Vec<NoExecuteTaint>,
}

/// Publishes the facts, and starts the task that keeps addresses, labels and taints current. The task ends with the
/// watch of the host's network or with the last reader.
pub(crate) fn publish(mut info: NodeInfo, mut host: Host) -> (NodeWatch, ApiNode, JoinHandle<()>) {
    info.ips = host.borrow_and_update().host_ips();
    let (owner, node) = watch::channel(Arc::new(info));
    let (object, mut of_api) = watch::channel::<Option<LabelsAndTaints>>(None);
    let follow = async move {
        let mut may_join = true;
        loop {
            tokio::select! {
                changed = host.changed() => if changed.is_err() {
                    return;
                },
                changed = of_api.changed(), if may_join => if changed.is_err() {
                    // A node without control plane has no sender.
                    may_join = false;
                    continue;
                },
            }
            if owner.is_closed() {
                return;
            }
            let (ips, object) = (host.borrow_and_update().host_ips(), of_api.borrow_and_update().clone());
            owner.send_if_modified(|info| {
                let same = |o: &LabelsAndTaints| o.labels == info.labels && o.taints == info.taints;
                let object = object.filter(|object| !same(object));
                let changed = info.ips != ips || object.is_some();
                if changed {
                    let info = Arc::make_mut(info);
                    info.ips = ips;
                    if let Some(object) = object {
                        (info.labels, info.taints) = (object.labels, object.taints);
                    }
                }
                changed
            });
        }
    };
    (node, object, tokio::spawn(follow))
}

/// The allocatable resources: all of the machine. Resources that cannot be read are left out.
pub(crate) fn allocatable(roots: &Roots) -> ResourceList {
    let pages = hugepages("/sys/kernel/mm/hugepages".as_ref());
    let reserved = pages.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    // Reserved huge pages cannot be used as other memory.
    let memory = memory().map(|bytes| format!("{}Ki", bytes.saturating_sub(reserved) / 1024));
    let cpus = std::thread::available_parallelism().ok().map(|n| n.to_string());
    [("cpu", cpus), ("memory", memory), ("ephemeral-storage", storage(&roots.pod_state))]
        .into_iter()
        .filter_map(|(name, amount)| Some((name.to_owned(), amount?.parse().ok()?)))
        .chain(pages.into_iter().filter_map(|(name, bytes)| Some((name, amount_of_pages(bytes)?))))
        .collect()
}

/// Bytes of the machine's memory.
pub(crate) fn memory() -> Option<u64> {
    Some(Meminfo::current().ok()?.mem_total)
}

fn amount_of_pages(bytes: u64) -> Option<Quantity> {
    bytes.to_string().parse().ok()
}

/// Size in bytes of the file system of the pods' directories.
fn storage(pods: &Path) -> Option<String> {
    let found = nix::sys::statvfs::statvfs(pods).ok()?;
    Some(found.blocks().saturating_mul(found.fragment_size()).to_string())
}

/// The reserved huge pages: resource name and bytes of each page size of the machine.
fn hugepages(dir: &Path) -> Vec<(String, u64)> {
    let Ok(sizes) = std::fs::read_dir(dir) else { return Vec::new() };
    let size = |path: PathBuf| {
        let kib: u64 =
            path.file_name()?.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count: u64 = std::fs::read_to_string(path.join("nr_hugepages")).ok()?.trim().parse().ok()?;
        let name = match kib {
            _ if kib.is_multiple_of(1 << 20) => format!("hugepages-{}Gi", kib >> 20),
            _ if kib.is_multiple_of(1 << 10) => format!("hugepages-{}Mi", kib >> 10),
            _ => format!("hugepages-{kib}Ki"),
        };
        Some((name, count.saturating_mul(kib).saturating_mul(1024)))
    };
    sizes.filter_map(|entry| size(entry.ok()?.path())).collect()
}

/// The node's labels: those of every node, overridden by the options' (`initialNode` of the
/// kubelet).
pub(crate) fn labels(roots: &Roots, given: &[(String, String)]) -> NodeLabels {
    let own = [
        ("kubernetes.io/hostname", roots.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture(std::env::consts::ARCH)),
    ];
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.chain(given.iter().cloned()).collect()
}

/// Go's name of a CPU architecture.
pub(crate) fn architecture(rust: &'static str) -> &'static str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Parses a label `KEY=VALUE`.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_resources_named_by_their_size() {
        let dir = tempfile::tempdir().unwrap();
        for (name, count) in
            [("hugepages-2048kB", "3"), ("hugepages-1048576kB", "1"), ("hugepages-64kB", "0")]
        {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("nr_hugepages"), format!("{count}\n")).unwrap();
        }
        let mut found = hugepages(dir.path());
        found.sort();
        let want = [("hugepages-1Gi", 1 << 30), ("hugepages-2Mi", 6 << 20), ("hugepages-64Ki", 0)];
        assert_eq!(found, want.map(|(name, bytes)| (name.to_owned(), bytes)));
        assert_eq!(hugepages(&dir.path().join("none")), []);
    }

    #[tokio::test]
    async fn readers_see_the_nodes_newest_addresses_labels_and_taints() {
        use berth_services::HostNetwork;
        let at = |ip: &str| HostNetwork { node_ips: vec![ip.parse().unwrap()], ..HostNetwork::default() };
        let (kernel, host) = watch::channel(Arc::new(at("192.0.2.1")));
        let (mut node, object, _task) = publish(NodeInfo::new("n1".parse().unwrap()), host);
        assert_eq!(node.borrow_and_update().ips, at("192.0.2.1").node_ips);
        // A change of an uplink alone is no change of the node.
        kernel.send_replace(Arc::new(HostNetwork { problems: Vec::new(), ..at("192.0.2.1") }));
        kernel.send_replace(Arc::new(at("192.0.2.2")));
        node.changed().await.unwrap();
        assert_eq!(node.borrow_and_update().ips, at("192.0.2.2").node_ips);
        let labels: NodeLabels = [("disk".to_owned(), "ssd".to_owned())].into();
        let taints = vec![NoExecuteTaint { key: "gpu".to_owned(), value: String::new() }];
        object.send_replace(Some(LabelsAndTaints { labels: labels.clone(), taints: taints.clone() }));
        node.changed().await.unwrap();
        assert_eq!(node.borrow_and_update().labels, labels);
        assert_eq!(node.borrow_and_update().taints, taints);
        // A node without control plane has nobody who tells of them.
        drop(object);
        kernel.send_replace(Arc::new(at("192.0.2.3")));
        node.changed().await.unwrap();
        assert_eq!(node.borrow_and_update().labels, labels);
        drop(kernel);
        assert!(node.changed().await.is_err(), "the owner ends with the host's network");
    }

    #[test]
    fn a_label_option_overrides_the_nodes_own_label() {
        let roots = Roots::defaults("n1".parse().unwrap());
        let given = [label("kubernetes.io/hostname=other").unwrap(), label("disk=").unwrap()];
        let labels = labels(&roots, &given);
        assert_eq!(labels["kubernetes.io/hostname"], "other");
        assert_eq!((labels["kubernetes.io/os"].as_str(), labels["disk"].as_str()), ("linux", ""));
        assert!(["amd64", "arm64", "riscv64"].contains(&labels["kubernetes.io/arch"].as_str()));
        assert!(label("=x").is_err() && label("x").is_err());
    }
}
