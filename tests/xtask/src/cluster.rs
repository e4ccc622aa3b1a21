//! `cargo xtask cluster`: an unmodified control plane with at most one node, on this machine, to be used by
//! hand; `--down` removes it.
//!
//! All of it runs in namespaces and a cgroup of its own (`world`), and its files lie in one directory
//! (`place`). A start that fails removes what it made.

mod approval;
mod audit;
mod berth;
mod bootstrap;
mod cni;
mod containerd;
mod control_plane;
mod daemon_set;
mod disturb;
mod fault_proxy;
mod images;
mod kubelet;
mod look;
mod node;
mod pki;
mod place;
mod world;

use crate::{out, peers, setup};
use anyhow::{Context, Result, bail};
pub(crate) use audit::{AUDIT, Asked, Audit, AuditLog};
use berth_harness::{
    oci::Image,
    tools::{self, Build},
    wait::{self, PATIENCE},
};
pub(crate) use cni::Cni;
pub(crate) use control_plane::Etcd;
use control_plane::Kubectl;
pub(crate) use daemon_set::BERTH_IMAGES;
pub(crate) use disturb::{AGENT, API_SERVER, KUBE_PROXY};
pub(crate) use fault_proxy::FaultProxy;
pub(crate) use images::suite::REGISTRIES;
pub(crate) use look::{Differences, Look};
pub(crate) use node::JoinedNode;
use place::Place;
pub(crate) use place::{DNS, NODE};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
};
use world::World;

/// Options of `cargo xtask cluster`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
    /// Directory of the cluster's files; `berth/cluster` of the cache directory where none is named. Clusters
    /// in several directories do not meet.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// End the cluster and remove everything that it made.
    #[arg(long, conflicts_with_all = ["node", "etcd", "goaway_chance", "keep"])]
    down: bool,
    /// Kill a program of the running cluster with SIGKILL, such as `kube-apiserver`.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["node", "etcd", "goaway_chance", "keep", "down"])]
    kill: Option<String>,
    /// Start a program of the running cluster again.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["node", "etcd", "goaway_chance", "keep", "down"])]
    start: Option<String>,
}

/// What a cluster is made of.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What runs pods on the node.
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) node: Node,
    /// Which etcd keeps the objects.
    #[arg(long, value_enum, default_value = "old")]
    pub(crate) etcd: Etcd,
    /// Share of requests after which the API server asks the client to connect anew (at most 0.02).
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub(crate) goaway_chance: f64,
    /// Which requests the API server logs.
    #[arg(skip)]
    pub(crate) audit: Audit,
    /// Let the node `berth` join by nothing but a bootstrap token.
    #[arg(long)]
    pub(crate) bootstrap: bool,
    /// Keep what a failure leaves, for inspection.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Run the optimised agent.
    #[arg(long)]
    pub(crate) release: bool,
    /// How kube-proxy carries Services.
    #[arg(long, value_enum, default_value = "nftables")]
    pub(crate) proxy_mode: ProxyMode,
    /// How the pods of the kubelet's node are attached.
    #[arg(long, value_enum, default_value = "ptp")]
    pub(crate) cni: Cni,
}

/// Modes of kube-proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProxyMode {
    /// A table of its own in nf_tables.
    Nftables,
    /// Chains of `iptables`, which keeps them in nf_tables (`iptables-nft`).
    Iptables,
}

impl ProxyMode {
    /// The mode's name in kube-proxy's configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ProxyMode::Nftables => "nftables",
            ProxyMode::Iptables => "iptables",
        }
    }
}

impl Options {
    /// A cluster that nothing disturbs, with the plain build of the agent, which joins by a certificate.
    pub(crate) fn new(node: Node, etcd: Etcd, audit: Audit) -> Options {
        Options {
            node,
            etcd,
            goaway_chance: 0.0,
            audit,
            bootstrap: false,
            keep: false,
            release: false,
            proxy_mode: ProxyMode::Nftables,
            cni: Cni::Ptp,
        }
    }
}

/// What runs pods on the one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Node {
    /// No node; who has `node.kubeconfig` may join as it.
    None,
    /// The real kubelet and kube-proxy over containerd's CRI plugin.
    Kubelet,
    /// The agent of this workspace in the place of the kubelet and kube-proxy.
    Berth,
    /// The real kubelet, with the agent of this workspace in the place of kube-proxy alone (`--services-only`).
    Services,
}

