//! Allowed dependencies between crates (core <- pods and adapters <- executor <- berth) and the crates that may
//! use certain external dependencies.

use crate::cargo::Metadata;
use anyhow::{Context, Result, bail};
use std::{collections::BTreeMap, fs, path::Path};

/// Each crate with the workspace crates that it may use. Adapters do not use each other: an adapter states
/// its need as a trait, and the wiring in `berth` implements the trait.
const MAY_USE: &[(&str, &[&str])] = &[
    // The pure core and the basic crates below all others.
    ("berth-core", &[]),
    ("berth-sys", &["berth-core"]),
    ("berth-pause", &[]),
    ("berth-api", &["berth-core"]),
    ("berth-helper", &["berth-core", "berth-sys", "berth-api"]),
    // Adapters.
    ("berth-source", &["berth-core", "berth-sys"]),
    ("berth-kube", &["berth-core", "berth-sys"]),
    ("berth-spdy", &[]),
    // The node as a worker of a control plane: joins the client of the API server with the conversion of its objects.
    ("berth-cluster", &["berth-core", "berth-sys", "berth-kube", "berth-source"]),
    ("berth-runtime", &["berth-core", "berth-sys", "berth-pause"]),
    ("berth-logd", &["berth-core", "berth-sys", "berth-api", "berth-helper"]),
    ("berth-probe", &["berth-core", "berth-sys", "berth-api"]),
    ("berth-network", &["berth-core", "berth-sys"]),
    ("berth-volumes", &["berth-core", "berth-sys", "berth-csi-client", "berth-nfs-mount"]),
    ("berth-node", &["berth-core", "berth-sys"]),
    ("berth-stats", &["berth-core", "berth-sys"]),
    ("berth-server", &["berth-core", "berth-sys", "berth-api"]),
    // The node's API on :10250. Reviews and the node's state come by traits.
    ("berth-nodeapi", &["berth-core", "berth-sys", "berth-spdy"]),
    // The CLI reads published state and, through logd's reader, container output, also while the agent is
    // down.
    (
        "berth-cli",
        &[
            "berth-core",
            "berth-sys",
            "berth-api",
            "berth-logd",
            "berth-ebpf-abi",
            "berth-ebpf-decide",
            "berth-ebpf-loader",
            "berth-ebpf-tables",
        ],
    ),
    // A machine becomes a node of a cluster and leaves it: asks the API server, writes files, reads the agent's status.
    ("berth-join", &["berth-core", "berth-sys", "berth-api", "berth-kube"]),
    // Service data plane: abi holds the shared types; decide is shared by the eBPF programs, tests and `berth
    // trace`.
    ("berth-ebpf-abi", &[]),
    ("berth-ebpf-decide", &["berth-ebpf-abi"]),
    ("berth-ebpf-loader", &["berth-core", "berth-ebpf-abi", "berth-ebpf-decide"]),
    // User space's encoding and decoding of the Service tables: services writes by it, the CLI reads by it.
    ("berth-ebpf-tables", &["berth-ebpf-abi"]),
    (
        "berth-services",
        &["berth-core", "berth-sys", "berth-ebpf-abi", "berth-ebpf-loader", "berth-ebpf-tables"],
    ),
    ("berth-dns", &["berth-core", "berth-sys", "berth-api", "berth-helper"]),
    // The Container Storage Interface: generated types, the node's client, and a driver that needs no agent.
    ("berth-csi-proto", &[]),
    ("berth-csi-client", &["berth-csi-proto"]),
    ("berth-nfs-mount", &[]),
    ("berth-csi-nfs", &["berth-csi-proto", "berth-nfs-mount"]),
    // The CNI plugin works without an agent.
    ("berth-cni-ipam", &[]),
    ("berth-cni", &["berth-cni-ipam"]),
    // Workers know no adapter: they state their need as a trait, which the executor implements by the
    // adapters. The binary wires everything together.
    ("berth-pods", &["berth-core", "berth-sys"]),
    (
        "berth-executor",
        &[
            "berth-core",
            "berth-sys",
            "berth-pods",
            "berth-pause",
            "berth-runtime",
            "berth-logd",
            "berth-probe",
            "berth-network",
            "berth-volumes",
            "berth-node",
        ],
    ),
    (
        "berth",
        &[
            "berth-core",
            "berth-sys",
            "berth-api",
            "berth-helper",
            "berth-source",
            "berth-kube",
            "berth-join",
            "berth-cluster",
            "berth-runtime",
            "berth-logd",
            "berth-probe",
            "berth-network",
            "berth-volumes",
            "berth-csi-client",
            "berth-node",
            "berth-stats",
            "berth-server",
            "berth-nodeapi",
            "berth-cli",
            "berth-pods",
            "berth-executor",
            "berth-ebpf-loader",
            "berth-services",
            "berth-dns",
        ],
    ),
    // Test crates treat the programs as black boxes.
    ("berth-harness", &["berth-core", "berth-sys"]),
    ("berth-tests-node", &[]),
    ("berth-load", &["berth-harness", "berth-spdy"]),
    // Measures the data plane without an agent, using the agent's own crates.
    (
        "berth-tests-services",
        &[
            "berth-core",
            "berth-ebpf-abi",
            "berth-ebpf-loader",
            "berth-harness",
            "berth-services",
            "berth-sys",
        ],
    ),
    ("xtask", &["berth-harness"]),
];

