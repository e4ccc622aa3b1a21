//! Further nodes of a cluster, each in namespaces of its own, so that several kinds of node have one control plane.

use super::{Cluster, Cni, Node, ProxyMode, berth, condition, kubelet, pki, place::Place, world::World};
use crate::{out, peers};
use anyhow::{Context, Result, bail};
use berth_harness::{cgroup, process, process::Process, tools::Build};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Programs whose processes are a node's own, by the names of their files. Shims and pause processes count with pods.
const OWN: [&str; 4] = ["berth", "containerd", "kubelet", "kube-proxy"];

/// A node that joined. Its processes outlive this value; they end with the cluster or by [`JoinedNode::end`].
#[derive(Debug)]
pub(crate) struct JoinedNode {
    place: Place,
    world: World,
}

impl Cluster {
    /// Starts a node of this kind and name in namespaces beside the control plane's, and waits until it is Ready.
    /// `build` is the build of Berth's programs.
    ///
    /// # Errors
    /// A program does not build, start or get ready.
    pub(crate) fn join(&self, kind: Node, name: &str, build: Build) -> Result<JoinedNode> {
        let place = self.place.of_node(name)?;
        place.make_files()?;
        pki::make_node(&self.place, &place)?;
        let world = World::make(&place, Some(&self.world))?;
        let daemon = match kind {
            Node::None => bail!("a node is berth or kubelet"),
            Node::Kubelet | Node::Services => {
                let bin = peers::get(&kubelet::PROGRAMS)?;
                let proxy = match kind {
                    Node::Services => kubelet::Proxy::Berth(build),
                    _ => kubelet::Proxy::KubeProxy(ProxyMode::Nftables),
                };
                kubelet::start(&world, &place, &bin, Cni::Ptp, proxy).map(|()| "kubelet")?
            }
            Node::Berth => {
                let bin = peers::get(&berth::PROGRAMS)?;
                berth::start(&world, &place, &bin, build, berth::Join::Kubeconfig).map(|()| berth::DAEMON)?
            }
        };
        out::timed(&format!("wait until {name} is Ready"), || {
            world.ready(daemon, || condition(&self.kubectl, &["node", name], "Ready"))
        })?;
        Ok(JoinedNode { place, world })
    }
}

impl JoinedNode {
    /// Runs `work` in the node's network, as do the threads that it starts.
    ///
    /// # Errors
    /// The node has ended.
    pub(crate) fn in_its_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.world.in_its_network(work)
    }

    /// Name of the node.
    pub(crate) fn name(&self) -> &str {
        &self.place.node
    }

    /// A command in the node's namespaces and cgroup; its program and arguments are to be added.
    ///
    /// # Errors
    /// The directory of the tools is unknown.
    pub(crate) fn command(&self) -> Result<Command> {
        self.world.enter()
    }

    /// Kills a daemon of the node by SIGKILL.
    ///
    /// # Errors
    /// It does not end.
    pub(crate) fn kill(&self, name: &str) -> Result<()> {
        self.world.kill(name)
    }

    /// Starts a daemon of the node that was killed.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(&self, name: &str) -> Result<()> {
        self.world.start(name)
    }

    /// The process of a daemon; `None` where it does not run.
    pub(crate) fn daemon(&self, name: &str) -> Option<Process> {
        self.world.process(name)
    }

    /// Runs a command in the node's namespaces and returns its standard output.
    ///
    /// # Errors
    /// The command fails.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        self.world.run(args)
    }

    /// Removes the hooks and tables of an agent of Services alone that does not run.
    ///
    /// # Errors
    /// `berth reset` fails.
    pub(crate) fn reset_services(&self, build: Build) -> Result<()> {
        berth::reset_services(&self.world, &self.place, build)
    }

    /// File of the node's network namespace, as this machine sees it.
    pub(crate) fn network(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.world.init().pid).into()
    }

    /// The cgroup of the node's processes, whose sockets have the agent's hooks.
    ///
    /// # Errors
    /// The machine has no cgroup2 hierarchy.
    pub(crate) fn hooked_cgroup(&self) -> Result<PathBuf> {
        let v2 = cgroup::v2().context("this machine has no cgroup2 hierarchy")?;
        Ok(v2.join(&self.place.cgroup).join("system"))
    }

    /// Path of a file in the node's namespaces, as this machine sees it.
    fn inside(&self, path: &Path) -> PathBuf {
        let root = format!("/proc/{}/root", self.world.init().pid);
        Path::new(&root).join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Path of the agent's socket, as this machine sees it.
    ///
    /// # Errors
    /// The node's name is none.
    pub(crate) fn agent_socket(&self) -> Result<PathBuf> {
        Ok(self.inside(&berth::roots(&self.place)?.agent_socket()))
    }

    /// The node's own processes with the names of their programs.
    ///
    /// # Errors
    /// The namespaces are gone.
    pub(crate) fn processes(&self) -> Result<BTreeMap<Process, String>> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid"));
        let own = namespace(self.world.init().pid).context("cannot read the node's namespace")?;
        let mut found = BTreeMap::new();
        for process in process::all().into_keys() {
            // A process that has ended meanwhile has neither.
            let Ok(exe) = fs::read_link(format!("/proc/{}/exe", process.pid)) else { continue };
            let name = exe.file_name().unwrap_or_default().to_string_lossy();
            let name = name.trim_end_matches(" (deleted)");
            if namespace(process.pid).is_ok_and(|n| n == own) && OWN.contains(&name) {
                found.insert(process, name.to_owned());
            }
        }
        Ok(found)
    }

    /// Ends the node's processes.
    ///
    /// # Errors
    /// They do not end.
    pub(crate) fn end(self) -> Result<()> {
        super::world::remove(&self.place)
    }
}
