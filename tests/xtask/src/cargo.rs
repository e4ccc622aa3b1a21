//! Calls of cargo and its metadata.

use anyhow::{Context, Result, ensure};
use berth_harness::tools;
use serde::Deserialize;
use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

/// A cargo command in the repository's root.
pub(crate) fn command(args: &[&str]) -> Command {
    tools::cargo(args)
}

/// Output of `cargo metadata`: the workspace's crates; with `deps` the whole dependency graph.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    /// All packages.
    pub(crate) packages: Vec<Package>,
    /// Ids of the workspace's own packages.
    pub(crate) workspace_members: Vec<String>,
}

/// A package.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    /// Package id.
    pub(crate) id: String,
    /// Package name.
    pub(crate) name: String,
    /// Path of the package's manifest.
    pub(crate) manifest_path: PathBuf,
    /// Dependencies that the manifest names.
    pub(crate) dependencies: Vec<Dependency>,
}

/// A dependency named in a manifest.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    /// Name of the package.
    pub(crate) name: String,
    /// Kind of dependency: `None` (normal), `dev` or `build`.
    pub(crate) kind: Option<String>,
}

impl Metadata {
    /// Reads the metadata. Cargo reads manifests only and builds nothing.
    pub(crate) fn read() -> Result<Metadata> {
        let out = command(&["metadata", "--format-version", "1", "--no-deps", "--locked"])
            .stderr(Stdio::inherit())
            .output()
            .context("run cargo metadata")?;
        ensure!(out.status.success(), "cargo metadata failed");
        serde_json::from_slice(&out.stdout).context("read cargo metadata")
    }

    /// Packages of the workspace itself.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|p| self.workspace_members.contains(&p.id))
    }
}
