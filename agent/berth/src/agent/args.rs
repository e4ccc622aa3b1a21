//! Options of `berth agent`, and the configuration that follows from them.

use super::{
    image_args::ImageArgs,
    node,
    node_api::NodeApiArgs,
    proxy_health::ProxyArgs,
    services::{Limits, ServiceOptions},
};
use berth_core::{model::NodeInfo, roots::Roots};
use berth_executor::recursive_read_only;
use berth_network::MasqueradeConfig;
use clap::{ArgAction, Args};
use std::{net::IpAddr, path::PathBuf};

/// Options of `berth agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Run without a control plane.
    #[arg(long)]
    pub(super) standalone: bool,
    /// Run the pods of a control plane, as the node of this kubeconfig. Static pods may run beside them.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["standalone", "manifests", "serve_dns"])]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Serve the Services of a control plane and run no pods: a kubelet runs them. In the place of kube-proxy.
    #[arg(long, requires = "kubeconfig", conflicts_with_all = ["standalone", "manifests", "static_pods", "serve_dns",
          "no_services", "masquerade", "bootstrap_kubeconfig", "rotate_server_certificates"])]
    pub(super) services_only: bool,
    #[command(flatten)]
    pub(super) proxy: ProxyArgs,
    /// A kubeconfig with a bootstrap token. Where the file of --kubeconfig is missing or its certificate
    /// has ended, the node asks for a certificate with this one and writes that file.
    #[arg(long, value_name = "FILE", requires = "kubeconfig", conflicts_with = "standalone")]
    pub(super) bootstrap_kubeconfig: Option<PathBuf>,
    /// Renew the client certificate before its end (`rotateCertificates`), where the file of --kubeconfig
    /// points to the node's own certificate. Others are left to their owner.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true)]
    pub(super) rotate_certificates: bool,
    /// Let the cluster sign the certificate of the node's own API (`serverTLSBootstrap`). Somebody has to
    /// approve each request: `kubectl certificate approve`.
    #[arg(long, requires = "kubeconfig", conflicts_with_all = ["standalone", "tls_cert_file"])]
    pub(super) rotate_server_certificates: bool,
    /// Run the pods of this directory of manifests.
    #[arg(long, value_name = "DIR")]
    pub(super) manifests: Option<PathBuf>,
    /// Run the pods of this directory by the kubelet's rules for static pods (`staticPodPath`).
    #[arg(long, value_name = "DIR")]
    pub(super) static_pods: Option<PathBuf>,
    /// The node's addresses; by default the address of the default route's device, followed as it
    /// changes.
    #[arg(long = "node-ip", value_name = "IP")]
    pub(super) node_ips: Vec<IpAddr>,
    /// A label of the node, for pods' node selectors and affinity, beside those that every node has
    /// (`kubernetes.io/hostname`, `/os`, `/arch`).
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = node::label)]
    pub(super) node_labels: Vec<(String, String)>,
    /// Addresses of the cluster's DNS.
    #[arg(long, value_name = "IP")]
    pub(super) cluster_dns: Vec<IpAddr>,
    /// Answer the cluster's names on this node, at the addresses of --cluster-dns.
    #[arg(long, requires = "cluster_dns")]
    pub(super) serve_dns: bool,
    /// The cluster's DNS domain; with --serve-dns `cluster.local` by default.
    #[arg(long, value_name = "DOMAIN")]
    pub(super) cluster_domain: Option<String>,
    /// Networks of ClusterIPs, at most one of each family. A Service without an address gets one of
    /// the first.
    #[arg(long = "service-cidr", value_name = "CIDR", value_parser = network, default_value = "10.96.0.0/16")]
    pub(super) service_cidrs: Vec<(IpAddr, u8)>,
    /// A device on which traffic for NodePorts arrives. By default the devices of the default
    /// routes and all others with an address of the node; none where the socket hooks cover only a
    /// part of the machine.
    #[arg(long = "uplink", value_name = "DEVICE")]
    pub(super) uplinks: Vec<String>,
    /// Run pods without Services.
    #[arg(long)]
    pub(super) no_services: bool,
    /// Masquerade traffic of pods to destinations outside of the cluster.
    #[arg(long)]
    pub(super) masquerade: bool,
    /// With --masquerade: a destination that is not masqueraded, such as the pod networks of other
    /// nodes.
    #[arg(long = "non-masquerade-cidr", value_name = "CIDR", requires = "masquerade")]
    pub(super) non_masquerade_cidrs: Vec<ipnet::IpNet>,
    /// Capacity for frontends of Services over IPv4 (two or three a port); half as many over IPv6.
    /// This and the next three apply when the maps are created: after a boot or `berth reset`.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pub(super) max_service_entries: Option<u32>,
    /// Capacity for backends of Services with session affinity, and for chunks of 16 backends of
    /// Services with more than four; over IPv4, half as many over IPv6.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pub(super) max_backend_entries: Option<u32>,
    /// Capacity for clients with session affinity (ClientIP) over IPv4, half as many over IPv6.
    /// Beyond it the least recently seen clients are evicted.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pub(super) max_affinity_entries: Option<u32>,
    /// Capacity for established TCP connections over IPv4 that are translated packet by packet,
    /// mostly by NodePorts; half as many over IPv6, three eighths as many of UDP, a quarter as many
    /// that begin or end. 65536 by default, twice as many from 8 GiB of memory on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub(super) max_connections: Option<u32>,
    /// Most processes of a pod.
    #[arg(long, value_name = "N")]
    pub(super) pod_pids_limit: Option<i64>,
    /// Path of the runc shim; looked up by default.
    #[arg(long, value_name = "FILE")]
    pub(super) shim: Option<PathBuf>,
    /// Path of the OCI runtime; looked up by default.
    #[arg(long, value_name = "FILE")]
    pub(super) runc: Option<PathBuf>,
    /// Number of spare shims that are kept ready.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(super) shim_pool: usize,
    #[command(flatten)]
    pub(super) images: ImageArgs,
    #[command(flatten)]
    pub(super) node_api: NodeApiArgs,
}

