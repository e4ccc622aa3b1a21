//! Cargo, called from here.

use anyhow::{Context, Result, ensure};
use berth_harness::tools;
use serde::Deserialize;
use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

/// A command of cargo's in the repository's root.
pub(crate) fn command(args: &[&str]) -> Command {
    tools::cargo(args)
}

/// `cargo metadata`: the workspace's crates, and with `deps` the whole graph.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    /// Packages.
    pub(crate) packages: Vec<Package>,
    /// Ids of the workspace's own.
    pub(crate) workspace_members: Vec<String>,
}

/// A package.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    /// Its id.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// Its manifest's path.
    pub(crate) manifest_path: PathBuf,
    /// What it asks for.
    pub(crate) dependencies: Vec<Dependency>,
}

/// An entry of a manifest's dependencies.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    /// The package's name.
    pub(crate) name: String,
    /// `None`, `dev` or `build`.
    pub(crate) kind: Option<String>,
}

impl Metadata {
    /// Reads it; only manifests are looked at, nothing is built.
    pub(crate) fn read() -> Result<Metadata> {
        let out = command(&["metadata", "--format-version", "1", "--no-deps", "--locked"])
            .stderr(Stdio::inherit())
            .output()
            .context("run cargo metadata")?;
        ensure!(out.status.success(), "cargo metadata failed");
        serde_json::from_slice(&out.stdout).context("read cargo metadata")
    }

    /// The workspace's own packages.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|p| self.workspace_members.contains(&p.id))
    }
}
