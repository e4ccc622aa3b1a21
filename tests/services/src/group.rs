//! Cgroups of the cgroup2 hierarchy, to which socket hooks are attached.

use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A cgroup of the test, removed with all cgroups below it when this value is dropped.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// Creates a cgroup at the root of the hierarchy.
    ///
    /// # Errors
    /// No cgroup2 hierarchy is mounted, or a cgroup of this name exists.
    pub fn new(name: &str) -> Result<Group> {
        Group::at(root()?.join(name))
    }

    /// Creates a cgroup below this one.
    ///
    /// # Errors
    /// A cgroup of this name exists.
    pub fn child(&self, name: &str) -> Result<Group> {
        Group::at(self.path.join(name))
    }

    fn at(path: PathBuf) -> Result<Group> {
        fs::create_dir(&path).with_context(|| format!("make the group {}", path.display()))?;
        Ok(Group { path })
    }

    /// Directory of the cgroup.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            crate::tell(&format!("remove the group {}: {error}", self.path.display()));
        }
    }
}

/// Mount point of the cgroup2 hierarchy.
///
/// # Errors
/// The hierarchy is not mounted.
pub fn root() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    let point = text.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4))?
    });
    point.map(PathBuf::from).context("no cgroup2 hierarchy is mounted")
}
