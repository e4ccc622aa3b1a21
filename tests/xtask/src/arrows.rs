//! The borders between crates: core <- adapters <- pods <- berth, and what each of some dependencies may be used by.

use crate::cargo::Metadata;
use anyhow::{Context, Result, bail};
use std::{collections::BTreeMap, fs, path::Path};

/// Each crate and which crates of the workspace it may use. Adapters do not stand in each other's lists: what one
/// needs of another it states as a trait, and the wiring fills it.
const MAY_USE: &[(&str, &[&str])] = &[
    // Pure, and the ground.
    ("berth-core", &[]),
    ("berth-sys", &["berth-core"]),
    ("berth-pause", &[]),
    ("berth-api", &["berth-core"]),
    ("berth-helper", &["berth-core", "berth-sys", "berth-api"]),
    // Adapters.
    ("berth-source", &["berth-core", "berth-sys"]),
    ("berth-runtime", &["berth-core", "berth-sys", "berth-pause"]),
    ("berth-logd", &["berth-core", "berth-sys", "berth-api", "berth-helper"]),
    ("berth-probe", &["berth-core", "berth-sys", "berth-api"]),
    ("berth-network", &["berth-core", "berth-sys"]),
    ("berth-volumes", &["berth-core", "berth-sys"]),
    ("berth-node", &["berth-core", "berth-sys"]),
    ("berth-server", &["berth-core", "berth-sys", "berth-api"]),
    // Stands on top: reads what others publish, output by logd's reader, also while the agent is away.
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
        ],
    ),
    // The Service data plane: abi is the language, decide is shared by programs, tests and `berth trace`.
    ("berth-ebpf-abi", &[]),
    ("berth-ebpf-decide", &["berth-ebpf-abi"]),
    ("berth-ebpf-loader", &["berth-core", "berth-ebpf-abi", "berth-ebpf-decide"]),
    ("berth-services", &["berth-core", "berth-sys", "berth-ebpf-abi", "berth-ebpf-loader"]),
    ("berth-dns", &["berth-core", "berth-sys", "berth-api", "berth-helper"]),
    // Needs no agent.
    ("berth-cni-ipam", &[]),
    ("berth-cni", &["berth-cni-ipam"]),
    // Workers use adapters, the binary wires all.
    (
        "berth-pods",
        &[
            "berth-core",
            "berth-sys",
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
            "berth-runtime",
            "berth-logd",
            "berth-probe",
            "berth-network",
            "berth-volumes",
            "berth-node",
            "berth-server",
            "berth-cli",
            "berth-pods",
            "berth-ebpf-loader",
            "berth-services",
            "berth-dns",
        ],
    ),
    // Tests look at the programs from outside.
    ("berth-harness", &["berth-core", "berth-sys"]),
    ("berth-tests-node", &[]),
    ("berth-load", &[]),
    // Measures the data plane without an agent, with the parts that the agent is made of.
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

/// What a crate's tests may use besides, with the reason.
const TESTS_MAY_USE: &[(&str, &str, &str)] = &[
    ("berth-runtime", "berth-source", "the recorded pod shapes are read as the agent reads them"),
    ("berth-cli", "berth-server", "commands are run against the real socket"),
    ("berth-pause", "berth-sys", "the program is started as the agent starts it"),
    ("berth-tests-node", "berth-core", "the kinds of action"),
    ("berth-tests-node", "berth-sys", "mounts"),
    ("berth-ebpf-decide", "berth-ebpf-decide", "with the feature that makes random cases"),
];

/// Dependencies of others and the only crates that may use them.
const ONLY: &[(&str, &[&str])] = &[
    ("cgroups-rs", &["berth-node"]),
    ("k8s-openapi", &["berth-source"]),
    ("containerd-client", &["berth-runtime"]),
];

/// What core must never use: it decides, it does nothing.
const NOT_IN_CORE: &[&str] = &["tokio", "nix", "rustix", "libc"];

/// Where the lint against unsafe may be lifted.
const UNSAFE: &[&str] = &["berth-sys", "berth-pause", "berth-ebpf-loader"];

/// The lint; in two parts, so that this file does not find itself.
const LINT: &str = concat!("unsafe", "_code");

/// Checks the workspace as it is.
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

/// Every arrow that should not be there.
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
                // Forbidding it is welcome.
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
            ("berth-pods", "k8s-openapi", None),
            ("berth-cni", "berth-core", None),
            ("berth-core", "tokio", None),
            ("berth-source", "berth-harness", None),
        ] {
            assert_eq!(dependencies(&workspace(&[edge])).len(), 1, "{edge:?}");
        }
        for edge in [
            ("berth-network", "berth-core", None),
            ("berth-pods", "berth-logd", None),
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
