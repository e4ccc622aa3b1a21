//! Where this node keeps everything: from a file, or the defaults.

use anyhow::Context as _;
use berth_core::{ids::NodeName, roots::Roots};
use std::path::Path;

/// Reads the file, or makes the defaults with the machine's host name as the node's name.
pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Roots> {
    match file {
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("{}: not a roots file", path.display()))
        }
        None => {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host name")?;
            let name = host.trim().to_ascii_lowercase();
            let node = NodeName::new(name).context("the host name cannot be the node's name")?;
            Ok(Roots::defaults(node))
        }
    }
}
