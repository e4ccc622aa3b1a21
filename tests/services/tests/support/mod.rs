//! Nodes of the real programs, each in a network namespace of its own.
#![allow(dead_code, unreachable_pub, reason = "each suite uses its part")]

use anyhow::{Context, Result, ensure};
use berth_ebpf_loader::{Pins, detach};
use berth_harness::{
    image,
    machine::{Machine, Scope},
    netns::Netns,
    node::Node,
    tools::{self, Build},
};
use berth_tests_services::load::Load;
use std::{ffi::OsStr, path::PathBuf, sync::OnceLock};

/// Whether the suites run in full instead of a tenth (`BERTH_SCALE=full`).
pub fn full() -> bool {
    std::env::var_os("BERTH_SCALE").as_deref() == Some(OsStr::new("full"))
}

/// The program `berth-load`, built on the first call.
pub fn load() -> Result<Load> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let done = tools::cargo(&["build", "--quiet", "--locked", "--package", "berth-load"]).status();
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| tools::repository().join("target"), PathBuf::from);
        done.is_ok_and(|status| status.success()).then(|| target.join("debug/berth-load"))
    });
    Load::at(built.as_deref().context("berth-load does not build")?)
}

/// A node whose agent, containerd and pods run in a network namespace that stands for the machine's. The node
/// is ended when this value is dropped.
pub struct Guest {
    pub node: Node,
    pub netns: Netns,
    before: Machine,
    scope: Scope,
    ended: bool,
    _dir: tempfile::TempDir,
}

impl Guest {
    /// Creates a node and its namespace without starting a process.
    pub fn new(what: &str, programs: PathBuf) -> Result<Guest> {
        let dir = tempfile::Builder::new().prefix(&format!("berth-svc-{what}-")).tempdir_in("/tmp")?;
        let unique = dir.path().file_name().and_then(OsStr::to_str).context("a name")?.to_ascii_lowercase();
        let mut scope = Scope::of_node(Vec::new());
        // On a machine without named namespaces the first one makes /run/netns a mount, which stays.
        drop(Netns::router(&format!("{unique}-first"))?);
        let before = Machine::now(&scope)?;
        let netns = Netns::router(&unique)?;
        let node = Node::new(&dir.path().join(&unique), &dir.path().join("run"), what, programs)?;
        scope.marks = node.marks();
        Ok(Guest { node, netns, before, scope, ended: false, _dir: dir })
    }

    /// Starts containerd and imports the test image.
    pub fn containerd(&self) -> Result<()> {
        self.netns.enter(|| {
            self.node.containerd.start()?;
            image::import_test(&self.node.containerd, &self.node.dir)
        })?
    }

    /// Starts the agent and waits until it answers.
    pub fn agent(&self) -> Result<()> {
        self.netns.enter(|| self.node.start_agent().map(drop))?
    }

    /// Cgroup to which the node's hooks are attached.
    pub fn hooked(&self) -> Result<PathBuf> {
        let group = berth_tests_services::group::root()?.join(&self.node.roots.cgroup_hooks);
        ensure!(group.is_dir(), "{} is not there", group.display());
        Ok(group)
    }

    fn down(&mut self) -> Result<()> {
        self.ended = true;
        self.netns.enter(|| self.node.down())??;
        // Pins that the test itself made, where no agent ran that could reset them.
        detach(&Pins::new(&self.node.roots.bpf_pins)).context("remove the pins")
    }

    /// Ends the node. Fails if ending fails or the machine differs afterwards.
    pub fn end(self) -> Result<()> {
        Guest::end_all([self])
    }

    /// Ends several nodes in the order of their creation, and compares the machine after the last one: until
    /// then each node's objects are differences to the others.
    pub fn end_all<const N: usize>(mut guests: [Guest; N]) -> Result<()> {
        for guest in &mut guests {
            guest.down()?;
        }
        let first = guests.first().context("no node")?;
        let (before, mut scope) = (first.before.clone(), first.scope.clone());
        scope.marks = guests.iter().flat_map(|guest| guest.scope.marks.clone()).collect();
        drop(guests);
        before.assert_as_before(&scope)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tell(&format!("the agent's last words:\n{}", self.node.last_words()));
        }
        if !self.ended
            && let Err(error) = self.down()
        {
            tell(&format!("the node could not be ended: {error:#}"));
        }
    }
}

/// Directory of the plain build's programs.
pub fn plain() -> Result<PathBuf> {
    tools::programs(Build::Plain)
}

/// Directory of another build of the same sources.
pub fn other() -> Result<PathBuf> {
    tools::programs(Build::Failpoints)
}

/// Both builds, optimised.
pub fn optimised() -> Result<[PathBuf; 2]> {
    // The plain build comes last, so its outputs stay in the target directory.
    let other = tools::programs(Build::ReleaseFailpoints)?;
    Ok([tools::programs(Build::Release)?, other])
}

#[expect(clippy::print_stderr, reason = "the user of a suite reads it there")]
pub fn tell(text: &str) {
    eprintln!("{text}");
}

/// Manifest of a Service without a selector.
pub fn service(name: &str, address: std::net::Ipv4Addr, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  type: ClusterIP\n  clusterIP: {address}\n  \
         ports:\n  - {{name: t, protocol: TCP, port: {port}, targetPort: 8080}}\n  - {{name: u, protocol: UDP, port: {port}, \
         targetPort: 8080}}\n"
    )
}

/// Manifest of the only slice of a Service.
pub fn slice(service: &str, node: Option<&str>, port: u16, endpoints: &[std::net::Ipv4Addr]) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-0\n  namespace: default\n  labels: \
         {{kubernetes.io/service-name: {service}}}\naddressType: IPv4\nports:\n- {{name: t, protocol: TCP, port: {port}}}\n- {{name: u, \
         protocol: UDP, port: {port}}}\nendpoints:\n"
    );
    for address in endpoints {
        let node = node.map(|n| format!(", nodeName: {n}")).unwrap_or_default();
        // Writing to a String cannot fail.
        let _written = writeln!(text, "- {{addresses: [{address}], conditions: {{ready: true}}{node}}}");
    }
    text
}
