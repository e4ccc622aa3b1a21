//! Facts of the node that pods can observe.

use super::{NoExecuteTaint, NodeLabels, ResourceList};
use crate::ids::NodeName;
use std::net::IpAddr;

/// The well-known label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Facts of the node that pods, Services and the pods' status depend on. They have one owner, which publishes
/// a new value at each change. Readers take the newest value at each use and keep no copy, because addresses
/// and labels change while pods run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// `metadata.name`.
    pub name: NodeName,
    /// `metadata.labels`.
    pub labels: NodeLabels,
    /// `spec.taints` of effect NoExecute; none on a node without control plane.
    pub taints: Vec<NoExecuteTaint>,
    /// The node's addresses, the primary one first: the `hostIPs` of every pod, and the `podIPs` of pods in
    /// the host's network.
    pub ips: Vec<IpAddr>,
    /// `status.allocatable`: the amounts of each resource that pods may use. A page size that is not listed
    /// does not exist on the node. Any other resource that is not listed is not limited.
    pub allocatable: ResourceList,
    /// Addresses of the cluster's DNS servers (`clusterDNS` of the kubelet); empty where there are none.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain (`clusterDomain` of the kubelet), for example `cluster.local`.
    pub cluster_domain: Option<String>,
    /// Whether kernel and OCI runtime can make a mount read-only together with the mounts below it
    /// (`status.runtimeHandlers[].features.recursiveReadOnlyMounts`).
    pub recursive_read_only: bool,
}

impl NodeInfo {
    /// A node of which only the name is known.
    pub fn new(name: NodeName) -> NodeInfo {
        NodeInfo {
            name,
            labels: NodeLabels::new(),
            taints: Vec::new(),
            ips: Vec::new(),
            allocatable: ResourceList::new(),
            cluster_dns: Vec::new(),
            cluster_domain: None,
            recursive_read_only: false,
        }
    }

    /// The node's zone; empty where it has none.
    pub fn zone(&self) -> &str {
        self.labels.get(ZONE).map_or("", String::as_str)
    }
}