/// Starts the cluster, or ends it (`--down`).
pub(crate) fn run(args: &Args) -> Result<bool> {
    let dir = tools::dir_or_cached(args.dir.as_deref(), "cluster")?;
    let place = Place::of(&dir)?;
    if args.down {
        if place.is_made() {
            out::timed("end the cluster", || world::remove(&place))?;
        } else {
            out::line(&format!("there is no cluster in {}", place.dir.display()));
        }
        return Ok(true);
    }
    let running = World::running(&place);
    if args.kill.is_some() || args.start.is_some() {
        let world = running.with_context(|| format!("no cluster runs in {}", place.dir.display()))?;
        args.kill.as_deref().map_or(Ok(()), |name| world.kill(name))?;
        args.start.as_deref().map_or(Ok(()), |name| world.start(name))?;
        return Ok(true);
    }
    if let Some(world) = running {
        out::line(&format!("a cluster runs already in {}; nothing was changed", place.dir.display()));
        let all = control_plane::DAEMONS.iter().chain(&kubelet::DAEMONS).chain(&[berth::DAEMON]);
        for name in all.filter(|n| place.process(n).exists() && world.process(n).is_none()) {
            out::line(&format!("{name} does not run; its log: {}", place.log(name).display()));
        }
        tell(&place, &Kubectl::new(&place, &peers::get(&["kubectl"])?));
        return Ok(true);
    }
    let cluster = start(&dir, &args.options)?;
    tell(&cluster.place, &cluster.kubectl);
    Ok(true)
}

/// A running cluster. The processes outlive this value; [`Cluster::end`] ends them.
#[derive(Debug)]
pub(crate) struct Cluster {
    place: Place,
    world: World,
    kubectl: Kubectl,
}

/// Starts a cluster in a directory and waits until it is ready. What an ended cluster left there is removed.
///
/// # Errors
/// A program does not build, start or get ready. What was made is removed then, unless `keep` is set.
pub(crate) fn start(dir: &Path, options: &Options) -> Result<Cluster> {
    setup::for_cluster()?;
    let mut programs = [&[options.etcd.program()], control_plane::PROGRAMS.as_slice()].concat();
    match options.node {
        Node::None => {}
        Node::Kubelet | Node::Services => programs.extend(kubelet::PROGRAMS),
        Node::Berth => programs.extend(berth::PROGRAMS),
    }
    let bin = peers::get(&programs)?;
    let place = Place::of(dir)?;
    if place.is_made() {
        out::timed("remove what an earlier cluster left", || world::remove(&place))?;
    }
    place.make_files()?;
    match make(options, &place, &bin) {
        Err(error) if !options.keep => match world::remove(&place) {
            Ok(()) => Err(error),
            Err(also) => Err(error.context(format!("the cluster is not removed: {also:#}"))),
        },
        done => done,
    }
}

fn make(options: &Options, place: &Place, bin: &Path) -> Result<Cluster> {
    out::timed("make certificates and kubeconfigs", || pki::make(place))?;
    let world = out::timed("make namespaces", || World::make(place, None))?;
    control_plane::start(&world, place, bin, options)?;
    let kubectl = Kubectl::new(place, bin);
    kubectl.apply(&place.write("manifests/proxier.yaml", include_str!("cluster/proxier.yaml"))?)?;
    bootstrap::make(place, &kubectl)?;
    let dns = place.write("manifests/coredns.yaml", include_str!("cluster/coredns.yaml"))?;
    let build = if options.release { Build::Release } else { Build::Plain };
    let mode = options.proxy_mode;
    let of_kubelet = |proxy| kubelet::start(&world, place, bin, options.cni, proxy).map(|()| Some("kubelet"));
    let daemon = match options.node {
        Node::None => None,
        Node::Kubelet => of_kubelet(kubelet::Proxy::KubeProxy(mode))?,
        Node::Services => of_kubelet(kubelet::Proxy::Berth(build))?,
        Node::Berth => {
            let how = if options.bootstrap { berth::Join::Token } else { berth::Join::Kubeconfig };
            Some(berth::start(&world, place, bin, build, how).map(|()| berth::DAEMON)?)
        }
    };
    if let Some(daemon) = daemon {
        out::timed("wait until the node is Ready", || {
            world.ready(daemon, || condition(&kubectl, &["node", NODE], "Ready"))
        })?;
        out::timed("start CoreDNS behind its ClusterIP", || {
            kubectl.apply(&dns)?;
            wait::ok("CoreDNS is available", 2 * PATIENCE, || {
                condition(&kubectl, &["-n", "kube-system", "deployment", "coredns"], "Available")
            })
        })?;
    }
    Ok(Cluster { place: place.clone(), world, kubectl })
}

