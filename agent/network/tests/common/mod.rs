//! A node in its own network namespaces; the machine's network is not touched.
#![allow(dead_code, reason = "each test binary uses its part")]

use berth_core::{
    ids::{Namespace, NodeName, PodKey, PodName, PodUid},
    roots::Roots,
};
pub(crate) use berth_harness::netns::Netns;
use berth_harness::wait::{PATIENCE, until};
use berth_network::{Network, NetworkConfig, SandboxNetwork};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
    time::{Duration, SystemTime},
};

pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A node with its own roots and its own "host" network namespace.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) host: Netns,
    pub(crate) roots: Roots,
}

impl Node {
    pub(crate) fn new(what: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let host = Netns::unique(what).unwrap();
        for args in ["link set lo up", "addr add 192.0.2.10/32 dev lo", "addr add 2001:db8:1::1/128 dev lo"] {
            host.ip(args).unwrap();
        }
        let roots = Roots::below(dir.path(), NodeName::new("node-a").unwrap(), "berth-network-test");
        for dir in [&roots.cni_conf, &roots.cni_bin, &roots.runtime_state, &roots.lasting_state] {
            fs::create_dir_all(dir).unwrap();
        }
        Node { dir, host, roots }
    }

    /// A node with our own plugin and a configuration for it.
    pub(crate) fn with_plugin(what: &str) -> Node {
        let node = Node::new(what);
        std::os::unix::fs::symlink(plugin(), node.roots.cni_bin.join("berth-cni")).unwrap();
        node.conflist(&node.own_conflist("pods"));
        node
    }

    pub(crate) fn own_conflist(&self, name: &str) -> String {
        let data = self.data_dir();
        format!(
            r#"{{"cniVersion":"1.1.0","name":"{name}","plugins":[{{"type":"berth-cni",
                "subnets":["10.77.0.0/24","fd77::/64"],"dataDir":{data:?},"quarantineSeconds":0}}]}}"#
        )
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("lib/cni")
    }

    pub(crate) fn conflist(&self, text: &str) {
        fs::write(self.roots.cni_conf.join("10-test.conflist"), text).unwrap();
    }

    /// Installs a plugin written in shell.
    pub(crate) fn script(&self, name: &str, body: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.roots.cni_bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn open(&self) -> Network {
        self.open_with(NetworkConfig { masquerade: None, plugin_timeout: Duration::from_secs(20) })
    }

    pub(crate) fn open_with(&self, config: NetworkConfig) -> Network {
        Network::open(&self.roots, config).unwrap()
    }

    /// Runs a future on a runtime whose threads are in the node's "host" network namespace.
    pub(crate) fn block_on<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        self.host
            .enter(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(future)
            })
            .unwrap()
    }

    /// The veth devices and pod routes of the host, sorted.
    pub(crate) fn leftovers(&self) -> String {
        let links = self.host.ip("-o link show type veth").unwrap();
        let v4 = self.host.ip("route").unwrap();
        let v6 = self.host.ip("-6 route").unwrap();
        [links, v4, v6].concat().lines().filter(|l| l.contains("veth")).collect::<Vec<_>>().join("\n")
    }

    /// What is left once the process that deletes retired devices has had its time.
    pub(crate) fn lasting_leftovers(&self) -> String {
        // The assertion on the value says what has stayed.
        drop(until("no device is left", PATIENCE, || self.leftovers().is_empty()));
        self.leftovers()
    }

    /// The keys that have addresses in the journal.
    pub(crate) fn allocated(&self, network: &str) -> Vec<String> {
        let text = fs::read_to_string(self.data_dir().join(network).join("journal")).unwrap_or_default();
        let mut held = BTreeMap::new();
        for line in text.lines() {
            let fields: Vec<_> = line.split(' ').collect();
            match fields.as_slice() {
                [_, "a", id, _, ips] => drop(held.insert(id.to_string(), ips.to_string())),
                [_, "r", id, ..] => drop(held.remove(*id)),
                _ => {}
            }
        }
        held.into_keys().collect()
    }

    /// The sandboxes with an attachment file.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.roots.lasting_state.join("attachments"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub(crate) fn sandbox(id: &str, netns: &Path) -> SandboxNetwork {
    SandboxNetwork {
        uid: PodUid::new(format!("uid-{id}")).unwrap(),
        key: PodKey { namespace: Namespace::new("default").unwrap(), name: PodName::new("web-0").unwrap() },
        sandbox_id: id.to_owned(),
        netns: netns.to_owned(),
        ports: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

/// The plugin's binary. cargo does not track another crate's binary: it is taken from beside this
/// test if it is newer than its sources, as in a test run of the whole workspace, and built
/// otherwise.
pub(crate) fn plugin() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| fresh_plugin().unwrap_or_else(build_plugin)).clone()
}

fn fresh_plugin() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.parent()?.parent()?.join("berth-cni");
    let built = fs::metadata(&path).ok()?.modified().ok()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cni");
    let mut newest = SystemTime::UNIX_EPOCH;
    for folder in ["ipam", "ipam/src", "plugin", "plugin/src"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let metadata = entry.unwrap().metadata().unwrap();
            newest = newest.max(metadata.modified().unwrap());
        }
    }
    (built > newest).then_some(path)
}

fn build_plugin() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    let output = run(Command::new(cargo)
        .args(["build", "-q", "-p", "berth-cni", "--message-format=json", "--manifest-path"])
        .arg(manifest));
    let messages = String::from_utf8(output.stdout).unwrap();
    let path = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|m| m["executable"].as_str().filter(|p| p.ends_with("/berth-cni")).map(PathBuf::from));
    path.expect("cargo names no executable berth-cni")
}
