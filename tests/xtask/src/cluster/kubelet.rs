//! The control node: the real kubelet and kube-proxy over containerd with its CRI plugin. The agent of this workspace may
//! stand in kube-proxy's place.

use super::{
    Cni, ProxyMode, berth, cni,
    containerd::{self, SOCKET},
    place::{DNS, PODS, Place},
    world::World,
};
use crate::{out, setup};
use anyhow::{Context, Result};
use berth_harness::tools::Build;
use std::{fs, path::Path};

/// Programs of the node that the peers have.
pub(super) const PROGRAMS: [&str; 3] = ["kubelet", "kube-proxy", "coredns"];

/// Names of the daemons, in the order of their start.
pub(super) const DAEMONS: [&str; 3] = ["containerd", "kubelet", "kube-proxy"];

/// Who answers Services on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proxy {
    /// kube-proxy, in this mode.
    KubeProxy(ProxyMode),
    /// The agent of this workspace, in this build.
    Berth(Build),
}

/// Starts the node. The kubelet registers it.
///
/// # Errors
/// A program is missing or does not start.
pub(super) fn start(world: &World, place: &Place, bin: &Path, network: Cni, proxy: Proxy) -> Result<()> {
    out::timed("start containerd and import the images", || {
        let plugins = cni::prepare(world, place, network)?;
        containerd::start(world, place, bin, &plugins)
    })?;
    out::timed("start the kubelet", || {
        place.write("resolv.conf", "")?;
        for dir in ["static-pods", "pod-logs"] {
            fs::create_dir_all(place.dir.join(dir)).with_context(|| format!("cannot make {dir}"))?;
        }
        let config = place.write("kubelet.yaml", &kubelet_config(place))?;
        let root = place.dir.join("kubelet");
        let kubeconfig = place.kubeconfig("node");
        let args = [
            ("config", config.as_path()),
            ("root-dir", root.as_path()),
            ("kubeconfig", kubeconfig.as_path()),
            ("hostname-override", Path::new(&place.node)),
            ("node-ip", Path::new(&place.address)),
        ];
        let args = args.map(|(name, value)| format!("--{name}={}", value.display()));
        world.spawn("kubelet", &bin.join("kubelet"), &args)
    })?;
    match proxy {
        Proxy::KubeProxy(mode) => start_kube_proxy(world, place, bin, mode),
        Proxy::Berth(build) => berth::start_services(world, place, build),
    }
}

fn start_kube_proxy(world: &World, place: &Place, bin: &Path, mode: ProxyMode) -> Result<()> {
    if mode == ProxyMode::Iptables {
        setup::for_iptables()?;
    }
    out::timed("start kube-proxy", || {
        let config = place.write("kube-proxy.yaml", &proxy_config(place, mode))?;
        world.spawn("kube-proxy", &bin.join("kube-proxy"), &[format!("--config={}", config.display())])
    })
}

fn kubelet_config(place: &Place) -> String {
    let dir = place.dir.display();
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: "{dir}/pki/ca.crt"}}
authorization: {{mode: Webhook}}
tlsCertFile: "{dir}/pki/kubelet-server.crt"
tlsPrivateKeyFile: "{dir}/pki/kubelet-server.key"
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
enforceNodeAllocatable: []
containerRuntimeEndpoint: unix://{SOCKET}
staticPodPath: "{dir}/static-pods"
podLogsDir: "{dir}/pod-logs"
resolvConf: "{dir}/resolv.conf"
clusterDNS: [{DNS}]
clusterDomain: cluster.local
failSwapOn: false
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 1Mi, nodefs.available: 1Mi, imagefs.available: 1Mi, nodefs.inodesFree: "1", imagefs.inodesFree: "1"}}
"#,
        cgroup = place.cgroup,
    )
}

fn proxy_config(place: &Place, mode: ProxyMode) -> String {
    format!(
        r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: {}
clientConnection: {{kubeconfig: "{}"}}
hostnameOverride: {}
clusterCIDR: {PODS}
bindAddress: 0.0.0.0
# The limits of connection tracking are the machine's, not the namespaces'.
conntrack: {{maxPerCore: 0, min: 0}}
"#,
        mode.name(),
        place.kubeconfig("kube-proxy").display(),
        place.node,
    )
}