/// The configuration of the masquerade; `None` without the option.
pub(super) fn masquerade(args: &AgentArgs) -> Option<MasqueradeConfig> {
    args.masquerade.then(|| MasqueradeConfig { non_masquerade_cidrs: args.non_masquerade_cidrs.clone() })
}

/// The facts of the node by its machine and the options, without addresses.
pub(super) fn node_info(args: &AgentArgs, roots: &Roots) -> NodeInfo {
    NodeInfo {
        labels: node::labels(roots, &args.node_labels),
        allocatable: node::allocatable(roots),
        cluster_dns: args.cluster_dns.clone(),
        cluster_domain: args.cluster_domain.clone(),
        recursive_read_only: recursive_read_only(),
        ..NodeInfo::new(roots.node_name.clone())
    }
}

/// The options of Services; `memory`: the machine's, in bytes.
pub(super) fn service_options(args: &AgentArgs, memory: Option<u64>) -> ServiceOptions {
    let limits = Limits {
        services: args.max_service_entries,
        backends: args.max_backend_entries,
        affinity: args.max_affinity_entries,
        connections: args.max_connections,
    };
    ServiceOptions { networks: args.service_cidrs.clone(), sizes: limits.sizes(memory) }
}

/// Parses a network such as `10.96.0.0/16`.
fn network(text: &str) -> Result<(IpAddr, u8), String> {
    let parsed = text.split_once('/').and_then(|(net, len)| {
        let (net, len): (IpAddr, u8) = (net.parse().ok()?, len.parse().ok()?);
        (len <= if net.is_ipv4() { 32 } else { 128 }).then_some((net, len))
    });
    parsed.ok_or_else(|| "must be an address range such as 10.96.0.0/16".to_owned())
}

/// The options of a command line, for tests.
///
/// # Errors
/// As for the command line.
#[cfg(test)]
pub(super) fn parse(arguments: &[&str]) -> Result<AgentArgs, clap::Error> {
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: AgentArgs,
    }
    Command::try_parse_from([&["agent"], arguments].concat()).map(|command| command.args)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> (NodeInfo, ServiceOptions, Option<MasqueradeConfig>) {
        let args = super::parse(arguments).unwrap();
        let roots = Roots::defaults("n1".parse().unwrap());
        (node_info(&args, &roots), service_options(&args, Some(1 << 30)), masquerade(&args))
    }

    #[test]
    fn options_reach_the_node_services_and_the_masquerade() {
        let (node, options, masquerade) = parse(&[]);
        assert_eq!((node.name.as_str(), node.zone(), node.cluster_domain.as_deref()), ("n1", "", None));
        assert_eq!((options.sizes, masquerade), (berth_services::Sizes::default(), None));
        let (node, options, masquerade) = parse(&[
            "--node-label=topology.kubernetes.io/zone=east",
            "--cluster-domain=example",
            "--service-cidr=10.7.0.0/16",
            "--masquerade",
            "--non-masquerade-cidr=10.8.0.0/16",
            "--non-masquerade-cidr=fd00:8::/64",
            "--max-service-entries=16",
            "--max-backend-entries=18",
            "--max-affinity-entries=20",
            "--max-connections=64",
        ]);
        assert_eq!((node.zone(), node.cluster_domain.as_deref()), ("east", Some("example")));
        assert_eq!(options.networks, [("10.7.0.0".parse().unwrap(), 16)]);
        let sizes = options.sizes;
        assert_eq!((sizes.services, sizes.members, sizes.affinity), ([16, 8], [18, 9], [20, 10]));
        assert_eq!(sizes.assured, [64, 32]);
        let exempt = masquerade.unwrap().non_masquerade_cidrs;
        assert_eq!(exempt, ["10.8.0.0/16".parse().unwrap(), "fd00:8::/64".parse().unwrap()]);
        // The option is an error without --masquerade.
        assert!(super::parse(&["--non-masquerade-cidr=10.8.0.0/16"]).is_err());
    }
}
