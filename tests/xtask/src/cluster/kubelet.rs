//! The control node: the real kubelet and kube-proxy over containerd with its CRI plugin.

use super::{
    images,
    place::{DNS, NODE, NODE_PODS, PODS, Place},
    world::World,
};
use crate::out;
use anyhow::{Context, Result, ensure};
use berth_harness::tools;
use std::{fs, path::Path};

/// Programs of the node that the peers have.
pub(super) const PROGRAMS: [&str; 3] = ["kubelet", "kube-proxy", "coredns"];

/// Names of the daemons, in the order of their start.
pub(super) const DAEMONS: [&str; 3] = ["containerd", "kubelet", "kube-proxy"];

/// Socket of containerd inside the cluster's namespaces, where `/run` is their own.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

/// Starts the node. The kubelet registers it.
///
/// # Errors
/// A program is missing or does not start.
pub(super) fn start(world: &World, place: &Place, bin: &Path) -> Result<()> {
    out::timed("start containerd and import the images", || {
        let tools = tools::dir()?;
        for plugin in ["ptp", "host-local", "loopback", "portmap"] {
            ensure!(
                tools.join(plugin).is_file(),
                "the CNI plugin {plugin} is missing: run `cargo xtask setup`"
            );
        }
        place.write("cni/10-berth.conflist", &conflist(place))?;
        let config = place.write("containerd.toml", &containerd_config(place, &tools))?;
        let args = ["--config".to_owned(), config.to_string_lossy().into_owned()];
        world.spawn("containerd", &tools::find("containerd")?, &args)?;
        world.ready("containerd", || ctr(world, &["version"]).map(drop))?;
        images::import(world, place, &images::of_node(bin)?)
    })?;
    out::timed("start the kubelet and kube-proxy", || {
        place.write("resolv.conf", "")?;
        for dir in ["manifests", "pod-logs"] {
            fs::create_dir_all(place.dir.join(dir)).with_context(|| format!("cannot make {dir}"))?;
        }
        let config = place.write("kubelet.yaml", &kubelet_config(place))?;
        let root = place.dir.join("kubelet");
        let kubeconfig = place.kubeconfig("node");
        let args = [
            ("config", config.as_path()),
            ("root-dir", root.as_path()),
            ("kubeconfig", kubeconfig.as_path()),
            ("hostname-override", Path::new(NODE)),
            ("node-ip", Path::new(&place.address)),
        ];
        let args = args.map(|(name, value)| format!("--{name}={}", value.display()));
        world.spawn("kubelet", &bin.join("kubelet"), &args)?;
        let config = place.write("kube-proxy.yaml", &proxy_config(place))?;
        world.spawn("kube-proxy", &bin.join("kube-proxy"), &[format!("--config={}", config.display())])
    })
}

/// Runs ctr in the namespace of the CRI plugin.
///
/// # Errors
/// The command fails.
pub(super) fn ctr(world: &World, args: &[&str]) -> Result<String> {
    let ctr = tools::find("ctr")?;
    let ctr = ctr.to_string_lossy();
    world.run(&[&[&*ctr, "--address", SOCKET, "--namespace", "k8s.io"], args].concat())
}

fn conflist(place: &Place) -> String {
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "berth-cluster", "plugins": [
{{"type": "ptp", "ipam": {{"type": "host-local", "dataDir": "{}/cni-data", "ranges": [[{{"subnet": "{NODE_PODS}"}}]],
  "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
{{"type": "portmap", "capabilities": {{"portMappings": true}}, "backend": "nftables"}}]}}
"#,
        place.dir.display()
    )
}

fn containerd_config(place: &Place, tools: &Path) -> String {
    let (dir, tools) = (place.dir.display(), tools.display());
    let off = ["nri.v1.nri", "snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.devmapper"]
        .map(|plugin| format!("\"io.containerd.{plugin}\""))
        .join(", ");
    format!(
        r#"version = 3
root = "{dir}/containerd"
state = "/run/containerd"
disabled_plugins = [{off}, "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{tools}"]
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
"#,
        pause = images::PAUSE,
    )
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
staticPodPath: "{dir}/manifests"
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

fn proxy_config(place: &Place) -> String {
    format!(
        r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {{kubeconfig: "{}"}}
hostnameOverride: {NODE}
clusterCIDR: {PODS}
bindAddress: 0.0.0.0
# The limits of connection tracking are the machine's, not the namespaces'.
conntrack: {{maxPerCore: 0, min: 0}}
"#,
        place.kubeconfig("kube-proxy").display()
    )
}