/// Additional crates that a crate's tests may use, with the reason.
const TESTS_MAY_USE: &[(&str, &str, &str)] = &[
    ("berth-runtime", "berth-source", "the recorded pod shapes are read as the agent reads them"),
    ("berth-cli", "berth-server", "commands are run against the real socket"),
    ("berth-pause", "berth-sys", "the program is started as the agent starts it"),
    ("berth-tests-node", "berth-core", "the kinds of action"),
    ("berth-tests-node", "berth-csi-client", "a CSI driver for tests"),
    ("berth-tests-node", "berth-sys", "mounts"),
    ("berth-csi-client", "berth-csi-client", "with the feature that makes a driver for tests"),
    ("berth-ebpf-decide", "berth-ebpf-decide", "with the feature that makes random cases"),
];

/// External dependencies and the only crates that may use each.
const ONLY: &[(&str, &[&str])] = &[
    ("cgroups-rs", &["berth-node"]),
    ("k8s-openapi", &["berth-source"]),
    ("containerd-client", &["berth-runtime"]),
];

/// Dependencies that core must never have: core is pure decision code without I/O.
const NOT_IN_CORE: &[&str] = &["tokio", "nix", "rustix", "libc"];

/// Crates that may lift the lint against unsafe code.
const UNSAFE: &[&str] = &["berth-sys", "berth-pause", "berth-ebpf-loader"];

/// Name of the lint, in two parts so that the check does not find this file.
const LINT: &str = concat!("unsafe", "_code");

/// Checks the workspace.
pub(crate) fn check() -> Result<()> {
    let metadata = Metadata::read()?;
    let mut broken = dependencies(&metadata);
    for package in metadata.members() {
        let manifest = fs::read_to_string(&package.manifest_path)
            .with_context(|| format!("read {}", package.manifest_path.display()))?;
        if !manifest.contains("[lints]\nworkspace = true") {
            broken.push(format!("{} does not take the workspace's lints", package.name));
        }
        if !UNSAFE.contains(&package.name.as_str())
            && let Some(dir) = package.manifest_path.parent()
        {
            broken.extend(lifts_unsafe(&package.name, dir));
        }
    }
    if broken.is_empty() {
        return Ok(());
    }
    bail!("crates reach over their borders:\n  {}", broken.join("\n  "));
}

