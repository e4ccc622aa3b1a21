//! The node of this workspace: the agent in the place of the kubelet and kube-proxy, over the same containerd.

use super::{
    containerd,
    place::{DNS, NODE_PODS, PODS, Place, SERVICES},
    world::World,
};
use crate::out;
use anyhow::{Context, Result};
use berth_harness::{
    NodeName, Roots,
    tools::{self, Build},
};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// Programs of the node that the peers have.
pub(super) const PROGRAMS: [&str; 1] = ["coredns"];

/// Name of the daemon that this node has in the place of the kubelet and kube-proxy.
pub(super) const DAEMON: &str = "berth";

/// How the node is known to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// By a kubeconfig with a certificate.
    Kubeconfig,
    /// By a bootstrap token, with which it gets certificates.
    Token,
}

/// The kubeconfig that the node writes when it bootstraps.
pub(super) fn written_kubeconfig(place: &Place) -> PathBuf {
    place.dir.join("node/kubelet.conf")
}

/// Starts the node. The agent registers it.
///
/// # Errors
/// A program is missing, is not built or does not start.
pub(super) fn start(world: &World, place: &Place, bin: &Path, build: Build, how: Join) -> Result<()> {
    let programs = out::timed("build berth", || tools::programs(build))?;
    out::timed("start containerd and import the images", || {
        let plugins = place.dir.join("cni-bin");
        fs::create_dir_all(&plugins).with_context(|| format!("cannot make {}", plugins.display()))?;
        symlink(programs.join("berth-cni"), plugins.join("berth-cni")).context("cannot link berth-cni")?;
        write_conflist(place, &[])?;
        containerd::start(world, place, bin, &plugins)
    })?;
    out::timed("start the agent", || {
        place.write("resolv.conf", "")?;
        let roots = place.write("roots.json", &serde_json::to_string_pretty(&roots(place)?)?)?;
        let kubeconfig = match how {
            Join::Kubeconfig => place.kubeconfig("node"),
            Join::Token => written_kubeconfig(place),
        };
        let static_pods = place.dir.join("static-pods");
        fs::create_dir_all(&static_pods).with_context(|| format!("cannot make {}", static_pods.display()))?;
        let mut args = vec!["--roots".to_owned(), roots.display().to_string(), "agent".to_owned()];
        let options = [
            ("kubeconfig", kubeconfig.display().to_string()),
            ("static-pods", static_pods.display().to_string()),
            ("node-ip", place.address.clone()),
            ("cluster-dns", DNS.to_owned()),
            ("cluster-domain", "cluster.local".to_owned()),
            ("service-cidr", SERVICES.to_owned()),
            // With hooks on a part of the machine's sockets the agent takes no device by itself.
            ("uplink", "eth0".to_owned()),
            ("non-masquerade-cidr", PODS.to_owned()),
            ("client-ca-file", place.pki("ca.crt").display().to_string()),
            ("shim", tools::find("containerd-shim-runc-v2")?.display().to_string()),
            ("runc", tools::find("runc")?.display().to_string()),
        ];
        args.push("--masquerade".to_owned());
        // As the kubelet has it here: an image that a run brought cannot be pulled again, whatever the machine's disk.
        args.push("--image-gc-high-threshold=100".to_owned());
        match how {
            Join::Token => {
                args.push(format!("--bootstrap-kubeconfig={}", place.kubeconfig("bootstrap").display()));
                args.push("--rotate-server-certificates".to_owned());
            }
            Join::Kubeconfig => {
                args.push(format!("--tls-cert-file={}", place.pki("kubelet-server.crt").display()));
                args.push(format!("--tls-private-key-file={}", place.pki("kubelet-server.key").display()));
            }
        }
        args.extend(options.map(|(name, value)| format!("--{name}={value}")));
        world.spawn(DAEMON, &programs.join("berth"), &args)
    })
}

/// Starts the agent for the Services of a node whose pods a kubelet runs.
///
/// # Errors
/// The agent is not built or does not start.
pub(super) fn start_services(world: &World, place: &Place, build: Build) -> Result<()> {
    let programs = out::timed("build berth", || tools::programs(build))?;
    out::timed("start the agent", || {
        let roots = place.write("roots.json", &serde_json::to_string_pretty(&roots(place)?)?)?;
        let options = [
            ("kubeconfig", place.kubeconfig("node").display().to_string()),
            ("node-ip", place.address.clone()),
            ("service-cidr", SERVICES.to_owned()),
            // With hooks on a part of the machine's sockets the agent takes no device by itself.
            ("uplink", "eth0".to_owned()),
        ];
        let mut args = ["--roots".to_owned(), roots.display().to_string(), "agent".to_owned()].to_vec();
        args.push("--services-only".to_owned());
        args.extend(options.map(|(name, value)| format!("--{name}={value}")));
        world.spawn(DAEMON, &programs.join("berth"), &args)
    })
}

/// Removes the hooks and tables of an agent that does not run.
///
/// # Errors
/// `berth reset` fails.
pub(super) fn reset_services(world: &World, place: &Place, build: Build) -> Result<()> {
    let berth = tools::programs(build)?.join("berth");
    let roots = place.dir.join("roots.json");
    let words = [&berth, Path::new("--roots"), &roots, Path::new("reset")];
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    world.run(&words.iter().map(AsRef::as_ref).collect::<Vec<&str>>()).map(drop)
}

/// Gives the pods that start from now on a network with host ports, by the reference plugin.
///
/// # Errors
/// The plugin is missing, or the configuration cannot be written.
pub(super) fn add_host_ports(place: &Place) -> Result<()> {
    let link = place.dir.join("cni-bin/portmap");
    symlink(tools::find("portmap")?, link).context("cannot link portmap")?;
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"});
    write_conflist(place, &[portmap])
}

fn write_conflist(place: &Place, further: &[Value]) -> Result<()> {
    let own = json!({"type": "berth-cni", "subnets": [NODE_PODS], "dataDir": place.dir.join("cni-data")});
    let plugins = [&[own], further].concat();
    let conflist = json!({"cniVersion": "1.1.0", "name": "berth-cluster", "plugins": plugins});
    place.write("cni/10-berth.conflist", &format!("{conflist:#}\n")).map(drop)
}

/// The roots of the node: the cluster's directory, cgroup and containerd. State of the boot lies on the `/run` of the
/// cluster's namespaces.
pub(super) fn roots(place: &Place) -> Result<Roots> {
    let below = Roots::below(&place.dir.join("node"), NodeName::new(&place.node)?, &place.cgroup);
    Ok(Roots {
        runtime_state: "/run/berth".into(),
        containerd_socket: containerd::SOCKET.into(),
        containerd_namespace: "k8s.io".into(),
        cni_conf: place.dir.join("cni"),
        cni_bin: place.dir.join("cni-bin"),
        resolv_conf: place.dir.join("resolv.conf"),
        ..below
    })
}

/// Removes what outlives the cluster's namespaces: the pinned programs and maps.
///
/// # Errors
/// They cannot be removed.
pub(super) fn remove(place: &Place) -> Result<()> {
    let pins = roots(place)?.bpf_pins;
    if !pins.exists() {
        return Ok(());
    }
    fs::remove_dir_all(&pins).with_context(|| format!("cannot remove {}", pins.display()))
}
