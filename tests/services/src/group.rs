//! Control groups of the cgroup2 hierarchy: where socket hooks are attached.

use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A group of our own; it and what was made below it go when this value goes.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes a group at the root of the hierarchy.
    ///
    /// # Errors
    /// There is no such hierarchy, or there is such a group.
    pub fn new(name: &str) -> Result<Group> {
        Group::at(root()?.join(name))
    }

    /// Makes a group below this one.
    ///
    /// # Errors
    /// There is one of this name.
    pub fn child(&self, name: &str) -> Result<Group> {
        Group::at(self.path.join(name))
    }

    fn at(path: PathBuf) -> Result<Group> {
        fs::create_dir(&path).with_context(|| format!("make the group {}", path.display()))?;
        Ok(Group { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            crate::netns::tell(&format!("remove the group {}: {error}", self.path.display()));
        }
    }
}

/// Where the cgroup2 hierarchy is mounted.
///
/// # Errors
/// It is not.
pub fn root() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    let point = text.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4))?
    });
    point.map(PathBuf::from).context("no cgroup2 hierarchy is mounted")
}