/// Every dependency that the rules do not allow.
fn dependencies(metadata: &Metadata) -> Vec<String> {
    let mut broken = Vec::new();
    let may: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let names: Vec<&str> = metadata.members().map(|p| p.name.as_str()).collect();
    for name in may.keys().filter(|n| !names.contains(n)) {
        broken.push(format!("{name} is listed in arrows.rs and does not exist"));
    }
    for package in metadata.members() {
        let name = package.name.as_str();
        let Some(allowed) = may.get(name) else {
            broken.push(format!("{name} is not listed in arrows.rs: say what it may use"));
            continue;
        };
        for dependency in &package.dependencies {
            let (to, dev) = (dependency.name.as_str(), dependency.kind.as_deref() == Some("dev"));
            let own = names.contains(&to);
            let for_tests = dev
                && (to == "berth-harness"
                    || TESTS_MAY_USE.iter().any(|(from, t, _)| *from == name && *t == to));
            if own && !allowed.contains(&to) && !for_tests {
                broken.push(format!("{name} uses {to}"));
            }
            if ONLY.iter().any(|(what, users)| *what == to && !users.contains(&name)) {
                broken.push(format!("{name} uses {to}, which has its one place"));
            }
            if name == "berth-core" && !dev && NOT_IN_CORE.contains(&to) {
                broken.push(format!("{name} uses {to}"));
            }
        }
    }
    broken
}

/// Files of a crate that lift the lint against unsafe code.
fn lifts_unsafe(name: &str, dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_default();
                // `forbid` is stricter than the workspace's lint and is allowed.
                let text = text.replace(&format!("forbid({LINT})"), "");
                if text.contains(LINT) {
                    found.push(format!("{name}: {} says something of {LINT}", path.display()));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo::{Dependency, Package};

    #[test]
    fn the_workspace_keeps_its_borders() {
        check().unwrap();
    }

    fn workspace(edges: &[(&str, &str, Option<&str>)]) -> Metadata {
        let packages: Vec<Package> = MAY_USE
            .iter()
            .map(|(name, _)| Package {
                id: (*name).into(),
                name: (*name).into(),
                manifest_path: "/nowhere/Cargo.toml".into(),
                dependencies: edges
                    .iter()
                    .filter(|(from, ..)| from == name)
                    .map(|(_, to, kind)| Dependency { name: (*to).into(), kind: kind.map(Into::into) })
                    .collect(),
            })
            .collect();
        Metadata { workspace_members: packages.iter().map(|p| p.id.clone()).collect(), packages }
    }

    #[test]
    fn wrong_arrows_are_found() {
        for edge in [
            ("berth-network", "berth-logd", None),
            ("berth-core", "berth-sys", None),
            ("berth-network", "berth-logd", Some("dev")),
            ("berth-runtime", "berth-pods", None),
            ("berth-pods", "berth-logd", None),
            ("berth-pods", "berth-executor", None),
            ("berth-pods", "k8s-openapi", None),
            ("berth-cni", "berth-core", None),
            ("berth-core", "tokio", None),
            ("berth-source", "berth-harness", None),
        ] {
            assert_eq!(dependencies(&workspace(&[edge])).len(), 1, "{edge:?}");
        }
        for edge in [
            ("berth-network", "berth-core", None),
            ("berth-executor", "berth-logd", None),
            ("berth-network", "berth-harness", Some("dev")),
            ("berth-source", "k8s-openapi", None),
            ("berth-runtime", "berth-source", Some("dev")),
        ] {
            assert_eq!(dependencies(&workspace(&[edge])), Vec::<String>::new(), "{edge:?}");
        }
    }

    #[test]
    fn a_lifted_lint_is_found_however_it_is_laid_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("src")).unwrap();
        let text = format!("#![allow(\n    dead_code, {LINT},\n    reason = \"x\")]");
        std::fs::write(dir.path().join("src/a.rs"), text).unwrap();
        assert_eq!(lifts_unsafe("x", dir.path()).len(), 1);
    }
}
