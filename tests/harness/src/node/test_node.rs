//! The node of one test: made with the test and ended with it, one at a time in a process.

use super::{Node, tell};
use crate::tools::{self, Build};
use anyhow::Result;
use berth_core::sync::lock;
use std::{
    path::Path,
    sync::{Mutex, MutexGuard},
};

/// Lock held by each [`TestNode`]. A process runs one node at a time, because suites count what is on the
/// machine.
static ALONE: Mutex<()> = Mutex::new(());

/// A test's node with a running containerd. Only one exists in a process at a time; dropping the value ends
/// the node.
#[derive(Debug)]
pub struct TestNode {
    node: Node,
    _alone: MutexGuard<'static, ()>,
    ended: bool,
    _dir: tempfile::TempDir,
}

impl std::ops::Deref for TestNode {
    type Target = Node;
    fn deref(&self) -> &Node {
        &self.node
    }
}

impl std::ops::DerefMut for TestNode {
    fn deref_mut(&mut self) -> &mut Node {
        &mut self.node
    }
}

impl TestNode {
    /// Prepares a node: containerd runs and holds the images, the agent is not started.
    ///
    /// # Errors
    /// A part of the node does not start.
    pub fn prepare(build: Build) -> Result<TestNode> {
        let alone = lock(&ALONE);
        let dir = tempfile::Builder::new().prefix("berth-node-").tempdir_in("/tmp")?;
        let programs = tools::programs(build)?;
        let node = Node::new(
            &dir.path().join(unique(dir.path())),
            Path::new(&dir.path().join("run")),
            "node",
            programs,
        )?;
        let node = TestNode { node, _alone: alone, ended: false, _dir: dir };
        node.containerd.start()?;
        crate::image::import_test(&node.containerd, &node.dir)?;
        Ok(node)
    }

    /// Prepares a node and starts the agent.
    ///
    /// # Errors
    /// As [`TestNode::prepare`].
    pub fn start(build: Build) -> Result<TestNode> {
        let node = TestNode::prepare(build)?;
        node.start_agent()?;
        Ok(node)
    }

    /// Ends the node and returns what went wrong on the way.
    ///
    /// # Errors
    /// As [`Node::down`].
    pub fn end(mut self) -> Result<()> {
        self.ended = true;
        self.node.down()
    }
}

fn unique(dir: &Path) -> String {
    dir.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tell(&format!("the agent's last words:\n{}", self.node.last_words()));
            tell(&format!("containerd's last words:\n{}", self.node.containerd.last_words(15)));
        }
        if !self.ended
            && let Err(error) = self.node.down()
        {
            tell(&format!("the node could not be ended: {error:#}"));
        }
    }
}