impl Node {
    /// Name for files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Node::None => "none",
            Node::Kubelet => "kubelet",
            Node::Berth => "berth",
            Node::Services => "services",
        }
    }
}

impl Cluster {
    /// Path of a file in the cluster's directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.place.dir.join(name)
    }

    /// Writes a file in the cluster's directory and returns its path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        self.place.write(name, text)
    }

    /// Runs a command in the cluster's namespaces and returns its standard output.
    ///
    /// # Errors
    /// The command fails.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        self.world.run(args)
    }

    /// Starts a further program in the cluster's namespaces; it ends with them.
    ///
    /// # Errors
    /// The program does not start.
    pub(crate) fn spawn(&self, name: &str, program: &Path, args: &[String]) -> Result<()> {
        self.world.spawn(name, program, args)
    }

    /// The administrator's kubeconfig.
    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.place.kubeconfig("admin")
    }

    /// The directory in which Berth's node keeps its pods (`/var/lib/kubelet`).
    ///
    /// # Errors
    /// The node has no valid name.
    pub(crate) fn node_state(&self) -> Result<PathBuf> {
        Ok(berth::roots(&self.place)?.pod_state)
    }

    /// Runs a command in the cluster's namespaces with its output in a file, and returns how it ended.
    ///
    /// # Errors
    /// The command cannot be run, or the file cannot be written.
    pub(crate) fn run_logged(&self, args: &[&str], log: &Path) -> Result<ExitStatus> {
        self.world.run_logged(args, log)
    }

    /// Gives the pods of Berth's node that start from now on a network with host ports.
    ///
    /// # Errors
    /// The plugin is missing, or the configuration cannot be written.
    pub(crate) fn add_host_ports(&self) -> Result<()> {
        berth::add_host_ports(&self.place)
    }

    /// Makes the images of Kubernetes' end-to-end tests that `listed` names, and gives them to the node.
    ///
    /// # Errors
    /// A program is missing, or containerd refuses an image.
    pub(crate) fn import_suite(&self, bin: &Path, listed: &str) -> Result<()> {
        images::import(&self.world, &self.place, &images::suite::all(bin, listed)?)
    }

    /// Gives images to the node's containerd.
    ///
    /// # Errors
    /// Containerd refuses an image.
    pub(crate) fn import(&self, images: &[Image]) -> Result<()> {
        images::import(&self.world, &self.place, images)
    }

    /// Copies the logs of all programs to another directory, in the place of those of an earlier run.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn keep_logs(&self, dir: &Path) -> Result<()> {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for entry in fs::read_dir(self.file("logs")).context("cannot read the logs")? {
            let entry = entry.context("cannot read the logs")?;
            let to = dir.join(entry.file_name());
            fs::copy(entry.path(), &to).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok(())
    }

    /// Ends the cluster and removes everything that it made.
    ///
    /// # Errors
    /// A process cannot be ended or a file cannot be removed.
    pub(crate) fn end(self) -> Result<()> {
        out::timed("end the cluster", || world::remove(&self.place))
    }
}

/// Fails until a condition of an object is True.
fn condition(kubectl: &Kubectl, object: &[&str], name: &str) -> Result<()> {
    let path = format!("jsonpath={{.status.conditions[?(@.type==\"{name}\")]}}");
    let text = kubectl.run(&[&["get"], object, &["-o", &path]].concat())?;
    let condition: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    if condition["status"] == "True" {
        return Ok(());
    }
    bail!("{name} of {} is {}: {}", object.join(" "), condition["status"], condition["message"])
}

fn tell(place: &Place, kubectl: &Kubectl) {
    out::line(&format!("API server: {}", place.server()));
    for (who, name) in [("administrator", "admin"), ("node berth-node", "node")] {
        out::line(&format!("kubeconfig of the {who}: {}", place.kubeconfig(name).display()));
    }
    out::line(&format!("logs: {}", place.dir.join("logs").display()));
    out::line(&format!("try: {} get --raw /readyz?verbose", kubectl.shown()));
    out::line("end it with `cargo xtask cluster --down`");
}
